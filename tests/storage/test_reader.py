"""Reading: every record once and in order, and nothing that does not verify, however it came there."""

import contextlib
import os

import pytest
from xxhash import xxh3_64_intdigest

from pystreamlog.errors import CorruptLogError, OffsetOutOfRangeError
from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import encode, parse_header
from pystreamlog.record.compression import parse_codec
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.segment import seal_bytes

HEADER_FIELDS = {
    "magic": 0,
    "version": 4,
    "codec": 5,
    "flags": 6,
    "length": 8,
    "count": 12,
    "body checksum": 16,
    "segment id": 24,
    "base offset": 32,
    "last offset": 40,
    "base timestamp": 48,
    "max timestamp": 56,
    "durable offset": 64,
    "previous checksum": 72,
    "epoch": 80,
    "producer epoch": 84,
    "producer id": 88,
    "first sequence": 96,
    "transaction nonce": 104,
    "column sizes": 112 + 4 * batch_layout.VALUE_DATA,
    "reserved column": 112 + 4 * 15,
    "body size": 176,
    "reserved": 180,
    "header checksum": 184,
    "value offsets": HEADER_SIZE + 4,
    "value data": HEADER_SIZE + 16,
    "padding": -1,
}


@pytest.fixture(params=[True, False], ids=["map", "pread"])
def rolled(request, make_partition):
    """A partition of many segments."""
    partition = make_partition(segment_bytes=2000, map_reads=request.param)
    partition.fill(30, size=50)
    assert len(partition.segments()) > 5
    return partition


# --- what is there ----------------------------------------------------------------------------------------------------


def test_each_record_is_read_once_and_in_order(rolled):
    """Over many segments, from the first to the last."""
    assert rolled.offsets() == list(range(90))


def test_reading_starts_at_any_offset(rolled):
    """At the start of a batch, within one, at a segment's first and last record."""
    for offset in range(90):
        assert rolled.offsets(offset) == list(range(offset, 90))
        rolled.reader.close()


def test_reading_ends_at_the_published_end(rolled):
    """An older end shows what was there then."""
    ends = []
    partition = rolled
    for _ in range(5):
        ends.append(partition.end)
        partition.fill(2)
    for end in ends:
        assert [offset for offset, _ in partition.read(end=end)] == list(range(end.end_offset))


def test_cursor_goes_on_where_it_was(rolled):
    """A cursor at the end sees what is appended next, over a roll too, without looking anything up again."""
    cursor = Cursor(0)
    seen = []
    for _ in range(25):
        while batches := rolled.reader.fetch(cursor, rolled.end, max_records=5, max_bytes=1 << 20):
            seen += [offset for batch, first in batches for offset in batch.offsets(first, batch.count)]
        rolled.fill(1)
    assert seen == list(range(len(seen)))
    assert len(seen) >= 90 + 3 * 24


def test_one_reader_serves_many_cursors(rolled):
    """The place is the cursor's; the reader only keeps a segment open."""
    cursors = [Cursor(offset) for offset in (0, 40, 80)]
    seen = [[], [], []]
    for _ in range(40):
        for cursor, offsets in zip(cursors, seen, strict=True):
            for batch, first in rolled.reader.fetch(cursor, rolled.end, max_records=1, max_bytes=1):
                offsets.extend(batch.offsets(first, batch.count))
    assert seen == [list(range(90)), list(range(40, 90)), list(range(80, 90))]


def test_limits_end_a_fetch_after_the_batch_that_reaches_them(rolled):
    """max_records and max_bytes are reached by whole batches; there is always at least one."""
    assert len(rolled.reader.fetch(Cursor(0), rolled.end, max_records=4, max_bytes=1 << 20)) == 2
    assert len(rolled.reader.fetch(Cursor(0), rolled.end, max_records=100, max_bytes=1)) == 1
    assert rolled.reader.fetch(Cursor(90), rolled.end, max_records=100, max_bytes=1) == []


def test_offsets_outside_the_log_are_out_of_range(rolled):
    """Beyond the end, and before the start once it has moved."""
    with pytest.raises(OffsetOutOfRangeError) as caught:
        rolled.read(91)
    assert caught.value.offset == 91
    rolled.publish(log_start_offset=40)
    with pytest.raises(OffsetOutOfRangeError, match="40"):
        rolled.read(39)
    assert rolled.offsets(40) == list(range(40, 90))


