"""Which segment holds an offset where others were rewritten into one.

A segment that was rewritten says in its header where it ends (`end_offset`), and takes the place of all segments that
begin before that. Whoever rewrote them and died before he had removed the others left some of them: **left-overs**,
which hold what was there before. Each by itself is right to read; but the one that followed it may be gone. Then the
segment whose range covers the offset has it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from pystreamlog.errors import CorruptLogError, IncompatibleFormatError
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.segment import SegmentHeader

__all__ = ["covering", "left_over", "read_header"]


def read_header(folder: Folder, base: int) -> SegmentHeader | None:
    """The header of the segment of that base offset; None where there is none that verifies.

    Raises:
        StorageError: The disk failed.
    """
    try:
        segment = folder.open_segment(base, map_reads=False)
    except (FileNotFoundError, CorruptLogError, IncompatibleFormatError):
        return None
    try:
        return segment.header
    finally:
        segment.close()


def covering(folder: Folder, offset: int, *, below: int | None = None) -> int | None:
    """The base offset of the rewritten segment whose range holds an offset; None if there is none.

    Looks at the headers of the segments before it, the nearest first, until one covers it.

    Args:
        folder: The partition.
        offset: The offset.
        below: Look only at segments with a base offset below that; without it, at all that begin at or before `offset`.
    """
    bases = folder.segments()
    place = bisect_right(bases, offset) if below is None else bisect_left(bases, below)
    for base in reversed(bases[:place]):
        header = read_header(folder, base)
        if header is not None and header.end_offset > offset:
            return base
    return None


def left_over(folder: Folder, last: int) -> list[int]:
    """The base offsets of segments that lie within the range of one that was rewritten, ascending.

    Args:
        folder: The partition.
        last: The base offset of the active segment: those behind it are left over from something else.
    """
    found, covered = [], -1
    for base in folder.segments():
        if base >= last:
            break
        if base < covered:
            found.append(base)
            continue
        header = read_header(folder, base)
        if header is not None:
            covered = max(covered, header.end_offset)
    return found
