"""`Consumer.process`: the driver, which polls for the group and feeds the workers, and ends everything in order.

The driver is whoever called `process`. In rounds, as `poll` does, it

1. notes what was finished, which the consumer's automatic commit then commits, also where that is switched off;
2. does what the group needs and tells the callbacks, so that slow handlers hold up neither;
3. takes records as long as there is room for them, and hands them to the workers;
4. waits: for new records, for room, or until something else is due.

Before the group takes a partition, the driver lets its running handlers end while all else goes on, and commits
(`_drain`). A partition that was lost is forgotten: what runs there ends by itself, and means nothing any more.

The end is called for by `wakeup` (drains), by a handler or the poll that failed, by Ctrl-C, or by cancelling. Then the
rounds go on, without taking records, until nothing runs that is to be waited for; the positions are put back to the
first record that is not finished, and everything before it is committed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Literal, TypeVar

from pystreamlog.backend.consumer import ConsumerConfig
from pystreamlog.backend.group import OffsetAndMetadata
from pystreamlog.backend.processing import ProcessConfig, checked_handler, topic_name
from pystreamlog.backend.topic import Topic
from pystreamlog.coordination.group import LOCK_TIMEOUT, Group, GroupBusyError
from pystreamlog.embedded.commits import retried
from pystreamlog.embedded.dead_letters import DeadLetters
from pystreamlog.embedded.polling import PollingConsumer
from pystreamlog.embedded.seeking import ConsumerContext
from pystreamlog.embedded.turns import current_task
from pystreamlog.embedded.work import Part, Stage, Work
from pystreamlog.embedded.workers import Tasks, Threads, Workers, log_second
from pystreamlog.errors import ClosedError, CommitFailedError, ConfigError, SerdeError, StreamLogError, WakeupError
from pystreamlog.record.record import Record, TopicPartition

__all__ = ["ProcessingConsumer"]

K = TypeVar("K")
V = TypeVar("V")

_log = logging.getLogger("pystreamlog")

_FAILURES = 2
"""How often rounds may fail: after the first time they go on without taking records, which may work."""

_INTERRUPTS = 2
"""How often Ctrl-C must come until running handlers are not waited for."""


class ProcessingConsumer(PollingConsumer[K, V]):
    """The part of a consumer that has its records handled by others.

    Args:
        context: What the log lends it.
        config: The consumer's settings.
        group: Its group, if it has one.
    """

    __slots__ = ("_make_producer",)

    def __init__(self, context: ConsumerContext, config: ConsumerConfig, group: Group | None) -> None:
        super().__init__(context, config, group)
        self._make_producer = context.make_producer

    # --- waiting

    def process(
        self,
        handler: Callable[[Record[K, V]], object],
        *,
        workers: int = 1,
        order: Literal["key", "partition"] = "key",
        max_in_flight: int = 1000,
        retries: int = 3,
        retry_backoff_ms: int = 100,
        on_failure: Literal["stop", "dead_letter", "skip"] = "stop",
        dead_letter_topic: str | Topic[Any, Any] | None = None,
    ) -> None:
        """See `Consumer.process`."""
        topic = topic_name(dead_letter_topic)
        config = ProcessConfig(workers, order, max_in_flight, retries, retry_backoff_ms, on_failure, topic)
        checked_handler(handler, awaited=False)
        with self._using(), self._processing(config) as work:
            dead_letters = self._dead_letters(config)
            try:
                self._process(work, Threads(work, handler, config, dead_letters))
            finally:
                if dead_letters is not None:
                    dead_letters.close()
            self._conclude(work)

    def _process(self, work: Work, workers: Threads) -> None:
        self._before_revoke = lambda tps: self._drain(work, workers, tps)
        failures = interrupts = 0
        try:
            while True:
                try:
                    if not failures + interrupts:
                        workers.start()
                    if failures < _FAILURES:
                        self._drive(work, workers)
                    workers.close()
                    break
                except Exception as error:  # noqa: BLE001 - raised at the end
                    failures += 1
                    workers.stop(error)
                except BaseException as error:  # noqa: BLE001 - the same
                    interrupts += 1
                    workers.stop(error)
                    if interrupts == _INTERRUPTS:
                        break
        finally:
            workers.dismiss()
            self._put_back(work)
        self._commit_last(work, self._commit_finished)

    def _drive(self, work: Work, workers: Workers) -> None:
        """Round after round, until the end was called for and nothing runs."""
        assignment, callbacks, membership = self._assignment, self._callbacks, self._membership
        while not self._is_over(work):
            self._note(work, workers)
            if assignment.shared and membership is not None:
                if assignment.removed:  # Ctrl-C came before it was drained
                    self._drain(work, workers, list(assignment.removed))
                if membership.rung or monotonic() >= membership.due or callbacks.are_due():
                    self._rebalance(membership)
            elif assignment.removed or assignment.added:
                callbacks.tell(self)
            if not self._feed(work, workers) and not assignment.removed:
                self._subscription.wait(self._pause(work))

    def _drain(self, work: Work, workers: Workers, tps: list[TopicPartition]) -> None:
        """The group takes these partitions: let the handlers end that run there, and commit."""
        with work.lock:
            parts = work.release(tps)
        while any(part.left for part in parts):
            self._note(work, workers)
            # Of a partition that came, nothing is handled before `on_assign` was called.
            if self._assignment.added or not self._feed(work, workers):
                self._subscription.wait(self._pause(work))
        self._end_parts(work, parts)
        self._commit_finished(tps=tps)

    # --- awaiting

    async def process_async(
        self,
        handler: Callable[[Record[K, V]], object],
        *,
        workers: int = 1,
        order: Literal["key", "partition"] = "key",
        max_in_flight: int = 1000,
        retries: int = 3,
        retry_backoff_ms: int = 100,
        on_failure: Literal["stop", "dead_letter", "skip"] = "stop",
        dead_letter_topic: str | Topic[Any, Any] | None = None,
    ) -> None:
        """See `Consumer.process_async`."""
        topic = topic_name(dead_letter_topic)
        config = ProcessConfig(workers, order, max_in_flight, retries, retry_backoff_ms, on_failure, topic)
        checked_handler(handler, awaited=True)
        with self._using(current_task()), self._processing(config) as work:
            dead_letters = self._dead_letters(config)
            try:
                await self._process_async(work, Tasks(work, handler, config, dead_letters))
            finally:
                if dead_letters is not None:
                    await dead_letters.close_async()
            self._conclude(work)

    async def _process_async(self, work: Work, workers: Tasks) -> None:
        self._before_revoke = lambda tps: self._drain_async(work, workers, tps)
        failures = 0
        try:
            while True:
                try:
                    if not failures:
                        workers.start()
                    if failures < _FAILURES:
                        await self._drive_async(work, workers)
                    await workers.close()
                    break
                except Exception as error:  # noqa: BLE001 - raised at the end
                    failures += 1
                    workers.stop(error)
        except BaseException as error:  # noqa: BLE001 - the same
            workers.stop(error)
            workers.cancel()
            await workers.close()
        finally:
            self._put_back(work)
        await retried(lambda timeout: self._commit_last(work, lambda: self._commit_finished(timeout)), LOCK_TIMEOUT)

    async def _drive_async(self, work: Work, workers: Workers) -> None:
        from asyncio import sleep  # noqa: PLC0415 - only for those who use it

        assignment, callbacks, membership = self._assignment, self._callbacks, self._membership
        while not self._is_over(work):
            await sleep(0)  # a consumer that always finds records must not starve the others of the loop
            self._note(work, workers)
            if assignment.shared and membership is not None:
                if assignment.removed:
                    await self._drain_async(work, workers, list(assignment.removed))
                await self._rebalance_async(membership)
            else:
                await callbacks.tell_async(self)
            if not self._feed(work, workers) and not assignment.removed:
                await self._subscription.wait_async(self._pause(work))

    async def _drain_async(self, work: Work, workers: Workers, tps: list[TopicPartition]) -> None:
        from asyncio import sleep  # noqa: PLC0415 - only for those who use it

        with work.lock:
            parts = work.release(tps)
        while any(part.left for part in parts):
            await sleep(0)
            self._note(work, workers)
            if self._assignment.added or not self._feed(work, workers):
                await self._subscription.wait_async(self._pause(work))
        self._end_parts(work, parts)
        await retried(lambda timeout: self._commit_finished(timeout, tps=tps), LOCK_TIMEOUT)

    # --- beginning

    @contextmanager
    def _processing(self, config: ProcessConfig) -> Iterator[Work]:
        """Bookkeeping for one call."""
        self._limit(None)
        order = config.order if config.workers > 1 else None
        work = Work(order=order, max_in_flight=config.max_in_flight, wake=self._subscription.wakeup)
        self._taken = ()
        if self._commits is not None:
            self._commits.by_hand = True
            work.eager = not self._config.auto_commit_interval_ms
        try:
            yield work
        finally:
            self._before_revoke = None
            if self._commits is not None:
                self._commits.by_hand = False

    def _dead_letters(self, config: ProcessConfig) -> DeadLetters | None:
        name = config.dead_letter_topic
        if name is None:
            return None
        if name in self._interest.wanted() or any(tp.topic == name for tp in self._assignment.positions):
            raise ConfigError(f"dead_letter_topic={name!r} is read by this consumer: a dead letter would come again")
        self._interest.topic_id(TopicPartition(name, 0))
        return DeadLetters(self._make_producer(), name)

    # --- one round

    def _is_over(self, work: Work) -> bool:
        with work.lock:
            return work.is_over()

    def _note(self, work: Work, workers: Workers) -> None:
        """Take note of what was finished, and of what happened since the last look."""
        self._report(work)
        while True:
            try:
                return self._prepare()
            except WakeupError:
                with work.lock:
                    work.drain()
                    workers.call(0)

    def _report(self, work: Work) -> None:
        """Have finished prefixes committed at the next opportunity."""
        with work.lock:
            for part in list(work.progressed):
                if self._commits is not None and self._has(part):
                    self._commits.finished(part.tp, part.prefix)
                del work.progressed[part]

    def _has(self, part: Part) -> bool:
        """Whether the consumer has this partition still, and not again."""
        return self._assignment.positions.get(part.tp) is part.position

    def _feed(self, work: Work, workers: Workers) -> bool:
        """Take records and hand them to the workers; False when there is no room or no record."""
        with work.lock:
            if self._assignment.shared:
                for part in [part for part in work.parts.values() if not self._has(part)]:
                    work.forget(part)
            room = work.room()
        try:
            records = self._take(min(room, self._config.max_poll_records))
        except SerdeError as error:
            self._feed_poison(work, workers, error)
            return True
        if not records:
            return False
        columns = [(source, list(source.records()), source.raw_keys()) for source in records.slices]
        positions = self._assignment.positions
        with work.lock:
            if work.stage is not Stage.RUNNING:  # a handler has failed just now
                self._untake()
                return False
            parts = []
            for source, rows, keys in columns:
                parts.append(work.part(positions[source.tp], source.first_offset))
                work.add(parts[-1], rows, keys, source)
            for part in parts:
                part.taken = part.position.offset  # behind the last record there may be offsets without one
            workers.call(len(work.ready))
        self._taken = ()
        return True

    def _feed_poison(self, work: Work, workers: Workers, error: SerdeError) -> None:
        """A record that does not deserialise fails in its turn, without being handled."""
        position = self._assignment.positions.get(TopicPartition(error.topic, error.partition))
        if position is None or position.offset != error.offset:
            raise error
        with work.lock:
            if work.stage is not Stage.RUNNING:
                return
            work.add_poison(work.part(position, error.offset), error)
            workers.call(1)
        self._assignment.move(position, error.offset + 1)

    def _pause(self, work: Work) -> float | None:
        """Seconds to wait at most; what is finished meanwhile is to be committed in time."""
        interval = self._config.auto_commit_interval_ms
        return self._patience(interval / 1000 if self._commits is not None and interval and work.in_flight else None)

    # --- ending

    def _end_parts(self, work: Work, parts: list[Part]) -> None:
        """Nothing of these partitions runs: what was dropped is read again, here or by their next owner."""
        self._report(work)
        with work.lock:
            for part in parts:
                if self._has(part) and part.position.offset != part.prefix:
                    self._assignment.move(part.position, part.prefix)
                work.forget(part)

    def _put_back(self, work: Work) -> None:
        """Have a later `poll` or `process` begin with the first record that is not finished."""
        self._woken = False  # whoever called `wakeup` again meant this call
        try:
            self._untake()
            self._end_parts(work, list(work.parts.values()))
        except BaseException:  # Ctrl-C: nothing may be skipped
            self._untake()
            self._end_parts(work, list(work.parts.values()))
            raise

    def _commit_finished(self, timeout: float | None = LOCK_TIMEOUT, *, tps: Iterable[TopicPartition] = ()) -> None:
        """Commit what was finished, in all partitions or these."""
        commits = self._commits
        if commits is None:
            return
        chosen = set(tps) or commits.moved
        offsets = {tp: OffsetAndMetadata(offset) for tp, offset in commits.moved.items() if tp in chosen}
        try:
            commits.commit(offsets, timeout)
        except CommitFailedError as error:
            _log.warning("%s", error)
            for tp in offsets:
                commits.forget(tp)

    def _commit_last(self, work: Work, commit: Callable[[], None]) -> None:
        """Commit everything that was finished; an error that came before is the one to raise."""
        if self._closed:
            return
        try:
            commit()
        except GroupBusyError:
            raise  # another try follows
        except Exception as error:
            if work.error is None:
                raise
            log_second(error)

    def _conclude(self, work: Work) -> None:
        if self._closed and isinstance(work.error, StreamLogError):
            # The log was closed meanwhile: that may show as anything, for example a file that is not open.
            raise ClosedError(self._closed) from work.error
        if work.error is not None:
            raise work.error
