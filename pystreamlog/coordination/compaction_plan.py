"""Which segments of a partition are to be written anew, and which of them together: looked at, nothing changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import msgspec

from pystreamlog.errors import OffsetOutOfRangeError
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.retention import is_older
from pystreamlog.storage.rewriting import LARGE_BYTES, LARGE_RECORDS
from pystreamlog.storage.segment import SegmentHeader
from pystreamlog.storage.survivors import Survivors

__all__ = [
    "SealedSegment",
    "dirty_of",
    "eligible_of",
    "first_timestamp",
    "groups_of",
    "is_over",
    "packed_size",
    "sealed_segments",
    "small_groups",
]

_SAMPLE = 32
"""Batches at the beginning of a segment that tell whether it is worth repacking."""


class SealedSegment(msgspec.Struct, frozen=True):
    """A sealed segment: its header, bytes of its file, and what the next one's header says."""

    header: SegmentHeader
    size: int
    following: SegmentHeader

    @property
    def base(self) -> int:
        """Its base offset."""
        return self.header.base_offset

    @property
    def end(self) -> int:
        """The next one's."""
        return self.following.base_offset

    @property
    def is_clean(self) -> bool:
        """Whether no key has two records in it and all before it."""
        return bool(self.header.flags & layout.FLAG_COMPACTED)


# --- looking at segments ----------------------------------------------------------------------------------------------


def sealed_segments(folder: Folder, end: Published) -> list[SealedSegment] | None:
    """The sealed segments, oldest first; None when they do not follow each other: something is left over.

    Raises:
        CorruptLogError: The header of one does not verify.
        StorageError: The disk failed.
    """
    bases = [base for base in folder.segments_from(end.log_start_offset) if base <= end.segment_base]
    found: list[SealedSegment] = []
    try:
        for (header, size), (following, _) in pairwise(map(partial(_opened, folder), bases)):
            if header.end_offset not in (layout.NOT_REWRITTEN, following.base_offset):
                return None
            found.append(SealedSegment(header, size, following))
    except FileNotFoundError:
        return None
    return found


def _opened(folder: Folder, base: int) -> tuple[SegmentHeader, int]:
    """A segment's header, and the bytes of its file."""
    segment = folder.open_segment(base, map_reads=False)
    try:
        return segment.header, segment.file.size()
    finally:
        segment.close()


def dirty_of(segments: Sequence[SealedSegment]) -> list[SealedSegment]:
    """The segments from the first on that was not compacted."""
    for place, each in enumerate(segments):
        if not each.is_clean:
            return list(segments[place:])
    return []


def eligible_of(
    folder: Folder, control: Control, end: Published, segments: list[SealedSegment], *, now_ms: int, lag_ms: int
) -> list[SealedSegment]:
    """The segments below the first with a record that is younger than `lag_ms`; all if that is 0."""
    if not lag_ms:
        return segments
    reader = LogReader(folder, control, map_reads=False)
    try:
        for place, each in enumerate(segments):
            if not each.is_clean and not is_older(reader, each.base, each.end, end, now_ms - lag_ms + 1):
                return segments[:place]
    except OffsetOutOfRangeError:
        return []  # deleted meanwhile
    finally:
        reader.close()
    return segments


def first_timestamp(folder: Folder, control: Control, end: Published, base: int) -> int | None:
    """The timestamp of the first record in a segment, in ms; None without one."""
    reader = LogReader(folder, control, map_reads=False)
    try:
        cursor = Cursor(base)
        reader.place_at(cursor, base)
        for header in reader.headers(cursor, end):
            return header.base_timestamp
    except OffsetOutOfRangeError:
        return None
    finally:
        reader.close()
    return None


def packed_size(folder: Folder, control: Control, end: Published, segment: SealedSegment) -> int:
    """About how many bytes a segment takes when its batches are gathered; 0 if they are large, or were gathered.

    The batches at its beginning tell.
    """
    if segment.header.is_rewritten:
        return 0
    reader = LogReader(folder, control, map_reads=False)
    records = size = batches = 0
    try:
        cursor = Cursor(segment.base)
        reader.place_at(cursor, segment.base)
        for header in reader.headers(cursor, end):
            if header.base_offset >= segment.end or batches == _SAMPLE:
                break
            records, size, batches = records + header.count, size + header.size, batches + 1
    except OffsetOutOfRangeError:
        return 0
    finally:
        reader.close()
    if not batches or records >= batches * LARGE_RECORDS // 2 or size >= batches * LARGE_BYTES // 2:
        return 0
    return max(1, segment.size * (size - batches * HEADER_SIZE) // size)


# --- groups -----------------------------------------------------------------------------------------------------------


def is_over(header: SegmentHeader, now_ms: int) -> bool:
    """Whether the tombstones of a compacted segment have had their time."""
    return header.delete_horizon_ms != layout.NO_HORIZON and header.delete_horizon_ms <= now_ms


def groups_of(
    segments: Sequence[SealedSegment], dirty_from: int, found: Survivors, limit: int, horizon_ms: int, drops: set[int]
) -> Iterator[tuple[list[SealedSegment], int]]:
    """Groups of adjacent segments that fit into one, each with until when its tombstones stay."""
    group: list[SealedSegment] = []
    size, until = layout.SEGMENT_HEADER.size + layout.SEAL.size, layout.NO_HORIZON
    start = size
    for place, each in enumerate(segments):
        if place >= dirty_from:
            own = horizon_ms if each.base in found.tombstones else layout.NO_HORIZON
        else:
            own = layout.NO_HORIZON if each.base in drops else each.header.delete_horizon_ms
        left = each.size * found.kept[each.base] // max(1, found.records[each.base])
        differs = layout.NO_HORIZON not in (own, until) and own != until
        if group and (size + left > limit or differs):
            yield group, until
            group, size, until = [], start, layout.NO_HORIZON
        group.append(each)
        size += left
        until = max(until, own)
    if group:
        yield group, until


def small_groups(
    folder: Folder, control: Control, end: Published, segments: Sequence[SealedSegment], limit: int
) -> Iterator[list[SealedSegment]]:
    """Groups of adjacent segments with small batches that fit into one."""
    group: list[SealedSegment] = []
    size = 0
    for each in segments:
        packed = packed_size(folder, control, end, each)
        if group and (not packed or size + packed > limit):
            yield group
            group, size = [], 0
        if packed:
            group.append(each)
            size += packed
    if group:
        yield group
