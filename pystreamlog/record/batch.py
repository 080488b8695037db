"""The columnar batch codec: records become one header and contiguous columns, and back.

Encoding has two steps, because one of them happens under the partition's append lock and must be short:

1. `encode` turns columns of records into an `EncodedBatch`: body, body checksum, everything that needs no place.
2. `EncodedBatch.place` makes the header for the place the batch gets: offsets, chain, epoch, header checksum.

Decoding trusts nothing. `parse_header` checks magic, version, bounds and the header checksum; `decode` checks the body
checksum, unpacks with a cap, and checks each column before it slices it. What does not hold raises `BatchError`, which
the storage layer turns into `CorruptLogError` with file and position, or into "not yet" at the end of a log.

Nothing here knows files, locks or the clock.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain, repeat
from operator import add, lt
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

from pystreamlog.clock import MAX_TIMESTAMP_MS
from pystreamlog.record import columns
from pystreamlog.record import format as layout
from pystreamlog.record.compression import decompress
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.record.format import HEADER_SIZE, padded

if TYPE_CHECKING:
    from pystreamlog.record.compression import Codec
    from pystreamlog.record.record import Headers

__all__ = [
    "Batch",
    "BatchError",
    "BatchHeader",
    "decode",
    "encode",
    "encode_one",
    "parse_header",
]

_pack_prefix = layout.PREFIX.pack
_pack_suffix = layout.SUFFIX.pack
_pack_checksum = layout.HEADER_CHECKSUM.pack
_pack_offsets = struct.Struct("<ii").pack
_NO_PRODUCER = (layout.NO_PRODUCER, layout.NO_PRODUCER, layout.NO_PRODUCER, 0)

_JOINED_BODY_LIMIT = 64 << 10
"""Bodies up to this size are joined, larger ones hashed and written in parts: a copy of 1 MiB costs more than calls."""


class BatchError(ValueError):
    """The bytes are no valid batch; the message says which rule they break."""


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """The fields of a batch header, in the order of the format."""

    magic: int
    version: int
    codec: int
    flags: int
    size: int
    count: int
    body_checksum: int
    segment_id: int
    base_offset: int
    last_offset: int
    base_timestamp: int
    max_timestamp: int
    durable_offset: int
    previous_checksum: int
    epoch: int
    producer_epoch: int
    producer_id: int
    last_sequence: int
    transaction_nonce: int
    column_sizes: bytes
    body_size: int
    reserved: int
    checksum: int


def encode_one(
    value: bytes | None,
    key: bytes | None,
    timestamp_ms: int,
    headers: Headers = (),
    log_append_time: bool = False,  # noqa: FBT001, FBT002 - keywords cost 50 ns
) -> EncodedBatch:
    """Encode a single record, as `encode` does columns of one: in a fifth of the time, if its sizes came before."""
    if value is None or headers:
        keys = None if key is None else (key,)
        return encode((value,), keys, timestamp_ms, (headers,) if headers else None, log_append_time=log_append_time)
    if log_append_time:
        timestamp_ms = 0
    if key is None:
        head, suffix, size, _, _, offsets, padding = _template(-1, len(value), log_append_time)
        body = offsets + value + padding
    else:
        head, suffix, size, key_offsets, key_padding, offsets, padding = _template(
            len(key), len(value), log_append_time
        )
        body = b"".join((key_offsets, key, key_padding, offsets, value, padding))
    prefix = head + _pack_checksum(xxh3_64_intdigest(body))
    return EncodedBatch(prefix, suffix, [body], size, 1, timestamp_ms, timestamp_ms, log_append_time)


@lru_cache(maxsize=1024)
def _template(
    key_size: int,
    size: int,
    log_append_time: bool,  # noqa: FBT001 - a cache's keyword arguments cost as much as it saves
) -> tuple[bytes, bytes, int, bytes, bytes, bytes, bytes]:
    """What the batch of one record of these sizes always has: header ends, offsets and padding. -1 is no key."""
    key_sizes = (8, key_size) if key_size >= 0 else (0, 0)
    body_size = sum(map(padded, key_sizes)) + 8 + padded(size)
    total = HEADER_SIZE + body_size
    flags = layout.FLAG_LOG_APPEND_TIME if log_append_time else 0
    sizes = (0, 0, 0, *key_sizes, 0, 8, size, 0, 0, 0, 0, 0, 0, 0, 0)
    return (
        _pack_prefix(layout.MAGIC, layout.VERSION, 0, flags, total, 1, 0)[:-8],
        _pack_suffix(*_NO_PRODUCER, *sizes, body_size, 0),
        total,
        _pack_offsets(0, max(0, key_size)),
        bytes(-key_size & 7 if key_size >= 0 else 0),
        _pack_offsets(0, size),
        bytes(-size & 7),
    )


def encode(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None,
    timestamps_ms: Sequence[int] | int,
    headers: Sequence[Headers] | None = None,
    *,
    codec: Codec | None = None,
    log_append_time: bool = False,
    producer_id: int = layout.NO_PRODUCER,
    sequences: Sequence[int] | None = None,
    offset_deltas: Sequence[int] | None = None,
) -> EncodedBatch:
    """Encode columns of equal length, at least one record.

    Args:
        values: One byte string per record; None is a tombstone.
        keys: One key per record, None where it has none; None when no record has one.
        timestamps_ms: Milliseconds since 1970, one per record or one for all.
        headers: Pairs of name and bytes per record; None when no record has any.
        codec: Compresses the body; a body that does not shrink, or unpacks past the cap, is stored as it is.
        log_append_time: Leave the timestamps to the log.
        producer_id: Number of the producer's id, if its records have sequences.
        sequences: One per record, rising strictly; None without a producer id.
        offset_deltas: Of each record, how far its offset lies above the first one's; None without gaps.

    Raises:
        TypeError: A value, key or header is of the wrong type.
        OverflowError: A column exceeds 2 GiB.
    """
    count = len(values)
    cells: list[bytes] = [b""] * layout.COLUMN_COUNT
    cells[layout.VALUE_VALIDITY : layout.VALUE_DATA + 1] = columns.encode_binary(values)
    if keys is not None and (keys[0] is not None or keys.count(None) < count):
        cells[layout.KEY_VALIDITY : layout.KEY_DATA + 1] = columns.encode_binary(keys)
    if headers is not None and any(headers):
        _encode_headers(cells, headers)
    if log_append_time:
        base_timestamp = max_timestamp = 0
    elif isinstance(timestamps_ms, int):
        base_timestamp = max_timestamp = timestamps_ms
    else:
        base_timestamp, max_timestamp = timestamps_ms[0], max(timestamps_ms)
        if timestamps_ms.count(base_timestamp) < count:
            cells[layout.TIMESTAMPS] = columns.encode_numbers(timestamps_ms)
    if offset_deltas is not None:
        cells[layout.OFFSET_DELTAS] = columns.encode_numbers(offset_deltas, code="i")
    last_sequence = layout.NO_PRODUCER if sequences is None else _encode_sequences(cells, sequences)

    sizes = list(map(len, cells))
    parts: list[bytes] = []
    for cell, size in zip(cells, sizes, strict=True):
        if size:
            parts.append(cell)
            if size & 7:
                parts.append(bytes(-size & 7))
    body_size = sum(map(len, parts))
    plain_size = 0
    codec_id = 0
    if codec is not None and body_size <= layout.COMPRESSED_BODY_LIMIT:
        packed = codec.compress(b"".join(parts))
        if len(packed) < body_size:
            plain_size = HEADER_SIZE + padded(body_size)
            codec_id, body_size = codec.id, len(packed)
            parts = [packed, bytes(-body_size & 7)]
    if body_size <= _JOINED_BODY_LIMIT:
        parts = [b"".join(parts)]
        checksum = xxh3_64_intdigest(parts[0])
    else:
        digest = xxh3_64()
        for part in parts:
            digest.update(part)
        checksum = digest.intdigest()
    flags = layout.FLAG_LOG_APPEND_TIME if log_append_time else 0
    size = HEADER_SIZE + padded(body_size)
    return EncodedBatch(
        _pack_prefix(layout.MAGIC, layout.VERSION, codec_id, flags, size, count, checksum),
        _pack_suffix(layout.NO_PRODUCER, producer_id, last_sequence, 0, *sizes, body_size, 0),
        parts,
        size,
        count,
        base_timestamp,
        max_timestamp,
        log_append_time,
        plain_size=plain_size,
    )


def _encode_headers(cells: list[bytes], headers: Sequence[Headers]) -> None:
    """Headers as a list column: how many each record has, then all names and all values as two binary columns."""
    pairs = list(chain.from_iterable(headers))
    cells[layout.HEADER_OFFSETS] = columns.encode_offsets(list(map(len, headers)))
    names = [name.encode() for name, _ in pairs]
    _, cells[layout.HEADER_KEY_OFFSETS], cells[layout.HEADER_KEY_DATA] = columns.encode_binary(names)
    contents = [content for _, content in pairs]
    if None in contents:
        raise TypeError("a header's value is bytes, not None")
    _, cells[layout.HEADER_VALUE_OFFSETS], cells[layout.HEADER_VALUE_DATA] = columns.encode_binary(contents)


def _encode_sequences(cells: list[bytes], sequences: Sequence[int]) -> int:
    """Sequences as a column, if they have gaps; returns the last one, which tells the others if they have none."""
    if sequences[-1] - sequences[0] >= len(sequences):
        cells[layout.SEQUENCES] = columns.encode_numbers(sequences)
    return sequences[-1]


def parse_header(data: bytes | memoryview, *, limit: int | None = None) -> BatchHeader:
    """The header in the first 192 bytes of `data`.

    Args:
        data: At least a header.
        limit: Bytes there are from the header's start to the end of what is published; None when unknown.

    Raises:
        BatchError: No valid header, or one whose batch would pass `limit`.
    """
    if len(data) < HEADER_SIZE:
        raise BatchError(f"{len(data)} bytes are too few for a batch header of {HEADER_SIZE}")
    header = BatchHeader(*layout.HEADER.unpack_from(data))
    if header.magic != layout.MAGIC:
        raise BatchError(f"no batch: magic {header.magic:#010x} instead of {layout.MAGIC:#010x}")
    if xxh3_64_intdigest(data[: HEADER_SIZE - 8]) != header.checksum:
        raise BatchError("the batch header's checksum does not match")
    if header.version != layout.VERSION or header.flags & ~layout.FLAG_MASK or header.reserved:
        raise BatchError(f"unknown batch version {header.version} or flags {header.flags:#x}")
    if limit is not None and header.size > limit:
        raise BatchError(f"batch of {header.size} bytes where {limit} are left")
    if header.size != HEADER_SIZE + padded(header.body_size):
        raise BatchError(f"batch of {header.size} bytes with a body of {header.body_size}")
    if header.count < 1 or not 0 <= header.base_offset <= header.last_offset:
        raise BatchError(f"{header.count} records from offset {header.base_offset} to {header.last_offset}")
    if header.producer_id >= 0 and header.last_sequence < header.count - 1:
        raise BatchError(f"{header.count} records with sequences up to {header.last_sequence}")
    if not 0 <= header.base_timestamp <= MAX_TIMESTAMP_MS or not 0 <= header.max_timestamp <= MAX_TIMESTAMP_MS:
        raise BatchError(f"timestamps {header.base_timestamp} and {header.max_timestamp} outside 1970 to 9999")
    return header


class Batch:
    """One decoded batch: columns are unpacked when asked for, from `start` to `stop` (record numbers in the batch).

    Attributes:
        header: Its header.
        count: Records.
        body: The columns, unpacked; a view of them in a batch that was read for one record (`record.single`).
        spans: Where each column begins and ends in the body.
    """

    __slots__ = ("_decoded", "body", "count", "header", "spans")

    def __init__(self, header: BatchHeader, body: bytes | memoryview, spans: list[tuple[int, int]]) -> None:
        self.header = header
        self.count = header.count
        self.body = body
        self.spans = spans
        self._decoded: dict[int, tuple[bytes | memoryview, int, list[int], bytes]] = {}

    @property
    def size(self) -> int:
        """Bytes it takes in memory, unpacked."""
        return HEADER_SIZE + len(self.body)

    def _cell(self, number: int) -> bytes:
        begin, end = self.spans[number]
        return bytes(self.body[begin:end])  # costs nothing where it is bytes

    def has(self, number: int) -> bool:
        """Whether a column is there."""
        begin, end = self.spans[number]
        return begin < end

    def numbers(self, number: int, code: Literal["q", "i"], start: int, stop: int) -> list[int]:
        """Numbers `start` to `stop` of a column of numbers of a fixed width."""
        begin = self.spans[number][0]
        width = 8 if code == "q" else 4
        return columns.decode_numbers(self.body[begin + width * start : begin + width * stop], stop - start, code=code)

    def _binary(self, validity: int) -> tuple[bytes | memoryview, int, list[int], bytes]:
        """The binary column that starts with column `validity`: data, size if all have one, offsets else, validity."""
        found = self._decoded.get(validity)
        if found is None:
            begin, end = self.spans[validity + 2]
            data: bytes | memoryview = memoryview(self.body)[begin:end]
            offsets_cell = self._cell(validity + 1)
            offsets: list[int] = []
            flags = b""
            try:
                size = columns.uniform_size(offsets_cell, self.count, end - begin)
                if not size:
                    offsets = columns.decode_offsets(offsets_cell, self.count, end - begin)
                    data = bytes(data)  # slices of a view would be views
                if self.has(validity):
                    flags = columns.decode_bitmap(self._cell(validity), self.count)
            except ValueError as error:
                raise BatchError(str(error)) from error
            found = self._decoded[validity] = data, size, offsets, flags
        return found

    def _items(self, validity: int, start: int, stop: int) -> list[bytes | None]:
        data, size, offsets, flags = self._binary(validity)
        items: list[Any] = (
            columns.uniform_slices(data, size, start, stop) if size else columns.slices(data, offsets, start, stop)  # type: ignore[arg-type]
        )
        for index in columns.zeros(flags, start, stop) if flags else ():
            items[index] = None
        return items

    def values(self, start: int, stop: int) -> list[bytes | None]:
        """Values; None is a tombstone."""
        return self._items(layout.VALUE_VALIDITY, start, stop)

    def keys(self, start: int, stop: int) -> list[bytes | None]:
        """Keys; None where a record has none."""
        if not self.has(layout.KEY_OFFSETS):
            return [None] * (stop - start)
        return self._items(layout.KEY_VALIDITY, start, stop)

    def offsets(self, start: int, stop: int) -> Sequence[int]:
        """Offsets, ascending."""
        base = self.header.base_offset
        if not self.has(layout.OFFSET_DELTAS):
            return range(base + start, base + stop)
        deltas = self.numbers(layout.OFFSET_DELTAS, "i", 0, self.count)
        if deltas[0] < 0 or deltas[-1] != self.header.last_offset - base or not all(map(lt, deltas, deltas[1:])):
            raise BatchError("the offsets do not rise to the last one of the header")
        return list(map(add, deltas[start:stop], repeat(base)))

    def offset(self, index: int) -> int:
        """Offset of one record."""
        begin, end = self.spans[layout.OFFSET_DELTAS]
        return self.header.base_offset + index if begin == end else self.offsets(index, index + 1)[0]

    def timestamps_ms(self, start: int, stop: int) -> Sequence[int]:
        """Timestamps in milliseconds since 1970."""
        if not self.has(layout.TIMESTAMPS):
            return [self.header.base_timestamp] * (stop - start)
        timestamps = self.numbers(layout.TIMESTAMPS, "q", start, stop)
        if timestamps and (min(timestamps) < 0 or max(timestamps) > self.header.max_timestamp):
            raise BatchError("timestamps before 1970 or above the highest one of the header")
        return timestamps

    def sequences(self, start: int, stop: int) -> Sequence[int]:
        """The producer's sequences, rising; what they are without a producer id means nothing."""
        if not self.has(layout.SEQUENCES):
            first = self.header.last_sequence - self.count + 1
            return range(first + start, first + stop)
        return self.numbers(layout.SEQUENCES, "q", start, stop)

    def headers(self, start: int, stop: int) -> list[Headers]:
        """Headers, an empty tuple where a record has none.

        Raises:
            BatchError: A name is not UTF-8.
        """
        if not self.has(layout.HEADER_OFFSETS):
            return [()] * (stop - start)
        begin, end = self.spans[layout.HEADER_KEY_OFFSETS]
        pairs = (end - begin) // 4 - 1
        try:
            bounds = columns.decode_offsets(self._cell(layout.HEADER_OFFSETS), self.count, pairs)
            names = self._strings(layout.HEADER_KEY_OFFSETS, pairs)
            contents = self._strings(layout.HEADER_VALUE_OFFSETS, pairs)
            both = list(zip(map(bytes.decode, names), contents, strict=True))
        except ValueError as error:
            raise BatchError(f"headers: {error}") from error
        ends = bounds[start + 1 : stop + 1]
        return [tuple(both[begin:end]) for begin, end in zip(bounds[start:stop], ends, strict=True)]

    def _strings(self, offsets_column: int, count: int) -> list[bytes]:
        data = self._cell(offsets_column + 1)
        offsets = columns.decode_offsets(self._cell(offsets_column), count, len(data))
        return columns.slices(data, offsets, 0, count)

    def index_of_offset(self, offset: int) -> int:
        """The number of the first record whose offset is not below `offset`."""
        if not self.has(layout.OFFSET_DELTAS):
            return max(0, offset - self.header.base_offset)
        return sum(map(offset.__gt__, self.offsets(0, self.count)))


