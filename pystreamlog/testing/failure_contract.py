"""The contract of a producer's failures, threads, event loops and end: nothing is lost unseen, and nothing blocks."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable
from typing import Any

import pytest

from pystreamlog import Delivery, Producer, RecordMetadata, StreamLog
from pystreamlog.errors import ClosedError, UnknownTopicError
from pystreamlog.testing.contract import PATIENCE, Contract, buffered, in_thread, values

__all__ = ["FailureContract"]

LONG = 600_000
"""A linger, in ms, that ends in no test."""


def doomed(log: StreamLog, producer: Producer[bytes, bytes], count: int = 1) -> list[Delivery]:
    """Deliveries that fail as soon as they are written: their topic is deleted while they are buffered."""
    log.create_topic("doomed")
    deliveries = [buffered(producer, "doomed"), *(producer.send("doomed", b"lost") for _ in range(count - 1))]
    assert not any(delivery.done() for delivery in deliveries)
    log.delete_topic("doomed")
    return deliveries


class FailureContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- failures

    def test_failed_delivery_raises(self, log: StreamLog) -> None:
        """`result` raises, `exception` returns, a callback is told; that is looking at it, so `flush` is silent."""
        with log.producer(linger_ms=LONG) as producer:
            first, second, third = doomed(log, producer, 3)
            called: list[Delivery] = []
            third.add_done_callback(called.append)
            with pytest.raises(UnknownTopicError) as caught:
                first.result(PATIENCE)
            assert caught.value.topic == "doomed"
            assert isinstance(second.exception(PATIENCE), UnknownTopicError)
            assert called == [third]
            assert first.done()
            with pytest.raises(UnknownTopicError):
                first.result(0)
            producer.flush()

    def test_failure_that_nobody_looked_at_raises_at_flush(self, log: StreamLog) -> None:
        """As one group, once; it says how many records were lost."""
        with log.producer(linger_ms=LONG) as producer:
            doomed(log, producer, 3)[0].exception(PATIENCE)
            with pytest.raises(ExceptionGroup) as caught:
                producer.flush()
            (error,) = caught.value.exceptions
            assert isinstance(error, UnknownTopicError)
            assert "2 records" in "".join(error.__notes__)
            producer.flush()

    def test_failure_that_nobody_looked_at_raises_at_close(self, log: StreamLog) -> None:
        """Also at the end of the `with` block; the producer is closed all the same."""
        producer = log.producer(linger_ms=LONG)
        doomed(log, producer)
        with pytest.raises(ExceptionGroup), producer:
            pass
        with pytest.raises(ClosedError):
            producer.send("events", b"x")
        producer.close()

    def test_failure_raises_at_the_close_of_the_log(self) -> None:
        """Which is closed all the same."""
        log = self.open_log()
        doomed(log, log.producer(linger_ms=LONG))
        with pytest.raises(ExceptionGroup):
            log.close()
        with pytest.raises(ClosedError):
            log.topics()
        log.close()

    def test_all_of_a_column_fails_as_a_group(self, log: StreamLog) -> None:
        """Each error says which records it is about."""
        log.create_topic("doomed", partitions=3)
        with log.producer(linger_ms=LONG) as producer:
            for _ in range(3):  # what comes alone is written at once
                deliveries = producer.send_many("doomed", [b"x"] * 20, [b"%d" % number for number in range(20)])
            if not deliveries.done():
                log.delete_topic("doomed")
                with pytest.raises(ExceptionGroup) as caught:
                    deliveries.result(PATIENCE)
                assert all(isinstance(error, UnknownTopicError) for error in caught.value.exceptions)
                assert sorted(i for error in caught.value.exceptions for i in vars(error)["indices"]) == list(range(20))
            with contextlib.suppress(ExceptionGroup):
                producer.flush()

    def test_on_error_is_called(self, log: StreamLog) -> None:
        """With each batch's error, though somebody looks at it later."""
        errors: list[BaseException] = []
        with log.producer(linger_ms=LONG, on_error=errors.append) as producer:
            doomed(log, producer, 2)[0].exception(PATIENCE)
            assert [type(error) for error in errors] == [UnknownTopicError]
            with contextlib.suppress(ExceptionGroup):
                producer.flush()

    def test_on_error_that_raises_is_logged(self, log: StreamLog, caplog: pytest.LogCaptureFixture) -> None:
        """The producer goes on."""

        def broken(_: BaseException) -> None:
            raise ValueError("on_error is broken")

        topic = log.create_topic("events")
        with caplog.at_level(logging.ERROR, "pystreamlog"), log.producer(linger_ms=LONG, on_error=broken) as producer:
            doomed(log, producer)[0].exception(PATIENCE)
            assert producer.send("events", b"x").result(PATIENCE).offset == 0
        assert "on_error is broken" in caplog.text
        assert topic.end_offsets() == {0: 1}

    def test_interceptors_are_told_of_failures(self, log: StreamLog) -> None:
        """Once per record, with the error instead of the metadata."""
        told = []

        class Noted:
            def on_acknowledgement(self, metadata: RecordMetadata | None, error: BaseException | None) -> None:
                if error is not None:
                    told.append((metadata, type(error)))

        with log.producer(linger_ms=LONG, interceptors=[Noted()]) as producer:
            for delivery in doomed(log, producer, 3):
                delivery.exception(PATIENCE)
        assert told == [(None, UnknownTopicError)] * 3

    def test_topic_made_again_takes_records(self, log: StreamLog) -> None:
        """Records for the deleted one fail, those sent afterwards are written."""
        with log.producer(linger_ms=LONG) as producer:
            (lost,) = doomed(log, producer)
            topic = log.create_topic("doomed")
            assert isinstance(lost.exception(PATIENCE), UnknownTopicError)
            assert producer.send("doomed", b"new").result(PATIENCE).offset == 0
        assert values(topic.read()) == [b"new"]

    # --- threads

    @pytest.mark.parametrize("config", [{}, {"linger_ms": 0}, {"batch_size": 300}, {"durability": "fsync"}], ids=str)
    def test_threads_share_a_producer(self, log: StreamLog, config: dict[str, Any]) -> None:
        """Nothing is lost or doubled, each delivery tells the truth, and each thread's order is kept."""
        log.create_topic("events", partitions=3)
        count = 50 if config.get("durability") else 300
        found: dict[tuple[int, int], bytes] = {}
        start = threading.Barrier(4)

        def send(number: int) -> None:
            start.wait(PATIENCE)
            payloads = [b"%d %d" % (number, index) for index in range(count)]
            deliveries = [producer.send("events", payload, b"%d" % number) for payload in payloads]
            for payload, delivery in zip(payloads, deliveries, strict=True):
                metadata = delivery.result(PATIENCE)
                assert found.setdefault((metadata.partition, metadata.offset), payload) is payload

        with log.producer(**config) as producer:
            threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert not any(thread.is_alive() for thread in threads)
        records = list(log.topic("events").read())
        assert {(record.partition, record.offset): record.value for record in records} == found
        for number in range(4):
            mine = [record.value for record in records if record.key == b"%d" % number]
            assert mine == [b"%d %d" % (number, index) for index in range(count)]

    def test_producer_is_closed_while_others_send(self, log: StreamLog) -> None:
        """What `send` accepted is written; what it refused is not."""
        log.create_topic("events")
        producer = log.producer()
        accepted: list[list[bytes]] = [[], [], []]
        sending = threading.Barrier(4)

        def send(number: int) -> None:
            for index in range(10_000_000):
                if index == 100:
                    sending.wait(PATIENCE)
                try:
                    producer.send("events", b"%d %d" % (number, index))
                except ClosedError:
                    return
                accepted[number].append(b"%d %d" % (number, index))

        threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        sending.wait(PATIENCE)
        producer.close()
        for thread in threads:
            thread.join(PATIENCE)
        written = values(log.topic("events").read())
        for number in range(3):
            assert [value for value in written if value and value.startswith(b"%d " % number)] == accepted[number]

    def test_two_threads_close(self, log: StreamLog) -> None:
        """Both return when everything is written."""
        topic = log.create_topic("events")
        producer = log.producer(linger_ms=LONG)
        for _ in range(10):
            producer.send("events", b"x")
        other = threading.Thread(target=producer.close)
        other.start()
        producer.close()
        other.join(PATIENCE)
        assert topic.end_offsets() == {0: 10}

    # --- event loops

    @pytest.mark.parametrize("durability", ["os", "fsync"])
    def test_deliveries_are_awaited(self, log: StreamLog, durability: Any) -> None:
        """One record, and a column; again when they are done."""
        log.create_topic("events")

        async def main() -> None:
            async with log.producer(linger_ms=LONG, durability=durability) as producer:
                delivery = producer.send("events", b"0")
                assert (await delivery).offset == 0
                assert (await delivery).offset == 0
                metadata = await producer.send_many("events", [b"1", b"2"])
                assert list(metadata.offsets) == [1, 2]
                assert [(await d).offset for d in [producer.send("events", b"x") for _ in range(20)]] == list(
                    range(3, 23)
                )

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    @pytest.mark.parametrize("durability", ["os", "fsync"])
    def test_awaited_record_does_not_linger(self, log: StreamLog, durability: Any) -> None:
        """Though it gathers in a batch behind one that is written at once."""
        log.create_topic("events")

        async def main() -> None:
            async with log.producer(linger_ms=LONG, durability=durability) as producer:
                for _ in range(30):
                    producer.send("events", b"alone")
                    await producer.send("events", b"behind it")
                    producer.send("events", b"alone")
                    await producer.send_many("events", [b"behind", b"it"])

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_awaited_failure_raises(self, log: StreamLog) -> None:
        """As `result` does; that is looking at it."""

        async def main() -> None:
            async with log.producer(linger_ms=LONG) as producer:
                # Not on the loop, where the background thread may write before the topic is deleted.
                (delivery,) = await asyncio.to_thread(doomed, log, producer)
                with pytest.raises(UnknownTopicError):
                    await delivery

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_concurrent_awaits_share_batches(self, log: StreamLog) -> None:
        """Awaiting writes at the end of the loop's turn."""
        log.create_topic("events")

        async def one(producer: Producer[bytes, bytes]) -> int:
            return (await producer.send("events", b"x")).offset

        async def main() -> None:
            async with log.producer(linger_ms=LONG) as producer:
                offsets = await asyncio.gather(*(one(producer) for _ in range(200)))
                assert sorted(offsets) == list(range(200))
                assert producer.metrics()["request-total"] < 100

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_cancelled_await_cancels_nothing(self, log: StreamLog) -> None:
        """The record is written, and the delivery can be awaited again."""
        topic = log.create_topic("events")

        async def result(awaitable: Awaitable[Any]) -> Any:
            return await awaitable

        async def main() -> None:
            async with log.producer(linger_ms=LONG, durability="fsync") as producer:
                for sent in (producer.send("events", b"x"), producer.send_many("events", [b"y", b"z"])):
                    task = asyncio.create_task(result(sent))
                    await asyncio.sleep(0)
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                    await sent
            assert topic.end_offsets() == {0: 3}

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_awaitable_twins(self, log: StreamLog) -> None:
        """`flush_async`, `drain` and `close_async` do what their names say."""
        topic = log.create_topic("events")

        async def main() -> None:
            producer = log.producer(linger_ms=LONG, buffer_memory=10_000)
            for _ in range(50):
                producer.send("events", b"x" * 100)
                await producer.drain()
            await producer.flush_async()
            assert topic.end_offsets() == {0: 50}
            producer.send("events", b"y")
            await producer.close_async()
            assert topic.end_offsets() == {0: 51}
            await producer.close_async()

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_awaits_in_several_loops(self, log: StreamLog) -> None:
        """One producer serves the loops of several threads."""
        log.create_topic("events")

        async def main() -> int:
            found = [await producer.send("events", b"x") for _ in range(20)]
            return len({metadata.offset for metadata in found})

        with log.producer() as producer:
            threads = [threading.Thread(target=lambda: done.append(asyncio.run(main()))) for _ in range(3)]
            done: list[int] = []
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
        assert done == [20, 20, 20]
        assert log.topic("events").end_offsets() == {0: 60}

    # --- the end

    def test_close_is_idempotent(self, log: StreamLog) -> None:
        """And what was acknowledged can still be asked for."""
        log.create_topic("events")
        producer = log.producer()
        delivery = producer.send("events", b"x")
        producer.close()
        producer.close()
        assert delivery.result().offset == 0

    def test_closed_producer_is_closed(self, log: StreamLog) -> None:
        """Everything raises `ClosedError`."""
        log.create_topic("events")
        producer = log.producer()
        producer.send("events", b"x").result()
        producer.close()
        for call in (
            lambda: producer.send("events", b"x"),
            lambda: producer.send("unknown", b"x"),
            lambda: producer.send_many("events", [b"x"]),
            producer.flush,
            lambda: producer.__enter__().flush(),
            lambda: asyncio.run(producer.flush_async()),
        ):
            with pytest.raises(ClosedError):
                call()
        assert log.topic("events").end_offsets() == {0: 1}

    def test_closing_the_log_flushes(self) -> None:
        """Producers that nobody closed write what they have."""
        log = self.open_log()
        log.create_topic("events")
        producer = log.producer(linger_ms=LONG)
        delivery = buffered(producer)
        log.close()
        assert delivery.done()
        assert delivery.exception() is None
        with pytest.raises(ClosedError):
            producer.send("events", b"x")

    def test_metrics_count(self, log: StreamLog) -> None:
        """Records that were acknowledged and that failed, of one producer and of all."""
        log.create_topic("events")
        with log.producer(linger_ms=LONG) as producer, log.producer() as other:
            producer.send_many("events", [b"x"] * 10).result()
            for delivery in doomed(log, producer, 2):
                delivery.exception(PATIENCE)
            other.send("events", b"y").result()
            metrics = in_thread(producer.metrics)
            assert metrics["record-send-total"] >= 10
            assert metrics["record-error-total"] == 2
            assert log.metrics()["record-send-total"] == metrics["record-send-total"] + 1
