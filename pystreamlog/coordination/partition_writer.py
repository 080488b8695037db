"""Appending to one partition under its lock, and making what was appended durable."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from pystreamlog.coordination.locks import FileLock, enter
from pystreamlog.coordination.open_files import MutexHandle, made_room, open_files, with_descriptors
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext, without_control
from pystreamlog.coordination.topics import TopicState, is_current
from pystreamlog.errors import (
    ClosedError,
    CorruptLogError,
    LockTimeoutError,
    ReadOnlyError,
    StorageError,
    UnknownTopicError,
)
from pystreamlog.record.batch import EncodedBatch
from pystreamlog.storage import format as layout
from pystreamlog.storage.appender import LogAppender
from pystreamlog.storage.control import Control, Durable, Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.recovery import needs_recovery, recover

__all__ = ["PartitionWriter"]

_log = logging.getLogger("pystreamlog")

_RECOVERY_TIMEOUT = 600.0
"""Seconds to wait for another process that recovers the partition, which reads up to two segments."""
_NO_WAIT = (False,)
_NAMING_SECONDS = 0.1
"""A wait of that length is worth finding out who holds the lock, which may take half a second."""


class PartitionWriter(MutexHandle):
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
        "_now_ns",
        "_poison",
        "_rolled",
        "_sync_mutex",
        "folder",
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
        super().__init__()
        self.folder = folder
        self._context = context
        self._now_ns = context.clock.now_ns
        self._rolled = rolled
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
            entered.extend(map(self._mutex.acquire, _NO_WAIT))  # as `enter`, without its call
            if not entered[0] and not enter(self._mutex, timeout, entered):
                raise self.busy(timeout)
            lock = self._lock or self._open(timeout)
            self.recent = True
            try:
                try:
                    lock.lock_kernel()
                except (BlockingIOError, PermissionError):  # POSIX allows both for a lock that is taken
                    if not lock.wait_kernel(timeout):
                        raise self.busy(timeout) from None
                found = self._control.published()  # type: ignore[union-attr]  # open, as the lock is
                end = self._end
                if end is None or found is not end:
                    end = self._look_again(lock, found)
                config = self.topic.config
                self._end = new = self._appender.append(  # type: ignore[union-attr]
                    batch, end, self._now_ns() // 1_000_000, self._durable, config.segment_bytes, config.segment_ms
                )
            finally:
                lock.unlock_kernel()
        except StorageError as error:
            if not made_room(error):
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

    def is_quick(self, size: int) -> bool:
        """Whether an append of `size` bytes will not wait for the disk, as far as this process knows.

        The first append opens the files, and may make or recover the partition; one that fills a segment
        makes the next.
        """
        end = self._end
        return self._lock is not None and end is not None and end.end_position + size < self.topic.config.segment_bytes

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
            lock = self._append_lock(control)
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
            return with_descriptors(lambda: self.folder.open_control(write=True, map_reads=context.map_reads))
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
                raise without_control(self.folder) from error

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
            control = with_descriptors(lambda: self.folder.open_control(write=True))
        except (FileNotFoundError, CorruptLogError):
            return
        try:
            lock = self._append_lock(control)
            with lock.held(SETTLE_TIMEOUT * 6, stamp=True):
                end = control.published() or Published(0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0)
                flags = end.flags | layout.FLAG_DELETED
                control.publish(msgspec.structs.replace(end, sequence=end.sequence + 1, flags=flags))
        finally:
            control.close()

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
        self._lock = None
        self._mutex = threading.Lock()
        self._sync_mutex = threading.Lock()
        self._close_files()

    # --- durability

    @staticmethod
    def _append_lock(control: Control) -> FileLock:
        return FileLock(
            control.file.fd,
            control.file.path,
            byte=layout.APPEND_LOCK_BYTE,
            stamp_position=layout.APPEND_STAMP_POSITION,
        )

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
        with self._sync_lock(control).held(SETTLE_TIMEOUT):
            last = control.durable()
            if target.end_offset > last.offset:
                slot = Durable(
                    last.sequence + 1, target.end_offset, target.segment_base, target.end_position, last.flags
                )
                control.write_durable(slot)
        self._durable = max(self._durable, target.end_offset)
