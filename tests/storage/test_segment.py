"""Segments: they roll by size and age, grow in steps, and belong to one place in one partition."""

import errno
import os
import shutil

import pytest
from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, IncompatibleFormatError, StorageError
from pystreamlog.storage import format as layout
from pystreamlog.storage.segment import Segment, list_segments, parse_seal, seal_bytes

KIB = 1 << 10
FIRST_STEP, LAST_STEP = 64 * KIB, 8 * KIB * KIB


def no_space(*args):
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- rolling ----------------------------------------------------------------------------------------------------------


def test_segment_that_would_pass_its_size_is_rolled(make_partition):
    """No segment is larger than segment_bytes and its seal; the next starts with the next offset."""
    partition = make_partition(segment_bytes=4096)
    partition.fill(40)
    bases = partition.segments()
    assert len(bases) > 3
    for base in bases[:-1]:
        data = partition.bytes_of(base).rstrip(b"\0")
        assert len(data) <= 4096 + layout.SEAL.size
    assert partition.offsets() == list(range(120))


def test_batch_larger_than_a_segment_has_one_of_its_own(make_partition):
    """A batch is never refused or cut because of segment_bytes."""
    partition = make_partition(segment_bytes=4096)
    partition.append(b"small")
    partition.append(b"x" * 100_000)
    partition.append(b"small")
    assert partition.segments() == [0, 1, 2]
    assert [len(value) for _, value in partition.read()] == [5, 100_000, 5]


def test_first_batch_never_rolls(make_partition):
    """An empty segment takes whatever comes, however large or late."""
    partition = make_partition(segment_bytes=4096, segment_ms=1)
    partition.now += 10_000
    partition.append(b"x" * 5000)
    assert partition.segments() == [0]


def test_segment_that_is_too_old_is_rolled(make_partition):
    """segment_ms counts from the segment's making, by the appender's clock."""
    partition = make_partition(segment_ms=1000)
    partition.append(b"a")
    partition.now += 999
    partition.append(b"b")
    assert partition.segments() == [0]
    partition.now += 1
    partition.append(b"c")
    assert partition.segments() == [0, 2]
    partition.now += 999
    partition.append(b"d")
    assert partition.segments() == [0, 2]


def test_rolled_segment_ends_with_a_seal(make_partition):
    """The seal names the segment, where it ends, the next offset and the highest timestamp."""
    partition = make_partition(segment_ms=1)
    partition.append(b"a", b"b", stamps=[70, 30])
    end = partition.end
    partition.now += 1
    partition.append(b"c", stamps=[10])
    segment = partition.folder.open_segment(0)
    seal = segment.seal_at(end.end_position)
    assert (seal.segment_id, seal.end_offset, seal.last_checksum) == (end.segment_id, 2, end.last_checksum)
    assert seal.max_timestamp == 70
    assert segment.seal_at(end.end_position - 8) is None
    assert segment.seal_at(end.end_position + 8) is None
    segment.close()
    following = partition.folder.open_segment(2)
    assert following.header.max_timestamp_before == 70
    assert following.header.created_ms == partition.now
    following.close()


def test_left_over_segment_of_a_dead_roll_is_replaced(make_partition):
    """A process that died between making the next segment and sealing this one leaves nothing in the way."""
    partition = make_partition(segment_bytes=2000)
    partition.fill(3)
    partition.folder.create_segment(9, created_ms=1, max_timestamp_before=-1)
    partition.folder.create_segment(10**15, created_ms=1, max_timestamp_before=-1)
    with open(partition.path("00000000000000000009.log~0123"), "wb") as file:
        file.write(b"torn")
    assert partition.offsets() == list(range(9))
    partition.fill(1, size=20)
    assert partition.offsets() == list(range(12))
    partition.fill(20)
    assert partition.offsets() == list(range(72))
    assert 10**15 not in partition.segments()
    assert not [name for name in os.listdir(partition.path("")) if "~" in name]


def test_only_names_of_twenty_digits_are_segments(partition):
    """Other files in the folder are none of the log's."""
    for name in (
        "5.log",
        "0000000000000000000x.log",
        "00000000000000000005.log~1",
        "\N{ARABIC-INDIC DIGIT ONE}" * 20 + ".log",
        "note.txt",
    ):
        with open(partition.path(name), "wb"):
            pass
    assert list_segments(partition.files, partition.folder.path) == [0]


# --- growing ----------------------------------------------------------------------------------------------------------


