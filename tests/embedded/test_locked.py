"""Sending while another process holds a partition's lock: bounded waits that name it, and nothing lost."""

from __future__ import annotations

import asyncio
import signal
import threading
from time import monotonic

import pytest

from pystreamlog.errors import DeliveryTimeoutError, LockTimeoutError

from .conftest import PATIENCE, held_lock

LONG = 600_000


@pytest.fixture
def topic(log):
    """A topic of two partitions that have been written."""
    topic = log.create_topic("events", partitions=2)
    for partition in range(2):
        topic.append(b"first", partition=partition)
    return topic


def stored(topic, partition=0):
    """The payloads of a partition."""
    return [record.value for record in topic.read(partition=partition)]


def send_until_full(send):
    """Send until the buffer is full; how often that went well, and the error."""
    for count in range(1000):
        try:
            send()
        except LockTimeoutError as error:
            return count, error
    pytest.fail("the buffer is never full")


def test_send_does_not_wait_for_the_lock(log, topic, path):
    """It buffers; what was sent is written when the lock is free, in order."""
    with log.producer() as producer:
        with held_lock(path):
            start = monotonic()
            deliveries = [producer.send("events", b"%d" % number, partition=0) for number in range(100)]
            assert monotonic() - start < PATIENCE / 4
            assert not deliveries[0].done()
        assert deliveries[-1].result(PATIENCE).offset == 100
    assert stored(topic) == [b"first", *(b"%d" % number for number in range(100))]


def test_other_partitions_are_written_meanwhile(log, topic, path):
    """A taken lock holds up its partition only."""
    with log.producer() as producer:
        with held_lock(path):
            late = producer.send("events", b"late", partition=0)
            for number in range(20):
                assert producer.send("events", b"x", partition=1).result(PATIENCE).offset == number + 1
            assert not late.done()
        assert late.result(PATIENCE).offset == 1


def test_full_buffer_blocks_and_then_names_the_holder(log, topic, path):
    """`max_block_ms` bounds the wait; what was accepted is written later."""
    with log.producer(buffer_memory=1000, max_block_ms=100, batch_size=100) as producer:
        with held_lock(path) as holder:
            start = monotonic()
            accepted, error = send_until_full(lambda: producer.send("events", b"x" * 50, partition=0))
            assert monotonic() - start >= 0.1
            assert f"pid {holder.pid}" in str(error)
            assert str(holder.pid) in error.holder
            assert isinstance(error, TimeoutError)
        producer.flush()
    assert len(stored(topic)) - 1 in (accepted, accepted + 1)
    assert accepted >= 15


def test_full_buffer_of_columns_blocks(log, topic, path):
    """`send_many` likewise; all of its records are accepted, or none."""
    with log.producer(buffer_memory=1000, max_block_ms=50) as producer:
        with held_lock(path):
            accepted, _ = send_until_full(lambda: producer.send_many("events", [b"x" * 50] * 10, partition=0))
        producer.flush()
    assert len(stored(topic)) - 1 in (10 * accepted, 10 * accepted + 10)


def test_full_buffer_blocks_though_another_thread_waits(log, topic, path):
    """Whoever waits for a result keeps nobody from his time-out."""
    with log.producer(buffer_memory=1000, max_block_ms=100, batch_size=100, linger_ms=LONG) as producer:
        with held_lock(path):
            delivery = producer.send("events", b"x" * 200, partition=0)
            waiter = threading.Thread(target=delivery.exception, args=(PATIENCE,))
            waiter.start()
            start = monotonic()
            send_until_full(lambda: producer.send("events", b"x" * 200, partition=0))
            assert monotonic() - start < PATIENCE / 2
        waiter.join(PATIENCE)
        assert not waiter.is_alive()
        producer.flush()


