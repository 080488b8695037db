"""The consumer of the embedded log: what users call, one at a time, over an `Assignment`.

`seeking` has what moves its positions and commits them, `polling` the rounds of a poll, `processing` what hands records
to workers; here are subscriptions, loops and the end. A loop takes what one `poll` finds and hands it out record by
record; whatever else is called meanwhile sees the position of the record that comes next, and what was not handed out
is given back before the next `poll`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

from pystreamlog.backend.consumer import ConsumerConfig
from pystreamlog.backend.group import GroupMetadata, OffsetAndMetadata
from pystreamlog.backend.records import Records
from pystreamlog.backend.topic import Topic
from pystreamlog.coordination.group import LOCK_TIMEOUT, Group
from pystreamlog.embedded.callbacks import Callback
from pystreamlog.embedded.commits import Offsets, retried
from pystreamlog.embedded.exits import closing_at_exit
from pystreamlog.embedded.life_cycle import Event
from pystreamlog.embedded.polling import noting, raise_first
from pystreamlog.embedded.processing import ProcessingConsumer
from pystreamlog.embedded.seeking import ConsumerContext
from pystreamlog.embedded.turns import current_task
from pystreamlog.errors import CommitFailedError, ConfigError, IllegalStateError, WakeupError
from pystreamlog.record.record import Record, TopicPartition

__all__ = ["EmbeddedConsumer"]

K = TypeVar("K")
V = TypeVar("V")

_log = logging.getLogger("pystreamlog")

_CHORES_SECONDS = 0.1
"""How often a loop, between two records of one poll, looks what its group needs."""

_CLOSE_TIMEOUT = 30.0
"""Seconds that `close` waits for the group's lock; Kafka's default."""


class EmbeddedConsumer(ProcessingConsumer[K, V]):
    """Reads the partitions of a directory.

    Args:
        context: What the log lends it.
        config: The consumer's settings.
        group: Its group, if it has one.
        forget: Called when it is closed.
    """

    __slots__ = ("__weakref__", "_chores_at", "_closing", "_forget")

    def __init__(
        self,
        context: ConsumerContext,
        config: ConsumerConfig,
        group: Group | None,
        forget: Callable[[EmbeddedConsumer[Any, Any]], None],
    ) -> None:
        super().__init__(context, config, group)
        self._forget = forget
        self._closing = False
        self._chores_at = 0.0
        closing_at_exit(self)

    # --- what is read

    def subscribe(
        self,
        topics: str | Topic[Any, Any] | Iterable[str | Topic[Any, Any]] | None = None,
        *,
        pattern: str | re.Pattern[str] | None = None,
        on_assign: Callback | None = None,
        on_revoke: Callback | None = None,
        on_lost: Callback | None = None,
    ) -> None:
        """See `Consumer.subscribe`."""
        with self._using():
            if self._mode == "assign":
                raise IllegalStateError("partitions were assigned: unsubscribe() before you subscribe")
            if (topics is None) == (pattern is None):
                raise ConfigError("subscribe takes topics or a pattern: pass one of the two")
            self._give_back()
            if pattern is not None:
                self._interest.in_pattern(pattern)
            elif not self._interest.in_topics(topics or ()):
                self._unsubscribe()
                return
            self._mode = "subscribe"
            self._callbacks.replace(on_assign, on_revoke, on_lost)
            self._callbacks.muted = False
            if self._membership is not None:
                self._assignment.shared = True
                self._membership.resubscribe()

    def unsubscribe(self) -> None:
        """See `Consumer.unsubscribe`."""
        with self._using():
            self._give_back()
            self._unsubscribe()

    def _unsubscribe(self) -> None:
        membership = self._membership
        failures: list[Exception] = []
        self._commit_moved()
        if membership is not None and self._assignment.shared:
            membership.tell_all()
            with noting(failures):
                self._callbacks.tell_at_once(self)
            with noting(failures):
                membership.leave(Event.LEFT, _CLOSE_TIMEOUT)
            self._assignment.shared = False
            for tp in list(self._assignment.positions):
                self._assignment.drop(tp, told=True)
        self._interest.in_partitions(())
        self._mode = ""
        if self._commits is not None:
            self._commits.forget_all()
        with noting(failures):
            self._callbacks.tell_at_once(self)
        raise_first(failures)

    def _commit_moved(self) -> None:
        """What is read changes: commit what the application moved past, if commits are automatic."""
        if self._commits is not None and self._config.enable_auto_commit:
            self._commits.commit_moved(_CLOSE_TIMEOUT)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """See `Consumer.assign`."""
        with self._using():
            if self._mode == "subscribe":
                raise IllegalStateError("topics were subscribed: unsubscribe() before you assign")
            self._give_back()
            self._commit_moved()
            partitions = list(partitions)
            if self._group is not None and self._group.room() < len(partitions):
                self._group.reserve(
                    len(partitions), LOCK_TIMEOUT
                )  # now: polls, which may run on an event loop, may not
            self._mode = "assign" if self._interest.in_partitions(partitions) else ""
            self._callbacks.muted = True
            if self._commits is not None:
                for tp in (
                    self._commits.moved.keys() | self._commits.handed.keys()
                ) - self._assignment.positions.keys():
                    self._commits.forget(tp)

    def assignment(self) -> set[TopicPartition]:
        """See `Consumer.assignment`."""
        with self._using():
            return set(self._assignment.positions)

    def group_metadata(self) -> GroupMetadata:
        """See `Consumer.group_metadata`."""
        self._check_open()
        self._grouped()
        assert self._membership is not None
        return self._membership.metadata()

    # --- loops

    def _chores(self) -> bool:
        """What a loop does now and then between two records of one poll; True when it must poll."""
        self._chores_at = monotonic() + _CHORES_SECONDS
        membership, commits = self._membership, self._commits
        if self._assignment.shared and membership is not None:
            membership.polled()
            if membership.is_rung():
                return True
        if commits is not None:
            self._account()
            commits.move_on()
            self._auto_commit(commits)
        return False

    def __iter__(self) -> Iterator[Record[K, V]]:
        return self

    def _must_poll(self) -> bool:
        """Whether a loop has to poll before it hands out the next record."""
        if self._queue_index == len(self._queue) or self._woken:
            return True
        return self._commits is not None and monotonic() >= self._chores_at and self._chores()

    def _loop_on(self, records: Records[K, V]) -> None:
        """Hand out these records one by one."""
        queue = list(records)
        if self._commits is not None:
            self._batch, self._commits.handed = self._commits.handed, {}
        self._queue, self._queue_index, self._accounted = queue, 0, 0

    def _end_batch(self) -> None:
        """The loop comes for more: if it has got all of the last poll, it has moved past all of it."""
        if self._commits is not None and self._queue and self._queue_index == len(self._queue):
            self._commits.moved.update(self._batch)
            self._commits.handed.clear()
            self._accounted = self._queue_index

    def __next__(self) -> Record[K, V]:
        """The next record of a loop; waits for it."""
        self._check_open()
        outermost = self._turns.enter()
        self._taken = ()
        try:
            if self._must_poll():
                self._end_batch()
                self._loop_on(self.poll(None))
            record = self._queue[self._queue_index]
        except WakeupError:
            raise StopIteration from None
        except BaseException:  # Ctrl-C, or a batch that does not decode
            self._untake()
            raise
        finally:
            if outermost:
                self._turns.leave()
        self._queue_index += 1  # the last step: a record that is not handed out comes again
        return record

    def __aiter__(self) -> AsyncIterator[Record[K, V]]:
        return self

    async def __anext__(self) -> Record[K, V]:
        """The next record of an asynchronous loop; awaits it."""
        self._check_open()
        outermost = self._turns.enter(current_task())
        self._taken = ()
        try:
            if self._must_poll():
                self._end_batch()
                self._loop_on(await self.poll_async(None))
            record = self._queue[self._queue_index]
        except WakeupError:
            raise StopAsyncIteration from None
        except BaseException:
            self._untake()
            raise
        finally:
            if outermost:
                self._turns.leave()
        self._queue_index += 1
        return record

    # --- life

    def _closing_offsets(self, commit: bool | None, *, clean: bool) -> Offsets:  # noqa: FBT001 - `close` has it by name
        """What the end commits."""
        commits = self._commits
        if commits is None or not (self._config.enable_auto_commit if commit is None else commit):
            return {}
        self._account()
        handed = commits.handed if commit or clean else {}
        return {tp: OffsetAndMetadata(offset) for tp, offset in {**commits.moved, **handed}.items()}

    def close(self, *, commit: bool | None = None) -> None:
        """See `Consumer.close`."""
        self._close(commit, clean=False)

    def _close(self, commit: bool | None, *, clean: bool) -> None:  # noqa: FBT001 - `close` has it by name
        if self._closed or self._closing:
            return
        failures: list[Exception] = []
        with self._using():
            self._closing = True
            try:
                self._give_back()
                # As in Kafka before `on_revoke` is called: so a commit that it makes stands.
                with noting(failures), self._forgiving(commit):
                    self._commit_closing(self._closing_offsets(commit, clean=clean), _CLOSE_TIMEOUT)
                if self._membership is not None and self._assignment.shared:
                    self._membership.tell_all()
                    with noting(failures):
                        self._callbacks.tell_at_once(self)
                    with noting(failures):
                        self._membership.leave(Event.CLOSED, _CLOSE_TIMEOUT)
            finally:
                self._release()
        raise_first(failures)

    async def close_async(self, *, commit: bool | None = None) -> None:
        """See `Consumer.close_async`."""
        await self._close_async(commit, clean=False)

    async def _close_async(self, commit: bool | None, *, clean: bool) -> None:  # noqa: FBT001 - `close_async` has it
        if self._closed or self._closing:
            return
        failures: list[Exception] = []
        with self._using(current_task()):
            self._closing = True
            membership = self._membership
            try:
                self._give_back()
                offsets = self._closing_offsets(commit, clean=clean)
                with noting(failures), self._forgiving(commit):
                    await retried(lambda timeout: self._commit_closing(offsets, timeout), _CLOSE_TIMEOUT)
                if membership is not None and self._assignment.shared:
                    membership.tell_all()
                    with noting(failures):
                        await self._callbacks.tell_async(self)
                    with noting(failures):
                        await retried(lambda timeout: membership.leave(Event.CLOSED, timeout), _CLOSE_TIMEOUT)
            finally:
                self._release()
        raise_first(failures)

    def _commit_closing(self, offsets: Offsets, timeout: float) -> None:
        if self._commits is not None:
            self._commits.commit(offsets, timeout)

    @contextmanager
    def _forgiving(self, commit: bool | None) -> Iterator[None]:  # noqa: FBT001 - `close` has it by name
        """A commit that nobody asked for may fail: the partitions were lost, and their new owner reads that again."""
        try:
            yield
        except CommitFailedError as error:
            if commit:
                raise
            _log.warning("%s", error)

    def _release(self) -> None:
        self._closed = "the consumer was closed: make another"
        self._queue = []
        self._queue_index = self._accounted = 0
        if self._membership is not None:
            self._membership.abandon()
        self._assignment.close()
        self._subscription.close()
        self._forget(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(None, clean=kind is None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close_async(None, clean=kind is None)

    def close_with_log(self) -> None:
        """The log is closed: whoever is using the consumer just now gets `ClosedError`."""
        try:
            self.close()
        except IllegalStateError:
            self._closed = "the log was closed: open it again"
            self._subscription.close()
            if self._membership is not None:
                self._membership.abandon()

    def close_at_exit(self) -> None:
        """See `Owned.close_at_exit`."""

    def disown(self) -> None:
        """See `Owned.disown`."""
        self._closed = "the consumer belongs to the process that this one was forked from: make another"