def test_file_grows_in_doubling_steps(make_partition, monkeypatch):
    """64 KiB first, then as much again as there is, at most 8 MiB at once, never past segment_bytes."""
    partition = make_partition(segment_bytes=40 << 20)
    asked = []
    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, start, size: asked.append(size) or real(fd, start, size))
    sizes = set()
    for _ in range(42):
        partition.append(b"x" * (1 << 20))
        sizes.add(os.stat(partition.segment_path(partition.segments()[-1])).st_size)
    assert max(asked) == LAST_STEP
    assert all(size <= 40 << 20 for size in sizes)
    partition = make_partition("small", segment_bytes=1 << 20)
    asked.clear()
    for _ in range(300):
        partition.append(b"x" * KIB)
    header = layout.SEGMENT_HEADER.size
    assert (
        asked == [FIRST_STEP, FIRST_STEP + header, 2 * (FIRST_STEP + header), 4 * (FIRST_STEP + header)][: len(asked)]
    )
    assert os.stat(partition.segment_path()).st_size == header + FIRST_STEP + sum(asked[1:])


def test_where_space_cannot_be_reserved_the_file_just_grows(make_partition, monkeypatch):
    """Preallocation is an optimisation: without it everything works."""

    def unsupported(*args):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    partition = make_partition(segment_bytes=5000)
    partition.fill(50)
    assert partition.offsets() == list(range(150))


def test_no_room_for_a_step_reserves_exactly_what_is_needed(partition, monkeypatch):
    """On a nearly full disk the step is given up, not the append."""
    asked = []
    real = os.posix_fallocate

    def nearly_full(fd, start, size):
        asked.append(size)
        if size > 4096:
            no_space()
        return real(fd, start, size)

    monkeypatch.setattr(os, "posix_fallocate", nearly_full)
    partition.append(b"x" * 1000)
    assert len(asked) == 2
    assert asked[1] < 4096
    assert partition.offsets() == [0]


@pytest.mark.parametrize("failing", ["posix_fallocate", "pwritev", "pwrite"])
def test_full_disk_publishes_nothing_and_goes_on_later(partition, monkeypatch, failing):
    """An append that finds no space fails as a whole; the next one takes its place."""
    partition.fill(2)
    before = partition.end
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, no_space)
        with pytest.raises(StorageError, match="full"):
            partition.append(b"x" * 200_000)
    assert partition.end == before
    assert partition.offsets() == list(range(6))
    partition.fill(2)
    assert partition.offsets() == list(range(12))


