"""The index: it finds what a walk finds, and whatever happens to it only makes the walk longer."""

import itertools
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pystreamlog.storage import format as layout
from pystreamlog.storage.appender import LogAppender
from pystreamlog.storage.index import IndexEntry, IndexWriter, build_index, find_offset, find_timestamp, read_entries

KIB = 1 << 10


@pytest.fixture
def indexed(make_partition):
    """A partition of several segments with several index entries each."""
    partition = make_partition(segment_bytes=256 * KIB)
    for number in range(120):
        partition.append(*[b"%08d" % (3 * number + index) + b"." * 2500 for index in range(3)])
    assert len(partition.segments()) > 2
    partition.appender.write_index()
    return partition


def index_path(partition):
    """The index of the first segment, with all its entries."""
    partition.appender.write_index()
    return partition.segment_path(0, ".index")


def look_up(partition, offset):
    """The entry for an offset in the first segment."""
    partition.appender.write_index()
    segment = partition.folder.open_segment(0)
    segment_id = segment.header.segment_id
    segment.close()
    return find_offset(partition.files, partition.folder.path, segment_id=segment_id, base_offset=0, offset=offset)


def everything_is_found(partition):
    """Look up every offset and timestamp (which are equal here)."""
    end = partition.end
    for offset in range(0, end.end_offset, 7):
        partition.reader.close()
        assert partition.read(offset, max_records=1)[0][0] == offset
        assert partition.reader.offset_at(offset, end) == offset


def test_there_is_an_entry_for_every_32_kib(indexed):
    """Entries name the offset at a position, and the highest timestamp before it."""
    segment = indexed.folder.open_segment(0)
    batches = {at: header for base, at, header in indexed.positions() if base == 0}
    positions = []
    for offset in range(indexed.segments()[1]):
        entry = find_offset(
            indexed.files, indexed.folder.path, segment_id=segment.header.segment_id, base_offset=0, offset=offset
        )
        if entry is not None:
            assert batches[entry.position].base_offset == entry.offset <= offset
            assert entry.max_timestamp_before == entry.offset - 1
            positions.append(entry.position)
    segment.close()
    distinct = sorted(set(positions))
    assert len(distinct) >= 5
    assert all(later - earlier < 2 * layout.INDEX_INTERVAL for earlier, later in itertools.pairwise(distinct))


def test_look_ups_read_little(indexed, monkeypatch):
    """With an index, a look-up reads some 32 KiB; without one, the segment up to there."""

    def pages_read(partition):
        reads = []
        real = os.pread
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", lambda fd, size, at: reads.append(size) or real(fd, size, at))
            assert partition.read(85, max_records=1)[0] == (85, b"00000085" + b"." * 2500)
        return len(reads)

    indexed.map_reads = False
    indexed.reopen()
    short = pages_read(indexed)
    os.unlink(index_path(indexed))
    indexed.reopen()
    assert pages_read(indexed) > short + 10


# --- damage -----------------------------------------------------------------------------------------------------------


def remove(path):
    """It is gone."""
    os.unlink(path)


def empty(path):
    """It has no bytes."""
    os.truncate(path, 0)


def cut(path):
    """It ends within an entry."""
    os.truncate(path, layout.INDEX_HEADER.size + 3 * layout.INDEX_ENTRY.size + 5)


def zeros(path):
    """All its bytes are zero."""
    with open(path, "r+b") as file:
        file.write(bytes(os.stat(path).st_size))


def zero_entries(path):
    """Its first entries are zero."""
    with open(path, "r+b") as file:
        file.seek(layout.INDEX_HEADER.size)
        file.write(bytes(5 * layout.INDEX_ENTRY.size))


def garbage(path):
    """Its header is something else."""
    with open(path, "r+b") as file:
        file.write(bytes(range(256)) * 2)


def flipped_entries(path):
    """One bit of each entry is another."""
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        for position in range(layout.INDEX_HEADER.size, len(data), layout.INDEX_ENTRY.size):
            data[position] ^= 1
        file.seek(0)
        file.write(data)


def enormous(path):
    """It claims a terabyte of entries, all zero."""
    with open(path, "r+b") as file:
        file.truncate(1 << 40)


