"""Reading one partition: batches from an offset on, and the offset for a time. Takes no lock and writes nothing.

The published end is a hint where to stop; a batch is believed only when its bounds, checksums, segment, offset and
place in the chain hold. What does not hold below the published end is read once more after `settle` (which takes and
gives back the append lock, so that whoever was writing is done) and then is `CorruptLogError`.

A cursor goes from segment to segment only over a seal. The caller keeps it, so one reader serves many positions.
Where a segment was rewritten, or merged into another one, since a cursor was put there, its position means nothing any
more: it is looked up anew by its offset, which never changes. Who still has the old file open finishes it.
Damage is met where it lies: what was read before it is handed out first, the error comes with the next call.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import TypeVar

from pystreamlog.errors import CorruptLogError, OffsetOutOfRangeError, StreamLogError
from pystreamlog.record.batch import Batch, BatchError, BatchHeader, decode, parse_header
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.coverage import covering
from pystreamlog.storage.cursor import UNKNOWN, Cursor, pass_batch
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.index import find_offset, find_timestamp
from pystreamlog.storage.segment import Segment

__all__ = ["Cursor", "LogReader"]

T = TypeVar("T")

_READ_AHEAD = 16 << 10
"""Bytes read at a batch's start: a whole small batch in one call, and not much for nothing before a large one."""
_LOOKS = 16
"""A place that was rewritten is looked up again; one that never settles is damaged."""


class _MovedError(OffsetOutOfRangeError):
    """The segment under a cursor was rewritten, or merged into another one: its offset lies elsewhere."""


