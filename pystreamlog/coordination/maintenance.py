"""Housekeeping of a log: deleting old segments, compacting, repacking. Any process that has the log open does it.

A run holds `maintenance.lock`, so there is never more than one. It looks at each partition without a lock, and takes
the append lock only where there is something to do. The file of the lock says when one last went through all topics:
in the background, of many processes, one does it in each interval.

In the background, segments are only deleted here; to write some anew is work for a process of its own
(`rewriting_process`), as a busy thread would have the application's appends wait for the GIL.

Nothing is deleted or compacted on the word of a clock that jumped. Wall clock and monotonic clock must have gone alike,
within 24 hours, since the last run in this boot, which `maintenance.lock` tells, or else since this process opened the
log; and then the log must have been opened within 24 hours of the last run in an earlier boot or, when there never was
one, of the last append. If not, runs do neither until an hour has passed by the monotonic clock.
"""

from __future__ import annotations

import errno
import functools
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from pystreamlog.coordination.last_run import NEVER_MS, LastRun, read_last_run, write_last_run
from pystreamlog.coordination.locks import FileLock, register_inherited
from pystreamlog.coordination.open_files import with_descriptors
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext
from pystreamlog.coordination.partition_writer import Deletion
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics, TopicState, is_current
from pystreamlog.errors import (
    ClosedError,
    CorruptLogError,
    LockTimeoutError,
    ReadOnlyError,
    StorageError,
    StreamLogError,
    UnknownTopicError,
)
from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File, Files
from pystreamlog.storage.recovery import needs_recovery
from pystreamlog.storage.retention import expired_below, files_below

if TYPE_CHECKING:  # imported at the first run, which few processes live to see: opening a log shall be quick
    from pystreamlog.coordination.compaction import Compacted, Compaction
    from pystreamlog.coordination.rewriting_process import RewritingProcess

__all__ = ["LOCK_FILE", "Maintained", "Maintenance"]

_log = logging.getLogger("pystreamlog")

LOCK_FILE = "maintenance.lock"
FIRST_SECONDS = 30.0
"""From when a topic with a retention is first used to the first run in the background: Kafka's initial delay."""
INTERVAL_SECONDS = 300.0
"""Between two runs: Kafka's `log.retention.check.interval.ms`."""
_RECENT = 0.9
"""Of the interval: what a process did so recently no other does again. Less than 1, as threads do not wake up on
time."""
_JUMP_MS = 24 * 3600 * 1000
_WAIT_MS = 3600 * 1000
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Maintained(msgspec.Struct):
    """What a run did.

    Attributes:
        deleted: By topic and partition.
        compacted: Likewise.
        waits_ms: A clock jumped: so long, by the monotonic clock, nothing is deleted by age or size, or compacted; 0
            otherwise.
        errors: What could not be done.
        rewrites: Segments are to be written anew, which was left to another process.
    """

    deleted: dict[tuple[str, int], Deletion]
    compacted: dict[tuple[str, int], Compacted]
    waits_ms: int
    errors: list[Exception]
    rewrites: bool = False