def test_offset_at_leaves_out_what_is_deleted(rolled):
    """A look-up by time finds nothing before the log's start, also within the batch that the start lies in."""
    rolled.publish(log_start_offset=40)
    assert rolled.reader.offset_at(0, rolled.end) == 40
    assert rolled.reader.offset_at(41, rolled.end) == 41
    assert rolled.reader.offset_at(90, rolled.end) is None


def test_bytes_past_the_published_end_are_garbage(rolled):
    """A batch that was written and not published is not read, nor is anything else that lies there."""
    rolled.append(b"unpublished", publish=False)
    assert rolled.offsets() == list(range(90))
    rolled.fill(1)
    assert rolled.offsets() == list(range(93))


def test_batch_left_behind_a_new_one_is_never_read(partition):
    """Two batches of equal length, the second of a dead process: the chain tells them apart."""
    partition.fill(1)
    before = partition.end
    partition.append(b"dead-one", stamps=[1])
    partition.append(b"dead-two", stamps=[2])
    partition.publish(**{name: getattr(before, name) for name in ("end_position", "end_offset", "last_checksum")})
    partition.append(b"live-one", stamps=[1])
    assert partition.read(3) == [(3, b"live-one")]
    longer = partition.end
    partition.publish(end_position=longer.end_position + (longer.end_position - before.end_position), end_offset=5)
    with pytest.raises(CorruptLogError, match="follow"):
        partition.read(4)


# --- damage below the published end -----------------------------------------------------------------------------------


def damaged_fetch(partition, offset=0):
    """What is read before damage, and the error."""
    cursor, seen = Cursor(offset), []
    while cursor.offset < partition.end.end_offset:
        try:
            found = partition.reader.fetch(cursor, partition.end, max_records=1000, max_bytes=1 << 20)
        except CorruptLogError as error:
            return seen, error
        for batch, first in found:
            seen += batch.offsets(first, batch.count)
    return pytest.fail("the damage was passed over")


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_flipped_bit_in_a_middle_batch_is_corrupt(rolled, field):
    """One bit changed in any field or in the data: what is before it is read first, then the error says where."""
    base, position, header = rolled.positions()[14]
    place = HEADER_FIELDS[field]
    for bit in (0, 7):
        at = position + (place if place >= 0 else header.size + place)
        rolled.flip(at, bit, base=base)
        seen, error = damaged_fetch(rolled)
        assert seen == list(range(header.base_offset))
        assert (error.path, error.position) == (rolled.segment_path(base), position)
        # Other segments are as good as before.
        assert rolled.offsets(header.last_offset + 40) == list(range(header.last_offset + 40, 90))
        rolled.flip(at, bit, base=base)
    assert rolled.offsets() == list(range(90))


def test_flipped_bit_in_a_header_is_corrupt_for_who_looks_up_behind_it(partition):
    """A look-up that walks over a damaged header says so, with the place."""
    partition.fill(10)
    base, position, _ = partition.positions()[4]
    partition.flip(position + 40, base=base)
    with pytest.raises(CorruptLogError) as caught:
        partition.read(25)
    assert (caught.value.path, caught.value.position) == (partition.segment_path(), position)


def test_zero_filled_middle_is_corrupt(rolled):
    """Zeros in the middle, as an unsynced page leaves them, are no end of the log."""
    base, position, header = rolled.positions()[14]
    rolled.overwrite(position, bytes(header.size), base=base)
    seen, error = damaged_fetch(rolled)
    assert seen == list(range(header.base_offset))
    assert (error.path, error.position) == (rolled.segment_path(base), position)


def test_flipped_bit_in_a_seal_is_corrupt(rolled):
    """Without its seal a rolled segment has no end."""
    base = rolled.segments()[2]
    seal = rolled.bytes_of(base).index(layout.SEAL_MAGIC)
    for position in range(0, layout.SEAL.size, 5):
        rolled.flip(seal + position, 2, base=base)
        seen, error = damaged_fetch(rolled)
        assert seen == list(range(rolled.segments()[3]))
        assert error.path == rolled.segment_path(base)
        rolled.flip(seal + position, 2, base=base)


def test_forged_seal_that_leads_back_is_corrupt(rolled):
    """A seal with a correct checksum leads forward or nowhere: nobody reads in circles."""
    base, following = rolled.segments()[2:4]
    segment = rolled.folder.open_segment(base)
    position = rolled.bytes_of(base).index(layout.SEAL_MAGIC)
    seal = segment.seal_at(position)
    segment.close()
    for end_offset in (0, base, following - 1, 1 << 60, -1):
        raw = seal_bytes(
            segment_id=seal.segment_id,
            end_offset=end_offset,
            position=position,
            last_checksum=seal.last_checksum,
            max_timestamp=seal.max_timestamp,
        )
        rolled.overwrite(position, raw, base=base)
        assert damaged_fetch(rolled)[0] == list(range(following))


