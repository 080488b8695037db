"""Batches: what is encoded comes back, and no other bytes decode, whoever made them."""

import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from pystreamlog.clock import MAX_TIMESTAMP_MS
from pystreamlog.record import format as layout
from pystreamlog.record.batch import BatchError, decode, encode, encode_one, parse_header
from pystreamlog.record.compression import parse_codec
from pystreamlog.record.format import HEADER_SIZE

SEGMENT_ID = 0x1234567890ABCDEF
FIELDS = [
    "magic",
    "version",
    "codec",
    "flags",
    "size",
    "count",
    "body_checksum",
    "segment_id",
    "base_offset",
    "last_offset",
    "base_timestamp",
    "max_timestamp",
    "durable_offset",
    "previous_checksum",
    "epoch",
    "producer_epoch",
    "producer_id",
    "last_sequence",
    "transaction_nonce",
    "column_sizes",
    "body_size",
    "reserved",
    "checksum",
]

VALUES = st.one_of(st.none(), st.binary(max_size=30))
STAMPS = st.integers(0, MAX_TIMESTAMP_MS)
HEADERS = st.lists(st.tuples(st.text(max_size=5).filter(lambda name: name.isprintable()), st.binary(max_size=5)))
RECORDS = st.lists(st.tuples(VALUES, VALUES, STAMPS, HEADERS.map(tuple)), min_size=1, max_size=80)


def placed(batch, *, base_offset=7, previous=3, durable=0, epoch=1, now_ms=0):
    """The bytes of an encoded batch in a log."""
    header, _ = batch.place(base_offset, SEGMENT_ID, previous, durable, epoch, now_ms)
    return header + b"".join(batch.parts)


def parsed(data):
    """The batch in these bytes."""
    header = parse_header(data, limit=len(data))
    return decode(header, bytes(data[HEADER_SIZE : header.size]))


def everything(batch):
    """All columns of a batch, as tuples per record."""
    count = batch.count
    return list(
        zip(
            batch.values(0, count),
            batch.keys(0, count),
            batch.timestamps_ms(0, count),
            batch.headers(0, count),
            strict=True,
        )
    )


def forged(data, body=None, **fields):
    """A batch with other fields or another body, and with checksums that hold."""
    body = data[HEADER_SIZE:] if body is None else body + bytes(-len(body) & 7)
    values = dict(zip(FIELDS, layout.HEADER.unpack_from(data), strict=True))
    if isinstance(fields.get("column_sizes"), dict):
        sizes = list(layout.COLUMN_SIZES.unpack(values["column_sizes"]))
        for column, size in fields["column_sizes"].items():
            sizes[column] = size
        fields["column_sizes"] = layout.COLUMN_SIZES.pack(*sizes)
    values |= {"size": HEADER_SIZE + len(body), "body_size": len(body), "body_checksum": xxh3_64_intdigest(body)}
    values |= fields
    header = layout.HEADER.pack(*values.values())[:-8]
    return header + layout.HEADER_CHECKSUM.pack(xxh3_64_intdigest(header)) + body


def touch_all(data):
    """Parse and decode, and look at every column."""
    batch = parsed(data)
    batch.offsets(0, batch.count)
    batch.index_of_offset(batch.header.base_offset + 1)
    return everything(batch)


def sample(codec=None):
    """A batch that has every column but offset deltas."""
    return placed(
        encode(
            [b"one", None, b"three"],
            [b"k", None, b""],
            [5, 9, 7],
            [(("a", b"1"), ("b", b"")), (), (("ü", b"3"),)],
            codec=parse_codec(codec) if codec else None,
        )
    )


# --- round trips ------------------------------------------------------------------------------------------------------


