"""What a batch must pass under a partition's append lock before it is written, beyond being whole."""

from __future__ import annotations

from typing import Protocol

from pystreamlog.errors import VersionConflictError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.storage.control import Published

__all__ = ["Admission", "check_end"]


class Admission(Protocol):
    """Decides about the batches of one partition in one process, and remembers what it needs for that.

    Several batches may be admitted, each seeing those before it, before one `published` or `dropped`. Between two calls
    other processes may have appended: `admit` finds that out by `end`, and catches up from the log.
    """

    def admit(self, batch: EncodedBatch, end: Published) -> EncodedBatch | None:
        """What to write of a batch at `end`; None for nothing. Under the append lock.

        Raises:
            VersionConflictError: The batch expects something else; nothing is written.
        """

    def published(self, end: Published) -> None:
        """What was admitted since the last call is visible, and ends at `end`. Under the append lock."""

    def dropped(self) -> None:
        """What was admitted since the last call was not published. Under the append lock."""

    def close(self) -> None:
        """Close what is open; again is harmless."""


def check_end(expected: int, end: Published, topic: str, partition: int) -> None:
    """Compare the end of a partition with the one that a batch expects.

    Raises:
        VersionConflictError: They differ.
    """
    actual = end.end_offset
    if expected != actual:
        raise VersionConflictError(
            f"partition {partition} of topic {topic!r} ends at offset {actual}, not {expected}: read what came since, "
            "and decide again",
            expected=expected,
            actual=actual,
            topic=topic,
            partition=partition,
        )
