"""Every metric there is: its name, its unit, and what it means. And what a measured value looks like.

Names are Kafka's, where Kafka has such a metric. The groups are the kinds of things that are measured: `producer` and
`consumer` are clients of this process; `log` and `group` lie in the directory, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeVar

import msgspec

from pystreamlog.errors import ConfigError

__all__ = ["DEFINITIONS", "By", "GroupPartition", "Metric", "MetricDefinition", "checked_by"]

T = TypeVar("T")

By = Literal["topic", "partition"]
"""What a client's metrics are told by."""


class Metric(NamedTuple):
    """One measured value.

    Attributes:
        name: Kafka's, as `record-send-total`.
        group: What is measured: `"producer"`, `"consumer"`, `"log"` or `"group"`.
        tags: What it was measured of: any of `client-id`, `group-id`, `topic` and `partition`.
        value: The number; `docs/reference/metrics.md` has its unit.
    """

    name: str
    group: str
    tags: Mapping[str, str]
    value: float


class GroupPartition(NamedTuple):
    """A consumer group and a partition of which it has committed an offset."""

    group_id: str
    topic: str
    partition: int


class MetricDefinition(msgspec.Struct, frozen=True):
    """What a metric means.

    Attributes:
        group: See `Metric`.
        name: Its name.
        unit: `"bytes"`, `"ms"`, `"ns"`, `"seconds"`, `"ratio"`, or what is counted.
        kind: `"counter"` only grows, from 0 when the client was made; `"rate"` is per second, or per hour, of the last
            30 to 60 seconds; `"gauge"` is any other number.
        tags: What it is told by, each a set of tags, separated by blanks.
        meaning: What it says.
    """

    group: str
    name: str
    unit: str
    kind: Literal["counter", "rate", "gauge"]
    tags: tuple[str, ...]
    meaning: str


_CLIENT = ("client-id",)
_SENT = ("client-id", "client-id topic", "client-id topic partition")
_TOPIC = ("client-id topic", "client-id topic partition")
_PARTITION = ("client-id topic partition",)
_LOG_TOPIC = ("topic", "topic partition")
_LOG_PARTITION = ("topic partition",)
_GROUP = ("group-id topic partition",)


def _metric(
    group: str,
    name: str,
    unit: str,
    tags: tuple[str, ...],
    meaning: str,
) -> MetricDefinition:
    kind: Literal["counter", "rate", "gauge"] = "gauge"
    if name.endswith("-total"):
        kind = "counter"
    elif name.endswith(("-rate", "-rate-per-hour")) and unit != "ratio":
        kind = "rate"
    return MetricDefinition(group, name, unit, kind, tags, meaning)


def _producer(name: str, unit: str, meaning: str, tags: tuple[str, ...] = _CLIENT) -> MetricDefinition:
    return _metric("producer", name, unit, tags, meaning)


def _consumer(name: str, unit: str, meaning: str, tags: tuple[str, ...] = _CLIENT) -> MetricDefinition:
    return _metric("consumer", name, unit, tags, meaning)