class Maintenance:
    """See the module. Safe from any thread.

    Args:
        files: The door to the log's directory.
        topics: Its topics.
        partitions: Their partitions.
        context: What these have in common.
        in_background: Run now and then, by a thread that starts when a topic with a retention is used.
        first_seconds: From then to the first run.
        interval_seconds: Between two runs.
    """

    def __init__(
        self,
        files: Files,
        topics: Topics,
        partitions: Partitions,
        context: PartitionContext,
        *,
        in_background: bool,
        first_seconds: float = FIRST_SECONDS,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._files = files
        self._topics = topics
        self._partitions = partitions
        self._context = context
        self._in_background = in_background and not context.read_only
        self._seconds = first_seconds, interval_seconds
        self._opened_ms = context.clock.now_ms()
        self._opened_monotonic_ms = self._monotonic_ms()
        self._last_append_ms = -1
        self._known: set[bytes] = set()
        self._start_anew()

    def _start_anew(self) -> None:
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.pause: Callable[[], None] = _nothing
        self.patience = SETTLE_TIMEOUT
        self._file: File | None = None
        register_inherited(self)

    @functools.cached_property
    def _compaction(self) -> Compaction:
        from pystreamlog.coordination.compaction import Compaction  # noqa: PLC0415 - see above

        return Compaction(self._partitions, self._context)

    @functools.cached_property
    def _rewriting(self) -> RewritingProcess:
        from pystreamlog.coordination.rewriting_process import RewritingProcess  # noqa: PLC0415 - see above

        return RewritingProcess(self._files.root)

    def _monotonic_ms(self) -> int:
        return int(self._context.clock.monotonic() * 1000)

    # --- in the background

    def seen(self, topic: TopicState) -> None:
        """A topic was found or changed: have its records deleted or compacted in time."""
        config = topic.config
        if not (config.expires or config.rewrites) or self._context.read_only or self._ended.is_set():
            return
        if topic.id not in self._known:
            self._known.add(topic.id)
            if not self._was_run():
                self._last_append_ms = max(self._last_append_ms, self._last_append(topic))
        if self._in_background and self._thread is None:
            self._start_thread()

    def _start_thread(self) -> None:
        with self._mutex:
            if self._thread is None and not self._ended.is_set():
                thread = threading.Thread(
                    target=_run, args=(weakref.ref(self), self._ended, *self._seconds), name="pystreamlog-maintenance"
                )
                thread.daemon = True
                with suppress(RuntimeError):  # the interpreter is shutting down: another process does it
                    thread.start()
                    self._thread = thread

    def run_in_background(self) -> None:
        """Do it unless another process does; what cannot be done is logged."""
        try:
            with self._alone(0) as file:
                if self._was_done(file):
                    return
                done = self._maintain(file, everything=False, rewrites=False)
        except (LockTimeoutError, ClosedError):
            return
        except (StreamLogError, OSError) as error:
            _log.warning("maintenance failed: %s", error)
            return
        for each in done.errors:
            _log.warning("maintenance failed in part: %s", each)
        if done.rewrites and not self._ended.is_set():
            self._rewriting.run(self._ended)  # it takes the lock that this one has given back

    def _was_done(self, file: File) -> bool:
        """Whether another process went through all topics just now: of many, one run each would be too much."""
        last = read_last_run(file)
        if last is None or last.boot_id != self._context.boot_id():
            return False
        return 0 <= self._monotonic_ms() - last.whole_ms < self._seconds[1] * 1000 * _RECENT

    # --- a run

    def maintain(self, topics: Collection[str] | None = None, *, force: bool = False) -> Maintained:
        """Do now what is to be done, and remove what processes that died in between left.

        Args:
            topics: Of these topics only; None for all.
            force: Compact whatever `min_cleanable_dirty_ratio` says, and though a clock jumped.

        Raises:
            UnknownTopicError: There is no such topic.
            LockTimeoutError: Another process is at it.
            ReadOnlyError: The log is read-only.
        """
        if self._context.read_only:
            raise ReadOnlyError("the log was opened with read_only=True: open it for writing to maintain it")
        with self._alone(self.patience) as file:
            return self._maintain(file, everything=True, rewrites=True, only=topics, force=force)

    @contextmanager
    def _alone(self, timeout: float) -> Iterator[File]:
        """Holds the lock of maintenance; yields its file."""
        files = self._files
        try:
            file = files.open(LOCK_FILE, write=True)
        except FileNotFoundError:
            try:
                file = files.create(LOCK_FILE)
            except FileExistsError:
                file = files.open(LOCK_FILE, write=True)
        try:
            lock = FileLock(file.fd, file.path)
            if not timeout and not lock.is_free():  # naming the holder takes long
                raise LockTimeoutError(f"{file.path} is locked: another process maintains the log", path=file.path)
            with lock.held(timeout):
                with _room_or_not():
                    lock.stamp()
                self._file = file
                yield file
        finally:
            self._file = None
            file.close()

    def _maintain(
        self,
        file: File,
        *,
        everything: bool,
        rewrites: bool,
        only: Collection[str] | None = None,
        force: bool = False,
    ) -> Maintained:
        done = Maintained({}, {}, 0, [])
        topics = []
        for name in self._topics.names() if only is None else only:
            try:
                topic = self._topics.find(name)
            except UnknownTopicError:
                if only is not None:
                    raise
                continue
            except StreamLogError as error:
                done.errors.append(error)
                continue
            if everything or topic.config.expires or topic.config.rewrites:
                topics.append(topic)
        if only is None:
            ids = {topic.id for topic in topics}
            self._known &= ids
            self._compaction.forget_all_but(ids)
        is_whole = only is None and (rewrites or self._rewriting.is_possible)
        done.waits_ms = self._look_at_clocks(file, is_whole=is_whole)

        def delete(topic: TopicState, partition: int) -> None:
            deleted = self._delete(topic, partition, expires=topic.config.expires and not done.waits_ms)
            if deleted is not None:
                done.deleted[topic.name, partition] = deleted

        def rewrite(topic: TopicState, partition: int) -> None:
            if topic.config.rewrites and (force or not done.waits_ms):
                self._rewrite(topic, partition, done, now=rewrites, force=force)

        # All deletions come first: what is written anew needs room, which they make.
        places = [(topic, partition) for topic in topics for partition in range(topic.partitions)]
        self._for_each(rewrite, self._for_each(delete, places, done), done)
        return done

    def _for_each(
        self, act: Callable[[TopicState, int], None], places: Collection[tuple[TopicState, int]], done: Maintained
    ) -> list[tuple[TopicState, int]]:
        """Do it to each partition; returns those where it was done, none if the log was closed."""
        well = []
        for topic, partition in places:
            if self._ended.is_set():
                return []
            try:
                act(topic, partition)
            except (UnknownTopicError, FileNotFoundError):
                continue  # it was deleted meanwhile
            except ClosedError:
                return []
            except (StreamLogError, OSError) as error:
                # Or it was deleted meanwhile, and another topic has its name.
                if not isinstance(error, CorruptLogError) or self._is_current(topic, partition):
                    done.errors.append(error)
                continue
            well.append((topic, partition))
        return well

    def _rewrite(self, topic: TopicState, partition: int, done: Maintained, *, now: bool, force: bool) -> None:
        """Write segments of a partition anew where that is due; or, unless `now`, note that it is."""
        if not self._files.exists(f"{topic.folder(partition)}/control"):
            return
        due = self._compaction.due(topic, partition, force=force)
        if due and not now:
            done.rewrites = True
        elif due:
            waits = done.waits_ms > 0
            compacted = self._compaction.run(topic, partition, due, keep_tombstones=waits, pause=self._check_ended)
            if compacted is not None:
                done.compacted[topic.name, partition] = compacted

    def _is_current(self, topic: TopicState, partition: int) -> bool:
        """Whether the topic is still there, as far as that can be told."""
        try:
            return is_current(self._partitions.writer(topic, partition).folder)
        except (StreamLogError, OSError):
            return True

    def _check_ended(self) -> None:
        """Raise what ends a run between two steps, as the log is closed or for a reason of who runs it."""
        if self._ended.is_set():
            raise ClosedError("the log was closed while it was maintained")
        self.pause()

    def _delete(self, topic: TopicState, partition: int, *, expires: bool) -> Deletion | None:
        """Delete what is to be deleted of one partition; None if there is nothing."""
        if not self._files.exists(f"{topic.folder(partition)}/control"):
            return None
        writer, context = self._partitions.writer(topic, partition), self._context
        folder = writer.folder
        control = with_descriptors(lambda: folder.open_control(write=False))
        try:
            if needs_recovery(control, context.boot_id()) or control.published() is None:
                writer.ensure()
            end = control.published()
            if end is None or end.flags & layout.FLAG_DELETED:
                return None
            start = end.log_start_offset
            if expires:
                start = expired_below(
                    folder,
                    control,
                    end,
                    now_ms=context.clock.now_ms(),
                    retention_ms=topic.config.retention_ms,
                    retention_bytes=topic.config.retention_bytes,
                )
        finally:
            control.close()
        if start > end.log_start_offset:
            return writer.raise_start(start, whole=True)
        return writer.raise_start(start) if files_below(folder, start) else None

    # --- the clocks

    def _was_run(self) -> bool:
        """Whether there was a run before this process's first: it tells more than the last append."""
        try:
            with closing(self._files.open(LOCK_FILE)) as file:
                return read_last_run(file) is not None
        except (StreamLogError, OSError):
            return False

    def _last_append(self, topic: TopicState) -> int:
        """When the topic was last appended to, or made, as far as files and slots tell, in ms."""
        last = topic.created_ms
        for partition in range(topic.partitions):
            name = f"{topic.folder(partition)}/control"
            with suppress(StreamLogError, OSError):
                last = max(last, self._files.status(name).st_mtime_ns // 1_000_000)
                control = self._partitions.writer(topic, partition).folder.open_control(write=False)
                try:
                    end = control.published()
                finally:
                    control.close()
                if end is not None and end.max_timestamp <= self._opened_ms:
                    last = max(last, end.max_timestamp)
        return last

    def _look_at_clocks(self, file: File, *, is_whole: bool) -> int:
        """For how long nothing may be deleted by age or size, in ms; notes that there was a run.

        Args:
            file: The file of the lock.
            is_whole: The run goes through all topics.
        """
        now_ms, monotonic_ms = self._context.clock.now_ms(), self._monotonic_ms()
        boot, last = self._context.boot_id(), read_last_run(file)
        then_ms, then_monotonic_ms, until = self._opened_ms, self._opened_monotonic_ms, monotonic_ms
        gap, whole_ms = 0, NEVER_MS
        if last is not None and last.boot_id == boot:
            then_ms, then_monotonic_ms = last.wall_ms, last.monotonic_ms
            until, whole_ms = max(until, last.wait_until_ms), last.whole_ms
        else:
            before = last.wall_ms if last is not None else self._last_append_ms
            gap = self._opened_ms - before if before >= 0 else 0
        drift = (now_ms - then_ms) - (monotonic_ms - then_monotonic_ms)
        if abs(drift) > _JUMP_MS:
            until = max(until, monotonic_ms + _WAIT_MS)
        elif gap > _JUMP_MS:
            until = max(until, self._opened_monotonic_ms + _WAIT_MS)
        if until > max(monotonic_ms, last.wait_until_ms if last is not None and last.boot_id == boot else 0):
            _log.warning(
                "%s: the clock is %d hours off from what the log knows: set it right if it is wrong; nothing is "
                "deleted by age or size for %d minutes",
                self._files.root,
                max(abs(drift), gap) // 3_600_000,
                (until - monotonic_ms) // 60_000,
            )
        whole_ms = monotonic_ms if is_whole else whole_ms
        with _room_or_not():
            write_last_run(file, LastRun(layout.MAINTENANCE_MAGIC, boot, now_ms, monotonic_ms, until, whole_ms))
        return until - monotonic_ms

    # --- life

    def close(self) -> None:
        """End the thread, and the process that it started; again is harmless."""
        self._ended.set()
        if "_rewriting" in vars(self):  # else a run that makes it now sees that all has ended
            self._rewriting.end()
        with self._mutex:
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def close_inherited(self) -> None:
        """In a forked child there is no run, and no thread until it uses a topic with a retention."""
        file = self._file
        ended = self._ended.is_set()
        if "_rewriting" in vars(self):
            self._rewriting.start_anew()
        self._start_anew()
        if ended:
            self._ended.set()
        if file is not None:
            file.close()


@contextmanager
def _room_or_not() -> Iterator[None]:
    """Go without a write that a full disk refuses: this is what gives it room."""
    try:
        yield
    except StorageError as error:
        if error.errno not in _FULL:
            raise


def _nothing() -> None:
    """Do not pause."""


def _run(
    owner: Callable[[], Maintenance | None], ended: threading.Event, first_seconds: float, interval_seconds: float
) -> None:
    """What the thread does; a log that nobody uses any more ends it."""
    seconds = first_seconds
    while not ended.wait(seconds):
        maintenance = owner()
        if maintenance is None:
            return
        maintenance.run_in_background()
        del maintenance
        seconds = interval_seconds
