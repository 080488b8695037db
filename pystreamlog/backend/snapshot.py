"""What a snapshot of a log tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from pystreamlog.record.record import TopicPartition

__all__ = ["SnapshotReport"]


@attrs.frozen
class SnapshotReport:
    """What `StreamLog.snapshot` made.

    Attributes:
        path: The snapshot's directory, absolute.
        log_id: Its id, 32 hexadecimal digits; another than that of the log.
        topics: The topics in it, in the order in which they were named, or sorted.
        end_offsets: The next record's offset in each partition of these topics.
        groups: How many consumer groups are in it.
        segments_linked: How many segments are hard links to files of the log.
        segments_copied: How many were copied: those that were written to, or all.
        bytes_linked: Of the linked segments.
        bytes_copied: Of the copied ones.
    """

    path: str
    log_id: str
    topics: tuple[str, ...]
    end_offsets: Mapping[TopicPartition, int]
    groups: int
    segments_linked: int
    segments_copied: int
    bytes_linked: int
    bytes_copied: int

    @property
    def partitions(self) -> int:
        """How many partitions the topics have."""
        return len(self.end_offsets)

    @property
    def segments(self) -> int:
        """How many segments are in it."""
        return self.segments_linked + self.segments_copied

    @property
    def bytes(self) -> int:
        """Of all its segments."""
        return self.bytes_linked + self.bytes_copied

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values, for JSON; the end offsets by topic, in the order of the partitions."""
        ends: dict[str, list[int]] = {name: [] for name in self.topics}
        for tp, offset in sorted(self.end_offsets.items()):
            ends[tp.topic].append(offset)
        return {**{name: getattr(self, name) for name in attrs.fields_dict(SnapshotReport)}, "end_offsets": ends}

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.partitions:,} partitions of {len(self.topics):,} topics, {self.groups:,} groups; "
            f"{self.segments_linked:,} segments linked ({self.bytes_linked:,} bytes), {self.segments_copied:,} copied "
            f"({self.bytes_copied:,} bytes)"
        )
