"""What is measured of a log: by its producers and consumers, and by looking at the directory."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import ref

from pystreamlog.backend.consumer import Consumer, ConsumerConfig
from pystreamlog.backend.metrics import GroupPartition, Metric
from pystreamlog.backend.producer import Producer, ProducerConfig
from pystreamlog.coordination.groups import group_folders, read_group_id
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.admin_context import AdminContext
from pystreamlog.errors import StreamLogError, UnknownGroupError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = ["ClientNames", "Clients", "DirectoryMetrics", "by_topic"]

_log = logging.getLogger("pystreamlog")

Client = Producer[Any, Any] | Consumer[Any, Any]


class ClientNames:
    """Gives the clients of one open log their ids. Safe from any thread."""

    __slots__ = ("_lock", "_numbers", "_taken")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may call `give_back` anywhere
        self._numbers: Counter[str] = Counter()
        self._taken: set[str] = set()

    def of_producer(self, config: ProducerConfig) -> str:
        """An id for a producer."""
        if config.client_id is None and config.transactional_id is not None:
            return self._free(f"producer-{config.transactional_id}")
        return self._numbered("producer") if config.client_id is None else self._free(config.client_id)

    def of_consumer(self, config: ConsumerConfig) -> str:
        """An id for a consumer."""
        stem = "consumer" if config.group_id is None else f"consumer-{config.group_id}"
        return self._numbered(stem) if config.client_id is None else self._free(config.client_id)

    def _numbered(self, stem: str) -> str:
        with self._lock:
            self._numbers[stem] += 1
            name = f"{stem}-{self._numbers[stem]}"
        return self._free(name)

    def _free(self, name: str) -> str:
        with self._lock:
            found = name
            for number in count(2):
                if found not in self._taken:
                    break
                found = f"{name}-{number}"
            self._taken.add(found)
            return found

    def give_back(self, name: str) -> None:
        """A client is gone."""
        with self._lock:
            self._taken.discard(name)


class Clients:
    """The clients of one open log, held weakly, and the counters of those that are gone. Safe from any thread.

    Attributes:
        names: Their ids.
    """

    __slots__ = ("_gone", "_lock", "_metrics", "names")

    def __init__(self) -> None:
        self.names = ClientNames()
        self._lock = threading.RLock()  # the garbage collector may call `_retire` anywhere
        self._metrics: dict[str, tuple[ref[Client], Callable[[], Mapping[str, float]]]] = {}
        self._gone: Counter[str] = Counter()

    def add(self, client: Client, counters: Callable[[], Mapping[str, float]]) -> None:
        """Take up a client.

        Args:
            client: It.
            counters: Tells its counters; does not hold the client.
        """
        name = client.client_id
        with self._lock:
            self._metrics[name] = ref(client, lambda _: self._retire(name)), counters

    def discard(self, client: Client) -> None:
        """A client was closed."""
        self._retire(client.client_id)

    def disown(self) -> None:
        """This is a forked child: the clients are the parent's."""
        self._metrics = {}

    def _retire(self, name: str) -> None:
        with self._lock:
            entry = self._metrics.pop(name, None)
            if entry is not None:
                self._gone.update(_counters(entry[1]()))
        if entry is not None:
            self.names.give_back(name)

    def __iter__(self) -> Iterator[Client]:
        with self._lock:
            entries = list(self._metrics.values())
        return iter([client for client in (entry[0]() for entry in entries) if client is not None])

    def totals(self) -> dict[str, float]:
        """The counters of all clients there are and were, summed up."""
        with self._lock:
            totals = self._gone.copy()
            entries = list(self._metrics.values())
        for _, counters in entries:
            totals.update(_counters(counters()))
        return dict(totals)

    def collect(self, *, partitions: bool) -> list[Metric]:
        """All that the clients measure."""
        found: list[Metric] = []
        for client in self:
            group = "producer" if isinstance(client, Producer) else "consumer"
            tags = {"client-id": client.client_id}
            found += _listed(group, tags, client.metrics())
            for topic, numbers in client.metrics("topic").items():
                found += _listed(group, {**tags, "topic": topic}, numbers)
            if partitions:
                for tp, numbers in client.metrics("partition").items():
                    found += _listed(group, {**tags, **_tags(tp)}, numbers)
        return found


def _counters(numbers: Mapping[str, float]) -> dict[str, int]:
    # Counter.update is typed for whole numbers; a rebalance's time has a fraction of a millisecond.
    return {name: value for name, value in numbers.items() if name.endswith("-total")}  # type: ignore[misc]


def _listed(group: str, tags: Mapping[str, str], numbers: Mapping[str, float]) -> list[Metric]:
    return [Metric(name, group, tags, value) for name, value in numbers.items()]