def test_delivery_times_out(log, topic, path):
    """After `delivery_timeout_ms`, with an error that names the holder; the record is never written."""
    with log.producer(delivery_timeout_ms=150) as producer:
        with held_lock(path) as holder:
            delivery = producer.send("events", b"lost", partition=0)
            start = monotonic()
            with pytest.raises(DeliveryTimeoutError, match=f"pid {holder.pid}") as caught:
                delivery.result()
            assert monotonic() - start < PATIENCE / 2
            assert isinstance(caught.value, TimeoutError)
        producer.flush()
    assert stored(topic) == [b"first"]


def test_delivery_times_out_by_itself(log, topic, path):
    """Though nobody waits for it, and before a waiter's own time-out."""
    failed = threading.Event()
    with log.producer(delivery_timeout_ms=100) as producer, held_lock(path):
        producer.send("events", b"lost", partition=0).add_done_callback(lambda _: failed.set())
        assert failed.wait(PATIENCE)
        delivery = producer.send("events", b"lost", partition=0)
        start = monotonic()
        assert isinstance(delivery.exception(PATIENCE), DeliveryTimeoutError)
        assert monotonic() - start < PATIENCE / 2


def test_result_times_out_before_the_delivery(log, topic, path):
    """The record stays buffered and is written later."""
    with log.producer() as producer:
        with held_lock(path) as holder:
            delivery = producer.send("events", b"late", partition=0)
            many = producer.send_many("events", [b"a", b"b"], partition=0)
            for call in (delivery.result, delivery.exception, many.result, producer.flush):
                start = monotonic()
                with pytest.raises(DeliveryTimeoutError, match=f"pid {holder.pid}"):
                    call(0.15)
                assert monotonic() - start < PATIENCE / 2
            assert not delivery.done()
        assert delivery.result(PATIENCE).offset == 1
        assert list(many.result(PATIENCE).offsets) == [2, 3]


def test_holder_that_is_stopped_is_named_so(log, topic, path):
    """A writer stopped with SIGSTOP inside the lock is waited for, and then said to be stopped."""
    with log.producer() as producer:
        with held_lock(path) as holder:
            holder.send_signal(signal.SIGSTOP)
            delivery = producer.send("events", b"late", partition=0)
            with pytest.raises(DeliveryTimeoutError, match="stopped"):
                delivery.result(0.15)
        assert delivery.result(PATIENCE).offset == 1


def test_holder_that_is_killed_frees_the_lock(log, topic, path):
    """At once: nobody waits for a dead process."""
    with log.producer() as producer, held_lock(path) as holder:
        delivery = producer.send("events", b"late", partition=0)
        holder.kill()
        assert delivery.result(PATIENCE).offset == 1


def test_readers_do_not_wait_for_the_lock(log, topic, path):
    """Reading goes on whoever holds it."""
    with log.consumer("events", auto_offset_reset="earliest") as consumer, held_lock(path):
        assert len(consumer.poll(PATIENCE)) == 2
        assert topic.end_offsets() == {0: 1, 1: 1}
        assert stored(topic) == [b"first"]


def test_event_loop_is_not_blocked(log, topic, path):
    """Neither by `send` nor by an await: other tasks go on, and `drain` waits."""

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        producer = log.producer(buffer_memory=2000, batch_size=100)
        with held_lock(path):
            start = monotonic()
            deliveries = [producer.send("events", b"x" * 60, partition=0) for _ in range(20)]
            assert monotonic() - start < PATIENCE / 10
            waiting = asyncio.gather(*(wait(delivery) for delivery in deliveries))
            draining = asyncio.create_task(producer.drain())
            await asyncio.sleep(0.2)
            assert not waiting.done()
            assert not draining.done()
            assert ticks >= 10
        assert await asyncio.wait_for(waiting, PATIENCE) == list(range(1, 21))
        await asyncio.wait_for(draining, PATIENCE)
        ticking.cancel()
        await producer.close_async()

    async def wait(delivery):
        return (await delivery).offset

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
