"""What maintaining a log tells."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from pystreamlog.record.record import TopicPartition

__all__ = ["DeletedSegments", "MaintenanceReport"]


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
class MaintenanceReport:
    """What `StreamLog.maintain` did.

    Attributes:
        path: The log.
        deleted: What went, by partition; those of which nothing went are left out.
        waits_ms: The clock jumped, so for as long nothing is deleted by age or size, in milliseconds; 0 otherwise.
    """

    path: str
    deleted: Mapping[TopicPartition, DeletedSegments]
    waits_ms: int

    @property
    def segments(self) -> int:
        """How many segments were deleted in all."""
        return sum(each.segments for each in self.deleted.values())

    @property
    def bytes(self) -> int:
        """Of their files."""
        return sum(each.bytes for each in self.deleted.values())