def _tags(tp: TopicPartition) -> dict[str, str]:
    return {"topic": tp.topic, "partition": str(tp.partition)}


class DirectoryMetrics:
    """What is measured by looking at a log's directory. Takes no lock and writes nothing.

    The first look at a partition after a reboot recovers it, as any reader's does. What cannot be looked at is left
    out, logged, and counted.

    Args:
        context: The log's.

    Attributes:
        unreadable: How many topics, partitions and groups could not be looked at.
    """

    __slots__ = ("_context", "unreadable")

    def __init__(self, context: AdminContext) -> None:
        self._context = context
        self.unreadable = 0

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """What the block raises is logged and counted; but not that something was deleted meanwhile."""
        try:
            yield
        except (UnknownTopicError, UnknownGroupError, FileNotFoundError):
            pass
        except (StreamLogError, ExceptionGroup) as error:
            self._context.check_open()
            self.unreadable += 1
            _log.warning("could not measure %s: %s", what, error)

    def _topics(self) -> Iterator[TopicState]:
        topics = self._context.topics
        for name in topics.names():
            with self._noting(f"topic {name!r}"):
                yield topics.find_anew(name)

    def by_partition(self) -> dict[TopicPartition, dict[str, float]]:
        """Sizes, segments and bounds of every partition."""
        context = self._context
        context.check_open()
        found: dict[TopicPartition, dict[str, float]] = {}
        for state in self._topics():
            for number in range(state.partitions):
                tp = TopicPartition(state.name, number)
                with self._noting(f"partition {number} of topic {state.name!r}"):
                    reader = context.partitions.reader(state, number)
                    try:
                        start, end = reader.offsets()
                        segments = len(reader.folder.segments_from(start)) if reader.exists() else 0
                    finally:
                        reader.close()
                    found[tp] = {
                        "Size": context.files.disk_usage(state.folder(number)),
                        "NumLogSegments": segments,
                        "LogStartOffset": start,
                        "LogEndOffset": end,
                    }
        return found

    def by_group(self) -> dict[GroupPartition, dict[str, float]]:
        """The lag of every group, in each partition that it has committed."""
        context = self._context
        context.check_open()
        from pystreamlog.embedded.admin import EmbeddedAdmin  # noqa: PLC0415 - opening a log shall be quick

        admin = EmbeddedAdmin(context)
        ids: list[str] = []
        for folder in group_folders(context.files):
            with self._noting(f"group in {folder}"):
                ids.append(read_group_id(context.files, folder))
        try:
            offsets = admin.list_consumer_group_offsets(ids)
        except ExceptionGroup:  # one by one, so that a damaged one hides no other
            offsets = {}
            for group_id in ids:
                with self._noting(f"group {group_id!r}"):
                    offsets.update(admin.list_consumer_group_offsets(group_id))
        ends: dict[TopicPartition, int] = {}
        found: dict[GroupPartition, dict[str, float]] = {}
        for group_id, committed in offsets.items():
            for tp, (offset, _) in committed.items():
                with self._noting(f"partition {tp.partition} of topic {tp.topic!r}"):
                    if tp not in ends:
                        ends[tp] = self._end(tp)
                    found[GroupPartition(group_id, *tp)] = {
                        "records-lag": max(0, ends[tp] - offset),
                        "committed-offset": offset,
                    }
        return found

    def _end(self, tp: TopicPartition) -> int:
        context = self._context
        reader = context.partitions.reader(context.topics.find(tp.topic), tp.partition)
        try:
            return reader.offsets()[1]
        finally:
            reader.close()

    def collect(self, *, logs: bool, groups: bool, partitions: bool) -> list[Metric]:
        """All of it that is wanted."""
        found: list[Metric] = []
        if logs:
            by_partition = self.by_partition()
            for topic, numbers in by_topic(by_partition).items():
                found += _listed("log", {"topic": topic}, numbers)
            if partitions:
                for tp, numbers in by_partition.items():
                    found += _listed("log", _tags(tp), numbers)
        if groups:
            for key, numbers in self.by_group().items():
                tags = {"group-id": key.group_id, **_tags(TopicPartition(key.topic, key.partition))}
                found += _listed("group", tags, numbers)
        if logs or groups:
            found.append(Metric("Unreadable", "log", {}, self.unreadable))
        return found


def by_topic(by_partition: Mapping[TopicPartition, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """What the partitions of a topic have together."""
    found: dict[str, dict[str, float]] = {}
    for tp, numbers in by_partition.items():
        topic = found.setdefault(tp.topic, {"Size": 0, "NumLogSegments": 0})
        for name in topic:
            topic[name] += numbers[name]
    return found
