"""What each producer id appended last to one partition: its highest sequence, and where its last batches lie.

Pure: no files, no time. `ProducerState` is fed with every batch that has a producer id, in the order of the log, and
tells which sequences were appended before, and where. The log is the truth: a batch whose last sequence is not above
the highest of its id was written after the id had expired, so the id begins anew with it.

The state is bounded by the number of ids, which expire: in memory an id takes some 250 bytes, and 24 more for each of
its last 64 batches (1.8 kB in all); in a snapshot 32, and 24 for each batch (1.6 kB in all). Snapshot, all numbers
little-endian i64 (checksums and segment id u64), see `storage.format`::

    magic  segment id  base offset  position  offset  last checksum  ids
    per id:  producer id  last sequence  last append (ms)  batches
      per batch:  last sequence  base offset  count, negative if the batch must be looked into
    checksum

A batch must be looked into when its sequences have gaps, or its offsets: then headers alone do not tell which record
has which.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import repeat
from operator import add

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import BatchHeader
from pystreamlog.storage import format as layout

__all__ = ["BATCHES_KEPT", "ProducerState", "Snapshot", "decode_snapshot", "encode_snapshot"]

BATCHES_KEPT = 64
"""Batches of an id whose offsets are known. Kafka's brokers keep 5, as its producers have no more in flight; here a
producer that starts anew sends what it has no acknowledgement of, which may be all that it had buffered."""

_FIELDS = layout.PRODUCER_BATCH.size // 8
"""Numbers kept of each batch: last sequence, base offset, count."""
_COLUMN_SIZES = batch_layout.COLUMN_SIZES.unpack


class _Producer:
    """One id.

    Attributes:
        last_sequence: The highest sequence it appended.
        last_append_ms: When it did that, or a time after it.
        batches: The numbers of its last batches, one after the other, oldest first.
    """

    __slots__ = ("batches", "last_append_ms", "last_sequence")

    def __init__(self, last_sequence: int, last_append_ms: int, batches: array[int]) -> None:
        self.last_sequence = last_sequence
        self.last_append_ms = last_append_ms
        self.batches = batches


class ProducerState:
    """The ids of one partition. One user at a time."""

    __slots__ = ("_producers", "_saved")

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}
        self._saved: dict[int, _Producer | None] | None = None

    def __len__(self) -> int:
        return len(self._producers)

    # --- what was appended

    def last_sequence(self, number: int, expired_ms: int) -> int:
        """The highest sequence an id appended; -1 for one that did not append since `expired_ms`."""
        producer = self._producers.get(number)
        if producer is None or producer.last_append_ms < expired_ms:
            return -1
        return producer.last_sequence

    def find(self, number: int, sequences: Sequence[int]) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Where rising sequences of an id lie, as far as headers tell.

        Returns:
            An offset for each, -1 where it is unknown; and what to look into: from which to which sequence (their
            places in `sequences`) in the batch with which base offset.
        """
        offsets = [-1] * len(sequences)
        inside: list[tuple[int, int, int]] = []
        producer = self._producers.get(number)
        batches = producer.batches if producer is not None else array("q")
        start = 0
        for last, base, count in zip(batches[0::_FIELDS], batches[1::_FIELDS], batches[2::_FIELDS], strict=True):
            stop = bisect_right(sequences, last, start)
            if start == stop:
                continue
            if count < 0:
                inside.append((start, stop, base))
            else:
                first = last - count + 1
                begin = bisect_left(sequences, first, start, stop)
                offsets[begin:stop] = map(add, sequences[begin:stop], repeat(base - first))
            start = stop
        return offsets, inside

    # --- appending

    def append(self, number: int, last_sequence: int, base_offset: int, count: int, now_ms: int) -> None:
        """A batch of an id is in the log.

        Args:
            number: The id's.
            last_sequence: Of its last record.
            base_offset: Of its first record.
            count: Its records; negative if it must be looked into.
            now_ms: When it was appended, or a time after it.
        """
        producer = self._producers.get(number)
        if self._saved is not None and number not in self._saved:
            self._saved[number] = None if producer is None else _copy(producer)
        if producer is None or last_sequence <= producer.last_sequence:
            numbers = array("q", (last_sequence, base_offset, count))
            self._producers[number] = _Producer(last_sequence, now_ms, numbers)
            return
        batches = producer.batches
        if len(batches) == BATCHES_KEPT * _FIELDS:
            del batches[:_FIELDS]
        batches.extend((last_sequence, base_offset, count))
        producer.last_sequence = last_sequence
        producer.last_append_ms = now_ms

    def append_header(self, header: BatchHeader, now_ms: int) -> None:
        """A batch of the log; nothing happens if it has no producer id."""
        if header.producer_id >= 0:
            sizes = _COLUMN_SIZES(header.column_sizes)
            gaps = sizes[batch_layout.SEQUENCES] or sizes[batch_layout.OFFSET_DELTAS]
            count = -header.count if gaps else header.count
            self.append(header.producer_id, header.last_sequence, header.base_offset, count, now_ms)

    def expire(self, expired_ms: int) -> None:
        """Forget the ids that did not append since `expired_ms`; costs 0.1 us for each id there is."""
        gone = [number for number, producer in self._producers.items() if producer.last_append_ms < expired_ms]
        for number in gone:
            del self._producers[number]

    # --- trying

    def begin(self) -> None:
        """Remember what changes from now on, until `keep` or `undo`; again is harmless."""
        if self._saved is None:
            self._saved = {}

    def keep(self) -> None:
        """What changed since `begin` is in the log for good."""
        self._saved = None

    def undo(self) -> None:
        """Forget what changed since `begin`: it did not come into the log."""
        saved, self._saved = self._saved, None
        for number, producer in (saved or {}).items():
            if producer is None:
                self._producers.pop(number, None)
            else:
                self._producers[number] = producer

    # --- snapshots

    def encode(self) -> list[bytes]:
        """The ids as a snapshot holds them."""
        parts = []
        for number, one in self._producers.items():
            batches = one.batches
            parts.append(_pack_producer(number, one.last_sequence, one.last_append_ms, len(batches) // _FIELDS))
            parts.append(batches.tobytes())
        return parts

    @classmethod
    def decode(cls, data: bytes, count: int) -> ProducerState:
        """The ids that `encode` wrote.

        Raises:
            ValueError: There are not `count` of them, or one is none.
        """
        numbers = array("q", data)
        state, position = cls(), 0
        for _ in range(count):
            number, last_sequence, last_append_ms, kept = numbers[position : position + _PRODUCER_FIELDS]
            position += _PRODUCER_FIELDS
            batches = numbers[position : position + kept * _FIELDS]
            position += len(batches)
            lasts = batches[0::_FIELDS].tolist()
            if not 1 <= kept <= BATCHES_KEPT or len(batches) != kept * _FIELDS or lasts != sorted(set(lasts)):
                raise ValueError(f"{kept} batches of producer {number} with last sequences {lasts[:5]}")
            if min(number, lasts[0]) < 0 or lasts[-1] != last_sequence or number in state._producers:
                raise ValueError(f"producer {number} with sequence {last_sequence}")
            state._producers[number] = _Producer(last_sequence, last_append_ms, batches)
        if position != len(numbers):
            raise ValueError(f"{len(numbers) - position} numbers behind the last producer")
        return state


_PRODUCER_FIELDS = layout.PRODUCER.size // 8
_pack_producer = layout.PRODUCER.pack


def _copy(producer: _Producer) -> _Producer:
    return _Producer(producer.last_sequence, producer.last_append_ms, producer.batches[:])


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """What a snapshot says of the place in the log that it was taken at, in the order of the format.

    Attributes:
        magic: `PRODUCERS_MAGIC`.
        segment_id: Of the segment it belongs to.
        segment_base: That segment's base offset.
        position: Where in the segment the next batch begins.
        offset: That batch's offset: the state is that of all batches below.
        last_checksum: Of the batch header before, or of the segment header.
        count: Producers.
    """

    magic: bytes
    segment_id: int
    segment_base: int
    position: int
    offset: int
    last_checksum: int
    count: int


def encode_snapshot(
    state: ProducerState, *, segment_id: int, segment_base: int, position: int, offset: int, last_checksum: int
) -> bytes:
    """The bytes of a snapshot file; see `Snapshot`."""
    head = layout.PRODUCERS_HEADER.pack(
        layout.PRODUCERS_MAGIC, segment_id, segment_base, position, offset, last_checksum, len(state)
    )
    raw = b"".join((head, *state.encode()))
    return raw + layout.CHECKSUM.pack(xxh3_64_intdigest(raw))


def decode_snapshot(data: bytes) -> tuple[Snapshot, ProducerState] | None:
    """A snapshot and the state it holds; None if the bytes are none."""
    size = layout.PRODUCERS_HEADER.size
    body = len(data) - size - layout.CHECKSUM.size
    if body < 0 or body % 8 or data[: len(layout.PRODUCERS_MAGIC)] != layout.PRODUCERS_MAGIC:
        return None
    if layout.CHECKSUM.unpack_from(data, size + body)[0] != xxh3_64_intdigest(data[: size + body]):
        return None
    snapshot = Snapshot(*layout.PRODUCERS_HEADER.unpack_from(data))
    try:
        return snapshot, ProducerState.decode(data[size : size + body], snapshot.count)
    except ValueError:
        return None
