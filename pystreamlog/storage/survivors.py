"""Which records of a partition a compaction keeps: the last of each key, in bounded memory.

The segments are a **clean** part, in which no key has two records, and a **dirty** part behind it. The dirty part is
read from its end on: a record whose key was not seen yet is the last of it. Of the clean part those stay whose key was
not seen in the dirty one. Keys are compared whole, so two with the same hash are two.

Where the set of keys would pass its budget, half of the range of hashes is put off to the next pass: all keys whose
hash lies there leave the set, and everything is read once more for them later. What stays is a bit per record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, repeat
from operator import and_, or_

import msgspec

from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import Batch
from pystreamlog.record.columns import decode_bitmap, encode_bitmap

__all__ = ["DEFAULT_BUDGET", "Part", "Survivors", "find_survivors"]

DEFAULT_BUDGET = 512 << 20
"""Bytes that the keys of a pass may take."""
_ENTRY_SIZE = 130
"""Bytes that a key takes in it, but for the key's own: those of every object, and the table while it grows."""
_LOWEST, _ABOVE = -(1 << 63), 1 << 63
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
        records: Of each segment, by base offset, how many records it has.
        kept: How many of them stay.
        tombstones: The dirty segments that have tombstones.
        passes: How often the segments were read.
    """

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
    read: Callable[[int, bool], Iterator[Batch]],
    *,
    budget: int = DEFAULT_BUDGET,
    hashed: Callable[[bytes], int] = hash,
) -> Survivors:
    """Find out which records stay.

    Args:
        parts: All segments from the log's start on, the clean ones first.
        read: The batches of the segment with that base offset; with True, from the last one on.
        budget: Bytes for the keys of a pass.
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
        read: Callable[[int, bool], Iterator[Batch]],
        budget: int,
        hashed: Callable[[bytes], int],
    ) -> None:
        self._clean = [part for part in parts if part.is_clean]
        self._dirty = [part for part in parts if not part.is_clean]
        self._read = read
        self._budget = budget
        self._hashed = hashed
        self._records: dict[int, int] = {}
        self._bits: dict[int, bytes] = {}
        self._tombstones: set[int] = set()
        self._passes = 0
        self._key_bytes = self._keys_seen = 0

    def one_pass(self, low: int, high: int) -> tuple[int, int]:
        """Decide about the keys with hashes from `low` to below `high`, or less; returns that, and their number."""
        seen: set[bytes] = set()
        for part in reversed(self._dirty):
            high = self._look_through_dirty(part, seen, low, high)
        for part in self._clean:
            if seen or part.drop_tombstones or not self._passes:
                self._look_through_clean(part, seen)
        self._passes += 1
        return high, len(seen)

    def _look_through_dirty(self, part: Part, seen: set[bytes], low: int, high: int) -> int:
        """Mark the records of a segment whose keys are seen for the first time; `high`, or less to keep the budget."""
        found: list[bytes] = []
        for batch in self._read(part.base, True):
            count = batch.count
            keys: Sequence[bytes] = batch.keys(0, count)  # type: ignore[assignment]  # without the None below
            inside: bytes | None = None
            if not batch.has(batch_layout.KEY_OFFSETS) or batch.has(batch_layout.KEY_VALIDITY):
                inside = bytes(key is not None for key in keys)
            marks = bytearray(count) if inside is None else bytearray(inside.translate(_INVERTED))
            if low > _LOWEST or high < _ABOVE:
                in_range = self._in_range(keys, inside, low, high)
                inside = in_range if inside is None else bytes(map(and_, inside, in_range))
            if inside is None:
                marks[:] = _first_seen(keys, seen)
            else:
                places = compress(range(count), inside)
                fresh = _first_seen(list(compress(keys, inside)), seen)
                deque(map(marks.__setitem__, places, fresh), maxlen=0)
            found.append(bytes(marks))
            if not self._passes:
                begin, end = batch.spans[batch_layout.KEY_DATA]
                self._key_bytes += end - begin
                self._keys_seen += count
                if batch.has(batch_layout.VALUE_VALIDITY):
                    self._tombstones.add(part.base)
            while len(seen) * (_ENTRY_SIZE + self._key_bytes // self._keys_seen) > self._budget and high - low > 1:
                high = (low + high) // 2
                stays = set(compress(seen, map(high.__gt__, map(self._hashed, seen))))
                seen.clear()
                seen |= stays
        self._note(part.base, b"".join(reversed(found)), or_)
        return high

    def _in_range(self, keys: Sequence[bytes], there: bytes | None, low: int, high: int) -> bytes:
        """Whether each key has a hash from `low` to below `high`; None has none."""
        if there is not None:
            keys = [key or b"" for key in keys]
        hashes = list(map(self._hashed, keys))
        return bytes(map(and_, map(low.__le__, hashes), map(high.__gt__, hashes)))

    def _look_through_clean(self, part: Part, seen: set[bytes]) -> None:
        """Strike the records of a clean segment whose keys have later ones."""
        found: list[bytes] = []
        for batch in self._read(part.base, False):
            count = batch.count
            marks = bytes(map(seen.__contains__, batch.keys(0, count))).translate(_INVERTED)
            if part.drop_tombstones and batch.has(batch_layout.VALUE_VALIDITY):
                there = bytes(value is not None for value in batch.values(0, count))
                marks = bytes(map(and_, marks, there))
            found.append(marks)
        self._note(part.base, b"".join(found), and_)

    def _note(self, base: int, marks: bytes, combine: Callable[[int, int], int]) -> None:
        """Note the marks of a segment, together with those of the passes before."""
        count = len(marks)
        if self._passes:
            marks = bytes(map(combine, marks, _unpacked(self._bits[base], count)))
        self._records[base] = count
        self._bits[base] = encode_bitmap(marks)

    def result(self) -> Survivors:
        """What was found; no bits where all stay."""
        kept = {
            base: int.from_bytes(bits, "little").bit_count() if bits else self._records[base]
            for base, bits in self._bits.items()
        }
        return Survivors(self._records, kept, self._tombstones, self._passes, self._bits)


def _first_seen(keys: Sequence[bytes], seen: set[bytes]) -> bytes:
    """A byte per key: 1 for the last of each that was not seen; then all are."""
    marks = bytes(map(seen.__contains__, keys)).translate(_INVERTED)
    before = len(seen)
    seen.update(keys)
    if len(seen) - before == marks.count(1):
        return marks
    last = bytearray(len(keys))
    deque(map(last.__setitem__, dict(zip(keys, range(len(keys)), strict=True)).values(), repeat(1)), maxlen=0)
    return bytes(map(and_, marks, last))


def _unpacked(bits: bytes, count: int) -> bytes:
    """A byte per record; no bits say that all stay."""
    return decode_bitmap(bits, count) if bits else b"\x01" * count