@given(RECORDS, st.sampled_from(["none", "gzip", "lz4", "zstd"]))
def test_records_come_back(records, codec):
    """Values, keys, timestamps and headers are as they were given, whatever packs them."""
    values, keys, stamps, headers = map(list, zip(*records, strict=True))
    batch = parsed(placed(encode(values, keys, stamps, headers, codec=parse_codec(codec))))
    assert everything(batch) == records
    assert (batch.count, batch.header.max_timestamp) == (len(records), max(stamps))


@given(RECORDS, st.data())
def test_any_range_of_records_comes_back(records, data):
    """A range of a batch is that range of its columns."""
    values, keys, stamps, headers = map(list, zip(*records, strict=True))
    batch = parsed(placed(encode(values, keys, stamps, headers)))
    start = data.draw(st.integers(0, len(records)))
    stop = data.draw(st.integers(start, len(records)))
    assert list(batch.values(start, stop)) == values[start:stop]
    assert list(batch.keys(start, stop)) == keys[start:stop]
    assert list(batch.timestamps_ms(start, stop)) == stamps[start:stop]
    assert list(batch.headers(start, stop)) == headers[start:stop]
    assert list(batch.offsets(start, stop)) == list(range(7 + start, 7 + stop))


@given(VALUES, VALUES, STAMPS, HEADERS.map(tuple), st.booleans())
def test_a_single_record_is_encoded_as_a_column_of_one(value, key, stamp, headers, log_append_time):
    """The short way for one record makes the same bytes as the general one."""
    keys = None if key is None else (key,)
    pairs = (headers,) if headers else None
    one = encode_one(value, key, stamp, headers, log_append_time)
    many = encode((value,), keys, stamp, pairs, log_append_time=log_append_time)
    assert placed(one, now_ms=77) == placed(many, now_ms=77)
    assert (one.size, one.count, one.max_timestamp) == (many.size, many.count, many.max_timestamp)


@pytest.mark.parametrize("make", [bytearray, memoryview])
def test_bytes_like_values_and_keys_are_stored_by_their_bytes(make):
    """A bytearray or memoryview is stored as the bytes it holds, and does not change with it."""
    value = make(b"value")
    data = placed(encode([value, None], [make(b"key"), make(b"")], 1, [(("h", make(b"x")),), ()]))
    assert everything(parsed(data)) == [(b"value", b"key", 1, (("h", b"x"),)), (None, b"", 1, ())]


def test_columns_with_nothing_to_say_are_absent():
    """Equal timestamps, no keys, no None and no headers take no bytes."""
    sizes = layout.COLUMN_SIZES.unpack(parse_header(placed(encode([b"a", b"bc"], [None, None], [5, 5]))).column_sizes)
    assert [number for number, size in enumerate(sizes) if size] == [layout.VALUE_OFFSETS, layout.VALUE_DATA]


def test_body_is_arrow_columns_on_multiples_of_eight():
    """The body of a small batch, byte by byte: bitmap, int32 offsets and data of keys, then of values."""
    body = placed(encode([b"one", b"three"], [None, b"k"], 5))[HEADER_SIZE:]
    assert body == (
        b"\x02" + bytes(7)  # key validity
        + struct.pack("<3i", 0, 0, 1) + bytes(4)  # key offsets
        + b"k" + bytes(7)  # key data
        + struct.pack("<3i", 0, 3, 8) + bytes(4)  # value offsets
        + b"onethree"  # value data
    )  # fmt: skip


def test_timestamps_are_the_first_column():
    """Timestamps that differ are an int64 column in front of the others."""
    body = placed(encode([b"a", b"b"], None, [7, 300]))[HEADER_SIZE:]
    assert body[:16] == struct.pack("<2q", 7, 300)


def test_headers_are_a_list_column():
    """How many each record has, as offsets; then all names and all values as binary columns."""
    body = placed(encode([b"", b""], None, 5, [(("a", b"x"), ("bc", b"")), ()]))[HEADER_SIZE:]
    assert body == (
        struct.pack("<3i", 0, 0, 0) + bytes(4)  # value offsets; there is no value data
        + struct.pack("<3i", 0, 2, 2) + bytes(4)  # header offsets
        + struct.pack("<3i", 0, 1, 3) + bytes(4)  # name offsets
        + b"abc" + bytes(5)
        + struct.pack("<3i", 0, 1, 1) + bytes(4)  # content offsets
        + b"x" + bytes(7)
    )  # fmt: skip


