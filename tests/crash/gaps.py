"""Which records of a compacted partition may be gone, and which must.

A record tells its key: values and tombstones begin with a number of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["Gaps", "is_tombstone", "key_of"]

_KEYS = 7


def key_of(record: bytes) -> bytes:
    """The key with which a record is appended to a compacted topic: one of a few."""
    return b"key-%d" % (int(record[: record.index(b";")].lstrip(b"-q")) % _KEYS)


def is_tombstone(record: bytes) -> bool:
    """Whether it stands for a record without a value."""
    return record.startswith(b"-")


class Gaps:
    """The offsets of one partition at which there is no record any more.

    Of each key the last record stays, of those that were there when the partition was compacted last. If it was a
    tombstone that had its time, it may be gone; but only once no other record of the key is left below.

    Attributes:
        forgets: Tombstones have had their time as soon as they were compacted.
        gone: What was gone when it was read last.
    """

    def __init__(
        self,
        *,
        forgets: bool,
        bound: int = 0,
        gone: frozenset[int] = frozenset(),
        synced: frozenset[int] = frozenset(),
    ) -> None:
        """What is known before it is read.

        Args:
            forgets: As the attribute.
            bound: Records below this may be gone.
            gone: These are, as far as processes see.
            synced: These are on disk too.
        """
        self.forgets = forgets
        self.gone = gone
        self._bounds = [(-1, bound)]
        self._gone = [(-1, gone)]
        self._synced = [(-1, synced)]
        self._changes = True

    def begin(self, step: int, end: int) -> None:
        """The partition is compacted now, and ends there."""
        self._bounds.append((step, end))
        self._changes = True

    def end(self, step: int, *, synced: bool) -> None:
        """It was compacted by that step, and was read since."""
        self._gone.append((step, self.gone))
        if synced:
            self._synced.append((step, self.gone))

    def found(
        self, sent: Sequence[bytes], start: int, there: Collection[int], step: int, *, synced: bool
    ) -> str | None:
        """There are records at these offsets; what is wrong with that, or None.

        Args:
            sent: What was sent, up to the end that was found.
            start: Where the log starts.
            there: The offsets.
            step: By which it was read.
            synced: After a recovery: it is on disk.
        """
        gone = frozenset(range(start, len(sent))).difference(there)
        bound = min(max(bound for _, bound in self._bounds), len(sent))
        wrong = self._what_is_wrong(sent, start, gone, bound)
        if wrong is None and not self._changes and gone != frozenset(each for each in self.gone if each >= start):
            wrong = f"{sorted(gone ^ self.gone)} went or came while nothing was compacted"
        self.gone, self._changes = gone, False
        self._bounds[1:] = [(began, min(bound, end)) for began, end in self._bounds[1:]]
        self._gone.append((step, gone))
        if synced:
            self._synced.append((step, gone))
        return wrong

    def _what_is_wrong(self, sent: Sequence[bytes], start: int, gone: frozenset[int], bound: int) -> str | None:
        back = {each for _, promised in self._gone for each in promised if start <= each < len(sent)} - gone
        if back:
            return f"records {sorted(back)} are back, which were compacted away"
        if any(each >= bound for each in gone):
            return f"records {sorted(gone)} are gone, where those below {bound} may be"
        last = {key_of(sent[offset]): offset for offset in range(start, bound)}
        lost = [each for each in last.values() if each in gone and not (self.forgets and is_tombstone(sent[each]))]
        if lost:
            return f"records {sorted(lost)} of {len(sent)} are gone, and were the last of their keys"
        deleted = {key for key, offset in last.items() if offset in gone}
        left = [each for each in range(start, bound) if each not in gone and key_of(sent[each]) in deleted]
        return f"records {left} are there, without the tombstones that deleted them" if left else None

    def at(self, step: float, *, killed: bool) -> Gaps:
        """What is to be expected after a crash at that step."""
        bound = max(bound for began, bound in self._bounds if began < step)
        synced = frozenset().union(*(gone for done, gone in self._synced if done <= step))
        gone = frozenset().union(*(gone for done, gone in self._gone if done <= step)) if killed else synced
        return Gaps(forgets=self.forgets, bound=bound, gone=gone, synced=synced)
