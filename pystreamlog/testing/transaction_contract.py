"""The contract of transactions: what is sent in one counts at once and together, or not at all.

The calls, fencing, threads and event loops are in `transaction_call_contract`, and what transactions do with the
offsets of consumers in `exactly_once_contract`.
"""
# ruff: noqa: ARG002, PLR2004, PT012 - interceptors have the arguments they are called with, numbers are examples, and
# what raises is a block

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pystreamlog import Delivery, Producer, Record, RecordMetadata, StreamLog, serde
from pystreamlog.errors import (
    IllegalStateError,
    RecordTooLargeError,
    SerdeError,
    TransactionAbortedError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.contract import PATIENCE, Contract, tp, values

__all__ = ["TransactionContract", "sees_nothing", "send_some", "stored"]

Plain = Producer[bytes, bytes]


class BrokenError(Exception):
    """What the application raises."""


class Noted:
    """An interceptor that notes what came of records."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.acknowledged: list[tuple[RecordMetadata | None, BaseException | None]] = []

    def on_send(self, record: Record[Any, Any]) -> None:
        """See what is sent."""
        self.sent.append(record.value)

    def on_acknowledgement(self, metadata: RecordMetadata | None, error: BaseException | None) -> None:
        """See what came of it."""
        self.acknowledged.append((metadata, error))


class Broken:
    """An interceptor that raises."""

    def on_acknowledgement(self, metadata: RecordMetadata | None, error: BaseException | None) -> None:
        """Raise."""
        raise BrokenError


def stored(log: StreamLog, topic: str = "events") -> list[bytes]:
    """The payloads of a topic."""
    return [value for value in values(log.topic(topic).read()) if value is not None]


def send_some(
    producer: Plain, count: int, *, partitions: int = 1, topic: str = "events", mark: str = ""
) -> list[Delivery]:
    """Send numbered records, dealt to partitions."""
    return [producer.send(topic, f"{mark}{number}".encode(), partition=number % partitions) for number in range(count)]


def sees_nothing(log: StreamLog, partitions: int = 1, topic: str = "events") -> bool:
    """Whether a topic is empty for whoever looks, however."""
    tps = [tp(number, topic) for number in range(partitions)]
    nothing = dict.fromkeys(tps, 0)
    for isolation_level in ("read_committed", "read_uncommitted"):
        with log.consumer(topic, auto_offset_reset="earliest", isolation_level=isolation_level) as consumer:
            if consumer.poll(0) or consumer.end_offsets(tps) != nothing or any(consumer.lag().values()):
                return False
            if any(consumer.offsets_for_times(nothing).values()):
                return False
    ends = log.topic(topic).end_offsets()
    return not stored(log, topic) and ends == dict.fromkeys(range(partitions), 0)


class TransactionContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- commit

    @pytest.mark.parametrize("isolation_level", ["read_committed", "read_uncommitted"])
    def test_nothing_is_visible_before_the_commit_and_all_at_once_after(
        self, log: StreamLog, isolation_level: Any
    ) -> None:
        """To consumers that wait, and to those that come, whatever they want to read; also after `flush`."""
        log.create_topic("events", partitions=3)
        with (
            log.consumer("events", auto_offset_reset="earliest", isolation_level=isolation_level) as waiting,
            log.producer(linger_ms=0, batch_size=64) as producer,
        ):
            assert not waiting.poll(0)
            with producer.transaction():
                send_some(producer, 60, partitions=3)
                producer.flush()
                assert not waiting.poll(0.05)
                assert sees_nothing(log, 3)
            records = waiting.poll(0)
            assert set(records.values) == {b"%d" % number for number in range(60)}
            assert log.topic("events").end_offsets() == {0: 20, 1: 20, 2: 20}

    def test_waiting_consumer_is_woken_by_the_commit(self, log: StreamLog) -> None:
        """As by any record."""
        log.create_topic("events", partitions=2)
        with log.consumer("events", auto_offset_reset="earliest") as consumer, log.producer() as producer:
            producer.begin_transaction()
            send_some(producer, 4, partitions=2)
            timer = threading.Timer(0.1, producer.commit_transaction)
            timer.start()
            found = len(consumer.poll(PATIENCE))
            while found < 4:
                found += len(consumer.poll(PATIENCE))
            timer.join()

    def test_order_is_the_order_of_send(self, log: StreamLog) -> None:
        """In each partition, over many batches, with what `send_many` and plain sends before and after bring."""
        log.create_topic("events")
        with log.producer(batch_size=100, linger_ms=600_000) as producer:
            producer.send("events", b"before")
            with producer.transaction():
                send_some(producer, 50, mark="a")
                producer.send_many("events", [b"b%d" % number for number in range(50)])
                send_some(producer, 50, mark="c")
            producer.send("events", b"after")
        inside = [f"{mark}{number}".encode() for mark in "abc" for number in range(50)]
        found = stored(log)
        assert [value for value in found if value not in (b"before", b"after")] == inside
        assert sorted(set(found) - set(inside)) == [b"after", b"before"]

    def test_deliveries_resolve_at_commit(self, log: StreamLog) -> None:
        """With the offsets; callbacks are called then, and not before."""
        log.create_topic("events", partitions=2)
        log.topic("events").append(b"x", partition=1)
        called: list[Delivery] = []
        with log.producer() as producer:
            with producer.transaction():
                deliveries = send_some(producer, 6, partitions=2)
                many = producer.send_many("events", [b"y", b"z"], partition=1)
                deliveries[0].add_done_callback(called.append)
                assert not any(delivery.done() for delivery in deliveries)
                assert called == []
            assert called == [deliveries[0]]
            places = [(delivery.result(0).partition, delivery.result(0).offset) for delivery in deliveries]
            assert places == [(0, 0), (1, 1), (0, 1), (1, 2), (0, 2), (1, 3)]
            assert list(many.result(0).offsets) == [4, 5]
            assert deliveries[0].exception(0) is None

    def test_result_before_the_commit_is_refused(self, log: StreamLog) -> None:
        """There is none, and waiting would never end; the transaction goes on."""
        log.create_topic("events")

        async def awaited(delivery: Delivery) -> None:
            await delivery

        with log.producer() as producer:
            with producer.transaction():
                delivery = producer.send("events", b"x")
                many = producer.send_many("events", [b"y"])
                for refused in (
                    delivery.result,
                    delivery.exception,
                    many.result,
                    lambda: asyncio.run(awaited(delivery)),
                ):
                    with pytest.raises(IllegalStateError):
                        refused()
            assert delivery.result(0).offset == 0
        assert stored(log) == [b"x", b"y"]

    def test_empty_transactions(self, log: StreamLog) -> None:
        """Cost nothing and change nothing, whether they are committed or aborted."""
        log.create_topic("events")
        with log.producer() as producer:
            for _ in range(3):
                with producer.transaction():
                    pass
                producer.begin_transaction()
                producer.abort_transaction()
            with producer.transaction():
                producer.send_many("events", [])
        assert sees_nothing(log)

    def test_plain_sends_go_on_between_transactions(self, log: StreamLog) -> None:
        """A producer without a transactional id may do both."""
        log.create_topic("events")
        with log.producer() as producer:
            for number in range(3):
                producer.send("events", b"plain %d" % number).result(PATIENCE)
                with producer.transaction():
                    producer.send("events", b"inside %d" % number)
        assert stored(log) == [b"%s %d" % (what, number) for number in range(3) for what in (b"plain", b"inside")]

    def test_several_topics(self, log: StreamLog) -> None:
        """All that is sent counts together; one that dates its records by itself gives all of them one time."""
        log.create_topic("events")
        log.create_topic("dated", message_timestamp_type="LogAppendTime")
        with log.producer() as producer, producer.transaction():
            plain = producer.send("events", b"1", timestamp_ms=5)
            dated = [producer.send("dated", b"2", timestamp_ms=5), producer.send("dated", b"3", timestamp_ms=6)]
            assert sees_nothing(log)
            assert sees_nothing(log, topic="dated")
        assert plain.result(0).timestamp_ms == 5
        (stamp,) = {delivery.result(0).timestamp_ms for delivery in dated}
        assert stamp > 1_600_000_000_000
        assert [(record.value, record.timestamp_ms) for record in log.topic("dated").read()] == [
            (b"2", stamp),
            (b"3", stamp),
        ]

    def test_many_partitions(self, log: StreamLog) -> None:
        """In one transaction, all of them or none."""
        log.create_topic("events", partitions=60)
        with log.producer() as producer:
            with pytest.raises(BrokenError), producer.transaction():
                send_some(producer, 60, partitions=60)
                raise BrokenError
            assert not stored(log)
            with producer.transaction():
                send_some(producer, 60, partitions=60)
        assert len(stored(log)) == 60

    @pytest.mark.parametrize("compression_type", ["none", "gzip", "gzip:9"])
    def test_settings_of_the_producer_hold(self, log: StreamLog, compression_type: str) -> None:
        """Serdes, compression, durability and interceptors are those of all records."""
        log.create_topic("events")
        noted = Noted()
        with log.producer(
            value_serde=serde.json, compression_type=compression_type, durability="fsync", interceptors=[noted]
        ) as producer:
            with producer.transaction():
                producer.send("events", {"n": 1}, headers=[("h", b"1")])
                producer.send("events", [2] * 1000)
                assert noted.acknowledged == []
            assert [error for _, error in noted.acknowledged] == [None, None]
        first, second = log.topic("events", value_serde=serde.json).read()
        assert (first.value, first.headers, second.value) == ({"n": 1}, (("h", b"1"),), [2] * 1000)
        assert log.topic("events").durable_offsets() == {0: 2}

    def test_broken_interceptor_changes_nothing(self, log: StreamLog) -> None:
        """It is logged, as ever."""
        log.create_topic("events")
        with log.producer(interceptors=[Broken()]) as producer:
            with producer.transaction():
                delivery = producer.send("events", b"x")
            with pytest.raises(IndexError), producer.transaction():
                producer.send("events", b"y")
                raise IndexError
        assert delivery.result(0).offset == 0
        assert stored(log) == [b"x"]

    def test_more_than_the_memory_for_it(self, log: StreamLog) -> None:
        """Past `transaction_buffer_bytes` it goes elsewhere, is as invisible, and comes in order."""
        log.create_topic("events", partitions=2)
        log.topic("events").append(b"x", partition=1)
        wanted = [b"%08d" % number * 100 for number in range(1000)]
        with log.producer(transaction_buffer_bytes=50_000, batch_size=10_000) as producer:
            for fails in (True, False):
                producer.begin_transaction()
                deliveries = [producer.send("events", value, partition=n % 2) for n, value in enumerate(wanted)]
                assert stored(log) == [b"x"]
                if fails:
                    producer.abort_transaction()
                    assert isinstance(deliveries[0].exception(), TransactionAbortedError)
                else:
                    producer.commit_transaction()
        assert [delivery.result(0).offset for delivery in deliveries[1::2]] == list(range(1, 501))
        assert stored(log) == [*wanted[::2], b"x", *wanted[1::2]]

    # --- abort

    def test_nothing_is_left_of_an_abort(self, log: StreamLog) -> None:
        """An exception aborts, and comes through; offsets go on as if nothing had been."""
        log.create_topic("events", partitions=2)
        with log.producer() as producer:
            with pytest.raises(BrokenError), producer.transaction():
                deliveries = send_some(producer, 10, partitions=2)
                many = producer.send_many("events", [b"x", b"y"])
                raise BrokenError
            for delivery in deliveries:
                assert delivery.done()
                error = delivery.exception()
                assert isinstance(error, TransactionAbortedError)
                assert isinstance(error.__cause__, BrokenError)
            with pytest.raises(TransactionAbortedError):
                deliveries[0].result()
            with pytest.raises((TransactionAbortedError, ExceptionGroup)):
                many.result()
            assert sees_nothing(log, 2)
            with producer.transaction():
                again = producer.send("events", b"x", partition=1)
            assert again.result(0).offset == 0

    def test_nobody_need_look_at_what_was_aborted(self, log: StreamLog) -> None:
        """Somebody asked for it: neither `flush` nor `close` raise."""
        log.create_topic("events")
        with log.producer() as producer:
            producer.begin_transaction()
            producer.send("events", b"x")
            producer.abort_transaction()
            producer.flush()
        assert sees_nothing(log)

    def test_close_aborts_what_is_open(self, log: StreamLog) -> None:
        """Of a producer, and of the log; what was sent outside of a transaction is written."""
        log.create_topic("events")
        producer = log.producer(linger_ms=600_000)
        producer.send("events", b"plain")
        producer.begin_transaction()
        delivery = producer.send("events", b"x")
        producer.close()
        assert isinstance(delivery.exception(), TransactionAbortedError)
        assert stored(log) == [b"plain"]
        other = log.producer(transactional_id="other")
        other.begin_transaction()
        delivery = other.send("events", b"x")
        log.close()
        assert isinstance(delivery.exception(), TransactionAbortedError)

    def test_leaving_the_producer_with_an_exception_aborts(self, log: StreamLog) -> None:
        """So does leaving it without one, as nobody committed."""
        log.create_topic("events")
        with pytest.raises(BrokenError), log.producer() as producer:
            producer.begin_transaction()
            producer.send("events", b"x")
            raise BrokenError
        with log.producer() as producer:
            producer.begin_transaction()
            producer.send("events", b"x")
        assert sees_nothing(log)

    def test_a_send_that_is_refused_leaves_the_transaction_as_it_was(self, log: StreamLog) -> None:
        """Who catches the error may go on."""
        log.create_topic("events", max_message_bytes=1000)
        with log.producer(value_serde=serde.string) as producer, producer.transaction():
            producer.send("events", "1")
            with pytest.raises(RecordTooLargeError):
                producer.send("events", "x" * 2000)
            with pytest.raises(SerdeError):
                producer.send("events", b"no text")  # type: ignore[call-overload]
            with pytest.raises(UnknownTopicError):
                producer.send("nowhere", "x")
            with pytest.raises(UnknownPartitionError):
                producer.send("events", "x", partition=7)
            producer.send("events", "2")
        assert stored(log) == [b"1", b"2"]

    def test_topic_deleted_before_the_commit(self, log: StreamLog) -> None:
        """The commit fails, and nothing of the others is visible."""
        log.create_topic("events")
        log.create_topic("gone")
        with log.producer() as producer:
            producer.begin_transaction()
            kept = producer.send("events", b"x")
            producer.send("gone", b"y")
            log.delete_topic("gone")
            with pytest.raises(UnknownTopicError):
                producer.commit_transaction()
            assert isinstance(kept.exception(), TransactionAbortedError)
            assert sees_nothing(log)
            with producer.transaction():
                producer.send("events", b"z")
        assert stored(log) == [b"z"]
