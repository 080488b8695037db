"""The consumer of the embedded log: what users call, one at a time, over an `Assignment`.

A `poll` goes round: tell callbacks what came and went, take records, and wait for a change if there are none. A loop
takes what one `poll` finds and hands it out record by record; whatever else is called meanwhile sees the position of
the record that comes next, and what was not handed out is given back before the next `poll`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from time import monotonic
from typing import Any, TypeVar

from pystreamlog.backend.consumer import Consumer, ConsumerConfig
from pystreamlog.backend.records import Records, RecordSlice
from pystreamlog.backend.topic import Topic
from pystreamlog.clock import Clock, to_timestamp_ms
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.coordination.wakeups import wakeups
from pystreamlog.embedded.assignment import Assignment
from pystreamlog.embedded.callbacks import Callback, Callbacks
from pystreamlog.embedded.exits import closing_at_exit
from pystreamlog.embedded.interception import Interceptors
from pystreamlog.embedded.interest import Interest, checked_partition
from pystreamlog.embedded.positions import Position
from pystreamlog.embedded.turns import Turns, current_task
from pystreamlog.errors import ClosedError, ConfigError, IllegalStateError, OffsetOutOfRangeError, WakeupError
from pystreamlog.record.record import Record, TopicPartition

__all__ = ["EmbeddedConsumer"]

K = TypeVar("K")
V = TypeVar("V")


class EmbeddedConsumer(Consumer[K, V]):
    """Reads the partitions of a directory.

    Args:
        find_topic: Finds, or makes, a topic by name.
        topics: The log's topics.
        partitions: The log's partitions.
        clock: For `auto_offset_reset` by duration.
        config: The consumer's settings.
        forget: Called when it is closed.
    """

    __slots__ = (
        "__weakref__",
        "_assignment",
        "_callbacks",
        "_closed",
        "_config",
        "_counters",
        "_forget",
        "_intercept",
        "_interest",
        "_missed",
        "_mode",
        "_queue",
        "_queue_index",
        "_subscription",
        "_taken",
        "_turns",
        "_woken",
    )

    def __init__(
        self,
        find_topic: Callable[[str], TopicState],
        topics: Topics,
        partitions: Partitions,
        clock: Clock,
        config: ConsumerConfig,
        forget: Callable[[EmbeddedConsumer[Any, Any]], None],
    ) -> None:
        self._config = config
        self._forget = forget
        self._intercept = Interceptors(config.interceptors)
        self._subscription = wakeups().subscribe()
        self._assignment = Assignment(topics, partitions, self._subscription, clock, config.auto_offset_reset)
        serdes = config.key_serde, config.value_serde
        self._interest = Interest(find_topic, topics, partitions, self._assignment, self._subscription, serdes)
        self._callbacks = Callbacks(self._assignment, config.on_assign, config.on_revoke)
        self._turns = Turns("consumer")
        self._mode = ""
        self._queue: list[Record[K, V]] = []
        self._queue_index = 0
        self._taken: Sequence[RecordSlice] = ()
        self._woken = False
        self._missed = False
        self._closed = ""
        self._counters = dict.fromkeys(("records-consumed-total", "poll-total"), 0)
        closing_at_exit(self)

    def _check_open(self, cause: ClosedError | None = None) -> None:
        if self._closed:
            raise ClosedError(self._closed) from cause

    @contextmanager
    def _using(self, task: Any = None) -> Iterator[None]:
        """One user at a time, and only while it is open."""
        self._check_open()
        with self._turns.held(task):
            try:
                yield
            except ClosedError as error:
                self._check_open(error)  # it was closed meanwhile, with its log
                raise

    # --- what is read

    def subscribe(
        self,
        topics: str | Topic[Any, Any] | Iterable[str | Topic[Any, Any]] | None = None,
        *,
        pattern: str | re.Pattern[str] | None = None,
        on_assign: Callback | None = None,
        on_revoke: Callback | None = None,
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
                self._mode = "subscribe"
            else:
                self._mode = "subscribe" if self._interest.in_topics(topics or ()) else ""
            self._callbacks.replace(on_assign, on_revoke)
            self._callbacks.muted = False

    def unsubscribe(self) -> None:
        """See `Consumer.unsubscribe`."""
        with self._using():
            self._give_back()
            self._interest.in_partitions(())
            self._mode = ""
            self._callbacks.tell_at_once(self)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """See `Consumer.assign`."""
        with self._using():
            if self._mode == "subscribe":
                raise IllegalStateError("topics were subscribed: unsubscribe() before you assign")
            self._give_back()
            self._mode = "assign" if self._interest.in_partitions(partitions) else ""
            self._callbacks.muted = True

    def assignment(self) -> set[TopicPartition]:
        """See `Consumer.assignment`."""
        with self._using():
            return set(self._assignment.positions)

    # --- polling

    def poll(self, timeout: float | None = 1.0, *, max_records: int | None = None) -> Records[K, V]:
        """See `Consumer.poll`."""
        # As `with self._using()`, written out: half of what a poll of one record costs is calls.
        self._check_open()
        outermost = self._turns.enter()
        self._taken = ()
        try:
            try:
                limit = self._limit(max_records)
                deadline = None if timeout is None else monotonic() + timeout
                while True:
                    self._prepare()
                    if self._assignment.removed or self._assignment.added:
                        self._callbacks.tell(self)
                    records = self._take(limit)
                    if records:
                        return records
                    left = None if deadline is None else deadline - monotonic()
                    if left is not None and left <= 0:
                        return records
                    if not self._assignment.removed:
                        self._subscription.wait(left)
            finally:
                if outermost:
                    self._turns.leave()
        except BaseException as error:
            self._untake()  # Ctrl-C after records were taken: nothing was handed out
            if isinstance(error, ClosedError):
                self._check_open(error)  # it was closed meanwhile, with its log
            raise

    async def poll_async(self, timeout: float | None = 1.0, *, max_records: int | None = None) -> Records[K, V]:  # noqa: ASYNC109 - the twin of `poll`
        """See `Consumer.poll_async`."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        with self._using(current_task()):
            self._taken = ()
            limit = self._limit(max_records)
            deadline = None if timeout is None else monotonic() + timeout
            await asyncio.sleep(0)  # a consumer that always finds records must not starve the others of the loop
            try:
                while True:
                    self._prepare()
                    await self._callbacks.tell_async(self)
                    records = self._take(limit)
                    left = None if deadline is None else deadline - monotonic()
                    if records or (left is not None and left <= 0):
                        return records
                    if not self._assignment.removed:
                        await self._subscription.wait_async(left)
            except BaseException:
                self._untake()
                raise

    def _limit(self, max_records: int | None) -> int:
        if not self._mode:
            raise IllegalStateError("nothing is subscribed or assigned: call subscribe() or assign() first")
        if max_records is None:
            return self._config.max_poll_records
        if type(max_records) is not int or max_records < 1:
            raise ConfigError(f"max_records is a whole number from 1, not {max_records!r}")
        return max_records

    def _prepare(self) -> None:
        """Take note of what happened since the last look."""
        self._give_back()
        if self._woken:
            self._woken = False
            raise WakeupError("wakeup() was called")
        self._counters["poll-total"] += 1
        # What Ctrl-C keeps from being noted is gone from the subscription: then everything is looked at.
        missed, self._missed = self._missed, True
        changed = self._subscription.changed()
        topics = self._assignment.note(None if missed else changed)
        if topics is None or topics or self._assignment.ended:
            self._assignment.ended = False
            self._interest.look(topics)
        self._missed = False

    def _take(self, limit: int) -> Records[K, V]:
        """What there is now, without waiting."""
        while slices := self._assignment.take(limit):
            if self._subscription.polling:
                self._subscription.progress()
            self._taken = slices
            records: Records[K, V] = Records(slices)
            if self._intercept:
                records = self._intercept.on_consume(records)
            if records:
                self._counters["records-consumed-total"] += len(records)
                return records
        self._taken = ()
        return Records()

    def _untake(self) -> None:
        """Give back what the last poll took, as it was not handed out."""
        taken, self._taken = self._taken, ()
        self._assignment.give_back((part.tp, part.first_offset) for part in taken)

    def __iter__(self) -> Iterator[Record[K, V]]:
        return self

    def __next__(self) -> Record[K, V]:
        """The next record of a loop; waits for it."""
        self._check_open()
        outermost = self._turns.enter()
        self._taken = ()
        try:
            if self._queue_index == len(self._queue) or self._woken:
                self._queue, self._queue_index = list(self.poll(None)), 0
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
            if self._queue_index == len(self._queue) or self._woken:
                self._queue, self._queue_index = list(await self.poll_async(None)), 0
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

    def wakeup(self) -> None:
        """See `Consumer.wakeup`."""
        self._woken = True
        self._subscription.wakeup()

    # --- positions

    def _give_back(self, *tps: TopicPartition) -> None:
        """Give back the records that a loop got ahead and has not handed out, of these partitions or all."""
        if not self._queue:
            return
        ahead = self._queue[self._queue_index :]
        self._queue = [record for record in ahead if _tp(record) not in tps] if tps else []
        self._queue_index = 0
        self._assignment.give_back((_tp(record), record.offset) for record in ahead if not tps or _tp(record) in tps)

    def _position(self, tp: TopicPartition) -> Position:
        position = self._assignment.positions.get(checked_partition(tp))
        if position is None:
            raise IllegalStateError(f"partition {tp[1]} of topic {tp[0]!r} is not assigned to this consumer")
        return position

    def _chosen(self, tps: Iterable[TopicPartition]) -> list[Position]:
        return [self._position(tp) for tp in tps] or list(self._assignment.positions.values())

    def _next_offset(self, position: Position) -> int:
        """The offset of the next record that is handed out: one that a loop got ahead, if there is one."""
        for record in islice(self._queue, self._queue_index, None):
            if _tp(record) == position.tp:
                return record.offset
        if position.offset < 0:
            self._assignment.reset(position)
        return position.offset

    def position(self, tp: TopicPartition) -> int:
        """See `Consumer.position`."""
        with self._using():
            return self._next_offset(self._position(tp))

    def _move(self, position: Position, offset: int) -> None:
        self._give_back(position.tp)
        self._assignment.move(position, offset)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """See `Consumer.seek`."""
        with self._using():
            position = self._position(tp)
            _, end = position.reader.offsets()
            if type(offset) is not int or not 0 <= offset <= end:
                raise OffsetOutOfRangeError(
                    f"offset {offset!r} lies outside 0 to {end}, the end of partition {tp[1]} of topic {tp[0]!r}",
                    topic=tp[0],
                    partition=tp[1],
                    offset=offset,
                )
            self._move(position, offset)

    def seek_to_beginning(self, *tps: TopicPartition) -> None:
        """See `Consumer.seek_to_beginning`."""
        with self._using():
            for position in self._chosen(tps):
                self._move(position, position.reader.offsets()[0])

    def seek_to_end(self, *tps: TopicPartition) -> None:
        """See `Consumer.seek_to_end`."""
        with self._using():
            for position in self._chosen(tps):
                self._move(position, position.reader.offsets()[1])

    def seek_to_timestamp(self, when: datetime | int, *tps: TopicPartition) -> None:
        """See `Consumer.seek_to_timestamp`."""
        timestamp_ms = to_timestamp_ms(when)
        with self._using():
            for position in self._chosen(tps):
                found = position.reader.offset_at(timestamp_ms)
                self._move(position, position.reader.offsets()[1] if found is None else found)

    def offsets_for_times(self, times: Mapping[TopicPartition, datetime | int]) -> dict[TopicPartition, int | None]:
        """See `Consumer.offsets_for_times`."""
        found = {}
        with self._using():
            for tp, when in times.items():
                timestamp_ms = to_timestamp_ms(when)
                with self._interest.reader_of(tp) as reader:
                    found[TopicPartition(*tp)] = reader.offset_at(timestamp_ms)
        return found

    def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Consumer.beginning_offsets`."""
        return {tp: start for tp, (start, _) in self._bounds(tps).items()}

    def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Consumer.end_offsets`."""
        return {tp: end for tp, (_, end) in self._bounds(tps).items()}

    def _bounds(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        found = {}
        with self._using():
            for tp in tps:
                with self._interest.reader_of(tp) as reader:
                    found[TopicPartition(*tp)] = reader.offsets()
        return found

    def lag(self) -> dict[TopicPartition, int]:
        """See `Consumer.lag`."""
        with self._using():
            return {
                tp: position.reader.offsets()[1] - self._next_offset(position)
                for tp, position in self._assignment.positions.items()
            }

    def pause(self, *tps: TopicPartition) -> None:
        """See `Consumer.pause`."""
        with self._using():
            for position in self._chosen(tps):
                self._give_back(position.tp)
                position.paused = True

    def resume(self, *tps: TopicPartition) -> None:
        """See `Consumer.resume`."""
        with self._using():
            for position in self._chosen(tps):
                position.paused = False
                self._assignment.awaken(position)

    def paused(self) -> set[TopicPartition]:
        """See `Consumer.paused`."""
        with self._using():
            return {tp for tp, position in self._assignment.positions.items() if position.paused}

    def metrics(self) -> dict[str, float]:
        """See `Consumer.metrics`."""
        positions = [] if self._closed else list(self._assignment.positions.values())
        lags = [at.reader.offsets()[1] - at.offset for at in positions if at.offset >= 0]
        return {**self._counters, "assigned-partitions": len(positions), "records-lag-max": max(lags, default=0)}

    # --- life

    def close(self) -> None:
        """See `Closing.close`."""
        if self._closed:
            return
        with self._using():
            self._closed = "the consumer was closed: make another"
            self._queue = []
            self._queue_index = 0
            self._assignment.close()
            self._subscription.close()
            self._forget(self)

    async def close_async(self) -> None:
        """See `Closing.close_async`; nothing here blocks."""
        self.close()

    def close_with_log(self) -> None:
        """The log is closed: whoever is using the consumer just now gets `ClosedError`."""
        try:
            self.close()
        except IllegalStateError:
            self._closed = "the log was closed: open it again"
            self._subscription.close()

    def close_at_exit(self) -> None:
        """See `Owned.close_at_exit`."""

    def disown(self) -> None:
        """See `Owned.disown`."""
        self._closed = "the consumer belongs to the process that this one was forked from: make another"


def _tp(record: Record[Any, Any]) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)
