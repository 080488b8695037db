"""What maintaining a log tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from pystreamlog.record.record import TopicPartition

__all__ = ["CompactedSegments", "DeletedSegments", "MaintenanceReport"]


@attrs.frozen
class DeletedSegments:
    """What was deleted from one partition.

    Attributes:
        segments: How many segments.
        bytes: Of their files.
        log_start_offset: The first offset that is left, or the end.
    """

    segments: int
    bytes: int
    log_start_offset: int


@attrs.frozen
class CompactedSegments:
    """What was compacted, or repacked, of one partition: the segments that were written anew.

    Attributes:
        segments_before: How many there were.
        segments_after: How many took their places.
        records_before: How many records they had.
        records_after: How many are left.
        bytes_before: Of their files.
        bytes_after: Of those that took their places.
    """

    segments_before: int
    segments_after: int
    records_before: int
    records_after: int
    bytes_before: int
    bytes_after: int


@attrs.frozen
class MaintenanceReport:
    """What `StreamLog.maintain` did.

    Attributes:
        path: The log.
        deleted: What went, by partition; those of which nothing went are left out.
        compacted: What was written anew, by partition; those of which nothing was are left out.
        waits_ms: The clock jumped, so for as long nothing is deleted by age or size, or compacted, in milliseconds; 0
            otherwise.
    """

    path: str
    deleted: Mapping[TopicPartition, DeletedSegments]
    compacted: Mapping[TopicPartition, CompactedSegments]
    waits_ms: int

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values, for JSON; partitions as `topic/number`."""
        return {
            "path": self.path,
            "deleted": {f"{tp.topic}/{tp.partition}": attrs.asdict(each) for tp, each in self.deleted.items()},
            "compacted": {f"{tp.topic}/{tp.partition}": attrs.asdict(each) for tp, each in self.compacted.items()},
            "waits_ms": self.waits_ms,
        }

    def __str__(self) -> str:
        lines = [f"{self.path}: deleted {self.segments:,} segments, wrote {len(self.compacted):,} partitions anew"]
        for tp, gone in self.deleted.items():
            lines.append(f"  {tp.topic}/{tp.partition}: deleted {gone.segments:,} segments ({gone.bytes:,} bytes)")
        for tp, done in self.compacted.items():
            lines.append(
                f"  {tp.topic}/{tp.partition}: {done.records_after:,} of {done.records_before:,} records left, "
                f"{done.bytes_after:,} of {done.bytes_before:,} bytes, in {done.segments_after:,} of "
                f"{done.segments_before:,} segments"
            )
        if self.waits_ms:
            lines.append(f"  the clock jumped: nothing goes by age or size for {-(-self.waits_ms // 60_000)} minutes")
        return "\n".join(lines)

    @property
    def segments(self) -> int:
        """How many segments were deleted in all."""
        return sum(each.segments for each in self.deleted.values())

    @property
    def bytes(self) -> int:
        """Of their files."""
        return sum(each.bytes for each in self.deleted.values())
