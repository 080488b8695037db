"""Making durable what was appended to a partition: the threads of a process share one `fdatasync`.

Whoever needs an offset on disk and finds nobody syncing becomes the leader: it syncs all that is published at that
moment, for itself and for everybody who appended before. Who comes meanwhile waits, with what it has to append, and one
of them leads next: it appends for all. While many wait, a leader first gives those that were just served a moment to
append again: else two groups would take turns and share each sync with half of what it could serve.

A failed fsync is never tried again: Linux marks the pages clean, so that a second one would say that all is well. The
partition is poisoned, for every process.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from itertools import pairwise
from time import monotonic, perf_counter, sleep
from typing import Protocol

from pystreamlog.coordination.locks import FileLock, enter
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext
from pystreamlog.errors import LockTimeoutError, StorageError, StreamLogError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Durable, Published
from pystreamlog.storage.files import NOT_TRIED, File
from pystreamlog.storage.folder import Folder

__all__ = ["Appending", "PartitionSync"]

_log = logging.getLogger("pystreamlog")

_LOOK_SECONDS = 1.0
"""How often who waits looks by itself, should the leader have been interrupted before it could wake anybody."""
_GATHER_SHARE = 0.35
"""Of the time that the last sync took: how long a leader waits for those who were served by it."""
_GATHER_STEP = 20e-6
_SLOW_SECONDS = 1e-3
"""A sync that takes longer is one of a disk that is slower than the threads."""


class Appending(Protocol):
    """What syncing needs of a partition's writer."""

    folder: Folder

    def append(self, batch: EncodedBatch, timeout: float, *, flush: bool = True) -> int:
        """Write and publish one batch; returns its first offset."""

    def ensure(self) -> None:
        """Make and recover the partition if need be."""

    def written(self, *, duplicate: bool = False) -> tuple[Control, dict[int, File]]:
        """The open control file, and what this process wrote to, by base offset; open while somebody leads a sync.

        With `duplicate` the latter are duplicates, which the caller closes.
        """

    def synced(self, base_offset: int) -> None:
        """What was written below the segment of that base offset is on disk."""

    def sync_lock(self, control: Control) -> FileLock:
        """The lock under which the durable end is written."""

    def poison(self, cause: StorageError | None) -> None:
        """Accept nothing any more."""

    def publish_poison(self) -> None:
        """Tell the other processes."""

    def check_poison(self) -> None:
        """Raise what appending would raise after a failed fsync."""


_UNWRITTEN = 1 << 63
"""The end of a batch that is not written yet."""


class _Waiting:
    """One who waits until something is on disk.

    Attributes:
        end: All below this offset; `_UNWRITTEN` before the batch is written.
        batch: What to append first; None when that is done.
        deadline: Monotonic time until which it may wait for the append lock.
        comes_again: It is one of the threads that append and wait for each record: it may soon append the next one.
        error: Why that failed; None otherwise.
        following: Whom to wake next; None for nobody.
        turn: Released to wake the thread.
    """

    __slots__ = ("batch", "comes_again", "deadline", "end", "error", "following", "turn")

    def __init__(self, end: int, batch: EncodedBatch | None = None, timeout: float = 0) -> None:
        self.end = end
        self.batch = batch
        self.deadline = monotonic() + timeout
        self.comes_again = False
        self.error: Exception | None = None
        self.following: _Waiting | None = None
        self.turn: threading.Lock


def _release(waiting: _Waiting) -> None:
    """Wake one, unless it has just woken by itself."""
    with suppress(RuntimeError):
        waiting.turn.release()


