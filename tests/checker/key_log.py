"""What a history says that one key's log holds: which value lies where, who wrote it, and whether it was read."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable

from .history import History, Op
from .report import Report

__all__ = ["KeyLog", "key_logs", "must_have_happened"]


class KeyLog:
    """One key.

    Attributes:
        writers: The operation that sent a value.
        read: Values that a successful operation read.
        at: The value at an offset; of several, the first that was heard of.
        clashes: All values of an offset that has several.
        offsets: The offsets, ascending; the index of one is its place in the log with gaps removed.
        several: All indexes of a value that lies at several offsets.
    """

    __slots__ = ("_dense", "at", "clashes", "offsets", "read", "several", "writers")

    def __init__(self) -> None:
        self.writers: dict[int, Op] = {}
        self.read: set[int] = set()
        self.at: dict[int, int] = {}
        self.clashes: dict[int, set[int]] = {}
        self.offsets = array("q")
        self.several: dict[int, list[int]] = {}
        self._dense = False

    def put(self, offsets: Iterable[int | None], values: Iterable[int]) -> None:
        """These lie there, somebody said."""
        at = self.at
        for offset, value in zip(offsets, values, strict=True):
            if offset is not None and at.setdefault(offset, value) != value:
                self.clashes.setdefault(offset, {at[offset]}).add(value)

    def settle(self) -> None:
        """All has been put."""
        self.offsets = array("q", sorted(self.at))
        self._dense = bool(self.offsets) and self.offsets[-1] - self.offsets[0] == len(self.offsets) - 1
        first: dict[int, int] = {}
        for index, offset in enumerate(self.offsets):
            for value in self.clashes.get(offset) or (self.at[offset],):
                before = first.setdefault(value, index)
                if before != index:
                    self.several.setdefault(value, [before]).append(index)

    def index(self, offset: int) -> int:
        """Place of an offset in the log with gaps removed; of one that is not there, that of the next."""
        return offset - self.offsets[0] if self._dense else bisect_left(self.offsets, offset)

    def first_index(self, value: int, index: int) -> int:
        """The first place of a value that lies at `index`."""
        return self.several[value][0] if value in self.several else index

    def last_index(self, value: int, index: int) -> int:
        """The last place of a value that lies at `index`."""
        return self.several[value][-1] if value in self.several else index

    def places(self, values: Iterable[int]) -> dict[int, int]:
        """The first place of each of these values that lies in the log; goes through the whole log."""
        wanted = set(values)
        found: dict[int, int] = {}
        for index, offset in enumerate(self.offsets):
            for value in self.clashes.get(offset) or (self.at[offset],):
                if value in wanted:
                    found.setdefault(value, index)
        return found


def key_logs(history: History, report: Report) -> dict[str, KeyLog]:
    """The log of each key.

    Polls of any outcome count, as nobody may ever be handed bad data; sends count if they must have happened: they
    were acknowledged, or one of their values was read.
    """
    logs: dict[str, KeyLog] = {}
    for op in history.ops:
        for key, (_, values) in op.sends.items():
            log = logs.setdefault(key, KeyLog())
            for value in values:
                other = log.writers.setdefault(value, op)
                assert other is op, f"{value} was sent to {key} by two operations: the clients are wrong"
        for key, (offsets, values) in op.reads.items():
            log = logs.setdefault(key, KeyLog())
            log.put(offsets, values)
            report.compare("inconsistent-offsets", len(values))
            if op.type == "ok":
                log.read.update(values)
    for op in history.ops:
        if op.sends and must_have_happened(op, logs):
            for key, (offsets, values) in op.sends.items():
                logs[key].put(offsets, values)
                report.compare("inconsistent-offsets", sum(offset is not None for offset in offsets))
    for log in logs.values():
        log.settle()
    return logs


def must_have_happened(op: Op, logs: dict[str, KeyLog]) -> bool:
    """Whether it was acknowledged, or unknown and one of its values was read."""
    if op.type == "info":
        return any(value in logs[key].read for key, (_, values) in op.sends.items() for value in values)
    return op.type == "ok"