def test_log_append_time_is_set_when_the_batch_is_placed():
    """A batch whose timestamps the log sets gets that of the append, for all of its records."""
    batch = encode([b"a", b"b"], None, [1, 2], log_append_time=True)
    found = parsed(placed(batch, now_ms=99))
    assert list(found.timestamps_ms(0, 2)) == [99, 99]
    assert found.header.flags == layout.FLAG_LOG_APPEND_TIME
    assert batch.max_timestamp == 99


def test_large_bodies_have_the_checksum_of_their_parts_joined():
    """A body too large to be joined is hashed in parts, with the same result."""
    batch = encode([b"x" * 100_001, b"y" * 13], [b"k" * 70_000, None], [1, 2])
    assert len(batch.parts) > 1
    assert everything(parsed(placed(batch)))[0][0] == b"x" * 100_001


def test_body_that_does_not_shrink_is_stored_as_it_is():
    """A codec is used only where it saves something."""
    header = parse_header(placed(encode([b"\x93"], None, 1, codec=parse_codec("gzip"))))
    assert header.codec == 0


@pytest.mark.parametrize("value", ["text", 5, [b"a"]])
def test_values_that_are_no_bytes_are_a_type_error(value):
    """What reaches the codec is bytes, or a mistake of the caller."""
    with pytest.raises(TypeError):
        encode([b"a", value], None, 1)


def test_header_without_content_is_a_type_error():
    """A header's content is bytes; None is for values only."""
    with pytest.raises(TypeError, match="header"):
        encode([b"a"], None, 1, [(("name", None),)])


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "gzip"])
def test_every_flipped_bit_is_detected(codec):
    """One bit changed anywhere in a batch, header or body, and it does not decode."""
    data = sample(codec)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(BatchError):
                parsed(bytes(damaged))


def test_every_truncation_is_detected():
    """A batch that lacks its end does not decode, wherever it was cut."""
    data = sample()
    for size in range(len(data)):
        with pytest.raises(BatchError):
            decode(parse_header(data[:size]), data[HEADER_SIZE:size])


@pytest.mark.parametrize("size", [0, 1, HEADER_SIZE - 1, HEADER_SIZE, 4096])
def test_zeros_are_no_batch(size):
    """Zero bytes, as a power loss leaves them, decode as nothing."""
    with pytest.raises(BatchError):
        parse_header(bytes(size))


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE + 50))
def test_random_bytes_are_no_batch(data):
    """Whatever else lies in a file is not taken for a batch."""
    with pytest.raises(BatchError):
        parse_header(b"PSLB" + data)


def test_batch_past_the_published_end_is_not_believed():
    """A valid header whose batch reaches past the limit is refused before its body is read."""
    data = sample()
    with pytest.raises(BatchError, match="left"):
        parse_header(data, limit=len(data) - 1)


# --- forged: checksums hold, contents do not --------------------------------------------------------------------------