def test_write_cut_short_by_a_full_disk_is_not_seen(partition, monkeypatch):
    """Half a batch that found its way to the file is garbage past the end, and is overwritten."""
    partition.fill(1)
    real = os.pwritev

    def half(fd, parts, position):
        return real(fd, [b"".join(parts)[:50_000]], position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", half)
        patch.setattr(os, "pwrite", no_space)
        with pytest.raises(StorageError):
            partition.append(b"x" * 60_000)
    assert partition.offsets() == list(range(3))
    partition.fill(1)
    assert partition.offsets() == list(range(6))


@pytest.mark.parametrize("call", range(6))
def test_full_disk_while_rolling_leaves_the_log_as_it_was(make_partition, monkeypatch, call):
    """Wherever a roll runs out of space, nothing is published, nothing is half made, and the next roll works."""
    partition = make_partition(segment_bytes=2000)
    partition.fill(3)
    before = partition.end
    left = [call]

    def limited(real):
        def write(*args):
            left[0] -= 1
            if left[0] < 0:
                no_space()
            return real(*args)

        return write

    with monkeypatch.context() as patch:
        for name in ("pwrite", "pwritev", "posix_fallocate", "fdatasync"):
            patch.setattr(os, name, limited(getattr(os, name)))
        try:
            partition.append(b"x" * 1900)
        except StorageError:
            assert partition.end == before
        else:
            assert call >= 4
            return
    assert partition.offsets() == list(range(9))
    partition.reopen()
    partition.fill(20)
    assert partition.offsets() == list(range(69))


# --- whose it is ------------------------------------------------------------------------------------------------------


def test_swapped_segment_files_are_refused(make_partition):
    """A segment of another partition, or from another offset, is not read in this one's place."""
    mine, other = make_partition(segment_bytes=1000), make_partition(number=1, segment_bytes=1000)
    mine.fill(6)
    other.fill(6)
    assert len(mine.segments()) > 2
    second = mine.segments()[1]
    shutil.copy(other.segment_path(second), mine.segment_path(second))
    mine.reopen()
    with pytest.raises(CorruptLogError, match="swapped") as caught:
        mine.read(second)
    assert caught.value.path == mine.segment_path(second)
    shutil.copy(mine.segment_path(0), mine.segment_path(second))
    mine.reopen()
    with pytest.raises(CorruptLogError, match="swapped"):
        mine.read(second)


def test_segment_of_an_earlier_life_of_the_offset_is_refused(make_partition):
    """A segment with the right name but another random id does not continue this log."""
    partition = make_partition(segment_bytes=1000)
    partition.fill(6)
    second = partition.segments()[1]
    partition.folder.create_segment(second, created_ms=1, max_timestamp_before=-1)
    partition.reopen()
    with pytest.raises(CorruptLogError):
        partition.read()


def test_active_segment_that_was_exchanged_takes_no_appends(partition):
    """A writer appends only to the segment that was published."""
    partition.fill(1)
    partition.folder.create_segment(0, created_ms=1, max_timestamp_before=-1)
    partition.reopen()
    with pytest.raises(CorruptLogError, match="not the segment"):
        partition.append(b"x")


def test_truncated_active_segment_takes_no_appends(partition):
    """Records are not appended behind a hole where published ones were."""
    partition.fill(3)
    partition.truncate(partition.end.end_position - 1)
    with pytest.raises(CorruptLogError) as caught:
        partition.append(b"x")
    assert caught.value.path == partition.segment_path()


def test_missing_active_segment_takes_no_appends(partition):
    """Without the active segment there is nowhere to append."""
    partition.fill(1)
    os.unlink(partition.segment_path())
    partition.reopen()
    with pytest.raises(CorruptLogError, match="missing"):
        partition.append(b"x")


@pytest.mark.parametrize("size", [0, 1, layout.SEGMENT_HEADER.size - 1])
def test_truncated_segment_header_is_refused(partition, size):
    """A segment that lacks its header is damaged, and says where."""
    partition.fill(1)
    partition.truncate(size)
    with pytest.raises(CorruptLogError) as caught:
        partition.read()
    assert caught.value.path == partition.segment_path()


def test_every_flipped_bit_of_the_header_is_detected(partition):
    """One bit changed in any field of a segment header, and the segment is not opened."""
    partition.fill(1)
    for position in range(layout.SEGMENT_HEADER.size):
        partition.flip(position, 5)
        with pytest.raises(CorruptLogError):
            partition.read()
        partition.flip(position, 5)
    assert partition.offsets() == [0, 1, 2]


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        (1, 2, IncompatibleFormatError),
        (7, -5, CorruptLogError),
        (10, 1 << 60, CorruptLogError),
        (10, -2, CorruptLogError),
    ],
    ids=["newer version", "negative base offset", "timestamp after 9999", "timestamp before 1970"],
)
def test_forged_header_is_refused(partition, field, value, error):
    """A header whose checksum holds and whose fields are impossible is refused."""
    fields = list(layout.SEGMENT_HEADER.unpack(partition.bytes_of()[: layout.SEGMENT_HEADER.size]))
    fields[field] = value
    raw = layout.SEGMENT_HEADER.pack(*fields)[:-8]
    partition.overwrite(0, raw + layout.CHECKSUM.pack(xxh3_64_intdigest(raw)))
    with pytest.raises(error):
        partition.folder.open_segment(0)


def test_every_flipped_bit_of_a_seal_is_detected():
    """One bit changed in a seal, or another segment or position, and it is none."""
    raw = seal_bytes(segment_id=5, end_offset=7, position=800, last_checksum=9, max_timestamp=11)
    assert parse_seal(raw, segment_id=5, position=800).end_offset == 7
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 16
        assert parse_seal(bytes(damaged), segment_id=5, position=800) is None
    assert parse_seal(raw[:-1], segment_id=5, position=800) is None
    assert parse_seal(raw, segment_id=6, position=800) is None
    assert parse_seal(raw, segment_id=5, position=808) is None
    assert parse_seal(bytes(len(raw)), segment_id=0, position=0) is None


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("map_reads", [True, False])
def test_reads_end_at_the_end_of_the_file(partition, map_reads):
    """A read past the file's end is short, through a map as by pread, and sees what was written since."""
    data = bytearray(partition.bytes_of())
    segment = partition.folder.open_segment(0, map_reads=map_reads)
    assert isinstance(segment, Segment)
    assert segment.read(0, 1 << 20) == data
    assert segment.read(1 << 20, 10) == b""
    partition.append(b"x" * 100_000)
    data = partition.bytes_of()
    assert segment.read(50, 90_000) == data[50:90_050]
    assert segment.read(0, 1 << 20) == data
    segment.close()
    segment.close()
