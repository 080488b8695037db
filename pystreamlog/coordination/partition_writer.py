"""Appending to one partition under its lock; `partition_sync` makes durable what was appended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from pystreamlog.coordination.admission import Admission
from pystreamlog.coordination.locks import FileLock, enter
from pystreamlog.coordination.open_files import MutexHandle, made_room, open_files, with_descriptors
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext, without_control
from pystreamlog.coordination.partition_sync import PartitionSync
from pystreamlog.coordination.sequence_admission import SequenceAdmission
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
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.files import File
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.healing import heal
from pystreamlog.storage.recovery import needs_recovery, recover
from pystreamlog.storage.spill import Spill

__all__ = ["PartitionWriter"]

_log = logging.getLogger("pystreamlog")

_RECOVERY_TIMEOUT = 600.0
"""Seconds to wait for another process that recovers the partition, which reads up to two segments."""
_NO_WAIT = (False,)
_NAMING_SECONDS = 0.1
"""A wait of that length is worth finding out who holds the lock, which may take half a second."""


class PartitionWriter(MutexHandle):
    """Appends to one partition. Safe from any thread.

    Args:
        topic: The topic, as found.
        folder: The partition.
        context: The log's.
        later: Called with the writer, an offset and seconds: all below the offset shall be synced by then.

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
        "_flush_due",
        "_later",
        "_lock",
        "_now_ns",
        "_poison",
        "_sequences",
        "folder",
        "sync",
        "topic",
    )

    def __init__(
        self,
        topic: TopicState,
        folder: Folder,
        context: PartitionContext,
        later: Callable[[PartitionWriter, int, float], None],
    ) -> None:
        self.topic = topic
        super().__init__()
        self.folder = folder
        self._context = context
        self._now_ns = context.clock.now_ns
        self._later = later
        self._flush_due = -1
        self._control: Control | None = None
        self._appender: LogAppender | None = None
        self._lock: FileLock | None = None
        self._end: Published | None = None
        self._admissions: tuple[Admission, ...] = ()
        self._sequences: SequenceAdmission | None = None
        self._poison: StorageError | None = None
        self._closed = ""
        self.sync = PartitionSync(self, context)

    # --- appending

    def append(self, batch: EncodedBatch, timeout: float) -> int:
        """Write and publish one batch: visible to every process when it returns.

        Args:
            batch: What to write; gets its timestamps if the log sets them.
            timeout: Seconds to wait for the lock; 0 tries once.

        Returns:
            The offset of its first record; -1 when nothing was to be written (`Demands.offsets`).

        Raises:
            LockTimeoutError: Another process held the append lock for that long.
            UnknownTopicError: The topic was deleted.
            StorageError: The disk is full or failed; nothing was written. Or `flush_messages` had it synced, which
                failed: it is written, but may be lost.
            VersionConflictError: The batch expected something else; nothing was written.
            CorruptLogError: The partition does not verify.
            ReadOnlyError: The log is read-only.
        """
        entered: list[bool] = []
        end = new = None
        try:
            entered.extend(map(self._mutex.acquire, _NO_WAIT))  # as `enter`, without its call
            if not entered[0] and not enter(self._mutex, timeout, entered):
                raise self.busy(timeout)
            lock = self._lock or self._open(timeout)
            self.recent = True
            try:
                try:
                    lock.lock_kernel()
                except OSError:  # it is taken; another reason is told by waiting
                    if not lock.wait_kernel(timeout):
                        raise self.busy(timeout) from None
                found = self._control.published()  # type: ignore[union-attr]  # open, as the lock is
                end = self._end
                if end is None or found is not end:
                    end = self._look_again(lock, found)
                admitted = batch if batch.demands is None else self._admit(batch, end)
                if admitted is None:
                    return -1
                config = self.topic.config
                new = self._appender.write(  # type: ignore[union-attr]
                    admitted,
                    end,
                    self._now_ns() // 1_000_000,
                    self.sync.durable,
                    config.segment_bytes,
                    config.segment_ms,
                )
                self._control.publish(new)  # type: ignore[union-attr]
                self._end = new
                if batch.demands is not None:
                    self._keep(new)
                    batch.max_timestamp = admitted.max_timestamp
            finally:
                lock.unlock_kernel()
        except StorageError as error:
            if new is not None or not made_room(error):
                raise
        finally:
            if True in entered:
                self._mutex.release()
        if new is None or end is None:
            return self.append(batch, timeout)
        if new.segment_base != end.segment_base:
            self._later(self, new.segment_base, 0)
        if config.flush_messages > 0 or config.flush_ms >= 0:
            self._flush(new.end_offset)
        return end.end_offset

    def _look_again(self, lock: FileLock, end: Published | None) -> Published:
        """The end to append at, after another process appended or a first look."""
        lock.stamp()  # name this process as the holder
        control = self._control
        assert control is not None
        if end is None:
            end = self._recover(control)
        if end.flags & layout.FLAG_DELETED:
            raise self._deleted()
        end = self._resolve(control, end)
        if end.flags & layout.FLAG_POISONED and self._poison is None:
            self.poison(None)
        self.check_poison()
        return end

    def _resolve(self, control: Control, end: Published) -> Published:
        """The end that rules, published; whoever was committing is dead, as the append lock is held."""
        if end.pending_position < 0:
            return end
        ruling = self._context.transactions().resolved(self.folder, end)
        ruling = msgspec.structs.replace(ruling, sequence=end.sequence + 1, pending_position=-1, pending_nonce=0)
        control.publish(ruling)
        return ruling

    def _admit(self, batch: EncodedBatch, end: Published) -> EncodedBatch | None:
        """What to write of a batch with demands."""
        self._drop()  # what an interrupt left
        return self._admit_next(batch, end)

    def _admit_next(self, batch: EncodedBatch, end: Published) -> EncodedBatch | None:
        """As `_admit`, after others that were not published yet."""
        demands = batch.demands
        admitted: EncodedBatch | None = batch
        if demands is not None and demands.producer_id >= 0 and self._sequences is None:
            self._sequences = SequenceAdmission(
                self.folder,
                lambda: self._control,  # type: ignore[arg-type,return-value]  # open, as the lock is
                self._context.clock,
                lambda: self.topic.config.producer_id_expiration_ms,
                map_reads=self._context.map_reads,
            )
            # First of all: what was appended before makes no other demands.
            self._admissions = (self._sequences, *self._admissions)
        for admission in self._admissions:
            if admitted is None:
                break
            admitted = admission.admit(admitted, end)
        return admitted

    def _keep(self, end: Published) -> None:
        for admission in self._admissions:
            admission.published(end)

    def _drop(self) -> None:
        for admission in self._admissions:
            admission.dropped()

    def _flush(self, offset: int) -> None:
        """Sync what the topic's settings want synced by now, or arrange for it."""
        config = self.topic.config
        if 0 < config.flush_messages <= offset - self.sync.durable:
            self.sync(offset)
        elif config.flush_ms >= 0 and self._flush_due <= self.sync.durable:
            self._flush_due = offset
            self._later(self, offset, config.flush_ms / 1000)

    # --- several partitions at once

    @contextmanager
    def locked(self, timeout: float) -> Iterator[Published]:
        """Hold the append lock, for a transaction; the partition must have been made (`ensure`).

        Args:
            timeout: Seconds to wait for it.

        Yields:
            The end to write at.

        Raises:
            See `append`.
        """
        entered: list[bool] = []
        try:
            if not enter(self._mutex, timeout, entered):
                raise self.busy(timeout)
            lock = self._lock or self._open(timeout, may_create=False)
            self.recent = True
            try:
                try:
                    lock.lock_kernel()
                except OSError:
                    if not lock.wait_kernel(timeout):
                        raise self.busy(timeout) from None
                assert self._control is not None
                found, end = self._control.published(), self._end
                if end is None or found is not end:
                    end = self._look_again(lock, found)
                self._end = end
                self._drop()  # what a failure or an interrupt left
                yield end
            finally:
                lock.unlock_kernel()
        finally:
            if True in entered:
                self._mutex.release()

    def write_locked(self, batch: EncodedBatch, end: Published, *, first: bool) -> Published:
        """Write one batch behind `end` without publishing it; within `locked`.

        Args:
            batch: What to write.
            end: The end to write at.
            first: It is the first one since the lock was taken.

        Returns:
            The end after it; `end` when nothing was to be written (`Demands.offsets`).
        """
        admitted: EncodedBatch | None = batch
        if batch.demands is not None:
            admitted = self._admit(batch, end) if first else self._admit_next(batch, end)
            if admitted is None:
                return end
            if admitted is not batch:
                admitted.suffix = admitted.suffix[:20] + batch.suffix[20:28] + admitted.suffix[28:]
        config = self.topic.config
        assert admitted is not None
        assert self._appender is not None
        new = self._appender.write(
            admitted, end, self._now_ns() // 1_000_000, self.sync.durable, config.segment_bytes, config.segment_ms
        )
        batch.max_timestamp = admitted.max_timestamp
        return new

    def link_locked(self, spill: Spill, end: Published) -> tuple[Published, list[int]]:
        """Write spilled batches behind `end`, as `write_locked`; returns the end after them, and where each begins."""
        assert self._appender is not None
        return self._appender.link(spill, end, self._now_ns() // 1_000_000, self.sync.durable)

    def publish_locked(self, slot: Published, *, last: bool) -> None:
        """Publish an end; within `locked`. With `last`, what was written counts."""
        assert self._control is not None
        self._control.publish(slot)
        if last:
            before, self._end = self._end, slot
            if self._admissions:
                self._keep(slot)
            if before is not None and before.segment_base != slot.segment_base:
                self._later(self, slot.segment_base, 0)

    def drop_locked(self) -> None:
        """What was written does not count; within `locked`."""
        self._drop()

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

    def written(self) -> tuple[Control, dict[int, File]]:
        """The open control file, and what this process wrote to, by base offset, through new descriptors."""
        with self._mutex:
            if self._lock is None:
                self._open(_RECOVERY_TIMEOUT)
            assert self._control is not None
            assert self._appender is not None
            return self._control, self._appender.written()

    def synced(self, base_offset: int) -> None:
        """What was written below the segment of that base offset is on disk."""
        with self._mutex:
            if self._appender is not None:
                self._appender.synced(base_offset)

    def is_quick(self, size: int, *, sequences: bool = False) -> bool:
        """Whether an append of `size` bytes will not wait for the disk, as far as this process knows.

        The first append opens the files, and may make or recover the partition; one that fills a segment
        makes the next; each may have to sync where the topic has `flush_messages`. One with `sequences` may have
        much to read that others appended.
        """
        end, config = self._end, self.topic.config
        if self._lock is None or end is None or end.end_position + size >= config.segment_bytes:
            return False
        if sequences:
            known, control = self._sequences, self._control
            found = control.published() if control is not None else None
            if known is None or found is None or not known.is_quick(found):
                return False
        return config.flush_messages <= 0

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
            if on_demand or needs_recovery(control, context.boot_id()):
                context.transactions().recover()
                with lock.held(max(timeout, _RECOVERY_TIMEOUT) if timeout else 0, stamp=True):
                    if on_demand or needs_recovery(control, context.boot_id()):
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
        self._appender = LogAppender(self.folder)
        self._lock = lock
        self._end = None
        open_files.opened(self)
        return lock

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
        same_place = not needs_recovery(control, context.boot_id()) and published is not None
        if same_place and published is not None:
            self._resolve(control, published)
        judgement = context.transactions().judgement(self.folder)
        with self.sync_lock(control).held(_RECOVERY_TIMEOUT):
            report = recover(self.folder, control, context.boot_id(), trust_published=same_place, judgement=judgement)
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
        for admission in self._admissions:
            admission.close()
        if appender is not None:
            appender.close()
        if lock is not None:
            lock.close()
        if control is not None:
            control.close()

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
        open_files.closed(self)

    def close_inherited(self) -> None:
        """Close inherited files in a forked child, unlocking nothing; the child opens its own when it needs them."""
        self._lock = None
        self._mutex = threading.Lock()
        self.sync.start_anew()
        self._close_files()
        self._admissions, self._sequences = (), None  # a thread of the parent may have been at work in them

    # --- locks

    @staticmethod
    def _append_lock(control: Control) -> FileLock:
        return FileLock(
            control.file.fd,
            control.file.path,
            byte=layout.APPEND_LOCK_BYTE,
            stamp_position=layout.APPEND_STAMP_POSITION,
        )

    @staticmethod
    def sync_lock(control: Control) -> FileLock:
        """The lock under which the durable end is written."""
        return FileLock(
            control.file.fd,
            control.file.path,
            byte=layout.SYNC_LOCK_BYTE,
            stamp_position=layout.SYNC_STAMP_POSITION,
        )
