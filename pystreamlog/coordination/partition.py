"""One partition shared by processes: a writer that appends under the lock, and readers that take none.

`PartitionWriter` is one per partition, log and process; `PartitionReader` one per consumer and partition. Both are
handles: their files open at first use, and close when `OpenFiles` needs the descriptors. Each has a mutex that keeps
its files open while a call uses them; a reader's is never held while waiting for a writer.

Whoever finds a partition that was last written in another boot, or whose files were copied, or whose end cannot be
read, recovers it under the append lock (`storage.recovery`); with a read-only log the same walk is done in memory.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable

import msgspec

from pystreamlog.clock import Clock
from pystreamlog.coordination.locks import FileLock, enter
from pystreamlog.coordination.open_files import open_files
from pystreamlog.coordination.topics import TopicState, is_current
from pystreamlog.errors import (
    ClosedError,
    CorruptLogError,
    LockTimeoutError,
    ReadOnlyError,
    StorageError,
    UnknownTopicError,
)
from pystreamlog.record.batch import Batch, EncodedBatch
from pystreamlog.storage import format as layout
from pystreamlog.storage.appender import LogAppender
from pystreamlog.storage.control import Control, Durable, Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.recovery import needs_recovery, recover, walk

__all__ = ["PartitionContext", "PartitionReader", "PartitionWriter"]

_log = logging.getLogger("pystreamlog")

_RECOVERY_TIMEOUT = 600.0
"""Seconds to wait for another process that recovers the partition, which reads up to two segments."""
_SETTLE_TIMEOUT = 10.0
_NAMING_SECONDS = 0.1
_FETCH_BYTES = 8 << 20
"""Bytes one fetch of one partition takes at most, whole batches, unless the first is larger."""


class PartitionContext(msgspec.Struct, frozen=True):
    """What a log's partitions have in common.

    Attributes:
        clock: Dates segments and records.
        boot_id: This boot's.
        read_only: Nothing is written.
        map_reads: Read through maps.
        recover_always: Recover each partition at its first opening.
        changing: Holds the lock under which partitions come and go.
        recovered: Partitions (topic id, number) that this log has recovered on demand.
    """

    clock: Clock
    boot_id: Callable[[], bytes]
    read_only: bool
    map_reads: bool
    recover_always: bool
    changing: Callable[[], object]
    recovered: set[tuple[bytes, int]]


class PartitionWriter:
    """Appends to one partition and makes what was appended durable. Safe from any thread.

    Args:
        topic: The topic, as found.
        folder: The partition.
        context: The log's.
        rolled: Called with the writer and an offset when all below the offset lies in sealed segments.
    """

    __slots__ = (
        "_appender",
        "_closed",
        "_context",
        "_control",
        "_durable",
        "_end",
        "_lock",
        "_mutex",
        "_now_ns",
        "_poison",
        "_rolled",
        "_sync_mutex",
        "folder",
        "recent",
        "topic",
    )

    def __init__(
        self,
        topic: TopicState,
        folder: Folder,
        context: PartitionContext,
        rolled: Callable[[PartitionWriter, int], None],
    ) -> None:
        self.topic = topic
        self.folder = folder
        self.recent = False
        self._context = context
        self._now_ns = context.clock.now_ns
        self._rolled = rolled
        self._mutex = threading.Lock()
        self._sync_mutex = threading.Lock()
        self._control: Control | None = None
        self._appender: LogAppender | None = None
        self._lock: FileLock | None = None
        self._end: Published | None = None
        self._durable = 0
        self._poison: StorageError | None = None
        self._closed = ""

    # --- appending

    def append(self, batch: EncodedBatch, timeout: float) -> int:
        """Write and publish one batch: visible to every process when it returns.

        Args:
            batch: What to write; gets its timestamps if the log sets them.
            timeout: Seconds to wait for the lock; 0 tries once.

        Returns:
            The offset of its first record.

        Raises:
            LockTimeoutError: Another process held the append lock for that long.
            UnknownTopicError: The topic was deleted.
            StorageError: The disk is full or failed; nothing was written.
            CorruptLogError: The partition does not verify.
            ReadOnlyError: The log is read-only.
        """
        entered: list[bool] = []
        try:
            if not enter(self._mutex, timeout, entered):
                raise self.busy(timeout)
            lock = self._lock or self._open(timeout)
            self.recent = True
            try:
                try:
                    lock.lock_kernel()
                except (BlockingIOError, PermissionError):  # POSIX allows both for a lock that is taken
                    if not lock.wait_kernel(timeout):
                        raise self.busy(timeout) from None
                end = self._control.published()  # type: ignore[union-attr]  # open, as the lock is
                if end is None or self._end is not end:
                    end = self._look_again(lock, end)
                config = self.topic.config
                self._end = new = self._appender.append(  # type: ignore[union-attr]
                    batch, end, self._now_ns() // 1_000_000, self._durable, config.segment_bytes, config.segment_ms
                )
            finally:
                lock.unlock_kernel()
        except StorageError as error:
            if not _made_room(error):
                raise
        else:
            if new.segment_base != end.segment_base:
                self._rolled(self, new.segment_base)
            return end.end_offset
        finally:
            if True in entered:
                self._mutex.release()
        return self.append(batch, timeout)

    def _look_again(self, lock: FileLock, end: Published | None) -> Published:
        """The end to append at, after another process appended or a first look."""
        lock.stamp()  # name this process as the holder
        if end is None:
            assert self._control is not None
            end = self._recover(self._control)
        if end.flags & layout.FLAG_DELETED:
            raise self._deleted()
        if self._poison is not None:
            raise self._poison
        return end

    def busy(self, waited: float) -> LockTimeoutError:
        """The error for waiting that many seconds in vain.

        It names the holder of the append lock, if the wait was no mere try: finding it may take half a second.
        """
        path = self.folder.files.path(self.folder.path)
        lock = self._lock
        holder = "another process" if lock is not None else "another thread of this process"
        if lock is not None and waited >= _NAMING_SECONDS:
            holder = lock.holder()
        return LockTimeoutError(
            f"{path}: not free within {waited} s; held by {holder}: let it go on, or end it", path=path, holder=holder
        )

    def _deleted(self) -> UnknownTopicError:
        return UnknownTopicError(f"topic {self.topic.name!r} was deleted", topic=self.topic.name)

    # --- opening and closing

    def _open(self, timeout: float) -> FileLock:
        """Open the files, and make or recover the partition if need be. Holds the mutex."""
        if self._closed:
            raise self._deleted() if self._closed == "deleted" else ClosedError("the log was closed: open it again")
        context = self._context
        if context.read_only:
            raise ReadOnlyError("the log was opened with read_only=True: open it for writing to append")
        control = self._open_control()
        try:
            lock = FileLock(
                control.file.fd,
                control.file.path,
                byte=layout.APPEND_LOCK_BYTE,
                stamp_position=layout.APPEND_STAMP_POSITION,
            )
            key = (self.folder.topic_id, self.folder.partition)
            on_demand = context.recover_always and key not in context.recovered
            if on_demand or needs_recovery(control, context.boot_id()):
                with lock.held(max(timeout, _RECOVERY_TIMEOUT) if timeout else 0, stamp=True):
                    if on_demand or needs_recovery(control, context.boot_id()):
                        self._recover(control)
                context.recovered.add(key)
            self._durable = control.durable().offset
        except BaseException:
            control.close()
            raise
        self._control = control
        self._appender = LogAppender(self.folder, control)
        self._lock = lock
        self._end = None
        open_files.opened(self)
        return lock

    def _open_control(self) -> Control:
        """The control file; makes the partition when it was not made yet."""
        context = self._context
        try:
            return _with_descriptors(lambda: self.folder.open_control(write=True, map_reads=context.map_reads))
        except (FileNotFoundError, CorruptLogError):
            pass  # not made yet, or damaged, or the topic was deleted and the name is another's now
        with context.changing():  # type: ignore[attr-defined]
            if not is_current(self.folder):
                raise self._deleted()
            if not self.folder.exists():
                self.folder.create(boot_id=context.boot_id(), now_ms=context.clock.now_ms())
            try:
                return self.folder.open_control(write=True, map_reads=context.map_reads)
            except FileNotFoundError as error:
                raise _without_control(self.folder) from error

    def _recover(self, control: Control) -> Published:
        """Recover the partition; holds the append lock."""
        context = self._context
        same_place = not needs_recovery(control, context.boot_id()) and control.published() is not None
        with self._sync_lock(control).held(_RECOVERY_TIMEOUT):
            report = recover(self.folder, control, context.boot_id(), trust_published=same_place)
        level = logging.WARNING if report.dropped or report.published_offset != report.end_offset else logging.INFO
        _log.log(
            level,
            "recovered %s: ends at offset %d (published %s), dropped %d bytes (%s), epoch %d",
            report.path,
            report.end_offset,
            report.published_offset,
            report.dropped,
            report.reason,
            report.epoch,
        )
        end = control.published()
        assert end is not None
        return end

    def ensure(self) -> None:
        """Make and recover the partition if need be, without appending."""
        with self._mutex:
            if self._lock is None:
                self._open(_RECOVERY_TIMEOUT)
            lock, control = self._lock, self._control
            assert lock is not None
            assert control is not None
            if control.published() is None:
                with lock.held(_RECOVERY_TIMEOUT, stamp=True):
                    if control.published() is None:
                        self._recover(control)

    def mark_deleted(self) -> None:
        """Flag the partition: nothing is accepted from now on. Takes the append lock, but needs no recovery first.

        Where the control file is missing or damaged, nothing is accepted as it is.
        """
        try:
            control = _with_descriptors(lambda: self.folder.open_control(write=True))
        except (FileNotFoundError, CorruptLogError):
            return
        try:
            lock = FileLock(
                control.file.fd,
                control.file.path,
                byte=layout.APPEND_LOCK_BYTE,
                stamp_position=layout.APPEND_STAMP_POSITION,
            )
            with lock.held(_SETTLE_TIMEOUT * 6, stamp=True):
                end = control.published() or Published(0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0)
                flags = end.flags | layout.FLAG_DELETED
                control.publish(msgspec.structs.replace(end, sequence=end.sequence + 1, flags=flags))
        finally:
            control.close()

    def try_close(self) -> bool:
        """Close the files unless a call uses them."""
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            self._close_files()
        finally:
            self._mutex.release()
        return True

    def _close_files(self) -> None:
        appender, self._appender = self._appender, None
        control, self._control = self._control, None
        lock, self._lock = self._lock, None
        if appender is not None:
            appender.close()
        if lock is not None:
            lock.close()
        if control is not None:
            control.close()

    def close(self, *, deleted: bool = False) -> None:
        """Close for good, because the log was closed or the topic deleted."""
        with self._mutex:
            self._closed = "deleted" if deleted else "closed"
            self._close_files()
        open_files.closed(self)

    def close_inherited(self) -> None:
        """Close inherited files in a forked child, unlocking nothing; the child opens its own when it needs them."""
        appender, self._appender = self._appender, None
        control, self._control = self._control, None
        self._lock = None
        self._mutex = threading.Lock()
        self._sync_mutex = threading.Lock()
        if appender is not None:
            appender.close()
        if control is not None:
            control.close()

    # --- durability

    @staticmethod
    def _sync_lock(control: Control) -> FileLock:
        return FileLock(
            control.file.fd,
            control.file.path,
            byte=layout.SYNC_LOCK_BYTE,
            stamp_position=layout.SYNC_STAMP_POSITION,
        )

    def sync(self, offset: int) -> None:
        """Return when all records below `offset` are on disk; threads that wait here share one fdatasync.

        Raises:
            StorageError: The disk failed. It is not tried again: the partition accepts nothing more from this process.
        """
        with self._sync_mutex:
            if self._durable >= offset:
                return
            if self._poison is not None:
                raise self._poison
            with self._mutex:
                if self._lock is None:
                    self._open(_RECOVERY_TIMEOUT)
                control = self.folder.open_control(write=True)
            try:
                self._sync(control)
            finally:
                control.close()

    def _sync(self, control: Control) -> None:
        target = control.published()
        if target is None:
            self.ensure()  # both slots are damaged: recover
            target = control.published()
        assert target is not None
        last = control.durable()
        bases = [base for base in self.folder.segments() if last.segment_base <= base <= target.segment_base]
        for base in bases:
            segment = self.folder.open_segment(base, write=True, map_reads=False)
            try:
                segment.file.datasync()
            except StorageError as error:
                self._poison = StorageError(
                    f"{segment.file.path}: fsync failed ({error}); records acknowledged from now on could be lost, so "
                    f"this process accepts no more here: check the disk, then open the log again",
                    path=segment.file.path,
                    errno=error.errno,
                )
                self._end = None
                raise self._poison from error
            finally:
                segment.close()
        with self._sync_lock(control).held(_SETTLE_TIMEOUT):
            last = control.durable()
            if target.end_offset > last.offset:
                slot = Durable(
                    last.sequence + 1, target.end_offset, target.segment_base, target.end_position, last.flags
                )
                control.write_durable(slot)
        self._durable = max(self._durable, target.end_offset)


class PartitionReader:
    """Reads one partition from a cursor on. One user at a time, but for `try_close`.

    Args:
        folder: The partition.
        context: The log's.
        recover: Recovers the partition when that is needed and the log may be written.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_context",
        "_control",
        "_in_memory",
        "_mutex",
        "_reader",
        "_recover",
        "folder",
        "recent",
    )

    def __init__(self, folder: Folder, context: PartitionContext, recover: Callable[[], None]) -> None:
        self.folder = folder
        self.recent = False
        self._context = context
        self._recover = recover
        self._mutex = threading.Lock()
        self._control: Control | None = None
        self._reader: LogReader | None = None
        self._in_memory: Published | None = None
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
                if not _made_room(error):
                    raise
        return self.fetch(cursor, max_records=max_records, max_bytes=max_bytes)

    def offsets(self) -> tuple[int, int]:
        """The first offset there is, and the next record's."""
        with self._mutex:
            reader = self._reader or self._open()
            end = self._published()
            if end is None or reader is None:
                return 0, 0
            return reader.start_offset(end), end.end_offset

    def offset_at(self, timestamp_ms: int) -> int | None:
        """The offset of the first record not older than that; None when all are older."""
        with self._mutex:
            reader = self._reader or self._open()
            end = self._published()
            return None if end is None or reader is None else reader.offset_at(timestamp_ms, end)

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
            control = _with_descriptors(lambda: self.folder.open_control(write=False, map_reads=context.map_reads))
        except (FileNotFoundError, CorruptLogError) as error:
            if not is_current(self.folder):
                return None
            if isinstance(error, CorruptLogError):
                raise
            if self.folder.files.exists(self.folder.path) and not self.folder.exists():
                raise _without_control(self.folder) from error
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
                    self._in_memory = walk(self.folder, control, stop=stop).end
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
                return end
            self._settle()
            end = control.published()
        if end is None:
            try:
                self._recover()
            except ReadOnlyError:
                self._in_memory = walk(self.folder, control).end
                return self._in_memory
            end = control.published()
        return end

    def _settle(self) -> None:
        """Wait until whoever holds the append lock is done; does nothing where the file cannot be opened for that."""
        if self._context.read_only:
            return
        try:
            file = self.folder.files.open(f"{self.folder.path}/control", write=True)
        except (ReadOnlyError, FileNotFoundError):
            return
        try:
            with FileLock(file.fd, file.path, byte=layout.APPEND_LOCK_BYTE, stamp_position=None).held(_SETTLE_TIMEOUT):
                pass
        finally:
            file.close()

    def try_close(self) -> bool:
        """Close the files unless a call uses them."""
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            self._close_files()
        finally:
            self._mutex.release()
        return True

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


def _without_control(folder: Folder) -> CorruptLogError:
    path = folder.files.path(folder.path)
    return CorruptLogError(f"{path} has no control file: restore it from a copy", path=path)


def _made_room(error: StorageError) -> bool:
    """Whether the process had no descriptors left, and now has some, because idle handles were closed.

    The caller holds its own handle's mutex: closing and opening that one over and over would help nobody.
    """
    return error.errno in (errno.EMFILE, errno.ENFILE) and open_files.shrink()


def _with_descriptors(opening: Callable[[], Control]) -> Control:
    """What `opening` opens, once more after idle handles were closed when the process is out of descriptors."""
    try:
        return opening()
    except StorageError as error:
        if not _made_room(error):
            raise
    return _with_descriptors(opening)
