"""Appending to one partition under its lock; `partition_sync` makes durable what was appended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from pystreamlog.coordination.locks import FileLock, enter
from pystreamlog.coordination.open_files import made_room
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext
from pystreamlog.coordination.partition_files import PartitionFiles
from pystreamlog.coordination.topics import TopicState
from pystreamlog.errors import ConfigError, OffsetOutOfRangeError, StorageError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.coverage import read_header
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.retention import files_below
from pystreamlog.storage.spill import Spill

__all__ = ["Deletion", "PartitionWriter"]

_NO_WAIT = (False,)


class Deletion(msgspec.Struct, frozen=True, gc=False):
    """What was deleted from a partition.

    Attributes:
        log_start_offset: Where its log starts now.
        segments: How many segments were removed.
        bytes: Of their files.
    """

    log_start_offset: int
    segments: int = 0
    bytes: int = 0


class PartitionWriter(PartitionFiles):
    """Appends to one partition. Safe from any thread.

    Args:
        topic: The topic, as found.
        folder: The partition.
        context: The log's.
        later: Called with the writer, an offset and seconds: all below the offset shall be synced by then.
    """

    __slots__ = ("_flush_due", "_later", "_now_ns")

    def __init__(
        self,
        topic: TopicState,
        folder: Folder,
        context: PartitionContext,
        later: Callable[[PartitionWriter, int, float], None],
    ) -> None:
        super().__init__(topic, folder, context)
        self._now_ns = context.clock.now_ns
        self._later = later
        self._flush_due = -1

    # --- appending

    def append(self, batch: EncodedBatch, timeout: float, *, flush: bool = True) -> int:
        """Write and publish one batch: visible to every process when it returns.

        Args:
            batch: What to write; gets its timestamps if the log sets them.
            timeout: Seconds to wait for the lock; 0 tries once.
            flush: Sync it if the topic's settings say so; else the caller syncs.

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
                    self._admissions.published(new)
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
            return self.append(batch, timeout, flush=flush)
        if new.segment_base != end.segment_base:
            self._later(self, new.segment_base, 0)
        if flush and (config.flush_messages > 0 or config.flush_ms >= 0):
            self.flush(new.end_offset)
        return end.end_offset

    def _look_again(self, lock: FileLock, end: Published | None) -> Published:
        """The end to append at, after another process appended or a first look."""
        lock.stamp()  # name this process as the holder
        control, appender = self._control, self._appender
        assert control is not None
        assert appender is not None
        appender.write_index()  # before others write later entries
        if end is None:
            end = self._recover(control)
        if end.flags & layout.FLAG_DELETED:
            raise self._deleted()
        end = self._resolve(control, end)
        if end.flags & layout.FLAG_POISONED and self._poison is None:
            self.poison(None)
        self.check_poison()
        return end

    def _admit(self, batch: EncodedBatch, end: Published) -> EncodedBatch | None:
        """What to write of a batch with demands."""
        self._admissions.dropped()  # what an interrupt left
        return self._admissions.admit(batch, end)

    def last_offset(self, key: bytes, *, anew: bool) -> int:
        """The offset of the last record with that key, -1 without one, in a topic with a key index.

        Args:
            key: The key.
            anew: Build the index first, whatever it holds.

        Raises:
            LockTimeoutError: Another process holds the append lock.
            ReadOnlyError: The log is read-only.
            StorageError: The disk is full or failed.
        """
        self.ensure()
        with self.locked(SETTLE_TIMEOUT) as end:
            return self._admissions.last_offset(key, end, anew=anew)

    def flush(self, offset: int) -> None:
        """Sync what the topic's settings want synced by now, or arrange for it.

        Args:
            offset: The end of what was appended.

        Raises:
            StorageError: The disk failed.
        """
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
                self._admissions.dropped()  # what a failure or an interrupt left
                yield end
            finally:
                lock.unlock_kernel()
        finally:
            if True in entered:
                self._mutex.release()

    # --- deleting

    def delete_records(self, offset: int) -> Deletion:
        """Delete the records below an offset: nobody finds them any more, and they stay deleted, when it returns.

        Segments that are wholly below it go. Readers that hold one finish it.

        Args:
            offset: What the log starts with then; -1 for its end. Nothing happens if it does so already.

        Raises:
            OffsetOutOfRangeError: It lies beyond the end.
            ConfigError: The topic has a key index.
            LockTimeoutError: Another process holds the append lock.
            ReadOnlyError: The log is read-only.
            StorageError: The disk is full or failed.
        """
        topic = self.topic
        if topic.config.key_index:
            raise ConfigError(f"topic {topic.name!r} has a key index, which counts every record: none can be deleted")
        self.ensure()
        with self.locked(SETTLE_TIMEOUT) as end:
            if not -1 <= offset <= end.end_offset:
                raise OffsetOutOfRangeError(
                    f"records below offset {offset} cannot be deleted from partition {self.folder.partition} of topic "
                    f"{topic.name!r}, which ends at {end.end_offset}: pass an offset up to that, or -1 for all",
                    topic=topic.name,
                    partition=self.folder.partition,
                    offset=offset,
                )
        start = end.end_offset if offset < 0 else offset
        if start <= end.log_start_offset:
            return Deletion(end.log_start_offset)
        return self.raise_start(start)

    def raise_start(self, start: int, *, whole: bool = False) -> Deletion:
        """Have the log start at an offset, or where it does if that is more, and remove what lies below.

        In these steps, of which each stays right if it is the last one:

        1. All below `start` is synced, with every transaction that has records there: one that a power loss undoes
           would be cut off below the start.
        2. The start is published, in both slots, and the control file synced. At the end of the log the active segment
           is sealed first and another one made. What producers appended is written down before.
        3. The files are removed, and the folder is synced.

        Args:
            start: An offset between the log's start and its end.
            whole: Delete whole segments only: what was appended meanwhile keeps the active one.

        Raises:
            See `delete_records`.
        """
        folder = self.folder
        self.ensure()
        self.sync(start)
        control = folder.open_control(write=True)  # before what it syncs is written, and the writer's may be closed
        try:
            with self.locked(SETTLE_TIMEOUT) as found:
                if whole and found.segment_base < start < found.end_offset:
                    start = found.segment_base
                end = self._start_locked(start, found)
            if end.flags & layout.FLAG_PRODUCERS:
                self.sync(end.end_offset)  # what was written down is believed if the log still goes on there
            control.file.datasync()
        finally:
            control.close()
        return self._remove_below(end.log_start_offset)

    def _start_locked(self, start: int, end: Published) -> Published:
        """Publish the log's start; within `locked`."""
        assert self._appender is not None
        if start == end.end_offset:
            end = self._appender.roll(end, self._now_ns() // 1_000_000)
        self._admissions.keep_producers(end)
        start = max(start, end.log_start_offset)
        for last in (False, True):
            end = msgspec.structs.replace(end, sequence=end.sequence + 1, log_start_offset=start)
            self.publish_locked(end, last=last)
        if not self.sync.leading.locked():
            self._appender.synced(end.segment_base)
        return end

    def _remove_below(self, start: int) -> Deletion:
        """Remove the files below the log's start.

        Each is renamed under the append lock, when the folder is this topic's for certain, and removed after that:
        removing a large file takes 10 ms.
        """
        folder, segments, size = self.folder, 0, 0
        for name in files_below(folder, start):
            gone = f"{name.partition('~')[0]}~{os.urandom(6).hex()}"
            with suppress(FileNotFoundError):
                with self.locked(SETTLE_TIMEOUT):
                    if name.endswith(layout.SEGMENT_SUFFIX) and self._reaches(name, start):
                        continue  # it was rewritten meanwhile, with others, and is their only copy
                    folder.files.rename(f"{folder.path}/{name}", f"{folder.path}/{gone}")
                if name.endswith(layout.SEGMENT_SUFFIX):
                    size += folder.files.status(f"{folder.path}/{gone}").st_size
                    segments += 1
                folder.drop(gone)
        with suppress(FileNotFoundError):
            folder.files.sync_directory(folder.path)
        return Deletion(start, segments, size)

    def _reaches(self, name: str, start: int) -> bool:
        """Whether a rewritten segment goes on behind an offset; within `locked`."""
        header = read_header(self.folder, int(name.removesuffix(layout.SEGMENT_SUFFIX)))
        return header is not None and header.end_offset > start

    # --- within `locked`

    def roll_locked(self, end: Published) -> Published:
        """Begin another segment unless the active one is empty, and publish that; within `locked`. The end then."""
        assert self._appender is not None
        new = self._appender.roll(end, self._now_ns() // 1_000_000)
        if new is not end:
            for last in (False, True):
                new = msgspec.structs.replace(new, sequence=new.sequence + 1)
                self.publish_locked(new, last=last)
        return new

    def keep_producers_locked(self, end: Published) -> None:
        """Write down what producers appended, as records are about to go; within `locked`."""
        self._admissions.keep_producers(end)

    def write_locked(self, batch: EncodedBatch, end: Published) -> Published:
        """Write one batch behind `end` without publishing it; within `locked`.

        Args:
            batch: What to write.
            end: The end to write at.

        Returns:
            The end after it; `end` when nothing was to be written (`Demands.offsets`).
        """
        admitted: EncodedBatch | None = batch
        if batch.demands is not None:
            admitted = self._admissions.admit(batch, end)
            if admitted is None:
                return end
            if admitted is not batch:
                admitted.mark(batch.transaction_nonce)
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
            self._admissions.published(slot)
            if before is not None and before.segment_base != slot.segment_base:
                self._later(self, slot.segment_base, 0)

    def is_published(self, slot: Published) -> bool:
        """Whether this is the published end, also when an interrupt came before that was noted; within `locked`."""
        return self._control is not None and self._control.published() == slot

    def take_back_locked(self, old: Published) -> None:
        """Have the slot name no transaction any more, if it does; within `locked`."""
        assert self._control is not None
        found = self._control.published()
        if found is not None and found.pending_position >= 0:
            self._control.publish(msgspec.structs.replace(old, sequence=found.sequence + 1))

    def drop_locked(self) -> None:
        """What was written does not count; within `locked`."""
        self._admissions.dropped()

    def is_quick(self, size: int, *, sequences: bool = False) -> bool:
        """Whether an append of `size` bytes will not wait for the disk, as far as this process knows.

        The first append opens the files, and may make or recover the partition; one that fills a segment
        makes the next; each may have to sync where the topic has `flush_messages`. One with `sequences` may have
        much to read that others appended.
        """
        end, config = self._end, self.topic.config
        if self._lock is None or end is None or end.end_position + size >= config.segment_bytes:
            return False
        return config.flush_messages <= 0 and self._admissions.is_quick(end, sequences=sequences)