def of_another_segment(path):
    """It is the next segment's."""
    folder = os.path.dirname(path)
    other = sorted(name for name in os.listdir(folder) if name.endswith(".index"))[1]
    shutil.copy(os.path.join(folder, other), path)


def directory(path):
    """It is a directory."""
    os.unlink(path)
    os.mkdir(path)


def link(path):
    """It is a symbolic link to itself, moved."""
    os.rename(path, f"{path}.moved")
    os.symlink(f"{path}.moved", path)


def fifo(path):
    """It is a FIFO, which nobody writes to."""
    os.unlink(path)
    os.mkfifo(path)


DAMAGES = [
    remove,
    empty,
    cut,
    zeros,
    zero_entries,
    garbage,
    flipped_entries,
    enormous,
    of_another_segment,
    directory,
    link,
    fifo,
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_index_only_costs_time(indexed, damage):
    """Missing, garbage, truncated, of another segment, no file at all: every look-up finds the same."""
    damage(index_path(indexed))
    everything_is_found(indexed)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("damage", [d for d in DAMAGES if d is not of_another_segment], ids=lambda d: d.__name__)
def test_damaged_index_of_the_active_segment_takes_appends(make_partition, damage):
    """No append fails for the sake of an index; what can be replaced is."""
    partition = make_partition(segment_bytes=10 << 20)
    for _ in range(60):
        partition.append(b"x" * 2000)
    damage(index_path(partition))
    for _ in range(60):
        partition.append(b"x" * 2000)
    everything_is_found(partition)
    if damage not in (directory, cut, zero_entries, flipped_entries, enormous):
        assert look_up(partition, 119) is not None


def test_entries_past_the_end_are_not_believed(partition):
    """A forged index with valid checksums points behind the end, into a batch, or at the wrong batch."""
    partition.fill(20)
    segment = partition.folder.open_segment(0)
    segment_id = segment.header.segment_id
    segment.close()
    batches = partition.positions()
    for entry in (
        IndexEntry(10, 1 << 40, 5),
        IndexEntry(10, partition.end.end_position, 5),
        IndexEntry(10, batches[3][1] + 8, 5),
        IndexEntry(10, batches[7][1], 5),
        IndexEntry(0, batches[7][1], -1),
        IndexEntry(10, -100, 5),
        IndexEntry(10, 0, 5),
        IndexEntry(10, 5, 5),
    ):
        build_index(partition.files, partition.folder.path, segment_id=segment_id, base_offset=0, entries=[entry])
        partition.reader.close()
        assert partition.offsets(33) == list(range(33, 60))
        assert partition.offsets(2) == list(range(2, 60))


def test_entry_of_a_process_that_died_before_it_published_stays_true(make_partition):
    """An entry speaks of what lies before its position, so it holds whatever is appended there next."""
    partition = make_partition()
    for number in range(20):
        partition.append(b"%08d" % number + b"x" * 1800)
    for number in range(20, 60):
        if number % 3 == 0:
            partition.append(b"dead" * 600, stamps=[10_000], publish=False)
        partition.append(b"%08d" % number + b"x" * (1800 if number % 2 else 900))
    everything_is_found(partition)


def entry_positions(partition):
    """Positions of the first segment's index entries on disk."""
    segment = partition.folder.open_segment(0)
    where = {"segment_id": segment.header.segment_id, "base_offset": 0}
    segment.close()
    return [entry.position for entry in read_entries(partition.files, partition.folder.path, **where)]


@pytest.mark.parametrize(("size", "most"), [(40_000, 15), (300, 2)])
def test_entries_wait_for_others_but_not_for_long(make_partition, size, most):
    """Sixteen are written at once, or those that 128 batches follow: no reader walks far."""
    partition = make_partition(segment_bytes=64 << 20)
    waiting, behind = 0, 0
    for number in range(1000):
        partition.append(b"x" * size)
        waiting = max(waiting, len(partition.appender._index.waiting))
        if number % 97 == 96:
            last = max(entry_positions(partition), default=0)
            behind = max(behind, sum(at > last for _, at, _ in partition.positions()))
    assert waiting == most
    assert 0 < behind <= 128 + 32 * KIB // size
    partition.appender.write_index()
    positions = entry_positions(partition)
    assert positions == sorted(set(positions))
    assert partition.end.end_position - positions[-1] < 2 * max(32 * KIB, size + 400)


def test_entries_of_two_processes_stay_in_order(make_partition):
    """What one of them has not written when the other writes later ones is left out."""
    partition = make_partition(segment_bytes=64 << 20)
    other = LogAppender(partition.folder)
    appenders = [partition.appender, other]
    for number in range(400):
        partition.appender = appenders[number // 7 % 2]
        partition.append(b"x" * 20_000)
        if number % 31 == 0:
            partition.appender.write_index()
    partition.appender = appenders[0]
    for appender in reversed(appenders):
        appender.write_index()
    positions = entry_positions(partition)
    assert positions == sorted(set(positions))
    assert len(positions) > 100
    other.close()
    everything_is_found(partition)


def test_torn_entry_is_overwritten(indexed):
    """A process killed while it wrote an entry leaves a piece, which the next entry replaces."""
    active = indexed.segments()[-1]
    path = indexed.segment_path(active, ".index")
    with open(path, "ab") as file:
        file.write(b"\x07" * 11)
    segment = indexed.folder.open_segment(active)
    entry = IndexEntry(1 << 40, 1 << 30, 1 << 40)
    where = {"segment_id": segment.header.segment_id, "base_offset": active}
    writer = IndexWriter(indexed.files, indexed.folder.path)
    writer.add(segment.header.segment_id, active, entry)
    writer.write()
    assert find_offset(indexed.files, indexed.folder.path, offset=1 << 41, **where) == entry
    assert (os.stat(path).st_size - layout.INDEX_HEADER.size) % layout.INDEX_ENTRY.size == 0
    segment.close()


# --- against a linear scan --------------------------------------------------------------------------------------------

BATCHES = st.lists(
    st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 9000)), min_size=1, max_size=40
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BATCHES, st.integers(6000, 60_000))
def test_look_ups_find_what_a_linear_scan_finds(make_partition, tmp_path, batches, segment_bytes):
    """For every offset and every timestamp, over several segments, with timestamps in any order."""
    shutil.rmtree(tmp_path / "log", ignore_errors=True)
    partition = make_partition(segment_bytes=segment_bytes)
    stamps = []
    for times, size in batches:
        # Index entries are sparse: padding makes some batches long.
        partition.append(*[b"v" * size for _ in times], stamps=times)
        stamps += times
    end = partition.end
    for offset in range(len(stamps)):
        assert partition.read(offset, max_records=1)[0][0] == offset
    for when in range(52):
        expected = next((offset for offset, stamp in enumerate(stamps) if stamp >= when), None)
        assert partition.reader.offset_at(when, end) == expected
    partition.close()


