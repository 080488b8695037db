"""What the contract's suites have in common: how a backend's log is opened, and how tests wait.

A backend runs the contract through its own tests by one class per suite:

    from pystreamlog.testing.producer_contract import ProducerContract

    class TestProducer(ProducerContract):
        def open_log(self, **options):
            return pystreamlog.open("mine://somewhere-new", **options)

Tests start no processes and assume nothing of a backend but the contract. Each gets a log of its own, without topics,
which is closed afterwards; none takes more than a few seconds unless something hangs. pytest is needed only here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

import pytest

from pystreamlog import Consumer, Delivery, Producer, Record, StreamLog, TopicPartition

__all__ = ["PATIENCE", "Contract", "buffered", "fill", "in_thread", "take", "tp", "values"]

PATIENCE = 20.0
"""Seconds until a test gives up what should take milliseconds."""

K = TypeVar("K")
V = TypeVar("V")


class Contract:
    """Base of every suite: override `open_log`."""

    def open_log(self, **options: Any) -> StreamLog:
        """A new log without topics, opened with these options of `pystreamlog.open`; called at least once per test."""
        raise NotImplementedError(f"{type(self).__name__} opens no log: override open_log()")

    @pytest.fixture
    def log(self) -> Iterator[StreamLog]:
        """A log of the test's own."""
        with self.open_log() as log:
            yield log


def tp(partition: int = 0, topic: str = "events") -> TopicPartition:
    """A partition of the topic that most tests use."""
    return TopicPartition(topic, partition)


def take(consumer: Consumer[K, V], count: int) -> list[Record[K, V]]:
    """Poll until there are `count` records, and not one more."""
    records: list[Record[K, V]] = []
    deadline = monotonic() + PATIENCE
    while len(records) < count and monotonic() < deadline:
        records += consumer.poll(0.5)
    assert len(records) == count, f"{len(records)} records instead of {count}"
    return records


def in_thread(call: Callable[[], V]) -> V:
    """What the call returns or raises in another thread."""
    outcomes: list[V] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcomes.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the call in another thread hangs"
    if errors:
        raise errors[0]
    return outcomes[0]


def buffered(producer: Producer[Any, Any], topic: str = "events", value: Any = b"buffered") -> Delivery:
    """A delivery of a producer with a long linger that is not written yet.

    A record that comes alone is written at once, and on a busy machine the second one does too.
    """
    deadline = monotonic() + PATIENCE
    while (delivery := producer.send(topic, value)).done():
        assert monotonic() < deadline
    return delivery


def fill(
    log: StreamLog,
    count: int,
    *,
    topic: str = "events",
    partitions: int = 1,
    partition: int | None = None,
    key: bytes | None = None,
    first: int = 0,
) -> None:
    """Make the topic if it is missing and send it `count` records, numbered from `first`, dealt to its partitions."""
    log.create_topic(topic, partitions=partitions, exist_ok=True)
    with log.producer() as producer:
        for number in range(first, first + count):
            target = number % partitions if partition is None else partition
            producer.send(topic, b"%d" % number, key, partition=target)


def values(records: Iterable[Record[Any, V]]) -> list[V | None]:
    """The payloads of some records."""
    return [record.value for record in records]