HOSTILE_FIELDS = {
    "newer version": {"version": 2},
    "unknown flag": {"flags": 1 << 15},
    "reserved bytes used": {"reserved": 1},
    "no records": {"count": 0},
    "four billion records": {"count": 2**32 - 1},
    "more records than values": {"count": 4, "last_offset": 10},
    "negative offset": {"base_offset": -1, "last_offset": 1},
    "last before base": {"last_offset": 6},
    "more offsets than records": {"last_offset": 10},
    "offset beyond int64 sums": {"base_offset": 2**63 - 1, "last_offset": 2**63 - 1},
    "timestamp before 1970": {"base_timestamp": -1},
    "timestamp after 9999": {"max_timestamp": MAX_TIMESTAMP_MS + 1},
    "timestamps above the highest": {"max_timestamp": 1},
    "unknown codec": {"codec": 9},
    "codec without compression": {"codec": 1},
    "body larger than the batch": {"body_size": 2**31},
    "batch larger than its body": {"size": 2**31},
    "key of 2 GiB": {"column_sizes": {layout.KEY_DATA: 2**31 - 1}},
    "value of 4 GiB": {"column_sizes": {layout.VALUE_DATA: 2**32 - 1}},
    "values without offsets": {"column_sizes": {layout.VALUE_OFFSETS: 0}},
    "half a key offset": {"column_sizes": {layout.KEY_OFFSETS: 17}},
    "bitmap too large": {"column_sizes": {layout.VALUE_VALIDITY: 2}},
    "half a timestamp": {"column_sizes": {layout.TIMESTAMPS: 20}},
    "header names without offsets": {"column_sizes": {layout.HEADER_KEY_OFFSETS: 0}},
    "column 13": {"column_sizes": {13: 8}},
    "column 15": {"column_sizes": {15: 2**32 - 1}},
}


