"""Timestamps of many records in few bytes, for those that wait long for their acknowledgement."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import repeat
from operator import add, sub
from typing import overload

__all__ = ["packed"]


def packed(stamps: Sequence[int] | int) -> Sequence[int] | int:
    """The same timestamps: as one number where all are equal, else as small distances from the first one.

    One byte each where they span less than 128 ms, as those of a batch mostly do; eight at most.
    """
    if isinstance(stamps, int) or not stamps:
        return stamps
    first, low, high = stamps[0], min(stamps), max(stamps)
    if low == high:
        return first
    reach = max(first - low, high - first)
    code = next(
        code for code, limit in (("b", 1 << 7), ("h", 1 << 15), ("i", 1 << 31), ("q", 1 << 63)) if reach < limit
    )
    return _Packed(first, array(code, map(sub, stamps, repeat(first))))


class _Packed(Sequence[int]):
    """Timestamps as distances from the first."""

    __slots__ = ("_distances", "_first")

    def __init__(self, first: int, distances: array[int]) -> None:
        self._first = first
        self._distances = distances

    def __len__(self) -> int:
        return len(self._distances)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return list(map(add, self._distances[index], repeat(self._first)))
        return self._first + self._distances[index]
