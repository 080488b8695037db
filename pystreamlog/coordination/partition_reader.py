"""Reading one partition, without a lock and while others write it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pystreamlog.coordination.locks import FileLock
from pystreamlog.coordination.open_files import MutexHandle, made_room, open_files, with_descriptors
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext, without_control
from pystreamlog.coordination.topics import is_current
from pystreamlog.errors import ClosedError, CorruptLogError, OffsetOutOfRangeError, ReadOnlyError, StorageError
from pystreamlog.record.batch import Batch
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.epochs import read_epochs
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.recovery import needs_recovery, walk

__all__ = ["PartitionReader"]

_FETCH_BYTES = 8 << 20
"""Bytes one fetch of one partition takes at most, whole batches, unless the first is larger."""


class PartitionReader(MutexHandle):
    """Reads one partition from a cursor on. One user at a time, but for `try_close`.

    Args:
        folder: The partition.
        context: The log's.
        recover: Recovers the partition when that is needed and the log may be written.

    Attributes:
        awaits_commit: A transaction was being committed at the last look. Should its committer die, nobody may say that
            it is committed: look again soon. The user clears it.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_context",
        "_control",
        "_in_memory",
        "_reader",
        "_recover",
        "_resolved",
        "awaits_commit",
        "folder",
    )

    def __init__(self, folder: Folder, context: PartitionContext, recover: Callable[[], None]) -> None:
        super().__init__()
        self.folder = folder
        self._context = context
        self._recover = recover
        self._control: Control | None = None
        self._reader: LogReader | None = None
        self._in_memory: Published | None = None
        self._resolved: tuple[Published, Published] | None = None
        self.awaits_commit = False
        self._closed = False

    def fetch(self, cursor: Cursor, *, max_records: int, max_bytes: int = _FETCH_BYTES) -> list[tuple[Batch, int]]:
        """Batches from the cursor on, each with the number of its first record wanted; empty at the end.

        Raises:
            OffsetOutOfRangeError: The cursor lies before the start or beyond the end.
            CorruptLogError: The partition does not verify.
        """
        with self._mutex:
            try:
                reader = self._reader or self._open()
                self.recent = True
                end = self._published()
                if end is None or cursor.offset == end.end_offset:
                    return []
                assert reader is not None
                return reader.fetch(cursor, end, max_records=max_records, max_bytes=max_bytes)
            except StorageError as error:
                if not made_room(error):
                    raise
        return self.fetch(cursor, max_records=max_records, max_bytes=max_bytes)

    def offsets(self) -> tuple[int, int]:
        """The first offset there is, and the next record's."""
        with self._mutex:
            return self._offsets()

    def _offsets(self) -> tuple[int, int]:
        """See `offsets`. Holds the mutex."""
        reader = self._reader or self._open()
        end = self._published()
        if end is None or reader is None:
            return 0, 0
        return reader.start_offset(end), end.end_offset

    def try_offsets(self) -> tuple[int, int] | None:
        """As `offsets`; None while another thread is at it."""
        if not self._mutex.acquire(blocking=False):
            return None
        try:
            return self._offsets()
        finally:
            self._mutex.release()

    def end(self) -> Published | None:
        """The published end that rules; None while the partition was not made, and after its topic was deleted."""
        with self._mutex:
            if self._reader is None and self._open() is None:
                return None
            return self._published()

    def durable_offset(self) -> int:
        """The offset below which every record is known to be on disk."""
        with self._mutex:
            if self._reader is None and self._open() is None:
                return 0
            end = self._published()
            assert self._control is not None
            return 0 if end is None else min(self._control.durable().offset, end.end_offset)

    def offset_at(self, timestamp_ms: int) -> int | None:
        """The offset of the first record not older than that; None when all are older."""
        with self._mutex:
            reader = self._reader or self._open()
            while True:
                end = self._published()
                if end is None or reader is None:
                    return None
                try:
                    return reader.offset_at(timestamp_ms, end)
                except OffsetOutOfRangeError:
                    now = self._published()
                    if now is None or now.log_start_offset <= end.log_start_offset:
                        raise  # else segments were deleted meanwhile: look through those that are left

    def max_timestamp(self) -> int:
        """The highest timestamp that any record had, in ms; -1 when there was none."""
        with self._mutex:
            if self._reader is None and self._open() is None:
                return -1
            end = self._published()
            return -1 if end is None else end.max_timestamp

    def epoch(self) -> int:
        """The partition's epoch, which rises with every recovery; 0 before the partition was made."""
        with self._mutex:
            reader = self._reader or self._open()
            end = self._published()
            return 0 if end is None or reader is None else end.epoch

    def clamped(self, offset: int, epoch: int) -> int:
        """An offset that was noted in `epoch`, or less: where what was written in that epoch was cut by a recovery.

        Beyond the cut lie other records than those that were there when the offset was noted.
        """
        with self._mutex:
            reader = self._reader or self._open()
            end = self._published()
            if end is None or reader is None:
                return 0
            limit = end.end_offset
            if epoch < end.epoch:
                later = [known.start_offset for known in read_epochs(self.folder) if known.epoch > epoch]
                limit = min([limit, *later])
            return min(offset, limit)

    def exists(self) -> bool:
        """Whether the partition was made."""
        with self._mutex:
            return self._reader is not None or self._open() is not None

    def deleted(self) -> bool:
        """Whether the topic was deleted."""
        with self._mutex:
            if self._reader is None and self._open() is None:
                return False
            end = self._published()
            return end is not None and bool(end.flags & layout.FLAG_DELETED)

    def _open(self) -> LogReader | None:
        """Open the files; None while the partition was not made. Holds the mutex."""
        if self._closed:
            raise ClosedError("the log was closed: open it again")
        context = self._context
        try:
            control = with_descriptors(lambda: self.folder.open_control(write=False, map_reads=context.map_reads))
        except (FileNotFoundError, CorruptLogError) as error:
            if not is_current(self.folder):
                return None
            if isinstance(error, CorruptLogError):
                raise
            if self.folder.files.exists(self.folder.path) and not self.folder.exists():
                raise without_control(self.folder) from error
            return None
        try:
            key = (self.folder.topic_id, self.folder.partition)
            on_demand = context.recover_always and key not in context.recovered
            if on_demand or needs_recovery(control, context.boot_id()):
                try:
                    self._recover()
                except ReadOnlyError:
                    same_place = not needs_recovery(control, context.boot_id())
                    stop = control.published() if same_place else None
                    judgement = context.transactions().judgement(self.folder)
                    self._in_memory = walk(self.folder, control, stop=stop, judgement=judgement).end
        except BaseException:
            control.close()
            raise
        self._control = control
        self._reader = LogReader(self.folder, control, map_reads=context.map_reads, settle=self._settle)
        open_files.opened(self)
        return self._reader

    def _published(self) -> Published | None:
        """The end to read to. Holds the mutex."""
        control = self._control
        if control is None:
            return None
        if self._in_memory is not None:
            if needs_recovery(control, self._context.boot_id()):
                return self._in_memory
            self._in_memory = None
        end = control.published()
        for _ in range(3):
            if end is not None:
                return end if end.pending_position < 0 else self._ruling(end)
            self._settle()
            end = control.published()
        if end is None:
            try:
                self._recover()
            except ReadOnlyError:
                judgement = self._context.transactions().judgement(self.folder)
                self._in_memory = walk(self.folder, control, judgement=judgement).end
                return self._in_memory
            end = control.published()
        return end

    def _ruling(self, slot: Published) -> Published:
        """The end that rules while a transaction is being committed, or after its committer died."""
        if self._resolved is None or self._resolved[0] is not slot:
            end = self._context.transactions().resolved(self.folder, slot)
            if end is slot:
                self.awaits_commit = True
                return slot
            self._resolved = slot, end
        return self._resolved[1]

    def _settle(self) -> None:
        """Wait until whoever holds the append lock is done; does nothing where the file cannot be opened for that."""
        if self._context.read_only:
            return
        try:
            file = self.folder.files.open(f"{self.folder.path}/control", write=True)
        except (ReadOnlyError, FileNotFoundError):
            return
        try:
            with FileLock(file.fd, file.path, byte=layout.APPEND_LOCK_BYTE, stamp_position=None).held(SETTLE_TIMEOUT):
                pass
        finally:
            file.close()

    def _close_files(self) -> None:
        reader, self._reader = self._reader, None
        control, self._control = self._control, None
        if reader is not None:
            reader.close()
        if control is not None:
            control.close()

    def close(self) -> None:
        """Close for good; again is harmless."""
        with self._mutex:
            self._closed = True
            self._close_files()
        open_files.closed(self)

    def close_inherited(self) -> None:
        """Close inherited files in a forked child."""
        self._mutex = threading.Lock()
        self._closed = True
        self._close_files()
