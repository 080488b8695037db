"""Which records of a partition a compaction keeps: the last of each key, in bounded memory.

The segments are a **clean** part, in which no key has two records, and a **dirty** part behind it. A dictionary tells
of each key of the dirty part which record is its last one. These stay, and of the clean part those whose key is not in
the dictionary. Keys are compared whole, so two with the same hash are two.

Where the dictionary would pass its budget, half of the range of hashes is put off to the next pass: all keys whose hash
lies there leave it, and the records are read once more for them later. What stays is a bit, or a byte while it is
found, per record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, repeat
from operator import and_

import msgspec

from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import Batch
from pystreamlog.record.columns import decode_bitmap, encode_bitmap

__all__ = ["DEFAULT_BUDGET", "Part", "Survivors", "find_survivors"]

DEFAULT_BUDGET = 512 << 20
"""Bytes that the dictionary of a pass may take."""
_ENTRY_SIZE = 150
"""Bytes that a key takes in it, but for the key's own: the objects of key and number, and the table when it grows."""
_LOWEST, _ABOVE = -(1 << 63), 1 << 63
_MARKS_SHARE = 8
"""As many bytes of the budget for each record of the dirty part at least."""
_INVERTED = bytes.maketrans(b"\x00\x01", b"\x01\x00")


class Part(msgspec.Struct, frozen=True):
    """One segment of those to look through.

    Attributes:
        base: Its base offset.
        is_clean: No key has two records in it and all clean ones before.
        drop_tombstones: Its tombstones have had their time; only of a clean one.
    """

    base: int
    is_clean: bool
    drop_tombstones: bool = False


class Survivors(msgspec.Struct):
    """What stays.

    Attributes:
        parts: How many of the segments were looked through: as many dirty ones as fit in the budget.
        records: Of each of these segments, by base offset, how many records it has.
        kept: How many of them stay.
        tombstones: The dirty segments that have tombstones.
        passes: How often the segments were read.
    """

    parts: int
    records: dict[int, int]
    kept: dict[int, int]
    tombstones: set[int]
    passes: int
    _bits: dict[int, bytes]

    def marks(self, base: int) -> bytes:
        """A byte per record of a segment: 1 for those that stay."""
        return _unpacked(self._bits[base], self.records[base])


def find_survivors(
    parts: Sequence[Part],
    read: Callable[[int], Iterator[Batch]],
    *,
    budget: int = DEFAULT_BUDGET,
    hashed: Callable[[bytes], int] = hash,
) -> Survivors:
    """Find out which records stay.

    Args:
        parts: All segments from the log's start on, the clean ones first.
        read: The batches of the segment with that base offset.
        budget: Bytes for the dictionary.
        hashed: The hash of a key, a number of 64 bits with its sign.

    Raises:
        BatchError: A column of a batch does not hold.
    """
    search = _Search(parts, read, budget, hashed)
    low, width = _LOWEST, _ABOVE - _LOWEST
    while low < _ABOVE:
        high, found = search.one_pass(low, min(_ABOVE, low + width))
        width = 2 * (high - low) if found else _ABOVE - high  # twice: what was cut may have been little too much
        low = high
    return search.result()