def decode(header: BatchHeader, body: bytes | memoryview) -> Batch:
    """The batch of a parsed header and its `size - 192` bytes of body and padding.

    Raises:
        BatchError: Checksum, size, compression or columns do not hold.
        NotSupportedError: The codec's library is not installed.
    """
    if len(body) != header.size - HEADER_SIZE or xxh3_64_intdigest(body) != header.body_checksum:
        raise BatchError("the batch body's checksum does not match")
    spans, position = _spans(header.column_sizes, header.count)
    dense = header.last_offset - header.base_offset == header.count - 1
    begin, end = spans[layout.OFFSET_DELTAS]
    if begin == end and not dense:
        raise BatchError(f"{header.count} records from offset {header.base_offset} to {header.last_offset}")
    if header.codec:
        packed_end = spans[layout.PACKED_COLUMNS][0]
        plain = position - packed_end
        if packed_end > layout.COMPRESSED_BODY_LIMIT:
            raise BatchError(f"a compressed body may unpack to {layout.COMPRESSED_BODY_LIMIT} bytes, not {packed_end}")
        if header.body_size < plain:
            raise BatchError(f"columns of {plain} bytes in a body of {header.body_size}")
        try:
            unpacked = decompress(header.codec, body[: header.body_size - plain], packed_end)
        except ValueError as error:
            raise BatchError(str(error)) from error
        body = b"".join((unpacked, body[len(body) - plain :])) if plain else unpacked
    if position != len(body):
        raise BatchError(f"columns of {position} bytes in a body of {len(body)}")
    return Batch(header, body, spans)