_ALL = (
    _producer("record-send-total", "records", "Records that were acknowledged.", _SENT),
    _producer("record-send-rate", "records", "The same, per second.", _SENT),
    _producer("record-error-total", "records", "Records that failed, or whose transaction was aborted.", _SENT),
    _producer("record-error-rate", "records", "The same, per second.", _SENT),
    _producer(
        "byte-total",
        "bytes",
        "Bytes of the batches that were acknowledged, as they lie in the log: packed, and with their headers. Kafka's "
        "`outgoing-byte-total`, for the whole client.",
        _SENT,
    ),
    _producer("byte-rate", "bytes", "The same, per second.", _SENT),
    _producer("compression-rate", "ratio", "Bytes of the batches over what they would be without compression.", _TOPIC),
    _producer("compression-rate-avg", "ratio", "The same, over all topics."),
    _producer("record-size-avg", "bytes", "Size of a record before compression, with its share of the batch's header."),
    _producer("batch-size-avg", "bytes", "Size of a batch in the log."),
    _producer("batch-size-max", "bytes", "Size of the largest one."),
    _producer("records-per-request-avg", "records", "Records in a batch."),
    _producer("request-total", "batches", "Batches that were acknowledged: a request is the write of one batch."),
    _producer("request-rate", "batches", "The same, per second."),
    _producer(
        "request-latency-avg",
        "ms",
        'From a batch\'s write until it is acknowledged: with `durability="fsync"` with its sync, in a transaction '
        "with the whole commit.",
    ),
    _producer("request-latency-max", "ms", "The longest."),
    _producer(
        "record-queue-time-avg", "ms", "From a batch's first record until its write; in a transaction until its commit."
    ),
    _producer("record-queue-time-max", "ms", "The longest."),
    _producer("buffer-total-bytes", "bytes", "The setting `buffer_memory`."),
    _producer(
        "buffer-available-bytes",
        "bytes",
        "What is left of it: full batches that wait to be written take it up, those that still gather do not.",
    ),
    _producer("waiting-threads", "threads", "Threads that wait within `send` for the buffer to have room."),
    _producer("bufferpool-wait-time-ns-total", "ns", "How long threads have waited for that, together."),
    _producer("bufferpool-wait-ratio", "ratio", "The same, as a share of time; more than 1 if several waited at once."),
    _producer("flush-time-ns-total", "ns", "Time spent in `flush`."),
    _producer("txn-init-time-ns-total", "ns", "Time spent in `init_transactions`."),
    _producer("txn-begin-time-ns-total", "ns", "Time spent in beginning transactions."),
    _producer("txn-send-offsets-time-ns-total", "ns", "Time spent in `send_offsets_to_transaction`."),
    _producer("txn-commit-time-ns-total", "ns", "Time spent in commits of transactions, also in those that failed."),
    _producer("txn-abort-time-ns-total", "ns", "Time spent in aborts of transactions."),
    _consumer(
        "records-lag",
        "records",
        "From the consumer's position to the partition's end; of assigned partitions. By the position, not by what was "
        "committed.",
        _PARTITION,
    ),
    _consumer("records-lag-max", "records", "The largest of any assigned partition, now."),
    _consumer("records-lead", "records", "From the partition's start to the consumer's position.", _PARTITION),
    _consumer("records-lead-min", "records", "The smallest: at 0, retention deletes what was not read."),
    _consumer(
        "records-consumed-total",
        "records",
        "Records that `poll` took, or a loop got ahead; again when read again.",
        _SENT,
    ),
    _consumer("records-consumed-rate", "records", "The same, per second.", _SENT),
    _consumer("bytes-consumed-total", "bytes", "Their share of their batches' bytes in the log.", _SENT),
    _consumer("bytes-consumed-rate", "bytes", "The same, per second.", _SENT),
    _consumer("fetch-size-avg", "bytes", "Bytes of the batches that one fetch found.", _SENT),
    _consumer("fetch-size-max", "bytes", "The most of them.", _SENT),
    _consumer("records-per-request-avg", "records", "Records handed out, for each fetch.", _SENT),
    _consumer("fetch-total", "fetches", "Looks into a partition's files that found records."),
    _consumer("fetch-rate", "fetches", "The same, per second."),
    _consumer("fetch-latency-avg", "ms", "How long one takes; waiting for records is not part of it."),
    _consumer("fetch-latency-max", "ms", "The longest."),
    _consumer("poll-total", "polls", "Polls; a loop polls when it has handed out what it got. Not in Kafka."),
    _consumer("last-poll-seconds-ago", "seconds", "Since the last poll began; -1 before the first."),
    _consumer("time-between-poll-avg", "ms", "From one poll's beginning to the next one's."),
    _consumer("time-between-poll-max", "ms", "The longest. Beyond `max_poll_interval_ms` a member is fenced."),
    _consumer(
        "poll-idle-ratio-avg", "ratio", "The share of time spent in polls; at 0 the application has no time left."
    ),
    _consumer("commit-total", "commits", "Commits that were made, automatic ones too."),
    _consumer("commit-rate", "commits", "The same, per second."),
    _consumer("commit-latency-avg", "ms", "How long one takes."),
    _consumer("commit-latency-max", "ms", "The longest."),
    _consumer("assigned-partitions", "partitions", "Partitions that are read."),
    _consumer("rebalance-total", "rebalances", "Rebalances that changed what this consumer owns, and are over."),
    _consumer("rebalance-rate-per-hour", "rebalances", "The same, per hour."),
    _consumer("rebalance-latency-avg", "ms", "From the consumer's first look at a new target until it owns it."),
    _consumer("rebalance-latency-max", "ms", "The longest."),
    _consumer("rebalance-latency-total", "ms", "All of them together."),
    _consumer(
        "failed-rebalance-total", "rebalances", "How often the consumer was fenced: the group went on without it."
    ),
    _consumer("failed-rebalance-rate-per-hour", "rebalances", "The same, per hour."),
    _metric("log", "Size", "bytes", _LOG_TOPIC, "What its files take up on the disk, indexes included."),
    _metric("log", "NumLogSegments", "segments", _LOG_TOPIC, "Its segments."),
    _metric("log", "LogStartOffset", "offset", _LOG_PARTITION, "The offset of its first record."),
    _metric(
        "log",
        "LogEndOffset",
        "offset",
        _LOG_PARTITION,
        "The offset that the next record gets. Its rate is what all processes write: Kafka's `MessagesInPerSec`.",
    ),
    _metric(
        "log", "Unreadable", "things", ("",), "Topics, partitions and groups that could not be looked at. Not in Kafka."
    ),
    _metric(
        "group",
        "records-lag",
        "records",
        _GROUP,
        "From what the group has committed to the partition's end, whether it has members or not.",
    ),
    _metric("group", "committed-offset", "offset", _GROUP, "What the group has committed. Not in Kafka."),
)


def checked_by(by: T, kinds: tuple[str, ...] = ("topic", "partition")) -> T:
    """What metrics are to be told by.

    Raises:
        ConfigError: There is no such way.
    """
    if by is not None and by not in kinds:
        raise ConfigError(f"by={by!r} is none of {', '.join(map(repr, kinds))}, or None for the whole")
    return by


DEFINITIONS: dict[tuple[str, str], MetricDefinition] = {(each.group, each.name): each for each in _ALL}
"""Every metric, by group and name."""