@pytest.mark.parametrize("fields", HOSTILE_FIELDS.values(), ids=HOSTILE_FIELDS)
def test_forged_header_is_refused(fields):
    """A header with correct checksums and impossible contents costs neither memory nor time."""
    data = forged(sample(), **fields)
    tracemalloc.start()
    try:
        with pytest.raises(BatchError):
            touch_all(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def replaced(column, cell):
    """The sample with another cell of the same size, and checksums that hold."""
    data = sample()
    body = bytearray(data[HEADER_SIZE:])
    sizes = layout.COLUMN_SIZES.unpack(parse_header(data).column_sizes)
    start = sum(size + (-size & 7) for size in sizes[:column])
    assert len(cell) == sizes[column]
    body[start : start + len(cell)] = cell
    return forged(data, bytes(body))


HOSTILE_CELLS = {
    "value offsets fall": (layout.VALUE_OFFSETS, struct.pack("<4i", 0, 5, 3, 8)),
    "value offsets pass the data": (layout.VALUE_OFFSETS, struct.pack("<4i", 0, 3, 3, 9)),
    "value offsets negative": (layout.VALUE_OFFSETS, struct.pack("<4i", 0, -3, 3, 8)),
    "value offsets not from 0": (layout.VALUE_OFFSETS, struct.pack("<4i", 1, 3, 3, 8)),
    "key offsets huge": (layout.KEY_OFFSETS, struct.pack("<4i", 0, 2**31 - 1, 2**31 - 1, 1)),
    "bits behind the records": (layout.VALUE_VALIDITY, b"\xff"),
    "negative timestamp": (layout.TIMESTAMPS, struct.pack("<3q", 5, -9, 7)),
    "timestamp above the header's": (layout.TIMESTAMPS, struct.pack("<3q", 5, 10, 7)),
    "header counts fall": (layout.HEADER_OFFSETS, struct.pack("<4i", 0, 3, 2, 3)),
    "header counts too high": (layout.HEADER_OFFSETS, struct.pack("<4i", 0, 2, 2, 2**31 - 1)),
    "name no UTF-8": (layout.HEADER_KEY_DATA, b"ab\xff\xfe"),
    "name offsets fall": (layout.HEADER_KEY_OFFSETS, struct.pack("<4i", 0, 4, 2, 4)),
    "content offsets pass the data": (layout.HEADER_VALUE_OFFSETS, struct.pack("<4i", 0, 1, 1, 5)),
}


@pytest.mark.parametrize(("column", "cell"), HOSTILE_CELLS.values(), ids=HOSTILE_CELLS)
def test_forged_column_is_refused(column, cell):
    """A body with correct checksums whose columns contradict themselves is refused when they are looked at."""
    with pytest.raises(BatchError):
        touch_all(replaced(column, cell))


@pytest.mark.parametrize("deltas", [(0, 2, 1), (0, 0, 3), (-1, 1, 3), (0, 1, 4), (1, 2, 2)])
def test_forged_offset_deltas_are_refused(deltas):
    """Offsets of a compacted batch rise strictly, from the base to the last."""
    data = placed(encode([b"a", b"b", b"c"], None, 1))
    sizes = {layout.OFFSET_DELTAS: 12}
    body = struct.pack("<3i4x", *deltas) + data[HEADER_SIZE:]
    with pytest.raises(BatchError):
        touch_all(forged(data, body, column_sizes=sizes, last_offset=10))


def test_offset_deltas_place_the_records():
    """A batch with gaps, as compaction leaves them, tells each record's offset and finds the next one."""
    data = placed(encode([b"a", b"b", b"c"], None, 1))
    body = struct.pack("<3i4x", 0, 2, 5) + data[HEADER_SIZE:]
    batch = parsed(forged(data, body, column_sizes={layout.OFFSET_DELTAS: 12}, last_offset=12))
    assert list(batch.offsets(0, 3)) == [7, 9, 12]
    assert [batch.index_of_offset(offset) for offset in (7, 8, 9, 10, 12)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("claimed", [0, 100, layout.COMPRESSED_BODY_LIMIT - 64, 2**31, 2**32 - 64])
def test_compressed_body_of_another_size_is_refused(claimed):
    """What a packed body unpacks to must be what its columns add up to, and stay below the cap."""
    data = sample("gzip")
    packed = zlib.compress(bytes(16) * 5, wbits=31)
    with pytest.raises(BatchError):
        touch_all(forged(data, packed, body_size=len(packed), column_sizes={layout.VALUE_DATA: claimed}))


@pytest.mark.parametrize("name", ["gzip", "lz4", "zstd"])
def test_bomb_in_a_batch_takes_little_memory(name):
    """A packed body of 200 MB of zeros behind a header that promises little ends early, in a process with little."""
    program = textwrap.dedent(
        f"""
        import resource, sys
        sys.path.insert(0, {sys.path[0]!r})
        from pystreamlog.record.compression import parse_codec
        from pystreamlog.record import format as layout
        from pystreamlog.record.batch import BatchError, decode, encode, parse_header
        from xxhash import xxh3_64_intdigest
        codec = parse_codec({name!r})
        packed = codec.compress(bytes(200 << 20))
        body = packed + bytes(-len(packed) & 7)
        batch = encode([b"x" * 1000], None, 1, codec=codec)
        header = bytearray(batch.place(0, 1, 2, 0, 1, 0)[0])
        fields = list(layout.HEADER.unpack(header))
        fields[2], fields[4], fields[6], fields[20] = codec.id, 192 + len(body), xxh3_64_intdigest(body), len(packed)
        raw = layout.HEADER.pack(*fields)[:-8]
        raw += layout.HEADER_CHECKSUM.pack(xxh3_64_intdigest(raw))
        usage = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (usage + (64 << 20), -1))
        try:
            decode(parse_header(raw), body)
        except BatchError as error:
            print("refused:", error)
        """
    )
    if sys.platform != "linux":
        pytest.skip("memory is limited by Linux's means")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("refused:"), done.stderr


@settings(max_examples=300)
@given(st.integers(0, len(sample()) - HEADER_SIZE - 1), st.binary(min_size=1, max_size=16))
def test_forged_bodies_decode_to_something_or_are_refused(position, garbage):
    """Garbage with correct checksums never raises anything but the one error, and never cuts past the body."""
    data = sample()
    body = bytearray(data[HEADER_SIZE:])
    body[position : position + len(garbage)] = garbage[: len(body) - position]
    try:
        records = touch_all(forged(data, bytes(body)))
    except BatchError:
        return
    assert len(records) == 3
