"""The contract of a consumer, and its settings."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypedDict, TypeVar, overload

import attrs

from pystreamlog.backend.checks import callable_or_none, interceptors, serde_or_none, text_or_none
from pystreamlog.backend.closing import Closing
from pystreamlog.backend.group import GroupMetadata, OffsetAndMetadata
from pystreamlog.backend.metrics import By
from pystreamlog.backend.records import Records
from pystreamlog.backend.topic import Topic
from pystreamlog.coordination.assignors import ASSIGNORS, Assignor
from pystreamlog.coordination.names import check_text
from pystreamlog.errors import ConfigError
from pystreamlog.record.record import Record, TopicPartition
from pystreamlog.record.serde import Serde
from pystreamlog.settings import integer, one_of

__all__ = ["Commit", "Consumer", "ConsumerConfig", "ConsumerOptions"]

K = TypeVar("K")
V = TypeVar("V")


def _offset_reset(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise ConfigError(f"{attribute.name}={value!r} lies in the future: pass a positive timedelta back")
    elif value not in ("latest", "earliest", "none"):
        raise ConfigError(f"{attribute.name}={value!r} is none of 'latest', 'earliest', 'none' or a timedelta back")


def _group_id(_: object, __: object, value: Any) -> None:
    if value is not None:
        check_text(value, "group_id")


def _instance_id(config: Any, _: object, value: object) -> None:
    if value is None:
        return
    check_text(value, "group_instance_id")
    if config.group_id is None:
        raise ConfigError("group_instance_id names a member of a group: pass group_id too")


def _assignor(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value) and value not in ASSIGNORS:
        known = ", ".join(map(repr, ASSIGNORS))
        raise ConfigError(f"{attribute.name}={value!r} is none of {known} and no callable")


def _flag(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not bool:
        raise ConfigError(f"{attribute.name} is True or False, not {value!r}")


@attrs.frozen
class ConsumerConfig:
    """A consumer's settings, under Kafka's names.

    Attributes:
        key_serde: Turns bytes into keys; None leaves them bytes. A subscribed `Topic`'s own serde wins over it. As
            Kafka's `key.deserializer`.
        value_serde: Turns bytes into values, likewise. As Kafka's `value.deserializer`.
        group_id: The consumer group to share the partitions with, and to commit offsets for; without one, the consumer
            reads them all and commits nothing.
        group_instance_id: A name that the member keeps when it restarts; no other may have it meanwhile. It makes it a
            static member: its partitions wait for its return for `session_timeout_ms`.
        auto_offset_reset: Where to start where there is no position: `"latest"` (fixed at the subscription),
            `"earliest"`, `"none"` (raises `NoOffsetError`), or a `timedelta` back from now. A group commits the start
            that it chose at once.
        enable_auto_commit: Commit what the application has moved past, within `poll` and at `close`.
        auto_commit_interval_ms: How long at least from one automatic commit to the next, in ms. 0 commits at each
            `poll`.
        max_poll_interval_ms: A member that has not polled (nor taken the next record of a loop) for that long, in ms,
            loses its partitions.
        session_timeout_ms: How long the partitions of a static member wait for its return, in ms. Other members are
            known to be gone at once.
        assignor: How a group shares out partitions: `"uniform"`, `"range"`, or a callable that is given the members
            (`GroupMember`) and the number of partitions by topic, and returns partitions by member id. Where members
            differ, what most of them say counts. As Kafka's `partition.assignment.strategy`.
        max_poll_records: How many records one `poll` returns at most.
        isolation_level: Taken for the sake of programs written for Kafka: both levels read the same, as nothing
            uncommitted is ever visible.
        client_id: What metrics call the consumer; None for `consumer-1` and so on, with a group `consumer-`, its id,
            and a number. If another client of the open log has the name, `-2` or a higher number is added.
        interceptors: Objects with any of `on_consume(records)` and `on_commit(offsets)`. As Kafka's
            `interceptor.classes`.
        on_assign: Called as `on_assign(consumer, partitions)` with the partitions that came, inside `poll`; not after
            `assign`. A coroutine function needs `poll_async` or `async for`.
        on_revoke: Called as `on_revoke(consumer, partitions)` with the partitions that go. They are still assigned, and
            may be committed; the next owner starts after the callback. Also inside `unsubscribe` and `close`, unless it
            is a coroutine function.
        on_lost: Called as `on_lost(consumer, partitions)` with partitions that went without asking, as the consumer did
            not poll for too long: another member may read them already, and a commit fails. If it is not given,
            `on_revoke` is called instead.
    """

    key_serde: Serde[Any] | None = attrs.field(default=None, validator=serde_or_none)
    value_serde: Serde[Any] | None = attrs.field(default=None, validator=serde_or_none)
    group_id: str | None = attrs.field(default=None, validator=_group_id)
    group_instance_id: str | None = attrs.field(default=None, validator=_instance_id)
    auto_offset_reset: str | timedelta = attrs.field(default="latest", validator=_offset_reset)
    enable_auto_commit: bool = attrs.field(default=True, validator=_flag)
    auto_commit_interval_ms: int = attrs.field(default=5000, validator=integer(0))
    max_poll_interval_ms: int = attrs.field(default=300_000, validator=integer(1, 2**31 - 1))
    session_timeout_ms: int = attrs.field(default=45_000, validator=integer(1, 2**31 - 1))
    assignor: str | Assignor = attrs.field(default="uniform", validator=_assignor)
    max_poll_records: int = attrs.field(default=500, validator=integer(1, 2**31 - 1))
    isolation_level: str = attrs.field(default="read_committed", validator=one_of("read_committed", "read_uncommitted"))
    client_id: str | None = attrs.field(default=None, validator=text_or_none)
    interceptors: Sequence[object] = attrs.field(default=(), validator=interceptors)
    on_assign: Callable[[Any, list[TopicPartition]], object] | None = attrs.field(
        default=None, validator=callable_or_none
    )
    on_revoke: Callable[[Any, list[TopicPartition]], object] | None = attrs.field(
        default=None, validator=callable_or_none
    )
    on_lost: Callable[[Any, list[TopicPartition]], object] | None = attrs.field(
        default=None, validator=callable_or_none
    )


Commit = Record[Any, Any] | Records[Any, Any] | Mapping[TopicPartition, int | OffsetAndMetadata] | None
"""What `Consumer.commit` takes."""


class ConsumerOptions(TypedDict, total=False):
    """The settings but the serdes as keyword arguments, for type checkers; `ConsumerConfig` says what each means."""

    group_id: str | None
    group_instance_id: str | None
    auto_offset_reset: Literal["latest", "earliest", "none"] | timedelta
    enable_auto_commit: bool
    auto_commit_interval_ms: int
    max_poll_interval_ms: int
    session_timeout_ms: int
    assignor: Literal["uniform", "range"] | Assignor
    max_poll_records: int
    isolation_level: Literal["read_committed", "read_uncommitted"]
    client_id: str | None
    interceptors: Sequence[object]
    on_assign: Callable[[Any, list[TopicPartition]], object] | None
    on_revoke: Callable[[Any, list[TopicPartition]], object] | None
    on_lost: Callable[[Any, list[TopicPartition]], object] | None


class Consumer(Closing, Generic[K, V]):
    """Reads topics from a position on. One user at a time (`wakeup` excepted); works only in the process that made it.

    `for record in consumer` and `async for record in consumer` go on for ever; Ctrl-C and `wakeup()` end them.
    """

    __slots__ = ()

    @abstractmethod
    def subscribe(
        self,
        topics: str | Topic[Any, Any] | Iterable[str | Topic[Any, Any]] | None = None,
        *,
        pattern: str | re.Pattern[str] | None = None,
        on_assign: Callable[[Any, list[TopicPartition]], object] | None = None,
        on_revoke: Callable[[Any, list[TopicPartition]], object] | None = None,
        on_lost: Callable[[Any, list[TopicPartition]], object] | None = None,
    ) -> None:
        """Read every partition of these topics, also those added later; replaces the last subscription.

        With a `group_id`, read the share of them that the group gives this consumer, from the first `poll` on.
        Partitions that were read before keep their positions. No topics at all is `unsubscribe`.

        Args:
            topics: Names or `Topic`s, whose serdes win over the consumer's.
            pattern: Every topic whose whole name matches, also those made later; names starting with `__` excluded.
            on_assign: From now on, instead of the consumer's.
            on_revoke: The same.
            on_lost: The same.

        Raises:
            IllegalStateError: `assign` was used before.
            UnknownTopicError: A named topic does not exist; nothing was changed.
            ConfigError: Neither or both of `topics` and `pattern`, or the pattern is no regular expression.
        """

    @abstractmethod
    def unsubscribe(self) -> None:
        """Read nothing, and leave the group; afterwards `subscribe` and `assign` are both possible.

        What the application moved past is committed, if commits are automatic.
        """

    @abstractmethod
    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read exactly these partitions; positions of those kept stay. No partitions at all is `unsubscribe`.

        Raises:
            IllegalStateError: `subscribe` was used before.
            UnknownTopicError, UnknownPartitionError: There is no such partition.
        """

    @abstractmethod
    def assignment(self) -> set[TopicPartition]:
        """The partitions that are read now."""

    @abstractmethod
    def poll(self, timeout: float | None = 1.0, *, max_records: int | None = None) -> Records[K, V]:
        """Records from the positions on, as soon as there are any; grouped by partition, offsets ascending in each.

        Args:
            timeout: Seconds to wait for the first one; None for ever, 0 never.
            max_records: Instead of `max_poll_records`.

        Returns:
            At most that many records; none after the time-out.

        Raises:
            SerdeError: The next record does not deserialise. The position stays on it: seek past it to go on.
            NoOffsetError: A partition has no position, and `auto_offset_reset` is `"none"`.
            CorruptLogError: A partition does not verify.
            WakeupError: `wakeup()` was called.
            FencedError: Joining the group: a live member has the same `group_instance_id`.
            UnknownGroupError: The group's folder was deleted.
            IllegalStateError: Another thread or task is using the consumer, nothing is subscribed or assigned, a
                callback is a coroutine function, or one calls `poll`.
            ClosedError: The consumer was closed, or is the parent process's.
        """

    @abstractmethod
    async def poll_async(  # the twin of `poll` has its arguments
        self,
        timeout: float | None = 1.0,  # noqa: ASYNC109
        *,
        max_records: int | None = None,
    ) -> Records[K, V]:
        """As `poll`, without blocking the event loop; cancelling it moves no position."""

    @abstractmethod
    def __iter__(self) -> Iterator[Record[K, V]]:
        """Record after record, waiting for more."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Record[K, V]]:
        """Record after record, awaiting more."""

    @abstractmethod
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
        """Have every record handled by worker threads, until `wakeup`; each at least once.

        The calling thread polls throughout: a handler may take longer than `max_poll_interval_ms`. In a group, what is
        finished is committed every `auto_commit_interval_ms` and at the end, also if `enable_auto_commit` is off, and
        in each partition only up to the first record that is not finished; what was handed out before the call counts
        as finished. Before the group takes a partition, its running handlers end, on_revoke is called, and all that
        was finished is committed; of one that was lost, the running handlers end by themselves, and if it comes back,
        the next record of their key waits for them.

        `wakeup` ends it when everything begun is finished, and what lies before that in its partition. Ctrl-C ends it
        when the running handlers have ended, a second one at once. A later `poll` or `process` goes on with the first
        record of each partition that is not finished.

        Args:
            handler: Called with each record in some worker; what it returns is ignored. It may not use the consumer.
            workers: How many handlers run at a time.
            order: `"key"`: records of one key of a partition are handled one after the other, in order; those without
                a key in any order. `"partition"`: all records of a partition are.
            max_in_flight: How many records are taken and not finished at most.
            retries: How often a record whose handler raises is tried again, in the same worker.
            retry_backoff_ms: The wait before the first retry, in ms; doubled each time, up to 32 times as long.
            on_failure: What becomes of a record that fails then, or does not deserialise, which is not tried again.
                `"stop"`: nothing new begins, the running handlers end, and the error is raised; the record comes again
                with a later `poll` or `process`. `"dead_letter"`: it is written to `dead_letter_topic` before it counts
                as finished: its raw key, value and headers, with the `__streams.errors.*` headers of Kafka Streams
                (`exception`, `message`, `stacktrace`, `topic`, `partition`, `offset`); if that fails, as `"stop"`.
                `"skip"`: it is logged, and counts as finished.
            dead_letter_topic: Where dead letters go: a topic that this consumer does not read. Needed for
                `on_failure="dead_letter"`, and only then.

        Raises:
            ConfigError: A setting is wrong, the handler is no callable or a coroutine function, or dead letters would
                be read by this consumer.
            UnknownTopicError: There is no such `dead_letter_topic`.
            IllegalStateError: Another thread or task is using the consumer, or nothing is subscribed or assigned.
            SerdeError: A record does not deserialise, and `on_failure` is `"stop"`.
            Exception: What a handler or a callback raised, and what `poll` raises.
        """

    @abstractmethod
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
        """As `process`, with tasks of the running event loop as workers; `handler` may be a coroutine function.

        A plain function runs in the event loop's thread, and holds it up as long as it runs. Cancelling cancels the
        running handlers, awaits them, and commits what was finished; no record is lost.
        """

    @abstractmethod
    def wakeup(self) -> None:
        """End the present or the next `poll` by a `WakeupError`, or a loop or `process`.

        From any thread or signal handler.
        """

    @abstractmethod
    def position(self, tp: TopicPartition) -> int:
        """The offset of the next record that will be handed out.

        Raises:
            IllegalStateError: The partition is not assigned.
        """

    @abstractmethod
    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Go on from `offset`.

        Raises:
            IllegalStateError: The partition is not assigned.
            OffsetOutOfRangeError: Negative, or beyond the end.
        """

    @abstractmethod
    def seek_to_beginning(self, *tps: TopicPartition) -> None:
        """Go on from the first record there is, in these partitions or all."""

    @abstractmethod
    def seek_to_end(self, *tps: TopicPartition) -> None:
        """Go on with the next record to come, in these partitions or all."""

    @abstractmethod
    def seek_to_timestamp(self, when: datetime | int, *tps: TopicPartition) -> None:
        """Go on from the first record not older than `when`, or the end if there is none."""

    @abstractmethod
    def offsets_for_times(self, times: Mapping[TopicPartition, datetime | int]) -> dict[TopicPartition, int | None]:
        """The offset of the first record not older than that; None where all are older."""

    @abstractmethod
    def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset of each partition; they need not be assigned."""

    @abstractmethod
    def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of the next record of each partition; they need not be assigned."""

    @abstractmethod
    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets each position is behind the end."""

    @abstractmethod
    def pause(self, *tps: TopicPartition) -> None:
        """Hand out nothing of these partitions (all when none is named) until `resume`; their positions stay."""

    @abstractmethod
    def resume(self, *tps: TopicPartition) -> None:
        """Hand out records of these partitions (all when none is named) again."""

    @abstractmethod
    def paused(self) -> set[TopicPartition]:
        """The partitions that are paused."""

    @abstractmethod
    def commit(self, what: Commit = None) -> None:
        """Commit offsets for the group: where its members go on after this one. Visible to all when it returns; 10 us.

        Args:
            what: Nothing: everything that was handed out so far, in a loop up to and including the current record, of
                the partitions that are still assigned. A `Record`: the offset behind it. `Records`: the offset behind
                the last of each partition. Or offsets by partition, each that of the next record to read.

        Raises:
            CommitFailedError: The consumer lost one of these partitions; nothing was committed. Poll again.
            OffsetOutOfRangeError: An offset is negative, or beyond the end.
            IllegalStateError: There is no `group_id`, or another thread or task is using the consumer.
            ConfigError: It is something else, or a metadata text is too long.
            LockTimeoutError: A process held the group's lock for a minute; it is named.
        """

    @abstractmethod
    async def commit_async(self, what: Commit = None) -> None:
        """As `commit`, without blocking the event loop."""

    @abstractmethod
    def committed(self, *tps: TopicPartition) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """What the group has committed in these partitions, or in all that are assigned; None where nothing.

        Raises:
            IllegalStateError: There is no `group_id`.
            UnknownTopicError, UnknownPartitionError: There is no such partition.
            CorruptLogError: The group's offsets are damaged.
        """

    @abstractmethod
    def group_metadata(self) -> GroupMetadata:
        """Who this consumer is in its group.

        Raises:
            IllegalStateError: There is no `group_id`.
        """

    @abstractmethod
    def close(self, *, commit: bool | None = None) -> None:
        """Leave the group and release everything; again is harmless.

        Args:
            commit: True commits everything that was handed out, False nothing. None commits what the application moved
                past, if commits are automatic; leaving a `with` block without an exception then commits everything that
                was handed out.

        Raises:
            CommitFailedError: With `commit=True`, the consumer lost one of its partitions. It is closed.
            LockTimeoutError: A process held the group's lock for 30 s. It is closed, and committed nothing.
            UnknownGroupError: The group's folder was deleted. It is closed.
        """

    @abstractmethod
    async def close_async(self, *, commit: bool | None = None) -> None:
        """As `close`, without blocking the event loop."""

    @property
    @abstractmethod
    def client_id(self) -> str:
        """The setting `client_id`, or the name that the consumer got without it; no other client of the log has it."""

    @overload
    def metrics(self, by: None = None) -> dict[str, float]: ...
    @overload
    def metrics(self, by: Literal["topic"]) -> dict[str, dict[str, float]]: ...
    @overload
    def metrics(self, by: Literal["partition"]) -> dict[TopicPartition, dict[str, float]]: ...
    @abstractmethod
    def metrics(self, by: By | None = None) -> Any:
        """What the consumer measures, under Kafka's names, as `records-lag-max`; from any thread, also after its end.

        The lag is looked up for each assigned partition that has a position, in some 5 us; where another thread is
        reading just now, what was seen last is told. It waits for nobody.

        Args:
            by: None for the consumer as a whole; `"topic"` or `"partition"` for some of it by the topics' names or by
                `TopicPartition`, of those that are assigned or were read in the last hour.
        """