@lru_cache(maxsize=256)
def _spans(column_sizes: bytes, count: int) -> tuple[list[tuple[int, int]], int]:
    """Where each column begins and ends in the body, and where the body ends.

    Columns of fixed width have the width of the record count, so that no count is larger than the bytes behind it.
    Values always have offsets; everything else may be absent. Batches of one shape come in crowds: it is remembered.

    Raises:
        BatchError: The sizes do not fit the record count.
    """
    sizes = layout.COLUMN_SIZES.unpack(column_sizes)
    bitmap, offsets = (count + 7) // 8, 4 * (count + 1)
    if (
        sizes[layout.VALUE_OFFSETS] != offsets
        or sizes[layout.VALUE_VALIDITY] not in (0, bitmap)
        or sizes[layout.KEY_OFFSETS] not in (0, offsets)
        or sizes[layout.KEY_VALIDITY] not in (0, bitmap)
        or sizes[layout.TIMESTAMPS] not in (0, 8 * count)
        or sizes[layout.OFFSET_DELTAS] not in (0, 4 * count)
        or sizes[layout.HEADER_OFFSETS] not in (0, offsets)
        or sizes[layout.SEQUENCES] not in (0, 8 * count)
        or sizes[layout.KEY_VERSIONS] not in (0, 8 * count)
        or sizes[layout.PREVIOUS_OFFSETS] != sizes[layout.KEY_VERSIONS]
        or (sizes[layout.KEY_VERSIONS] and not sizes[layout.KEY_OFFSETS])
    ):
        raise BatchError(f"columns of {sizes} bytes do not fit {count} records")
    begins = list(accumulate(map(padded, sizes), initial=0))
    return list(zip(begins, map(add, begins, sizes), strict=False)), begins[-1]
