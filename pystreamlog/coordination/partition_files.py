"""One partition's files, opened for appending: made, recovered or healed first, where that is needed."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from pystreamlog.coordination.admissions import Admissions
from pystreamlog.coordination.locks import FileLock
from pystreamlog.coordination.open_files import MutexHandle, open_files, with_descriptors
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext, without_control
from pystreamlog.coordination.partition_sync import PartitionSync
from pystreamlog.coordination.topics import TopicState, is_current
from pystreamlog.errors import (
    ClosedError,
    CorruptLogError,
    LockTimeoutError,
    ReadOnlyError,
    StorageError,
    UnknownTopicError,
)
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.storage import format as layout
from pystreamlog.storage.appender import LogAppender
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.files import File
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.healing import heal
from pystreamlog.storage.recovery import needs_recovery, recover

__all__ = ["PartitionFiles"]

_log = logging.getLogger("pystreamlog")

_RECOVERY_TIMEOUT = 600.0
"""Seconds to wait for another process that recovers the partition, which reads up to two segments."""
_NAMING_SECONDS = 0.1
"""A wait of that length is worth finding out who holds the lock, which may take half a second."""


class PartitionFiles(MutexHandle, ABC):
    """The part of a partition's writer that opens and closes its files.

    Args:
        topic: The topic, as found.
        folder: The partition.
        context: The log's.

    Attributes:
        sync: Makes durable what was appended.
    """

    __slots__ = (
        "_admissions",
        "_appender",
        "_closed",
        "_context",
        "_control",
        "_end",
        "_lock",
        "_poison",
        "folder",
        "sync",
        "topic",
    )

    def __init__(self, topic: TopicState, folder: Folder, context: PartitionContext) -> None:
        super().__init__()
        self.topic = topic
        self.folder = folder
        self._context = context
        self._control: Control | None = None
        self._appender: LogAppender | None = None
        self._lock: FileLock | None = None
        self._end: Published | None = None
        self._admissions = Admissions(folder, context, lambda: self.topic, self._open_file)
        self._poison: StorageError | None = None
        self._closed = ""
        self.sync = PartitionSync(self, context)

    def _resolve(self, control: Control, end: Published) -> Published:
        """The end that rules, published; whoever was committing is dead, as the append lock is held."""
        if end.pending_position < 0:
            return end
        ruling = self._context.transactions().resolved(self.folder, end)
        ruling = msgspec.structs.replace(ruling, sequence=end.sequence + 1, pending_position=-1, pending_nonce=0)
        control.publish(ruling)
        return ruling

    def _open_file(self) -> Control:
        """The control file, which is open."""
        assert self._control is not None
        return self._control

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

    def _open(self, timeout: float, *, may_create: bool = True) -> FileLock:
        """Open the files, and make, recover or heal the partition if need be. Holds the mutex."""
        if self._closed:
            raise self._deleted() if self._closed == "deleted" else ClosedError("the log was closed: open it again")
        context = self._context
        if context.read_only:
            raise ReadOnlyError("the log was opened with read_only=True: open it for writing to append")
        control = self._open_control(may_create=may_create)
        try:
            lock = self._append_lock(control)
            key = (self.folder.topic_id, self.folder.partition)
            on_demand = context.recover_always and key not in context.recovered
            if on_demand or self._must_recover(control):
                context.transactions().recover()
                with lock.held(max(timeout, _RECOVERY_TIMEOUT) if timeout else 0, stamp=True):
                    if on_demand or self._must_recover(control):
                        self._recover(control)
                context.recovered.add(key)
            published = control.published()
            if published is not None and published.flags & layout.FLAG_POISONED and self._poison is None:
                self.sync.before_healing(control.durable(), published)
                with lock.held(max(timeout, _RECOVERY_TIMEOUT) if timeout else 0, stamp=True):
                    self._heal(control)
            self.sync.durable = control.durable().offset
        except BaseException:
            control.close()
            raise
        self._control = control
        self._appender = LogAppender(self.folder, self.sync.leading.locked)
        self._lock = lock
        self._end = None
        open_files.opened(self)
        return lock

    def _must_recover(self, control: Control) -> bool:
        """Whether the partition is of another boot, or was copied, or what it says of its end cannot be believed."""
        if needs_recovery(control, self._context.boot_id()):
            return True
        # In the journal the older slot decides, as it does for who looks there without opening it.
        return self.folder.path.startswith("topics/") and control.is_doubtful()

    def _open_control(self, *, may_create: bool) -> Control:
        """The control file; makes the partition when it was not made yet, if it may."""
        context = self._context
        try:
            return with_descriptors(lambda: self.folder.open_control(write=True, map_reads=context.map_reads))
        except (FileNotFoundError, CorruptLogError):
            # Not made yet, or damaged, or the topic was deleted and the name is another's now.
            if not may_create:
                if not is_current(self.folder):
                    raise self._deleted() from None
                raise
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
        published = control.published()
        same_place = not self._must_recover(control) and published is not None
        if same_place and published is not None:
            self._resolve(control, published)
        judgement = context.transactions().judgement(self.folder)
        try:
            with self.sync_lock(control).held(_RECOVERY_TIMEOUT):
                report = recover(
                    self.folder, control, context.boot_id(), trust_published=same_place, judgement=judgement
                )
        except CorruptLogError:
            now = control.published()
            if now is not None and now.flags & layout.FLAG_DELETED:  # and its segments are being removed
                raise self._deleted() from None
            raise
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

    def _heal(self, control: Control) -> None:
        """Copy what a failed fsync left in doubt, so that records are accepted again; holds the append lock."""
        end = control.published()
        if end is None or not end.flags & layout.FLAG_POISONED:
            return  # another process was faster
        self._resolve(control, end)
        with self.sync_lock(control).held(_RECOVERY_TIMEOUT):
            report = heal(self.folder, control)
        _log.warning(
            "%s: an fsync had failed; copied what was not known to be on disk, from offset %d to %d, to new files (%s)",
            report.path,
            report.durable_offset,
            report.end_offset,
            report.reason or "nothing is lost",
        )

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

    def mark_deleted(self, timeout: float) -> None:
        """Flag the partition: nothing is accepted from now on. Takes the append lock, but needs no recovery first.

        Where the control file is missing or damaged, nothing is accepted as it is.

        Raises:
            LockTimeoutError: Another process held the append lock for `timeout` seconds.
        """
        with self._held(timeout) as control:
            if control is not None:
                end = control.published() or Published(0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0)
                flags = end.flags | layout.FLAG_DELETED
                control.publish(msgspec.structs.replace(end, sequence=end.sequence + 1, flags=flags))

    def settle(self, timeout: float) -> None:
        """Wait until nobody appends, or recovers the partition.

        Raises:
            LockTimeoutError: Another process held the append lock for `timeout` seconds.
        """
        with self._held(timeout):
            pass

    @contextmanager
    def _held(self, timeout: float) -> Iterator[Control | None]:
        """Hold the append lock of a partition that need not verify; None where there is no control file to lock."""
        try:
            control = with_descriptors(lambda: self.folder.open_control(write=True))
        except (FileNotFoundError, CorruptLogError):
            yield None
            return
        try:
            with self._append_lock(control).held(timeout, stamp=True):
                yield control
        finally:
            control.close()

    def _close_files(self) -> None:
        appender, self._appender = self._appender, None
        control, self._control = self._control, None
        lock, self._lock = self._lock, None
        try:
            self._admissions.close()
            if appender is not None and lock is not None and appender.has_index_entries:
                self._write_index(appender, lock)
        finally:
            if appender is not None:
                appender.close()
            if lock is not None:
                lock.close()
            if control is not None:
                control.close()

    @staticmethod
    def _write_index(appender: LogAppender, lock: FileLock) -> None:
        """Write the index entries that wait, unless another process is appending."""
        try:
            try:
                lock.lock_kernel()
            except OSError:
                return
            appender.write_index()
        finally:  # frees what is not held as well
            lock.unlock_kernel()

    def try_close(self) -> bool:
        """Close the files unless a call, or a sync, uses them."""
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            if self.sync.leading.locked():
                return False
            self._close_files()
        finally:
            self._mutex.release()
        return True

    def close(self, *, deleted: bool = False) -> None:
        """Close for good, because the log was closed or the topic deleted."""
        with self.sync.leading, self._mutex:
            self._closed = "deleted" if deleted else "closed"
            self._close_files()
        self.sync.wake()  # those that came meanwhile
        open_files.closed(self)

    def close_inherited(self) -> None:
        """Close inherited files in a forked child, unlocking nothing; the child opens its own when it needs them."""
        self._lock = None
        self._mutex = threading.Lock()
        self.sync.start_anew()
        self._close_files()
        self._admissions.start_anew()

    # --- locks

    @staticmethod
    def _append_lock(control: Control) -> FileLock:
        file = control.file
        return FileLock(file.fd, file.path, byte=layout.APPEND_LOCK_BYTE, stamp_position=layout.APPEND_STAMP_POSITION)

    @staticmethod
    def sync_lock(control: Control) -> FileLock:
        """The lock under which the durable end is written."""
        file = control.file
        return FileLock(file.fd, file.path, byte=layout.SYNC_LOCK_BYTE, stamp_position=layout.SYNC_STAMP_POSITION)

    @abstractmethod
    def append(self, batch: EncodedBatch, timeout: float, *, flush: bool = True) -> int:
        """See `PartitionWriter.append`."""

    # --- after a failed fsync

    def poison(self, cause: StorageError | None) -> None:
        """Accept nothing any more, and have no other process accept anything: an fsync failed, here or there."""
        path = self.folder.files.path(self.folder.path)
        reason = f" ({cause})" if cause is not None else ""
        self._poison = StorageError(
            f"{path}: an fsync failed{reason}, so records written there may be lost, and no more are accepted: check "
            "the disk, then open the log again, which copies what can still be read",
            path=path,
            errno=cause.errno if cause is not None else 0,
        )

    def publish_poison(self) -> None:
        """Tell the other processes."""
        with self._mutex:
            lock = self._lock or self._open(_RECOVERY_TIMEOUT)
            control = self._control
            assert control is not None
            with lock.held(SETTLE_TIMEOUT):
                end = control.published()
                if end is not None:
                    flags = end.flags | layout.FLAG_POISONED
                    control.publish(msgspec.structs.replace(end, sequence=end.sequence + 1, flags=flags))

    def check_poison(self) -> None:
        """Raise what appending would raise after a failed fsync."""
        if self._poison is not None:
            raise self._poison

    def written(self, *, duplicate: bool = False) -> tuple[Control, dict[int, File]]:
        """The open control file, and what this process wrote to, by base offset.

        Both stay open while somebody leads a sync. With `duplicate` the latter are duplicates, which the caller closes.
        """
        with self._mutex:
            if self._lock is None:
                self._open(_RECOVERY_TIMEOUT)
            assert self._control is not None
            assert self._appender is not None
            files = self._appender.written()
            if duplicate:
                files = {base: file.duplicate() for base, file in files.items()}
            return self._control, files

    def synced(self, base_offset: int) -> None:
        """What was written below the segment of that base offset is on disk."""
        with self._mutex:
            if self._appender is not None:
                self._appender.synced(base_offset)
