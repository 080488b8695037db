"""The control file: the newer valid slot rules, zeros and other bytes are none, and it belongs to one partition."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, IncompatibleFormatError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published, _newest, _packed

SLOT_PAIRS = {
    "published": layout.PUBLISHED_POSITION,
    "durable": layout.DURABLE_POSITION,
    "identity": layout.IDENTITY_POSITION,
}


def slot_position(pair, sequence):
    """Where the slot of that sequence lies."""
    return SLOT_PAIRS[pair] + (sequence & 1) * layout.SLOT_STRIDE


def damage(partition, position, data=b"\xff" * 16):
    """Overwrite a part of the control file."""
    partition.overwrite(position, data, name="control")


def test_each_publication_is_what_is_read_next(partition):
    """Slots alternate; the newer rules, for the writer itself and for who opens the file anew."""
    for number in range(1, 6):
        partition.append(b"value")
        assert partition.end.end_offset == number
        partition.reopen()
        assert partition.end.end_offset == number


@pytest.mark.parametrize("map_reads", [True, False])
def test_publication_of_another_process_is_seen_at_once(partition, map_reads):
    """Who has the file open, mapped or not, sees what others publish, and no torn slot."""
    other = partition.folder.open_control(write=True, map_reads=map_reads)
    for _ in range(4):
        assert other.published() == partition.end
        assert other.published() is other.published()
        partition.fill(1)
        assert other.published() == partition.end
    before = partition.end
    partition.fill(1)
    torn = slot_position("published", partition.end.sequence) + 20
    partition.control.file.pwrite(b"torn", torn)
    assert other.published() == before
    assert other.published() == before
    other.close()


@pytest.mark.parametrize("appended", range(5))
def test_torn_newer_slot_leaves_the_older_one(partition, appended):
    """A slot torn at any publication, the first too, leaves the end before it."""
    partition.fill(appended)
    before = partition.end
    partition.fill(1)
    slot = slot_position("published", before.sequence + 1)
    for size in range(0, layout.PUBLISHED_SLOT.size, 7):
        damage(partition, slot + size, b"\xa5")
        assert partition.end == before
        partition.overwrite(slot + size, b"\x5a", name="control")
        assert partition.end == before


def test_both_slots_damaged_is_no_end(partition):
    """With neither slot valid there is no end, rather than a wrong one."""
    partition.fill(3)
    for sequence in (0, 1):
        damage(partition, slot_position("published", sequence))
    assert partition.end is None


def test_zeroed_slots_are_no_end(partition):
    """Zeros decode as no slot of any pair."""
    partition.fill(3)
    partition.sync()
    damage(partition, layout.PUBLISHED_POSITION, bytes(layout.CONTROL_SIZE - layout.PUBLISHED_POSITION))
    assert partition.end is None
    assert partition.control.identity() is None
    assert partition.control.durable().offset == 0


@given(st.binary(min_size=layout.SLOT_STRIDE + 200, max_size=layout.SLOT_STRIDE + 200))
def test_garbage_is_no_slot(data):
    """Random bytes decode as no slot."""
    assert _newest(data, 0, layout.PUBLISHED_SLOT, Published) is None


def test_every_flipped_bit_of_a_slot_is_detected(partition):
    """One bit changed in a slot, and the other one rules."""
    partition.fill(2)
    older = msgspec.structs.replace(partition.end, sequence=partition.end.sequence - 1, end_offset=1)
    newer = partition.end
    for position in range(layout.PUBLISHED_SLOT.size):
        for bit in range(8):
            raw = bytearray(_packed(layout.PUBLISHED_SLOT, newer))
            raw[position] ^= 1 << bit
            pair = _packed(layout.PUBLISHED_SLOT, older).ljust(layout.SLOT_STRIDE, b"\0") + raw
            assert _newest(bytes(pair), 0, layout.PUBLISHED_SLOT, Published) == older


def test_torn_durable_slot_leaves_the_older_one(partition):
    """What is durable is believed only from a valid slot; an older one claims less, never more."""
    partition.fill(1)
    partition.sync()
    partition.fill(1)
    partition.sync()
    newest = partition.control.durable()
    assert newest.offset == 6
    damage(partition, slot_position("durable", newest.sequence))
    assert partition.control.durable().offset == 3


def test_damaged_identity_falls_back_to_the_older_one(partition):
    """A partition whose identity is damaged is made sure of again, as in a boot before."""
    partition.control.write_identity(b"another-boot-id.")
    damage(partition, slot_position("identity", 2))
    assert partition.control.identity().sequence == 1
    damage(partition, slot_position("identity", 1))
    assert partition.control.identity() is None


@pytest.mark.parametrize("size", [0, 1, layout.CONTROL_HEADER.size - 1])
def test_truncated_control_file_is_refused(partition, size):
    """A control file that lacks its header is damaged."""
    partition.close()
    with open(partition.path("control"), "r+b") as file:
        file.truncate(size)
    with pytest.raises(CorruptLogError):
        partition.folder.open_control(write=False)


def test_control_file_without_its_slots_has_no_end(partition):
    """A control file cut behind its header is read as one without slots."""
    partition.close()
    with open(partition.path("control"), "r+b") as file:
        file.truncate(layout.CONTROL_HEADER.size)
    partition.open()
    assert partition.end is None
    assert partition.control.identity() is None


def test_every_flipped_bit_of_the_header_is_detected(partition):
    """One bit changed in the header, and the file is not opened."""
    with open(partition.path("control"), "rb") as file:
        header = file.read(layout.CONTROL_HEADER.size)
    for position in range(len(header)):
        damaged = bytearray(header)
        damaged[position] ^= 4
        with open(partition.path("control"), "r+b") as file:
            file.write(damaged)
        with pytest.raises(CorruptLogError):
            partition.folder.open_control(write=False)


def test_control_file_of_a_newer_version_is_refused(partition):
    """A later format says so, instead of being damaged."""
    with open(partition.path("control"), "r+b") as file:
        fields = list(layout.CONTROL_HEADER.unpack(file.read(layout.CONTROL_HEADER.size)))
        fields[1] = layout.CONTROL_VERSION + 1
        raw = layout.CONTROL_HEADER.pack(*fields)[:-8]
        file.seek(0)
        file.write(raw + layout.CHECKSUM.pack(xxh3_64_intdigest(raw)))
    with pytest.raises(IncompatibleFormatError, match="upgrade"):
        partition.folder.open_control(write=False)


@pytest.mark.parametrize("field", ["log_id", "topic_id", "partition"])
def test_swapped_control_files_are_refused(partition, field):
    """The control file of another log, topic or partition is not this one's."""
    other = {"log_id": b"x" * 16, "topic_id": b"x" * 16, "partition": 1}
    folder = msgspec.structs.replace(partition.folder, **{field: other[field]})
    with pytest.raises(CorruptLogError, match="swapped"):
        folder.open_control(write=False)


def test_new_control_file_has_one_end_and_no_identity(partition):
    """The image of a new file: header, one published slot, zeros."""
    image = Control.image(log_id=b"l" * 16, topic_id=b"t" * 16, partition=3, published=partition.end)
    assert len(image) == layout.CONTROL_SIZE
    assert _newest(image, layout.PUBLISHED_POSITION, layout.PUBLISHED_SLOT, Published) == partition.end
    assert not any(image[layout.DURABLE_POSITION :])
