"""Writing behind one partition's end.

The caller holds the append lock from before `LogAppender.write` until it has published, or given up, what was written.
One append is, in this order:

1. roll to a new segment if the batch does not fit, or the segment is too old (header on disk first, then the seal);
2. an index entry, every 32 KiB, which may wait for others;
3. the batch, by one `pwritev` past the published end;
4. the publication, by one `pwrite` of a control slot, which is the caller's (`Control.publish`).

A failure or a kill at any step leaves the published end where it was, and what lies past it is garbage by definition.
Several batches may be written one behind the other before they are published together.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from pystreamlog.errors import CorruptLogError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import File
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.index import IndexEntry, IndexWriter
from pystreamlog.storage.segment import Segment, SegmentHeader, header_bytes, seal_bytes
from pystreamlog.storage.spill import Spill, SpillFile

__all__ = ["LogAppender"]

_INDEX_INTERVAL = layout.INDEX_INTERVAL
_NO_LIMIT = 1 << 62
_LEFT_OPEN = 1
"""More would not be in the count of `OpenFiles`; the background sync opens what it lacks."""


class LogAppender:
    """Writes batches past a partition's published end.

    Args:
        folder: The partition.
        is_syncing: Tells whether somebody uses what `written` returned.
    """

    __slots__ = ("_folder", "_index", "_is_syncing", "_left", "_segment")

    def __init__(self, folder: Folder, is_syncing: Callable[[], bool] = bool) -> None:
        self._folder = folder
        self._is_syncing = is_syncing
        self._index = IndexWriter(folder.files, folder.path)
        self._segment: Segment | None = None
        # Segments that were written to and left, still open: an fsync goes through a descriptor that was opened before
        # the write, or an error that the kernel met before may not be told.
        self._left: list[Segment] = []

    def write(
        self,
        batch: EncodedBatch,
        end: Published,
        now_ms: int,
        durable_offset: int,
        segment_bytes: int,
        segment_ms: int,
    ) -> Published:
        """Write one batch behind `end`; returns the end to publish.

        Args:
            batch: What to write.
            end: The published end, read under the lock, or what the last `write` returned.
            now_ms: The time, for `segment_ms` and for timestamps that the log sets.
            durable_offset: The end of what is known to be on disk.
            segment_bytes: Roll before a segment would pass this size.
            segment_ms: Roll when a segment is this old.

        Raises:
            StorageError: The log is as it was.
        """
        segment = self._segment
        if segment is None or segment.header.segment_id != end.segment_id:
            segment = self._active(end)
        position, size = end.end_position, batch.size
        if (
            position + size > segment_bytes or now_ms - segment.header.created_ms >= segment_ms
        ) and position > layout.SEGMENT_HEADER.size:
            end = self._roll(segment, end, now_ms)
            segment = self._active(end)
            position = end.end_position
        indexed = end.indexed_position
        if position - indexed >= _INDEX_INTERVAL:
            entry = IndexEntry(end.end_offset, position, end.max_timestamp)
            self._index.add(end.segment_id, end.segment_base, entry)
            indexed = position
        header, checksum = batch.place(
            end.end_offset, end.segment_id, end.last_checksum, durable_offset, end.epoch, now_ms
        )
        segment.write(header, batch.parts, size, position, segment_bytes)
        if self._index.waiting:
            self._index.count_batch()
        max_timestamp, flags = batch.max_timestamp, end.flags
        if batch.demands is not None and batch.demands.producer_id >= 0:
            flags |= layout.FLAG_PRODUCERS
        return Published(
            end.sequence + 1,
            end.segment_base,
            end.segment_id,
            position + size,
            end.end_offset + batch.count,
            checksum,
            max(end.max_timestamp, max_timestamp),
            indexed,
            end.log_start_offset,
            end.epoch,
            flags,
            end.pending_position,
            end.pending_nonce,
        )

    def _active(self, end: Published) -> Segment:
        """The open active segment."""
        segment = self._segment
        if segment is None or segment.header.segment_id != end.segment_id:
            self._leave_segment()
            try:
                segment = self._folder.open_segment(end.segment_base, write=True, map_reads=False)
            except FileNotFoundError as error:
                path = self._folder.files.path(f"{self._folder.path}/{layout.segment_name(end.segment_base)}")
                raise CorruptLogError(f"{path}, the active segment, is missing", path=path) from error
            if segment.header.segment_id != end.segment_id:
                segment.close()
                raise CorruptLogError(
                    f"{segment.file.path} is not the segment that was published",
                    path=segment.file.path,
                    expected=end.segment_id,
                    found=segment.header.segment_id,
                )
            size = segment.file.size()
            if size < end.end_position:
                segment.close()
                raise CorruptLogError(
                    f"{segment.file.path} has {size} bytes of {end.end_position} that were published: restore it",
                    path=segment.file.path,
                    position=size,
                    expected=end.end_position,
                    found=size,
                )
            self._segment = segment
        return segment

    def link(self, spill: Spill, end: Published, now_ms: int, durable_offset: int) -> tuple[Published, list[int]]:
        """Make spilled batches part of the log behind `end`: their files become its next segments.

        Costs a write of 192 bytes per batch, and some ms per file. Nothing can follow an empty segment: the first
        file is copied into it.

        Args:
            spill: The batches, on disk but for their headers.
            end: As for `write`.
            now_ms: The time.
            durable_offset: The end of what is known to be on disk.

        Returns:
            The end to publish, and the offset of each batch.

        Raises:
            StorageError: The log is as it was.
        """
        folder, firsts = self._folder, []
        self._remove_leftovers(end)
        self._index.write()
        for spilled in spill.files:
            if end.end_offset == end.segment_base:
                end, copied = self._copy(spilled, end, now_ms, durable_offset)
                firsts += copied
                continue
            segment = self._active(end)
            header, raw = header_bytes(
                msgspec.structs.replace(
                    segment.header,
                    generation=0,
                    base_offset=end.end_offset,
                    segment_id=int.from_bytes(os.urandom(8), "little"),
                    created_ms=now_ms,
                    max_timestamp_before=end.max_timestamp,
                    previous_checksum=end.last_checksum,
                    flags=0,
                    end_offset=layout.NOT_REWRITTEN,
                    delete_horizon_ms=layout.NO_HORIZON,
                )
            )
            spilled.file.pwrite(raw, 0)
            following = _behind(end, header)
            for batch, position in spilled.batches:
                firsts.append(following.end_offset)
                raw, checksum = batch.place(
                    following.end_offset,
                    header.segment_id,
                    following.last_checksum,
                    durable_offset,
                    end.epoch,
                    now_ms,
                )
                spilled.file.pwrite(raw, position)
                following = msgspec.structs.replace(
                    following,
                    end_position=position + batch.size,
                    end_offset=following.end_offset + batch.count,
                    last_checksum=checksum,
                    max_timestamp=max(following.max_timestamp, batch.max_timestamp),
                )
            self._seal(segment, end)
            folder.files.rename(spilled.name, f"{folder.path}/{layout.segment_name(header.base_offset)}")
            end = following
        folder.files.sync_directory(folder.path)
        return msgspec.structs.replace(end, sequence=end.sequence + 1), firsts

    def _copy(
        self, spilled: SpillFile, end: Published, now_ms: int, durable_offset: int
    ) -> tuple[Published, list[int]]:
        """Write a file of spilled batches into the active segment; the end after them, and where each begins."""
        firsts = []
        for batch, position in spilled.batches:
            firsts.append(end.end_offset)
            batch.parts = [spilled.file.pread(batch.size - HEADER_SIZE, position + HEADER_SIZE)]
            try:
                end = self.write(batch, end, now_ms, durable_offset, _NO_LIMIT, _NO_LIMIT)
            finally:
                batch.parts = []
        return end, firsts

    def _remove_leftovers(self, end: Published) -> None:
        """Remove what a process that died while rolling left.

        Segments past the end would otherwise stand in the middle of the log one day.
        """
        folder = self._folder
        for name in folder.files.list(folder.path):
            if "~" in name:
                folder.files.unlink(f"{folder.path}/{name}")
        for base in folder.segments():
            if base > end.segment_base:
                folder.files.unlink(f"{folder.path}/{layout.segment_name(base)}")

    def roll(self, end: Published, now_ms: int) -> Published:
        """Go to a new segment, unless the active one is empty; returns the end there, under the same sequence.

        Raises:
            StorageError: The log is as it was.
        """
        if end.end_offset == end.segment_base:
            return end
        return self._roll(self._active(end), end, now_ms)

    def _roll(self, segment: Segment, end: Published, now_ms: int) -> Published:
        """Make the next segment and seal this one; the new end is not published yet."""
        self._remove_leftovers(end)
        self._index.write()
        header = self._folder.create_segment(
            end.end_offset,
            created_ms=now_ms,
            max_timestamp_before=end.max_timestamp,
            previous_checksum=end.last_checksum,
        )
        self._seal(segment, end)
        return _behind(end, header)

    @staticmethod
    def _seal(segment: Segment, end: Published) -> None:
        seal = seal_bytes(
            segment_id=end.segment_id,
            end_offset=end.end_offset,
            position=end.end_position,
            last_checksum=end.last_checksum,
            max_timestamp=end.max_timestamp,
        )
        segment.write(seal, [], len(seal), end.end_position, 0)

    def _leave_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            self._left.append(segment)
            while len(self._left) > _LEFT_OPEN and not self._is_syncing():
                self._left.pop(0).close()

    def written(self) -> dict[int, File]:
        """The files that were written to, by base offset; they stay open while somebody is syncing."""
        segment = self._segment
        files = {left.header.base_offset: left.file for left in self._left} if self._left else {}
        if segment is not None:
            files[segment.header.base_offset] = segment.file
        return files

    def synced(self, base_offset: int) -> None:
        """What was written below the segment of that base offset is on disk: its descriptors are not needed."""
        for segment in [left for left in self._left if left.header.base_offset < base_offset]:
            self._left.remove(segment)
            segment.close()

    @property
    def has_index_entries(self) -> bool:
        """Whether index entries wait to be written."""
        return bool(self._index.waiting)

    def write_index(self) -> None:
        """Write the index entries that wait. Needs the append lock."""
        self._index.write()

    def close(self) -> None:
        """Close every segment; index entries that wait are lost."""
        self._leave_segment()
        while self._left:
            self._left.pop().close()


def _behind(end: Published, header: SegmentHeader) -> Published:
    """The end in an empty segment that follows."""
    return Published(
        end.sequence,
        end.end_offset,
        header.segment_id,
        layout.SEGMENT_HEADER.size,
        end.end_offset,
        header.checksum,
        end.max_timestamp,
        0,
        end.log_start_offset,
        end.epoch,
        end.flags,
        end.pending_position,
        end.pending_nonce,
    )
