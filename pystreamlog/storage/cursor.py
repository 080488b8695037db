"""A place in a partition, which whoever reads it keeps."""

from __future__ import annotations

from pystreamlog.record.batch import BatchHeader

__all__ = ["UNKNOWN", "Cursor", "pass_batch"]

UNKNOWN = -1
"""In place of a segment's id."""


class Cursor:
    """A place in a partition: the next offset to read and, once found, where its batch starts.

    Attributes:
        offset: The next record's offset.
        segment_base: Base offset of the segment to read from; -1 when it must be looked up.
        segment_id: The id of that segment, in which alone `position` means something; -1 when it is not known.
        position: Position of the next batch in that segment.
        floor: The lowest offset that batch can start with.
        previous: Checksum of the header before it; None when unknown.
    """

    __slots__ = ("floor", "offset", "position", "previous", "segment_base", "segment_id")

    def __init__(self, offset: int) -> None:
        self.move(offset)

    def move(self, offset: int) -> None:
        """Go to another offset; its batch is looked up at the next read."""
        self.offset = offset
        self.segment_base = -1
        self.segment_id = UNKNOWN
        self.position = 0
        self.floor = 0
        self.previous: int | None = None


def pass_batch(cursor: Cursor, header: BatchHeader) -> None:
    """Put the cursor behind the batch it stands on."""
    cursor.position += header.size
    cursor.floor = header.last_offset + 1
    cursor.previous = header.checksum
