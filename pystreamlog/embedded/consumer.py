"""The consumer of the embedded log.

A `poll` looks only at partitions that may have something new: at first all, later those whose `control` file changed
since they were found at their end. So the cost of a poll follows the traffic, and not the number of partitions; where
the kernel cannot tell what changed, every partition is looked at each time.

The order is always: watch, then look, then wait; what changes in between ends the wait.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, TypeVar

from pystreamlog.backend.consumer import Consumer, ConsumerConfig
from pystreamlog.backend.records import Records, RecordSlice
from pystreamlog.backend.topic import Topic
from pystreamlog.clock import Clock, to_timestamp_ms
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import METADATA_MAX_AGE, Topics, TopicState
from pystreamlog.coordination.wakeups import wakeups
from pystreamlog.embedded.exits import closing_at_exit
from pystreamlog.embedded.interception import Interceptors
from pystreamlog.embedded.positions import Position
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    IllegalStateError,
    NoOffsetError,
    OffsetOutOfRangeError,
    SerdeError,
    UnknownPartitionError,
    UnknownTopicError,
    WakeupError,
)
from pystreamlog.record.record import Record, TopicPartition
from pystreamlog.record.serde import Serde

__all__ = ["EmbeddedConsumer"]

_log = logging.getLogger("pystreamlog")

K = TypeVar("K")
V = TypeVar("V")

_ALL_TOPICS = "topics"
"""Key of the watch on the folder of all topics."""

Serdes = tuple[Serde[Any] | None, Serde[Any] | None]
Callback = Callable[[Any, list[TopicPartition]], object]


class EmbeddedConsumer(Consumer[K, V]):
    """Reads the partitions of a directory.

    Args:
        topics: The log's topics.
        partitions: The log's partitions.
        clock: For `auto_offset_reset` by duration.
        config: The consumer's settings.
        forget: Called when it is closed.
    """

    __slots__ = (
        "__weakref__",
        "_candidates",
        "_clock",
        "_closed",
        "_config",
        "_counters",
        "_forget",
        "_intercept",
        "_looked_ns",
        "_mode",
        "_on_assign",
        "_on_revoke",
        "_partitions",
        "_pattern",
        "_positions",
        "_queue",
        "_queue_index",
        "_serdes",
        "_subscription",
        "_topics",
        "_unmade",
        "_user",
        "_woken",
    )

    def __init__(
        self,
        topics: Topics,
        partitions: Partitions,
        clock: Clock,
        config: ConsumerConfig,
        forget: Callable[[EmbeddedConsumer[Any, Any]], None],
    ) -> None:
        self._topics = topics
        self._partitions = partitions
        self._clock = clock
        self._config = config
        self._forget = forget
        self._intercept = Interceptors(config.interceptors)
        self._on_assign: Callback | None = config.on_assign
        self._on_revoke: Callback | None = config.on_revoke
        self._subscription = wakeups().subscribe()
        self._user = threading.RLock()
        self._positions: dict[TopicPartition, Position] = {}
        self._candidates: dict[TopicPartition, Position] = {}
        self._unmade: set[TopicPartition] = set()
        self._serdes: dict[str, Serdes] = {}
        self._pattern: re.Pattern[str] | None = None
        self._mode = ""
        self._looked_ns = 0.0
        self._queue: list[Record[K, V]] = []
        self._queue_index = 0
        self._woken = False
        self._closed = ""
        self._counters = dict.fromkeys(("records-consumed-total", "poll-total"), 0)
        closing_at_exit(self)

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
            self._on_assign = on_assign or self._on_assign
            self._on_revoke = on_revoke or self._on_revoke
            named = _listed(topics)
            states = {}
            serdes: dict[str, Serdes] = {}
            for topic in named:
                name = topic.name if isinstance(topic, Topic) else topic
                states[name] = self._topics.find(name)
                serdes[name] = self._serdes_of(topic)
            self._serdes = serdes
            self._pattern = None
            if pattern is not None:
                self._pattern = re.compile(pattern)
                self._watch_all_topics()
                states = self._matching()
            self._mode = "subscribe"
            self._replace({(state, number) for state in states.values() for number in range(state.partitions)})

    def unsubscribe(self) -> None:
        """See `Consumer.unsubscribe`."""
        with self._using():
            self._mode = ""
            self._pattern = None
            self._serdes = {}
            self._replace(set())

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """See `Consumer.assign`."""
        with self._using():
            if self._mode == "subscribe":
                raise IllegalStateError("topics were subscribed: unsubscribe() before you assign")
            wanted = set()
            for topic, number in partitions:
                state = self._topics.find(topic)
                if type(number) is not int or not 0 <= number < state.partitions:
                    raise UnknownPartitionError(
                        f"topic {topic!r} has partitions 0 to {state.partitions - 1}, not {number!r}",
                        topic=topic,
                        partition=number,
                    )
                wanted.add((state, number))
            self._mode = "assign"
            self._replace(wanted)

    def assignment(self) -> set[TopicPartition]:
        """See `Consumer.assignment`."""
        return set(self._positions)

    def _serdes_of(self, topic: str | Topic[Any, Any]) -> Serdes:
        config = self._config
        if isinstance(topic, Topic):
            return topic.key_serde or config.key_serde, topic.value_serde or config.value_serde
        return config.key_serde, config.value_serde

    def _matching(self) -> dict[str, TopicState]:
        """The topics that the pattern matches."""
        assert self._pattern is not None
        states = {}
        for name in self._topics.names():
            if self._pattern.fullmatch(name) and not name.startswith("__"):
                try:
                    states[name] = self._topics.find(name)
                except UnknownTopicError:
                    continue  # deleted since it was listed
        return states

    def _replace(self, wanted: set[tuple[TopicState, int]], *, start: str = "") -> None:
        """Read exactly these partitions; positions of those kept stay. `start` overrides where new ones begin."""
        self._rewind()
        targets = {TopicPartition(state.name, number): state for state, number in wanted}
        gone = [tp for tp, at in self._positions.items() if tp not in targets or targets[tp].id != at.topic_id]
        for tp in gone:
            self._drop(tp)
        if gone and self._on_revoke is not None:
            self._on_revoke(self, gone)
        added = [tp for tp in targets if tp not in self._positions]
        for name in {tp.topic for tp in added}:
            self._subscription.watch(("topic", name), self._topics.path(name))
        for tp in added:
            self._add(tp, targets[tp], start)
        if added and self._on_assign is not None:
            self._on_assign(self, sorted(added))

    def _add(self, tp: TopicPartition, state: TopicState, start: str) -> None:
        key_serde, value_serde = self._serdes.get(tp.topic, (self._config.key_serde, self._config.value_serde))
        position = Position(tp, state.id, self._partitions.reader(state, tp.partition), key_serde, value_serde)
        self._positions[tp] = position
        self._candidates[tp] = position
        self._watch_control(position)
        reset = start or self._config.auto_offset_reset
        if reset not in ("earliest", "none"):
            # Fixed now: what is appended between the subscription and the first poll is read.
            self._reset(position, reset)

    def _watch_control(self, position: Position) -> None:
        """Watch a partition's control file, or note that the partition was not made yet."""
        try:
            self._subscription.watch(position.tp, position.reader.folder.files.path(f"{position.reader.folder.path}/control"))
        except FileNotFoundError:
            self._unmade.add(position.tp)
        else:
            self._unmade.discard(position.tp)

    def _drop(self, tp: TopicPartition) -> None:
        position = self._positions.pop(tp)
        self._candidates.pop(tp, None)
        self._unmade.discard(tp)
        self._subscription.unwatch(tp)
        position.reader.close()

    def _reset(self, position: Position, reset: str | timedelta) -> None:
        """Put a position where `auto_offset_reset` says."""
        if reset == "none":
            topic, partition = position.tp
            raise NoOffsetError(
                f"partition {partition} of topic {topic!r} has no position: seek first, or set auto_offset_reset",
                topic=topic,
                partition=partition,
            )
        start, end = position.reader.offsets()
        if isinstance(reset, timedelta):
            wanted = max(0, self._clock.now_ms() - reset // timedelta(milliseconds=1))
            found = position.reader.offset_at(wanted)
            position.seek(end if found is None else found)
        else:
            position.seek(start if reset == "earliest" else end)

    # --- changes of topics

    def _watch_all_topics(self) -> None:
        self._subscription.watch(_ALL_TOPICS, self._topics.path())

    def _look_at_topics(self) -> None:
        """Take up partitions and topics that came, and drop those that went."""
        self._looked_ns = monotonic()
        if self._mode == "subscribe":
            names = set(self._serdes) | {tp.topic for tp in self._positions}
            states: dict[str, TopicState] = {}
            for name in names:
                self._topics.forget(name)
                try:
                    states[name] = self._topics.find(name)
                except UnknownTopicError:
                    continue
            if self._pattern is not None:
                states.update(self._matching())
            wanted = {(state, number) for state in states.values() for number in range(state.partitions)}
            have = {(tp, at.topic_id) for tp, at in self._positions.items()}
            finishing = {tp for tp, at in self._positions.items() if tp.topic not in states}
            if finishing:
                wanted |= {(self._ghost(tp), tp.partition) for tp in finishing}
            if {(TopicPartition(state.name, number), state.id) for state, number in wanted} != have:
                self._replace(wanted, start="earliest")
        for tp in list(self._unmade):
            self._watch_control(self._positions[tp])
            self._candidates[tp] = self._positions[tp]

    def _ghost(self, tp: TopicPartition) -> TopicState:
        """A deleted topic as it was, so that what is left of it can be read to the end."""
        position = self._positions[tp]
        return TopicState(tp.topic, position.topic_id, tp.partition + 1, None, 0)  # type: ignore[arg-type]

    # --- polling

    @contextmanager
    def _using(self) -> Iterator[None]:
        """One user at a time, and only while it is open."""
        if self._closed:
            raise ClosedError(self._closed)
        if not self._user.acquire(blocking=False):
            raise IllegalStateError("another thread is using this consumer: give each thread its own")
        try:
            yield
        finally:
            self._user.release()

    def poll(self, timeout: float | None = 1.0, *, max_records: int | None = None) -> Records[K, V]:
        """See `Consumer.poll`."""
        with self._using():
            limit = self._limit(max_records)
            records = self._look(limit)
            if records or timeout == 0:
                return records
            deadline = None if timeout is None else monotonic() + timeout
            while True:
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return records
                self._subscription.wait(left)
                records = self._look(limit)
                if records:
                    return records

    async def poll_async(self, timeout: float | None = 1.0, *, max_records: int | None = None) -> Records[K, V]:  # noqa: ASYNC109 - the twin of `poll`
        """See `Consumer.poll_async`."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        with self._using():
            limit = self._limit(max_records)
            await asyncio.sleep(0)  # a consumer that always finds records must not starve the others of the loop
            records = self._look(limit)
            if records or timeout == 0:
                return records
            deadline = None if timeout is None else monotonic() + timeout
            while True:
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return records
                await self._subscription.wait_async(left)
                records = self._look(limit)
                if records:
                    return records

    def _limit(self, max_records: int | None) -> int:
        if not self._mode:
            raise IllegalStateError("nothing is subscribed or assigned: call subscribe() or assign() first")
        if max_records is None:
            return self._config.max_poll_records
        if type(max_records) is not int or max_records < 1:
            raise ConfigError(f"max_records is a whole number from 1, not {max_records!r}")
        return max_records

    def _look(self, limit: int) -> Records[K, V]:
        """What there is now, without waiting."""
        if self._woken:
            self._woken = False
            raise WakeupError("wakeup() was called")
        if self._queue:
            self._rewind()
        self._note(self._subscription.changed())
        self._counters["poll-total"] += 1
        slices = self._take(limit)
        if not slices:
            return Records()
        self._subscription.progress()
        records: Records[K, V] = Records(slices)
        self._counters["records-consumed-total"] += len(records)
        return self._intercept.on_consume(records) if self._intercept else records

    def _note(self, changed: set[Hashable] | None) -> None:
        """Which partitions may have something new."""
        if changed is None:
            self._candidates = dict(self._positions)
            if self._unmade or monotonic() - self._looked_ns > METADATA_MAX_AGE:
                self._look_at_topics()
            return
        topics_changed = False
        for key in changed:
            position = self._positions.get(key)  # type: ignore[call-overload]
            if position is None:
                topics_changed = True
            else:
                self._candidates[key] = position  # type: ignore[index]
        if topics_changed:
            self._look_at_topics()

    def _take(self, limit: int) -> list[RecordSlice]:
        """Slices of the candidates in turn; those at their end are candidates no more."""
        slices: list[RecordSlice] = []
        left = limit
        for tp, position in list(self._candidates.items()):
            if position.paused:
                continue
            try:
                found = self._take_from(position, left)
            except SerdeError:
                if slices:
                    break  # the records before it come first; it raises at the next poll
                raise
            if not found:
                del self._candidates[tp]
                if position.reader.deleted():
                    self._end_of_deleted(tp)
                continue
            slices += found
            left -= sum(map(len, found))
            # To the back of the line, so that a busy partition does not starve the others.
            del self._candidates[tp]
            self._candidates[tp] = position
            if left <= 0:
                break
        return slices

    def _take_from(self, position: Position, limit: int) -> list[RecordSlice]:
        if position.offset < 0:
            if not position.reader.exists() and self._config.auto_offset_reset != "none":
                position.seek(0)
            else:
                self._reset(position, self._config.auto_offset_reset)
        try:
            return position.take(limit)
        except OffsetOutOfRangeError as error:
            _log.warning("%s; going on as auto_offset_reset=%r says", error, self._config.auto_offset_reset)
            self._reset(position, self._config.auto_offset_reset)
            return position.take(limit)

    def _end_of_deleted(self, tp: TopicPartition) -> None:
        """A deleted topic was read to its end."""
        _log.warning("topic %r was deleted: partition %d is no longer read", tp.topic, tp.partition)
        self._drop(tp)
        self._topics.forget(tp.topic)
        if self._on_revoke is not None:
            self._on_revoke(self, [tp])

    def _rewind(self) -> None:
        """Give back the records that a loop got ahead and has not handed out."""
        queue, self._queue = self._queue[self._queue_index :], []
        self._queue_index = 0
        for record in reversed(queue):
            position = self._positions.get(TopicPartition(record.topic, record.partition))
            if position is not None:
                position.seek(record.offset)
                self._candidates[position.tp] = position

    def __iter__(self) -> Iterator[Record[K, V]]:
        return self

    def __next__(self) -> Record[K, V]:
        """The next record of a loop; waits for it."""
        while True:
            index = self._queue_index
            if index < len(self._queue) and not self._woken:
                self._queue_index = index + 1
                return self._queue[index]
            self._queue = []
            try:
                records = self.poll(None)
            except WakeupError:
                raise StopIteration from None
            self._queue = list(records)
            self._queue_index = 0

    def __aiter__(self) -> AsyncIterator[Record[K, V]]:
        return self

    async def __anext__(self) -> Record[K, V]:
        """The next record of an asynchronous loop; awaits it."""
        while True:
            index = self._queue_index
            if index < len(self._queue) and not self._woken:
                self._queue_index = index + 1
                return self._queue[index]
            self._queue = []
            try:
                records = await self.poll_async(None)
            except WakeupError:
                raise StopAsyncIteration from None
            self._queue = list(records)
            self._queue_index = 0

    def wakeup(self) -> None:
        """See `Consumer.wakeup`."""
        self._woken = True
        self._subscription.wakeup()

    # --- positions

    def _position(self, tp: TopicPartition) -> Position:
        position = self._positions.get(tp)
        if position is None:
            raise IllegalStateError(f"partition {tp[1]} of topic {tp[0]!r} is not assigned to this consumer")
        return position

    def _chosen(self, tps: Iterable[TopicPartition]) -> list[Position]:
        return [self._position(tp) for tp in tps] or list(self._positions.values())

    def _move(self, position: Position, offset: int) -> None:
        position.seek(offset)
        self._candidates[position.tp] = position

    def position(self, tp: TopicPartition) -> int:
        """See `Consumer.position`."""
        with self._using():
            self._rewind()
            position = self._position(tp)
            if position.offset < 0:
                self._reset(position, self._config.auto_offset_reset)
            return position.offset

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """See `Consumer.seek`."""
        with self._using():
            self._rewind()
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
            self._rewind()
            for position in self._chosen(tps):
                self._move(position, position.reader.offsets()[0])

    def seek_to_end(self, *tps: TopicPartition) -> None:
        """See `Consumer.seek_to_end`."""
        with self._using():
            self._rewind()
            for position in self._chosen(tps):
                self._move(position, position.reader.offsets()[1])

    def seek_to_timestamp(self, when: datetime | int, *tps: TopicPartition) -> None:
        """See `Consumer.seek_to_timestamp`."""
        timestamp_ms = to_timestamp_ms(when)
        with self._using():
            self._rewind()
            for position in self._chosen(tps):
                found = position.reader.offset_at(timestamp_ms)
                self._move(position, position.reader.offsets()[1] if found is None else found)

    @contextmanager
    def _reader_of(self, tp: TopicPartition) -> Iterator[Any]:
        """The reader of any partition, assigned or not."""
        position = self._positions.get(tp)
        if position is not None:
            yield position.reader
            return
        reader = self._partitions.reader(self._topics.find(tp[0]), tp[1])
        try:
            yield reader
        finally:
            reader.close()

    def offsets_for_times(self, times: Mapping[TopicPartition, datetime | int]) -> dict[TopicPartition, int | None]:
        """See `Consumer.offsets_for_times`."""
        found = {}
        with self._using():
            for tp, when in times.items():
                with self._reader_of(tp) as reader:
                    found[TopicPartition(*tp)] = reader.offset_at(to_timestamp_ms(when))
        return found

    def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Consumer.beginning_offsets`."""
        return self._bounds(tps, 0)

    def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Consumer.end_offsets`."""
        return self._bounds(tps, 1)

    def _bounds(self, tps: Iterable[TopicPartition], which: int) -> dict[TopicPartition, int]:
        found = {}
        with self._using():
            for tp in tps:
                with self._reader_of(tp) as reader:
                    found[TopicPartition(*tp)] = reader.offsets()[which]
        return found

    def lag(self) -> dict[TopicPartition, int]:
        """See `Consumer.lag`."""
        lags = {}
        with self._using():
            self._rewind()
            for tp, position in self._positions.items():
                if position.offset < 0:
                    self._reset(position, self._config.auto_offset_reset)
                lags[tp] = position.reader.offsets()[1] - position.offset
        return lags

    def pause(self, *tps: TopicPartition) -> None:
        """See `Consumer.pause`."""
        with self._using():
            self._rewind()
            for position in self._chosen(tps):
                position.paused = True

    def resume(self, *tps: TopicPartition) -> None:
        """See `Consumer.resume`."""
        with self._using():
            for position in self._chosen(tps):
                position.paused = False
                self._candidates[position.tp] = position

    def paused(self) -> set[TopicPartition]:
        """See `Consumer.paused`."""
        return {tp for tp, position in self._positions.items() if position.paused}

    def metrics(self) -> dict[str, float]:
        """See `Consumer.metrics`."""
        lags = [] if self._closed else list(self.lag().values())
        return {**self._counters, "assigned-partitions": len(self._positions), "records-lag-max": max(lags, default=0)}

    # --- life

    def close(self) -> None:
        """End reading and close what was open; again is harmless."""
        if self._closed:
            return
        with self._using():
            self._closed = "the consumer was closed: make another"
            for position in self._positions.values():
                position.reader.close()
            self._positions.clear()
            self._candidates.clear()
            self._subscription.close()
            self._forget(self)

    def close_at_exit(self) -> None:
        """See `Owned.close_at_exit`."""

    def disown(self) -> None:
        """See `Owned.disown`."""
        self._closed = "the consumer belongs to the process that this one was forked from: make another"


def _listed(topics: str | Topic[Any, Any] | Iterable[str | Topic[Any, Any]] | None) -> list[str | Topic[Any, Any]]:
    if topics is None:
        return []
    if isinstance(topics, str | Topic):
        return [topics]
    return list(topics)