class PartitionSync:
    """Makes a partition durable. Safe from any thread.

    Args:
        writer: Appends to the partition.
        context: The log's.

    Attributes:
        durable: All records below this offset are known to be on disk.
        leading: Held by the thread that syncs; the writer's files stay open meanwhile.
    """

    __slots__ = ("_context", "_lock", "_named", "_seconds", "_served", "_waiting", "_writer", "durable", "leading")

    def __init__(self, writer: Appending, context: PartitionContext) -> None:
        self._writer = writer
        self._context = context
        self.durable = 0
        self._named = False
        self._seconds = 0.0
        self._served = 0
        self.start_anew()

    def start_anew(self) -> None:
        """Forget who waits: this is a new process."""
        self.leading = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._lock: tuple[Control, FileLock] | None = None

    def __call__(self, offset: int) -> None:
        """Return when all records below `offset` are on disk, and every transaction below it in all its partitions.

        Raises:
            StorageError: The disk failed; the partition accepts nothing more until the log is opened again.
        """
        if self.durable < offset:
            self._wait(_Waiting(offset))

    def append(self, batch: EncodedBatch, timeout: float) -> int:
        """Append a batch, which has no sequences, and return its first offset when it is on disk.

        While another thread syncs, the batch is left to the one that syncs next: a thread that appends many batches one
        after the other does it in half of the time that as many threads need, which take the GIL from each other at
        every system call.

        Raises:
            StorageError: As `__call__`; or the disk is full.
            LockTimeoutError: Another process held the append lock for `timeout` seconds.
            UnknownTopicError: The topic was deleted.
            VersionConflictError: The batch expected something else; nothing was written.
        """
        if not self.leading.locked():
            first = self._writer.append(batch, timeout)
            waiting = _Waiting(first + batch.count)
        else:
            waiting = _Waiting(_UNWRITTEN, batch, timeout)
        waiting.comes_again = True
        self._wait(waiting)
        if waiting.error is not None:
            raise waiting.error
        return waiting.end - batch.count

    def _wait(self, waiting: _Waiting) -> None:
        """Return when what one waits for is on disk, or was refused."""
        while self.durable < waiting.end and waiting.error is None:
            entered: list[bool] = []
            try:
                if enter(self.leading, 0, entered):
                    if self.durable < waiting.end and waiting.error is None:
                        self._lead(waiting)
                    continue
                self._queue(waiting)
            finally:
                if True in entered:
                    self.leading.release()
                    self.wake()

    def _queue(self, waiting: _Waiting) -> None:
        """Wait for a turn, or until it is time to look again; then wake who is to be woken next."""
        waiting.turn = threading.Lock()
        waiting.turn.acquire()
        self._waiting.append(waiting)
        try:
            # Without a leader nobody may have seen this one, unless it was taken out, to be woken.
            if self.leading.locked() or not self._withdraw(waiting):
                waiting.turn.acquire(timeout=_LOOK_SECONDS)
        finally:
            self._withdraw(waiting)
            following, waiting.following = waiting.following, None
            if following is not None:
                _release(following)

    def _withdraw(self, waiting: _Waiting) -> bool:
        """Have one not wait any more; whether it did."""
        try:
            self._waiting.remove(waiting)
        except ValueError:
            return False
        return True

    def wake(self) -> None:
        """Wake one more, who leads next, and the first of those that were served, who wakes the second, and so on.

        Were all of them woken at once, the next leader would wait for the GIL behind them.
        """
        if not self._waiting:
            self._served = 0
            return
        durable = self.durable
        served: list[_Waiting] = []
        left: list[_Waiting] = []
        for _ in range(len(self._waiting)):
            try:
                waiting = self._waiting.popleft()
            except IndexError:  # others went by themselves
                break
            (served if waiting.end <= durable or waiting.error is not None else left).append(waiting)
        self._waiting.extend(left[1:])
        for waiting, following in pairwise(served):
            waiting.following = following
        if left:
            _release(left[0])
            if self._seconds > _SLOW_SECONDS:
                sleep(_GATHER_STEP)  # the GIL is the next leader's: the disk shall not wait for those that were served
        if served:
            _release(served[0])
        self._served = sum(waiting.comes_again for waiting in (*served, *left)) if served else 0

    def _append_waiting(self, own: _Waiting) -> None:
        """Append the batches of all who wait; the caller leads."""
        for waiting in (own, *self._waiting):
            batch = waiting.batch
            if batch is None:
                continue
            try:
                waiting.batch = None
                timeout = max(0.0, waiting.deadline - monotonic())
                waiting.end = self._writer.append(batch, timeout, flush=False) + batch.count
            except Exception as error:  # noqa: BLE001 - whatever it is, it is for who brought the batch
                waiting.error = error
            finally:
                if waiting.end == _UNWRITTEN and waiting.error is None:
                    waiting.error = StorageError("the thread that wrote it was interrupted: look whether it is there")
            if isinstance(waiting.error, LockTimeoutError):
                break  # those behind it wait for themselves

    def _lead(self, waiting: _Waiting) -> None:
        """Append what waits, and sync what is published; the caller leads."""
        writer = self._writer
        writer.check_poison()
        if self._served > 1:
            self._gather()
        if self._waiting or waiting.batch is not None:
            self._append_waiting(waiting)
        started = perf_counter()
        control, written = writer.written()
        end = control.published()
        if end is None:
            writer.ensure()  # both slots are damaged: it recovers
            end = control.published()
        assert end is not None
        self._check_flag(end)
        last = control.durable()
        first = last.segment_base
        self._before(last, end)
        self._sync_files(written, first, end)
        self._after(end)
        self.note(control, end)
        if first != end.segment_base:
            writer.synced(end.segment_base)
        self._finished(moved=first != end.segment_base)
        self._seconds = perf_counter() - started
        if self.durable < waiting.end < _UNWRITTEN:
            path = writer.folder.files.path(writer.folder.path)
            raise StorageError(
                f"{path}: what was appended below offset {waiting.end} was lost before it was synced, as the partition "
                "was recovered meanwhile: send it again",
                path=path,
            )

    def _before(self, last: Durable, end: Published) -> None:
        """Make durable what must be before the partition is, from what is durable to `end`; the caller leads."""

    def before_healing(self, last: Durable, end: Published) -> None:
        """Make durable what must be before the partition is, after a failed fsync; holds no lock."""

    def _after(self, end: Published) -> None:
        """Make durable what must be before it is said that the partition is; the caller leads."""
        if end.flags & layout.FLAG_TRANSACTIONAL:
            self._context.transactions().make_durable(self._writer.folder, end)

    def _finished(self, *, moved: bool) -> None:
        """It is said that the partition is durable; the caller leads. `moved`: into another segment."""

    def _gather(self) -> None:
        """Wait until as many wait again as the last sync served, but for a share of its time only."""
        until = perf_counter() + self._seconds * _GATHER_SHARE
        while len(self._waiting) < self._served and perf_counter() < until:
            sleep(_GATHER_STEP)

    def data(self, end: Published) -> None:
        """Sync the records below an end that was published, and say nothing of it yet; needs nobody to lead.

        Raises:
            StorageError: The disk failed, and the partition was poisoned.
        """
        writer = self._writer
        writer.check_poison()
        with ExitStack() as stack:
            control, written = writer.written(duplicate=True)
            for file in written.values():
                stack.enter_context(closing(file))
            control = writer.folder.open_control(write=False)  # that of the writer may be closed meanwhile
            stack.callback(control.close)
            self._check_flag(control.published())
            durable = control.durable()
            if durable.offset < end.end_offset or durable.segment_base < end.segment_base:
                self._sync_files(written, durable.segment_base, end)

    def _check_flag(self, published: Published | None) -> None:
        """Raise if another process's fsync failed: one of this process would say that all is well."""
        if published is not None and published.flags & layout.FLAG_POISONED:
            self._writer.poison(None)
            self._writer.check_poison()

    def _sync_files(self, written: Mapping[int, File], first: int, end: Published) -> None:
        """Sync the segments from that of base offset `first` to the active one."""
        folder = self._writer.folder
        self.names()
        bases = [end.segment_base]
        if first != end.segment_base:
            bases = [base for base in folder.segments_from(end.log_start_offset) if first <= base <= end.segment_base]
        for base in bases:
            file = written.get(base)
            try:
                opened = None if file is not None else folder.open_segment(base, write=True, map_reads=False)
            except FileNotFoundError:
                if not self._is_deleted(base):
                    raise
                continue
            try:
                (opened.file if opened is not None else written[base]).datasync()
            except StorageError as error:
                self.fail(error)
            finally:
                if opened is not None:
                    opened.close()

    def _is_deleted(self, base: int) -> bool:
        """Whether the segment of that base offset was deleted or rewritten meanwhile: there is nothing to sync."""
        control = self._writer.folder.open_control(write=False)
        try:
            end = control.published()
            if end is not None and base < end.log_start_offset:
                return True
            return base < control.durable().segment_base  # only what is durable is rewritten
        finally:
            control.close()

    def names(self) -> None:
        """Sync the names on the way to the partition, once: who made them may have been killed before that.

        Raises:
            StorageError: The disk failed.
        """
        folder = self._writer.folder
        name = "" if self._named else folder.path
        try:
            while name:
                name = name.rpartition("/")[0]
                folder.files.sync_directory(name)
        except StorageError as error:
            self.fail(error)
        self._named = True

    def fail(self, error: StorageError) -> None:
        """An fsync failed: whatever was not durable is in doubt. Poisons the partition, and raises so.

        Not so where the fsync was not even tried, as this process could not open what it needs for it: that another
        one, or this one later, can do.
        """
        if error.errno in NOT_TRIED:
            raise error
        writer = self._writer
        writer.poison(error)
        try:
            writer.publish_poison()
        except (StreamLogError, OSError):
            _log.exception("%s: could not tell other processes that an fsync failed", writer.folder.path)
        try:
            writer.check_poison()
        except StorageError as poison:
            raise poison from error

    def note(self, control: Control, end: Published) -> None:
        """Say that all below `end` is on disk.

        Args:
            control: An open control file of the partition, which stays open meanwhile.
            end: An end that was published.
        """
        if end.end_offset > self.durable:
            lock = self._sync_lock(control)
            entered: list[bool] = []
            try:  # as `held`, but no interrupt leaves it locked
                if not enter(lock.gate, SETTLE_TIMEOUT, entered):
                    raise lock.timed_out(SETTLE_TIMEOUT)
                try:
                    try:
                        lock.lock_kernel()
                    except OSError:
                        if not lock.wait_kernel(SETTLE_TIMEOUT):
                            raise lock.timed_out(SETTLE_TIMEOUT) from None
                    last = control.durable()
                    if end.end_offset > last.offset:
                        segment, position = end.segment_base, end.end_position
                        control.write_durable(Durable(last.sequence + 1, end.end_offset, segment, position, last.flags))
                finally:
                    lock.unlock_kernel()
            finally:
                if True in entered:
                    lock.gate.release()
            self.durable = max(self.durable, end.end_offset)

    def _sync_lock(self, control: Control) -> FileLock:
        """The lock under which the durable end is written; made once for a control file, which takes 5 us."""
        known = self._lock
        if known is None or known[0] is not control:
            self._lock = known = control, self._writer.sync_lock(control)
        return known[1]