class LogReader:
    """Reads a partition through one open segment at a time. One user at a time.

    Args:
        folder: The partition.
        control: Its control file.
        map_reads: Read through maps, else by `pread`.
        settle: Waits until whoever holds the append lock is done.
    """

    __slots__ = ("_control", "_folder", "_map_reads", "_segment", "_settle")

    def __init__(
        self, folder: Folder, control: Control, *, map_reads: bool, settle: Callable[[], None] = lambda: None
    ) -> None:
        self._folder = folder
        self._control = control
        self._map_reads = map_reads
        self._settle = settle
        self._segment: Segment | None = None

    def start_offset(self, end: Published) -> int:
        """The first offset there is; whether its segment is there too shows when it is read."""
        return end.log_start_offset

    def fetch(self, cursor: Cursor, end: Published, *, max_records: int, max_bytes: int) -> list[tuple[Batch, int]]:
        """Batches from the cursor on, each with the number of its first record wanted; moves the cursor past them.

        Stops after the batch that reaches `max_records` or `max_bytes`; empty at the published end.

        Raises:
            OffsetOutOfRangeError: The cursor is before the log's start or past its end.
            CorruptLogError: The log does not verify at the cursor.
        """
        found: list[tuple[Batch, int]] = []
        records = size = 0
        may_look_up, looks = True, 0
        while cursor.offset < end.end_offset and records < max_records and size < max_bytes:
            try:
                if cursor.segment_base < 0:
                    self._locate(cursor, end)
                    continue  # it may stand at the end now, behind a gap
                batch = self._next(cursor, end)
            except _MovedError:
                looks = self._look_again(cursor, looks)
                continue
            except OffsetOutOfRangeError:
                if may_look_up and self._went_away(cursor):
                    may_look_up = False
                    continue
                if found:
                    break
                raise
            except StreamLogError:
                if found:
                    break
                raise
            looks = 0
            if batch is None:
                continue
            wanted = cursor.offset
            try:
                first = 0 if wanted <= batch.header.base_offset else batch.index_of_offset(wanted)
            except BatchError as error:
                raise self._corrupt(error, cursor.position - batch.header.size, wanted) from error
            if first < batch.count:
                found.append((batch, first))
                records += batch.count - first
            cursor.offset = max(wanted, batch.header.last_offset + 1)
            size += batch.size  # unpacked, so that many small compressed batches cannot eat the memory
        if not found and cursor.offset > end.end_offset:
            raise OffsetOutOfRangeError(
                f"offset {cursor.offset} lies beyond the end, {end.end_offset}, of {self._folder.path}: seek first",
                partition=self._folder.partition,
                offset=cursor.offset,
            )
        return found

    def _went_away(self, cursor: Cursor) -> bool:
        """Whether the cursor stood behind a segment that was deleted: what it reads next is there, and is looked up."""
        now = self._control.published()
        if cursor.segment_base < 0 or now is None or now.flags & layout.FLAG_DELETED:
            return False
        if not cursor.segment_base < now.log_start_offset <= cursor.offset:
            return False
        cursor.segment_base = -1
        return True

    def offset_at(self, timestamp_ms: int, end: Published) -> int | None:
        """The offset of the first record that is not older than `timestamp_ms`; None when all are older.

        Finds the segment by binary search over their headers, the place in it by its index.
        """
        if end.max_timestamp < timestamp_ms:
            return None
        for looks in range(_LOOKS + 1):
            try:
                return self._offset_at(timestamp_ms, end)
            except _MovedError:
                self._check_looks(looks)
        raise AssertionError("unreachable")

    def _offset_at(self, timestamp_ms: int, end: Published) -> int | None:
        bases = self._bases(end)
        place = bisect_right(bases, timestamp_ms - 1, key=self.highest_before)
        for base in bases[max(0, place - 1) :]:
            segment = self._open(base)
            entry = find_timestamp(
                self._folder.files,
                self._folder.path,
                segment_id=segment.header.segment_id,
                base_offset=base,
                timestamp_ms=timestamp_ms,
            )
            cursor = Cursor(base)
            self._place(cursor, base, entry.position if entry else 0, entry.offset if entry else base, end)
            while cursor.segment_base == base and cursor.offset < end.end_offset:
                batch = self._next(cursor, end)
                if batch is None:
                    continue
                cursor.offset = batch.header.last_offset + 1
                if batch.header.max_timestamp >= timestamp_ms:
                    try:
                        pairs = zip(batch.offsets(0, batch.count), batch.timestamps_ms(0, batch.count), strict=True)
                    except BatchError as error:
                        offset = batch.header.base_offset
                        raise self._corrupt(error, cursor.position - batch.header.size, offset) from error
                    for offset, when in pairs:
                        if when >= timestamp_ms and offset >= end.log_start_offset:
                            return offset
        return None

    def batches(self, end: Published) -> Iterator[tuple[Segment, int, BatchHeader]]:
        """Every batch header below the published end with its segment and position, oldest first."""

        def take(cursor: Cursor, end: Published) -> tuple[Segment, int, BatchHeader] | None:
            base, position = cursor.segment_base, cursor.position
            batch = self._next(cursor, end)
            if batch is None:
                return None
            cursor.offset = batch.header.last_offset + 1
            return self._open(base), position, batch.header

        return self._walk(Cursor(self.start_offset(end)), end, take)

    def headers(self, cursor: Cursor, end: Published) -> Iterator[BatchHeader]:
        """The batch headers from the cursor on, whose segment is then the header's; bodies are not read.

        Raises:
            OffsetOutOfRangeError: The cursor is before the log's start.
            CorruptLogError: The log does not verify at the cursor.
        """

        def take(cursor: Cursor, end: Published) -> BatchHeader | None:
            header = self._peek(cursor, end)
            if header is not None:
                pass_batch(cursor, header)
                cursor.offset = header.last_offset + 1
            return header

        return self._walk(cursor, end, take)

    def _walk(self, cursor: Cursor, end: Published, take: Callable[[Cursor, Published], T | None]) -> Iterator[T]:
        """What `take` finds under the cursor, which it moves on, up to the published end."""
        looks = 0
        while cursor.offset < end.end_offset:
            try:
                if cursor.segment_base < 0:
                    self._locate(cursor, end)
                    continue  # it may stand at the end now, behind a gap
                found = take(cursor, end)
            except _MovedError:
                looks = self._look_again(cursor, looks)
                continue
            looks = 0
            if found is not None:
                yield found

    def place_at(self, cursor: Cursor, base: int) -> int:
        """Put the cursor at the start of a segment; returns when that was made, in ms."""
        header = self._open(base).header
        cursor.offset = cursor.floor = cursor.segment_base = base
        cursor.segment_id = header.segment_id
        cursor.position, cursor.previous = layout.SEGMENT_HEADER.size, header.checksum
        return header.created_ms

    def created_ms(self, base: int) -> int:
        """When the segment of that base offset was made."""
        return self._open(base).header.created_ms

    def highest_before(self, base: int) -> int:
        """The highest timestamp of all records ever appended before the segment of that base offset, in ms."""
        return self._open(base).header.max_timestamp_before

    def segment_id(self, base: int) -> int:
        """The id of the segment of that base offset."""
        return self._open(base).header.segment_id

    def verifies(self, cursor: Cursor, end: Published) -> bool:
        """Whether the log goes on at the cursor, or ends there, as the cursor says: same segment, same header before.

        Nothing moves; damage is no error.
        """
        try:
            segment = self._opened_for(cursor)
            if cursor.offset > end.end_offset or cursor.position < layout.SEGMENT_HEADER.size:
                return False
            if cursor.offset == end.end_offset and segment.header.segment_id == end.segment_id:
                return (cursor.position, cursor.previous) == (end.end_position, end.last_checksum)
            trial = Cursor(cursor.offset)
            trial.segment_base, trial.position = cursor.segment_base, cursor.position
            trial.segment_id = cursor.segment_id
            trial.floor, trial.previous = cursor.floor, cursor.previous
            raw = segment.read(cursor.position, min(HEADER_SIZE, max(0, self._limit(segment, end) - cursor.position)))
            header = self._header(segment, trial, raw, end)
            if cursor.offset == end.end_offset:  # the segment was sealed there, and the next one is empty
                return header is None and (trial.segment_id, trial.position) == (end.segment_id, end.end_position)
        except (BatchError, StreamLogError, OSError):
            return False
        return True

    def _bases(self, end: Published) -> list[int]:
        """Base offsets of the log's segments.

        Files past the active one are left-overs of a roll that died, those below the start of a deletion.
        """
        bases = self._folder.segments_from(end.log_start_offset)
        return bases[: bisect_right(bases, end.segment_base)]

    def _look_again(self, cursor: Cursor, looks: int) -> int:
        """Have a cursor looked up anew by its offset; returns how often that was done."""
        self._check_looks(looks)
        cursor.move(cursor.offset)
        return looks + 1

    def _check_looks(self, looks: int) -> None:
        if looks >= _LOOKS:
            path = self._folder.files.path(self._folder.path)
            raise CorruptLogError(f"{path}: its segments do not follow each other: restore it from a copy", path=path)
        self._close_segment()

    def _locate(self, cursor: Cursor, end: Published) -> None:
        """Find the batch that holds the cursor's offset, by the index if that verifies.

        Raises:
            _MovedError: Segments are being rewritten just now.
        """
        try:
            self._look_up(cursor, end, self._base_for(cursor, end))
        except _MovedError:
            # By its name a left-over holds the offset, which begins before it and ends before it.
            base = covering(self._folder, cursor.offset)
            if base is None:
                raise
            self._look_up(cursor, end, base)

    def _base_for(self, cursor: Cursor, end: Published) -> int:
        """The base offset of the segment that holds the cursor's offset, by the names."""
        bases = self._bases(end)
        place = bisect_right(bases, cursor.offset)
        if not place or cursor.offset < end.log_start_offset:
            now = self._control.published() or end
            start = now.log_start_offset
            if cursor.offset >= start and not now.flags & layout.FLAG_DELETED:
                path = self._folder.files.path(self._folder.path)
                raise CorruptLogError(f"{path} has no segment that holds offset {cursor.offset}: restore it", path=path)
            raise OffsetOutOfRangeError(
                f"offset {cursor.offset} lies before the start, {start}, of {self._folder.path}: seek first",
                partition=self._folder.partition,
                offset=cursor.offset,
            )
        return bases[place - 1]

    def _look_up(self, cursor: Cursor, end: Published, base: int) -> None:
        """Put the cursor on the batch of the segment, or the one behind it, that holds its offset."""
        entry = find_offset(
            self._folder.files,
            self._folder.path,
            segment_id=self._open(base).header.segment_id,
            base_offset=base,
            offset=cursor.offset,
        )
        walker = Cursor(cursor.offset)
        self._place(walker, base, entry.position if entry else 0, entry.offset if entry else base, end)
        while walker.segment_base == base:
            header = self._peek(walker, end)
            if header is None or header.last_offset >= cursor.offset:
                break
            pass_batch(walker, header)
        cursor.offset, cursor.segment_base, cursor.position = walker.offset, walker.segment_base, walker.position
        cursor.segment_id, cursor.floor, cursor.previous = walker.segment_id, walker.floor, walker.previous

    def _place(self, cursor: Cursor, base: int, position: int, offset: int, end: Published) -> None:
        """Put the cursor on a batch start, at `position` if a header there confirms it, else at the segment's."""
        segment = self._open(base)
        cursor.position, cursor.floor, cursor.previous = layout.SEGMENT_HEADER.size, base, segment.header.checksum
        if position:
            limit = self._limit(segment, end) - position
            try:
                header = parse_header(segment.read(position, HEADER_SIZE), limit=limit)
            except BatchError:
                header = None
            if header and header.segment_id == segment.header.segment_id and header.base_offset == offset:
                cursor.position, cursor.floor, cursor.previous = position, offset, None
        cursor.segment_base, cursor.segment_id = base, segment.header.segment_id

    def _limit(self, segment: Segment, end: Published) -> int:
        """Where the segment's batches end at the latest."""
        return end.end_position if segment.header.segment_id == end.segment_id else segment.file.size()

    def _peek(self, cursor: Cursor, end: Published) -> BatchHeader | None:
        """The header of the batch under the cursor; None after going over a seal to the next segment."""
        return self._checked(cursor, end, HEADER_SIZE, self._header)

    def _next(self, cursor: Cursor, end: Published) -> Batch | None:
        """The batch under the cursor, which then stands behind it; None after going over a seal."""
        batch = self._checked(cursor, end, _READ_AHEAD, self._batch)
        if batch is not None:
            pass_batch(cursor, batch.header)
        return batch

    def _checked(
        self, cursor: Cursor, end: Published, size: int, parse: Callable[[Segment, Cursor, bytes, Published], T]
    ) -> T:
        """What `parse` makes of the bytes under the cursor; damage is looked at once more when no writer is at work.

        Raises:
            CorruptLogError: It is still there.
        """
        for attempt in (0, 1):
            segment = self._opened_for(cursor)
            raw = segment.read(cursor.position, min(size, max(0, self._limit(segment, end) - cursor.position)))
            try:
                return parse(segment, cursor, raw, end)
            except BatchError as error:
                if attempt:
                    raise self._corrupt(error, cursor.position, cursor.offset) from error
                self._settle()
                self._close_segment()
        raise AssertionError("unreachable")

    def _opened_for(self, cursor: Cursor) -> Segment:
        """The segment under a cursor, open.

        Raises:
            _MovedError: Another one has its name now.
        """
        header = (segment := self._open(cursor.segment_base)).header
        if cursor.segment_id == header.segment_id:
            return segment
        if cursor.segment_id == UNKNOWN and not header.is_rewritten:
            cursor.segment_id = header.segment_id
            return segment
        raise self._moved(cursor.segment_base)

    def _moved(self, base: int) -> _MovedError:
        return _MovedError(
            f"segment {base} of {self._folder.path} was rewritten while it was read: call again",
            partition=self._folder.partition,
            offset=base,
        )

    def _corrupt(self, error: BatchError, position: int, offset: int) -> CorruptLogError:
        """The error for a batch of the open segment."""
        path = self._segment.file.path if self._segment is not None else self._folder.path
        return CorruptLogError(
            f"{path} at position {position}: {error}; the record at offset {offset} and what follows cannot be "
            f"trusted: restore the file from a copy",
            path=path,
            position=position,
            expected=offset,
            found=str(error),
        )

    def _batch(self, segment: Segment, cursor: Cursor, raw: bytes, end: Published) -> Batch | None:
        """The decoded batch at the cursor; None if a seal was there, and the cursor is in the next segment now."""
        header = self._header(segment, cursor, raw, end)
        if header is None:
            return None
        body = raw[HEADER_SIZE : header.size]
        if len(raw) < header.size:
            body = segment.read(cursor.position + HEADER_SIZE, header.size - HEADER_SIZE)
        return decode(header, body)

    def _header(self, segment: Segment, cursor: Cursor, raw: bytes, end: Published) -> BatchHeader | None:
        """The verified header at the cursor; None if a seal was there, and the cursor is in the next segment now.

        Raises:
            BatchError: Neither.
        """
        active = segment.header.segment_id == end.segment_id
        if not active and raw[:8] == layout.SEAL_MAGIC:
            seal = segment.seal_at(cursor.position)
            linked = seal is not None and cursor.previous in (None, seal.last_checksum)
            if seal is None or not linked or seal.end_offset <= max(segment.header.base_offset, cursor.floor - 1):
                raise BatchError("the segment's seal does not verify")
            following = self._open(seal.end_offset)
            cursor.segment_base = cursor.floor = seal.end_offset
            cursor.segment_id = following.header.segment_id
            cursor.offset = max(cursor.offset, seal.end_offset)  # no record has an offset in between
            cursor.position = layout.SEGMENT_HEADER.size
            cursor.previous = following.header.checksum
            return None
        header = parse_header(raw, limit=self._limit(segment, end) - cursor.position)
        if header.segment_id != segment.header.segment_id:
            raise BatchError(f"the batch belongs to segment {header.segment_id:#x}")
        if cursor.previous is not None and header.previous_checksum != cursor.previous:
            raise BatchError("the batch does not follow the one before it")
        if header.base_offset < cursor.floor or header.last_offset >= end.end_offset:
            raise BatchError(f"offsets {header.base_offset} to {header.last_offset} are not due here")
        return header

    def _open(self, base: int) -> Segment:
        """The segment of that base offset, open."""
        segment = self._segment
        if segment is not None and segment.header.base_offset == base:
            return segment
        self._close_segment()
        try:
            self._segment = segment = self._folder.open_segment(base, map_reads=self._map_reads)
        except (FileNotFoundError, CorruptLogError) as error:
            path = self._folder.files.path(f"{self._folder.path}/{layout.segment_name(base)}")
            # The control file is open, so it tells even when the topic is gone and the name is another's.
            end = self._control.published()
            gone = end is not None and bool(end.flags & layout.FLAG_DELETED)
            deleted = gone or (end is not None and base < end.log_start_offset)
            if isinstance(error, CorruptLogError) and not deleted:
                raise
            # Also below the log's start, as what is left over there may lead to it.
            if not gone and covering(self._folder, base, below=base) is not None:
                raise self._moved(base) from error
            if not deleted:
                raise CorruptLogError(f"{path}, a segment in the middle of the log, is missing", path=path) from error
            raise OffsetOutOfRangeError(
                f"{path} was deleted while it was read: seek to what is left",
                partition=self._folder.partition,
                offset=base,
            ) from error
        return segment

    def _close_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()

    def close(self) -> None:
        """Close the open segment; the control file is the caller's."""
        self._close_segment()
