"""The contract of the calls about transactions: Kafka's five, fencing, threads, and event loops."""
# ruff: noqa: ARG001, PLR2004, PT012 - partitioners have the arguments they are called with, numbers are examples, and
# what raises is a block

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from pystreamlog import Producer, StreamLog
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    FencedError,
    IllegalStateError,
    TransactionAbortedError,
)
from pystreamlog.testing.contract import PATIENCE, Contract, values
from pystreamlog.testing.transaction_contract import sees_nothing, send_some, stored

__all__ = ["TransactionCallContract"]

Plain = Producer[bytes, bytes]


class BrokenError(Exception):
    """What the application raises."""


class TransactionCallContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- Kafka's five calls

    def test_five_calls(self, log: StreamLog) -> None:
        """As in Kafka."""
        log.create_topic("events")
        with log.producer(transactional_id="t") as producer:
            producer.init_transactions()
            for number in range(6):
                producer.begin_transaction()
                producer.send("events", b"%d" % number)
                if number % 2:
                    producer.abort_transaction()
                else:
                    producer.commit_transaction()
        assert stored(log) == [b"0", b"2", b"4"]

    def test_calls_in_the_wrong_order(self, log: StreamLog) -> None:
        """Are refused by name, and harm nothing."""
        log.create_topic("events")
        with log.producer(transactional_id="t") as producer, log.producer() as plain:
            with pytest.raises(ConfigError):
                plain.init_transactions()
            for one in (producer, plain):
                with pytest.raises(IllegalStateError):
                    one.commit_transaction()
                with pytest.raises(IllegalStateError):
                    one.abort_transaction()
            with pytest.raises(IllegalStateError):
                producer.send("events", b"x")
            with pytest.raises(IllegalStateError):
                producer.send_many("events", [b"x"])
            producer.begin_transaction()
            producer.send("events", b"1")
            with pytest.raises(IllegalStateError):
                producer.begin_transaction()
            with pytest.raises(IllegalStateError):
                producer.init_transactions()
            with pytest.raises(IllegalStateError), producer.transaction():
                pass
            producer.commit_transaction()
            with pytest.raises(IllegalStateError):
                producer.send("events", b"x")
        assert stored(log) == [b"1"]

    def test_calls_after_close(self, log: StreamLog) -> None:
        """Raise `ClosedError`."""
        log.create_topic("events")
        producer = log.producer(transactional_id="t")
        with producer.transaction():
            producer.send("events", b"1")
        producer.close()
        calls: tuple[Callable[[], object], ...] = (
            producer.init_transactions,
            producer.begin_transaction,
            producer.commit_transaction,
            producer.abort_transaction,
        )
        for call in calls:
            with pytest.raises(ClosedError):
                call()
        with pytest.raises(ClosedError), producer.transaction():
            pass
        with pytest.raises(ClosedError):
            producer.send("events", b"x")

    def test_transactional_ids_are_texts(self, log: StreamLog) -> None:
        """Of any letters; what is none is refused."""
        log.create_topic("events")
        for text in ("a/b", "..", "ü☃", "x" * 1000, " ", "A", "a"):
            with log.producer(transactional_id=text) as producer, producer.transaction():
                producer.send("events", text.encode())
        assert len(stored(log)) == 7
        for wrong in ("", 7, b"x", "x" * 40_000, "\ud800"):
            with pytest.raises(ConfigError):
                log.producer(transactional_id=wrong)  # type: ignore[arg-type]

    # --- fencing

    def test_newer_producer_fences_the_older_one(self, log: StreamLog) -> None:
        """The zombie's next call raises, and nothing of its transaction is ever visible; others are not touched."""
        log.create_topic("events")
        with log.producer(transactional_id="t") as old, log.producer(transactional_id="u") as other:
            old.begin_transaction()
            other.begin_transaction()
            delivery = old.send("events", b"old")
            with log.producer(transactional_id="t") as new:
                new.init_transactions()
                with pytest.raises(FencedError):
                    old.commit_transaction()
                assert isinstance(delivery.exception(), TransactionAbortedError)
                with new.transaction():
                    new.send("events", b"new")
                with pytest.raises(FencedError):
                    old.begin_transaction()
                with pytest.raises(FencedError), old.transaction():
                    pass
                other.send("events", b"other")
                other.commit_transaction()
        assert stored(log) == [b"new", b"other"]

    def test_empty_commit_of_a_fenced_producer_is_refused(self, log: StreamLog) -> None:
        """Though there is nothing to write."""
        log.create_topic("events")
        with log.producer(transactional_id="t") as old, log.producer(transactional_id="t") as new:
            old.begin_transaction()
            new.init_transactions()
            with pytest.raises(FencedError):
                old.commit_transaction()

    def test_first_transaction_takes_the_id(self, log: StreamLog) -> None:
        """`init_transactions` is implied; a producer that was only made fences nobody."""
        log.create_topic("events")
        with log.producer(transactional_id="t") as first, log.producer(transactional_id="t") as second:
            with first.transaction():
                first.send("events", b"1")
            with second.transaction():
                second.send("events", b"2")
            with pytest.raises(FencedError):
                first.begin_transaction()
            with pytest.raises(FencedError):
                first.init_transactions()  # as in Kafka, who was fenced does not fence back
            with second.transaction():
                second.send("events", b"3")
        assert stored(log) == [b"1", b"2", b"3"]

    # --- threads

    def test_threads_send_into_one_transaction(self, log: StreamLog) -> None:
        """All that they sent before the commit is in it."""
        log.create_topic("events", partitions=2)
        with log.producer(batch_size=200) as producer, producer.transaction():
            threads = [
                threading.Thread(target=send_some, args=(producer, 200), kwargs={"partitions": 2, "mark": f"{number}-"})
                for number in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert sees_nothing(log, 2)
        assert sorted(stored(log)) == sorted(b"%d-%d" % (n, number) for n in range(4) for number in range(200))

    def test_threads_commit_side_by_side(self, log: StreamLog) -> None:
        """Each with a producer of its own, over the same partitions: none waits for ever, each is whole."""
        log.create_topic("events", partitions=4)

        def work(name: int) -> None:
            with log.producer(transactional_id=f"t{name}") as producer:
                for number in range(20):
                    with producer.transaction():
                        for partition in range(4) if name % 2 else reversed(range(4)):
                            producer.send("events", b"%d-%d" % (name, number), partition=partition)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        topic = log.topic("events")
        by_partition = [values(topic.read(partition=partition)) for partition in range(4)]
        assert len(by_partition[0]) == 80
        assert by_partition.count(by_partition[0]) == 4  # the order of commits is one

    def test_ended_transaction_refuses_what_comes_late(self, log: StreamLog) -> None:
        """A send of another thread that began before the end goes nowhere."""
        log.create_topic("events", partitions=2)
        reached, ended = threading.Event(), threading.Event()

        def place(topic: str, key: bytes | None, value: bytes | None, partitions: int) -> int:
            if value == b"late":
                reached.set()
                ended.wait(PATIENCE)
            return 0

        for commits in (True, False):
            reached.clear()
            ended.clear()
            with log.producer(partitioner=place, linger_ms=0) as producer:
                producer.begin_transaction()
                producer.send("events", b"inside", partition=1)
                outcomes: list[BaseException | None] = []

                def send_late(producer: Plain = producer, outcomes: list[BaseException | None] = outcomes) -> None:
                    try:
                        producer.send("events", b"late")
                        outcomes.append(None)
                    except IllegalStateError as error:
                        outcomes.append(error)

                thread = threading.Thread(target=send_late)
                thread.start()
                assert reached.wait(PATIENCE)
                if commits:
                    producer.commit_transaction()
                else:
                    producer.abort_transaction()
                ended.set()
                thread.join(PATIENCE)
                assert isinstance(outcomes[0], IllegalStateError)
        assert stored(log) == [b"inside"]

    # --- asyncio

    def test_async_with(self, log: StreamLog) -> None:
        """Commits, and aborts; deliveries can be awaited afterwards."""
        log.create_topic("events")

        async def work() -> None:
            async with log.producer() as producer:
                async with producer.transaction():
                    delivery = producer.send("events", b"1")
                    await producer.drain()
                    assert sees_nothing(log)
                assert (await delivery).offset == 0
                with pytest.raises(BrokenError):
                    async with producer.transaction():
                        delivery = producer.send("events", b"2")
                        raise BrokenError
                with pytest.raises(TransactionAbortedError):
                    await delivery

        asyncio.run(work())
        assert stored(log) == [b"1"]

    def test_async_twins(self, log: StreamLog) -> None:
        """Of the calls that may wait."""
        log.create_topic("events")

        async def work() -> None:
            async with log.producer(transactional_id="t") as producer:
                await producer.init_transactions_async()
                producer.begin_transaction()
                producer.send("events", b"1")
                await producer.commit_transaction_async()

        asyncio.run(work())
        assert stored(log) == [b"1"]

    def test_drain_writes_nothing_of_a_transaction(self, log: StreamLog) -> None:
        """However full the buffer is: what is sent waits for the commit."""
        log.create_topic("events")

        async def work() -> None:
            async with log.producer(buffer_memory=1000, batch_size=100) as producer:
                with pytest.raises(BrokenError):
                    async with producer.transaction():
                        for _ in range(100):
                            producer.send("events", b"x" * 99)
                            await asyncio.wait_for(producer.drain(), PATIENCE)
                        assert sees_nothing(log)
                        raise BrokenError

        asyncio.run(work())
        assert sees_nothing(log)

    def test_cancelled_block_aborts(self, log: StreamLog) -> None:
        """As any exception does."""
        log.create_topic("events")

        async def work() -> None:
            async with log.producer() as producer:

                async def inside() -> None:
                    async with producer.transaction():
                        producer.send("events", b"x")
                        await asyncio.sleep(PATIENCE)

                task = asyncio.create_task(inside())
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                async with producer.transaction():
                    producer.send("events", b"y")

        asyncio.run(work())
        assert stored(log) == [b"y"]

    def test_cancelled_commit_is_over_when_it_returns(self, log: StreamLog) -> None:
        """It may have counted or not; either way nothing is half, and the producer is ready for the next one."""
        log.create_topic("events", partitions=2)

        async def work() -> None:
            async with log.producer() as producer:
                for turns in range(1, 10):
                    producer.begin_transaction()
                    delivery, _ = send_some(producer, 2, partitions=2)
                    task = asyncio.create_task(producer.commit_transaction_async())
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    assert delivery.done()

        asyncio.run(work())
        assert stored(log) == [b"0"] * 9 + [b"1"] * 9