def test_missing_segment_in_the_middle_is_corrupt(rolled):
    """A segment that should be there and is not is no gap to jump over."""
    missing = rolled.segments()[3]
    os.unlink(rolled.segment_path(missing))
    rolled.reopen()
    seen, error = damaged_fetch(rolled)
    assert seen == list(range(missing))
    assert "missing" in str(error)
    with pytest.raises(CorruptLogError):
        rolled.read(missing + 1)


def test_missing_first_segment_is_corrupt(rolled):
    """The log does not begin later just because its beginning is gone."""
    os.unlink(rolled.segment_path(0))
    rolled.reopen()
    assert rolled.reader.start_offset(rolled.end) == 0
    with pytest.raises(CorruptLogError):
        rolled.read(0)
    assert rolled.offsets(rolled.segments()[1])[0] == rolled.segments()[1]


def test_segments_below_the_start_may_be_gone(rolled):
    """What retention deletes first becomes out of range, then goes."""
    first, second = rolled.segments()[:2]
    rolled.publish(log_start_offset=second)
    os.unlink(rolled.segment_path(first))
    rolled.reopen()
    assert rolled.reader.start_offset(rolled.end) == second
    with pytest.raises(OffsetOutOfRangeError):
        rolled.read(0)
    assert rolled.offsets(second)[0] == second


def test_truncation_at_every_byte_of_the_last_batch_is_corrupt(partition):
    """Published data that is not there is an error at every length, whoever opens the file next."""
    partition.fill(3)
    _, position, header = partition.positions()[-1]
    data = partition.bytes_of()
    for size in range(position, position + header.size):
        partition.truncate(size)
        seen, error = damaged_fetch(partition)
        assert seen == list(range(6))
        assert error.position == position
        partition.overwrite(0, data[: position + header.size])
    assert partition.offsets() == list(range(9))


def test_published_end_inside_a_batch_is_corrupt(partition):
    """An end that cuts a batch in two is not believed, and no record past the end is handed out."""
    partition.fill(3)
    end = partition.end
    partition.publish(end_position=end.end_position - 8)
    assert damaged_fetch(partition)[0] == list(range(6))
    partition.publish(end_position=end.end_position, end_offset=7)
    assert damaged_fetch(partition)[0] == list(range(6))


