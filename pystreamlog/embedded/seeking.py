"""Where a consumer of the embedded log reads: its positions and its commits. Polling is `polling`'s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

import msgspec

from pystreamlog.backend.consumer import Commit, Consumer, ConsumerConfig
from pystreamlog.backend.group import OffsetAndMetadata
from pystreamlog.backend.producer import Producer
from pystreamlog.clock import Clock, to_timestamp_ms
from pystreamlog.coordination.group import LOCK_TIMEOUT, Group
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.coordination.transactions import GroupOffsets
from pystreamlog.coordination.wakeups import wakeups
from pystreamlog.embedded.assignment import Assignment
from pystreamlog.embedded.commits import Commits, Offsets, check_bounds, retried
from pystreamlog.embedded.consumer_metrics import ConsumerMetrics
from pystreamlog.embedded.interception import Interceptors
from pystreamlog.embedded.interest import Interest, checked_partition
from pystreamlog.embedded.positions import Position
from pystreamlog.embedded.turns import Turns, current_task
from pystreamlog.errors import ClosedError, ConfigError, IllegalStateError, StreamLogError
from pystreamlog.record.record import Record, TopicPartition

__all__ = ["ConsumerContext", "SeekingConsumer"]

K = TypeVar("K")
V = TypeVar("V")


class ConsumerContext(msgspec.Struct, frozen=True):
    """What a log lends to a consumer.

    Attributes:
        find_topic: Finds, or makes, a topic by name.
        topics: The log's topics.
        partitions: The log's partitions.
        clock: For `auto_offset_reset` by duration, and to date commits.
        make_producer: Makes the producer of dead letters.
        metrics: What the consumer counts.
        client_id: Its name among the log's clients.
    """

    find_topic: Callable[[str], TopicState]
    topics: Topics
    partitions: Partitions
    clock: Clock
    make_producer: Callable[[], Producer[Any, Any]]
    metrics: ConsumerMetrics
    client_id: str


class SeekingConsumer(Consumer[K, V]):
    """The part of a consumer that knows its positions, and commits them.

    Args:
        context: What the log lends it.
        config: The consumer's settings.
        group: Its group, if it has one.
    """

    __slots__ = (
        "_accounted",
        "_assignment",
        "_batch",
        "_client_id",
        "_closed",
        "_commits",
        "_config",
        "_group",
        "_intercept",
        "_interest",
        "_metrics",
        "_queue",
        "_queue_index",
        "_subscription",
        "_turns",
    )

    def __init__(self, context: ConsumerContext, config: ConsumerConfig, group: Group | None) -> None:
        topics, partitions, clock = context.topics, context.partitions, context.clock
        self._config = config
        self._client_id = context.client_id
        self._group = group
        self._intercept = Interceptors(config.interceptors)
        self._metrics = context.metrics
        self._subscription = wakeups().subscribe()
        self._assignment = Assignment(
            topics, partitions, self._subscription, clock, config.auto_offset_reset, self._metrics
        )
        self._interest = Interest(
            context.find_topic,
            topics,
            partitions,
            self._assignment,
            self._subscription,
            (config.key_serde, config.value_serde),
            shared=group is not None,
        )
        self._commits: Commits | None = None
        if group is not None:
            self._commits = Commits(group, self._assignment, self._intercept, clock, partitions, self._metrics)
            self._assignment.start_of = self._commits.start_of
        self._turns = Turns("consumer")
        self._queue: list[Record[K, V]] = []
        self._queue_index = 0
        self._accounted = 0
        self._batch: dict[TopicPartition, int] = {}  # where the loop's records end, by partition
        self._closed = ""

    @property
    def client_id(self) -> str:
        """See `Consumer.client_id`."""
        return self._client_id

    def _check_open(self, cause: StreamLogError | None = None) -> None:
        if self._closed:
            raise ClosedError(self._closed) from cause

    @contextmanager
    def _using(self, task: Any = None) -> Iterator[None]:
        """One user at a time, and only while it is open."""
        self._check_open()
        with self._turns.held(task):
            try:
                yield
            except StreamLogError as error:
                self._check_open(error)  # it was closed meanwhile, with its log and its files
                raise

    def _account(self) -> None:
        """Note which of the loop's records were handed out, and that all but the last were moved past."""
        start, stop, commits = self._accounted, self._queue_index, self._commits
        if commits is not None and start < stop:
            commits.move_on()
            commits.moved.update({_tp(record): record.offset + 1 for record in self._queue[start : stop - 1]})
            last = self._queue[stop - 1]
            commits.handed[_tp(last)] = last.offset + 1
            self._accounted = stop

    def _give_back(self, *tps: TopicPartition) -> None:
        """Give back the records that a loop got ahead and has not handed out, of these partitions or all."""
        if not self._queue:
            return
        self._account()
        for tp in tps:
            self._batch.pop(tp, None)
        ahead = self._queue[self._queue_index :]
        self._queue = [record for record in ahead if _tp(record) not in tps] if tps else []
        self._queue_index = self._accounted = 0
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
        if self._commits is not None:
            self._commits.sought(position.tp, offset)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """See `Consumer.seek`."""
        with self._using():
            position = self._position(tp)
            check_bounds(position.tp, offset, position.reader.offsets()[1])
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

    # --- commits

    def _grouped(self) -> Commits:
        if self._commits is None:
            raise IllegalStateError("this consumer has no group: pass group_id to commit offsets")
        return self._commits

    def commit(self, what: Commit = None) -> None:
        """See `Consumer.commit`."""
        # As `with self._using()`, written out: an eighth of what a commit costs.
        self._check_open()
        outermost = self._turns.enter()
        try:
            commits = self._grouped()
            self._account()
            commits.commit(commits.wanted(what))
        finally:
            if outermost:
                self._turns.leave()

    async def commit_async(self, what: Commit = None) -> None:
        """See `Consumer.commit_async`."""
        from asyncio import to_thread  # noqa: PLC0415 - only for those who use it

        with self._using(current_task()):
            commits = self._grouped()
            self._account()
            offsets = commits.wanted(what)
            if any(metadata for _, metadata in offsets.values()):
                # The first text of a partition needs room in the file, which waits for the disk.
                await to_thread(commits.commit, offsets)
            else:
                await retried(lambda timeout: commits.commit(offsets, timeout), LOCK_TIMEOUT)

    def committed(self, *tps: TopicPartition) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """See `Consumer.committed`."""
        with self._using():
            commits = self._grouped()
            wanted = map(checked_partition, tps or self._assignment.positions)
            found = {}
            for tp in wanted:
                topic_id = self._interest.topic_id(tp)
                with self._interest.reader_of(tp) as reader:
                    found[tp] = commits.committed(topic_id, tp.partition, reader)
            return found

    # --- in a transaction

    def check_transactional(self, partitions: Partitions) -> None:
        """Raise when a transaction of the log with these partitions cannot commit what this consumer hands out."""
        self._check_open()
        if self._grouped().partitions is not partitions:
            raise ConfigError(
                "a transaction commits the offsets of a consumer of its own log, and this one reads another: make both "
                "from the same open log"
            )
        if self._config.enable_auto_commit:
            raise ConfigError(
                "a transaction commits the offsets of its consumer, which must not do that too: make the consumer with "
                "enable_auto_commit=False"
            )

    def committing(self) -> tuple[Offsets, GroupOffsets]:
        """What was handed out, and that as the group commits it."""
        with self._using():
            commits = self._grouped()
            self._account()
            offsets = commits.wanted(None)
            return offsets, commits.of_transaction(offsets)

    def committed_by_transaction(self, offsets: Offsets) -> None:
        """These offsets were committed."""
        commits = self._grouped()
        commits.done(offsets)
        commits.stand(offsets)

    def rewind(self) -> None:
        """Go back to the committed offsets: what was handed out since comes again."""
        with self._using():
            self._give_back()
            self._grouped().rewind()

    # --- flow control

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


def _tp(record: Record[Any, Any]) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)