def test_finding_in_an_index_costs_few_reads(tmp_path, partition, monkeypatch):
    """A binary search reads about log n entries of the index."""
    count = 2048
    entries = [IndexEntry(10 * number, 100 * number, 5 * number) for number in range(count)]
    where = {"segment_id": 1, "base_offset": 7}
    build_index(partition.files, partition.folder.path, entries=entries, **where)
    reads = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: reads.append(at) or real(fd, size, at))
    assert find_offset(partition.files, partition.folder.path, offset=12_345, **where) == entries[1234]
    assert len(reads) <= 15
    assert find_offset(partition.files, partition.folder.path, offset=-1, **where) is None
    assert find_timestamp(partition.files, partition.folder.path, timestamp_ms=51, **where) == entries[10]
    assert find_timestamp(partition.files, partition.folder.path, timestamp_ms=50, **where) == entries[9]
    assert find_timestamp(partition.files, partition.folder.path, timestamp_ms=0, **where) is None


@pytest.mark.parametrize("position", [-(2**63), -1, 0, 95, 2**48, 2**63 - 1])
@pytest.mark.parametrize("map_reads", [True, False])
def test_entries_outside_of_a_segment_are_not_believed(make_partition, position, map_reads):
    """A forged index, whose checksums hold, keeps nobody from reading."""
    partition = make_partition(map_reads=map_reads)
    partition.fill(3)
    segment_id = partition.end.segment_id
    entry = IndexEntry(0, position, -1)
    build_index(partition.files, partition.folder.path, segment_id=segment_id, base_offset=0, entries=[entry])
    assert partition.offsets() == list(range(9))
    assert partition.reader.offset_at(4, partition.end) == 4
