"""Single batches by offset, in some 20 us each: for chains of records that lie far apart.

It takes the short way only: segments stay open, their indexes are read at once, and headers between an index entry and
the batch are hopped over. The batch itself is checked as by any reader. Whatever is not as expected is None, and the
caller asks `LogReader`, which finds out what is wrong.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence

from pystreamlog.errors import CorruptLogError
from pystreamlog.record import format as batch_layout
from pystreamlog.record.batch import Batch, BatchError, decode, parse_header
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.index import index_offsets
from pystreamlog.storage.segment import Segment

__all__ = ["PointReader"]

_OPEN_SEGMENTS = 4
_CHUNK = layout.INDEX_INTERVAL + 4096
_hop = struct.Struct("<I4xI28xq").unpack_from
"""Magic, size and last offset of a batch."""


class PointReader:
    """Reads single batches. One user at a time.

    Args:
        folder: The partition.
        map_reads: Read through maps, else by `pread`.
    """

    __slots__ = ("_bases", "_folder", "_map_reads", "_segments")

    def __init__(self, folder: Folder, *, map_reads: bool) -> None:
        self._folder = folder
        self._map_reads = map_reads
        self._bases: list[int] = []
        self._segments: dict[int, tuple[Segment, Sequence[int], Sequence[int]]] = {}

    def batch_at(self, offset: int, end: Published) -> Batch | None:
        """The batch whose range holds `offset`, which lies below `end`; None when it is not found the short way."""
        if not self._bases or self._bases[-1] != end.segment_base:
            self.close()  # what was deleted or rewritten meanwhile shall not stay on the disk
            self._bases = [base for base in self._folder.segments() if base <= end.segment_base]
        place = bisect_right(self._bases, offset)
        if not place:
            return None
        try:
            segment, offsets, positions = self._open(self._bases[place - 1])
            limit = end.end_position if segment.header.segment_id == end.segment_id else segment.file.size()
            entry = bisect_right(offsets, offset)
            return self._find(segment, positions[entry - 1] if entry else layout.SEGMENT_HEADER.size, offset, limit)
        except (FileNotFoundError, CorruptLogError, BatchError):
            return None

    def _find(self, segment: Segment, position: int, offset: int, limit: int) -> Batch | None:
        """The batch that holds `offset`, at `position` or behind it."""
        start, chunk = position, segment.view(position, min(_CHUNK, limit - position))
        while position + HEADER_SIZE <= limit:
            if position - start + HEADER_SIZE > len(chunk):
                start, chunk = position, segment.view(position, min(_CHUNK, limit - position))
                if len(chunk) < HEADER_SIZE:
                    return None  # the file was cut
            magic, size, last = _hop(chunk, position - start)
            if magic != batch_layout.MAGIC or size < HEADER_SIZE:
                return None
            if last >= offset:
                break
            position += size
        else:
            return None
        header = parse_header(segment.read(position, HEADER_SIZE), limit=limit - position)
        if header.segment_id != segment.header.segment_id or not header.base_offset <= offset <= header.last_offset:
            return None
        return decode(header, segment.view(position + HEADER_SIZE, header.size - HEADER_SIZE))

    def _open(self, base: int) -> tuple[Segment, Sequence[int], Sequence[int]]:
        """A segment, open, with the offsets and positions of its index."""
        found = self._segments.get(base)
        if found is None:
            if len(self._segments) >= _OPEN_SEGMENTS:
                self._segments.pop(next(iter(self._segments)))[0].close()
            segment = self._folder.open_segment(base, map_reads=self._map_reads)
            offsets, positions = index_offsets(
                self._folder.files, self._folder.path, segment_id=segment.header.segment_id, base_offset=base
            )
            found = self._segments[base] = segment, offsets, positions
        return found

    def close(self) -> None:
        """Close every segment; what was read through maps stays readable."""
        segments, self._segments = self._segments, {}
        for segment, _, _ in segments.values():
            segment.close()
