"""Driving several consumers of one group from one thread: polled in turn, until something has happened."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from pystreamlog import Consumer, Record, StreamLog, TopicPartition
from pystreamlog.testing.contract import PATIENCE

__all__ = ["Member", "Notes", "drive", "even", "is_even", "join", "read"]

Member = Consumer[bytes, bytes]
"""A consumer without serdes."""

Read = list[Record[bytes, bytes]]


class Notes:
    """Callbacks that note what they are told.

    Attributes:
        told: "assign", "revoke" or "lost", and the partitions.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, list[TopicPartition]]] = []

    def on_assign(self, _: Consumer[Any, Any], added: list[TopicPartition]) -> None:
        """Note what came."""
        self.told.append(("assign", added))

    def on_revoke(self, _: Consumer[Any, Any], removed: list[TopicPartition]) -> None:
        """Note what goes."""
        self.told.append(("revoke", removed))

    def on_lost(self, _: Consumer[Any, Any], lost: list[TopicPartition]) -> None:
        """Note what went."""
        self.told.append(("lost", lost))

    def callbacks(self) -> dict[str, Any]:
        """As settings of a consumer."""
        return {"on_assign": self.on_assign, "on_revoke": self.on_revoke, "on_lost": self.on_lost}

    def held(self) -> set[TopicPartition]:
        """What the consumer reads, going by what was told; nothing comes twice, and nothing goes that never came."""
        held: set[TopicPartition] = set()
        for what, partitions in self.told:
            assert partitions, f"{what} of nothing"
            assert partitions == sorted(set(partitions))
            if what == "assign":
                assert held.isdisjoint(partitions)
                held.update(partitions)
            else:
                assert held.issuperset(partitions)
                held.difference_update(partitions)
        return held


def drive(*members: Consumer[Any, Any], until: Callable[[], bool]) -> Read:
    """Poll members of one group in turn until something has happened; the records that came meanwhile.

    At no time do two of them read one partition.
    """
    seen: Read = []
    deadline = monotonic() + PATIENCE
    while not until():
        assert monotonic() < deadline, f"waited in vain; assigned: {[member.assignment() for member in members]}"
        for member in members:
            seen += member.poll(0.002)
            owned = [tp for one in members for tp in one.assignment()]
            assert len(owned) == len(set(owned)), f"read by two: {owned}"
    return seen


def is_even(members: tuple[Consumer[Any, Any], ...], total: int) -> bool:
    """Whether the members share `total` partitions, none having two more than another."""
    sizes = [len(member.assignment()) for member in members]
    return sum(sizes) == total and max(sizes) - min(sizes) <= 1


def even(*members: Consumer[Any, Any], total: int) -> Read:
    """Poll until the members share `total` partitions evenly; the records that came meanwhile."""
    return drive(*members, until=lambda: is_even(members, total))


def read(*members: Consumer[Any, Any], count: int) -> Read:
    """Poll members in turn until there are `count` records, and then once more: there is not one more."""
    seen: Read = []
    deadline = monotonic() + PATIENCE
    while len(seen) < count and monotonic() < deadline:
        for member in members:
            seen += member.poll(0.002)
    for member in members:
        seen += member.poll(0)
    assert len(seen) == count, f"{len(seen)} records instead of {count}"
    return seen


def join(log: StreamLog, *topics: str, **options: Any) -> Member:
    """A new consumer of group "g" that has joined it, and read nothing yet."""
    on_assign: Callable[..., object] | None = options.pop("on_assign", None)
    joining = True

    def paused(consumer: Member, added: list[TopicPartition]) -> None:
        if joining:
            consumer.pause(*added)
        if on_assign is not None:
            on_assign(consumer, added)

    options = {"group_id": "g", "auto_offset_reset": "earliest", "on_assign": paused, **options}
    member = log.consumer(*topics or ("events",), **options)
    deadline = monotonic() + PATIENCE
    while not member.group_metadata().member_id:
        assert monotonic() < deadline, "cannot join"
        assert not member.poll(0)
    joining = False
    member.resume()
    return member