class _Search:
    """The state of a search."""

    def __init__(
        self,
        parts: Sequence[Part],
        read: Callable[[int], Iterator[Batch]],
        budget: int,
        hashed: Callable[[bytes], int],
    ) -> None:
        self._clean = [part for part in parts if part.is_clean]
        self._dirty = [part for part in parts if not part.is_clean]
        self._read = read
        self._budget = budget
        self._hashed = hashed
        self._records: dict[int, int] = {}
        self._marks = bytearray()
        self._clean_bits: dict[int, bytes] = {}
        self._tombstones: set[int] = set()
        self._passes = 0

    def one_pass(self, low: int, high: int) -> tuple[int, int]:
        """Decide about the keys with hashes from `low` to below `high`, or less; returns that, and their number."""
        last, high = self._last_records(low, high)
        deque(map(self._marks.__setitem__, last.values(), repeat(1)), maxlen=0)
        for part in self._clean:
            if last or part.drop_tombstones or not self._passes:
                self._look_through_clean(part, last)
        self._passes += 1
        return high, len(last)

    def _last_records(self, low: int, high: int) -> tuple[dict[bytes, int], int]:
        """The number, in the dirty part, of the last record of each key with a hash from `low` to below `high`.

        Returns:
            Them, and `high`, which is less if they would have passed the budget.
        """
        last: dict[bytes, int] = {}
        hashed, is_first = self._hashed, not self._passes
        number = key_bytes = keys_seen = 0
        for place, part in enumerate(self._dirty):
            if is_first and place and number > self._budget // _MARKS_SHARE:
                del self._dirty[place:]  # the rest is for the next time
                break
            start = number
            for batch in self._read(part.base):
                count = batch.count
                if is_first:
                    self._marks.extend(bytes(count))
                    if batch.has(batch_layout.VALUE_VALIDITY):
                        self._tombstones.add(part.base)
                keys: Sequence[bytes] = batch.keys(0, count)  # type: ignore[assignment]  # without the None below
                numbers: Sequence[int] = range(number, number + count)
                number += count
                if not batch.has(batch_layout.KEY_OFFSETS) or batch.has(batch_layout.KEY_VALIDITY):
                    there = [key is not None for key in keys]
                    absent = compress(numbers, [not each for each in there])
                    deque(map(self._marks.__setitem__, absent, repeat(1)), maxlen=0)
                    keys, numbers = list(compress(keys, there)), list(compress(numbers, there))
                if low > _LOWEST or high < _ABOVE:
                    hashes = list(map(hashed, keys))
                    inside = map(and_, map(low.__le__, hashes), map(high.__gt__, hashes))
                    last.update(compress(zip(keys, numbers, strict=True), inside))
                else:
                    last.update(zip(keys, numbers, strict=True))
                begin, end = batch.spans[batch_layout.KEY_DATA]
                key_bytes += end - begin
                keys_seen += count
                while len(last) * (_ENTRY_SIZE + key_bytes // keys_seen) > self._budget and high - low > 1:
                    high = (low + high) // 2
                    last = dict(compress(last.items(), map(high.__gt__, map(hashed, last))))
            self._records[part.base] = number - start
        return last, high

    def _look_through_clean(self, part: Part, last: dict[bytes, int]) -> None:
        """Strike the records of a clean segment whose keys have later ones."""
        superseded = last.__contains__
        found: list[bytes] = []
        for batch in self._read(part.base):
            count = batch.count
            marks = bytes(map(superseded, batch.keys(0, count))).translate(_INVERTED)
            if part.drop_tombstones and batch.has(batch_layout.VALUE_VALIDITY):
                there = bytes(value is not None for value in batch.values(0, count))
                marks = bytes(map(and_, marks, there))
            found.append(marks)
        marks = b"".join(found)
        before = self._clean_bits.get(part.base)
        if before is not None:
            marks = bytes(map(and_, marks, _unpacked(before, len(marks))))
        self._records[part.base] = len(marks)
        self._clean_bits[part.base] = encode_bitmap(marks)

    def result(self) -> Survivors:
        """What was found; no bits where all stay."""
        bits, kept, start = dict(self._clean_bits), {}, 0
        for part in self._dirty:
            marks = self._marks[start : start + self._records[part.base]]
            start += len(marks)
            bits[part.base] = encode_bitmap(bytes(marks))
        for base, each in bits.items():
            kept[base] = int.from_bytes(each, "little").bit_count() if each else self._records[base]
        parts = len(self._clean) + len(self._dirty)
        return Survivors(parts, self._records, kept, self._tombstones, self._passes, bits)


def _unpacked(bits: bytes, count: int) -> bytes:
    """A byte per record; no bits say that all stay."""
    return decode_bitmap(bits, count) if bits else b"\x01" * count