@pytest.mark.parametrize(
    "fields",
    [
        {"end_position": -1},
        {"end_position": 1 << 62},
        {"end_offset": 1 << 62},
        {"segment_base": -5},
        {"segment_base": 1 << 62},
        {"segment_id": 1},
        {"log_start_offset": -9},
        {"max_timestamp": 1 << 62},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_forged_end_never_leads_astray(partition, fields):
    """A published slot with a correct checksum and impossible contents: records as they are, or an error."""
    partition.fill(3)
    partition.publish(**fields)
    with contextlib.suppress(CorruptLogError, OffsetOutOfRangeError):
        assert partition.offsets() == list(range(9))
    with contextlib.suppress(CorruptLogError, OffsetOutOfRangeError):
        assert partition.reader.offset_at(1, partition.end) in (1, None)


# --- forged batches ---------------------------------------------------------------------------------------------------


def put_forged(partition, index, **fields):
    """Exchange a batch for one with other header fields, and make everything behind it follow."""
    base, position, header = partition.positions()[index]
    raw = bytearray(partition.bytes_of(base)[position : position + header.size])
    names = type(header).__struct_fields__
    values = dict(zip(names, batch_layout.HEADER.unpack_from(raw), strict=True)) | fields
    head = batch_layout.HEADER.pack(*values.values())[:-8]
    raw[:HEADER_SIZE] = head + batch_layout.HEADER_CHECKSUM.pack(xxh3_64_intdigest(head))
    later = [(at, found) for _, at, found in partition.positions()[index + 1 :]]
    partition.overwrite(position, bytes(raw), base=base)
    previous = parse_header(bytes(raw)).checksum
    for at, found in later:
        values = dict(zip(names, batch_layout.HEADER.unpack_from(partition.bytes_of(base)[at:]), strict=True))
        values["previous_checksum"] = previous
        head = batch_layout.HEADER.pack(*values.values())[:-8]
        previous = xxh3_64_intdigest(head)
        partition.overwrite(at, head + batch_layout.HEADER_CHECKSUM.pack(previous), base=base)
        assert found.size


@pytest.mark.parametrize("shift", [-3, -2, 1 << 40, 100])
def test_forged_offsets_that_do_not_rise_are_corrupt(partition, shift):
    """A batch whose offsets repeat earlier ones, or pass the end, is not handed out; the chain being forged too."""
    partition.fill(5)
    header = partition.positions()[2][2]
    put_forged(partition, 2, base_offset=header.base_offset + shift, last_offset=header.last_offset + shift)
    assert damaged_fetch(partition)[0] == list(range(6))


def test_batch_of_another_segment_is_corrupt(partition):
    """A batch with another segment's id was not written here."""
    partition.fill(3)
    put_forged(partition, 1, segment_id=5)
    assert damaged_fetch(partition)[0] == [0, 1, 2]


def test_batch_of_another_chain_is_corrupt(partition):
    """A batch that does not carry the checksum of the header before it is a left-over."""
    partition.fill(3)
    put_forged(partition, 1, previous_checksum=5)
    assert damaged_fetch(partition)[0] == [0, 1, 2]


def test_batch_that_claims_more_than_there_is_takes_no_memory(partition, monkeypatch):
    """The length of a batch is held against the file before a byte of its body is asked for."""
    partition.map_reads = False
    partition.fill(3)
    put_forged(partition, 1, size=1 << 31, body_size=(1 << 31) - HEADER_SIZE)
    partition.reopen()
    asked = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: asked.append(size) or real(fd, size, at))
    assert damaged_fetch(partition)[0] == [0, 1, 2]
    assert max(asked) <= 1 << 20


def test_forged_timestamps_do_not_break_look_ups_by_time(partition):
    """A header that promises a timestamp that no record has leads to the next record that is young enough."""
    partition.fill(4)
    put_forged(partition, 1, max_timestamp=10_000)
    partition.publish(max_timestamp=20_000)
    assert partition.reader.offset_at(7, partition.end) in (6, 7)
    assert partition.reader.offset_at(15_000, partition.end) is None


# --- settling ---------------------------------------------------------------------------------------------------------


def test_damage_is_looked_at_once_more_after_writers_are_done(partition):
    """Below the end, a reader waits until nobody holds the append lock, and only then calls it damage."""
    partition.fill(3)
    _, position, header = partition.positions()[1]
    good = partition.bytes_of()[position : position + header.size]
    partition.overwrite(position, bytes(header.size))

    def settle():
        with open(partition.segment_path(), "r+b") as file:
            file.seek(position)
            file.write(good)

    reader = LogReader(partition.folder, partition.control, map_reads=True, settle=settle)
    found = reader.fetch(Cursor(0), partition.end, max_records=100, max_bytes=1 << 20)
    assert [batch.header.base_offset for batch, _ in found] == [0, 3, 6]
    reader.close()


def test_reading_writes_nothing(rolled):
    """A reader leaves every byte as it was."""
    before = rolled.tree()
    rolled.offsets()
    rolled.offsets(44)
    rolled.reader.offset_at(30, rolled.end)
    assert rolled.tree() == before


def test_reader_takes_any_batch_size(partition):
    """From one empty value to 3 MiB, around the size that is read ahead."""
    sizes = [0, 1, 16_000, 16_384 - HEADER_SIZE - 8, 16_384 - HEADER_SIZE, 16_400, 100_000, 3 << 20, 5]
    for number, size in enumerate(sizes):
        partition.append(bytes([number]) * size)
    assert partition.read() == [(number, bytes([number]) * size) for number, size in enumerate(sizes)]
    assert encode([b""], None, 0).size % 8 == 0


def test_small_batches_that_unpack_to_much_are_fetched_one_by_one(partition):
    """What a fetch may take is counted unpacked: a small file cannot eat the memory."""
    codec = parse_codec("gzip")
    for _ in range(4):
        batch = encode([bytes((8 << 20) - 64)], None, 1, codec=codec)
        partition.control.publish(partition.appender.write(batch, partition.end, partition.now, 0, 1 << 20, 1 << 60))
    assert os.path.getsize(partition.segment_path()) < 1 << 20
    cursor = Cursor(0)
    for offset in range(4):
        fetched = partition.reader.fetch(cursor, partition.end, max_records=500, max_bytes=4 << 20)
        assert [batch.header.base_offset for batch, _ in fetched] == [offset]
