"""What is measured when processes fork, threads come together, and nothing may be waited for."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import pytest

from pystreamlog import TopicPartition

PATIENCE = 20.0


def in_child(check):
    """Run `check` in a forked child; its failures are this process's."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            check()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_forked_child_begins_anew(log):
    """The parent's clients and counts are not the child's; nor the other way round."""
    log.create_topic("events")
    producer = log.producer()
    producer.send_many("events", [b"x"] * 5).result()

    def check():
        assert log.metrics() == {}
        assert log.collect_metrics(logs=False, groups=False) == []
        with log.producer() as own:
            assert own.client_id == "producer-1"
            own.send("events", b"x").result()
            assert log.metrics()["record-send-total"] == 1

    in_child(check)
    assert log.metrics()["record-send-total"] == 5
    assert log.metrics("partition")[TopicPartition("events", 0)]["LogEndOffset"] == 6
    producer.close()


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_every_way_to_send_counts_the_same_bytes(log, durability):
    """A lone record, gathered ones, columns, and a transaction: as they lie in the log."""
    topic = log.create_topic("events")
    with log.producer(durability=durability) as producer:
        producer.send("events", b"lone").result()
        for _ in range(20):
            producer.send("events", b"gathered", key=b"key")
        producer.send_many("events", [b"x" * 200] * 1000)
        producer.send_many("events", [b"small"] * 3)
        with producer.transaction():
            producer.send("events", b"in a transaction")
        producer.flush()
        metrics = producer.metrics()
    read = log.consumer("events", auto_offset_reset="earliest", max_poll_records=5000)
    count = 0
    while count < metrics["record-send-total"]:
        count += len(read.poll(PATIENCE))
    assert count == topic.end_offsets()[0] == 1025
    assert read.metrics()["bytes-consumed-total"] == metrics["byte-total"]


def test_spilled_transaction_counts_its_bytes(log):
    """As those that stayed in memory."""
    log.create_topic("events")
    with log.producer(transaction_buffer_bytes=1, batch_size=1000) as producer:
        with producer.transaction():
            for _ in range(100):
                producer.send("events", b"x" * 100)
        metrics = producer.metrics()
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            count = 0
            while count < 100:
                count += len(consumer.poll(PATIENCE))
            assert consumer.metrics()["bytes-consumed-total"] == metrics["byte-total"]


def test_records_that_a_recovery_or_retry_had_written_count_as_sent(log):
    """A sequence that was sent before is acknowledged again."""
    log.create_topic("events")
    for _ in range(2):
        with log.producer(producer_id="p") as producer:
            producer.send_many("events", [b"x"] * 3, sequences=range(3)).result()
            assert producer.metrics()["record-send-total"] == 3


def test_clients_that_nobody_closed_are_counted(log):
    """As soon as the garbage collector found them; their ids are free again."""
    log.create_topic("events")
    consumer = log.consumer("events", auto_offset_reset="earliest", client_id="mine")
    log.topic("events").append(b"x")
    assert len(consumer.poll(PATIENCE)) == 1
    del consumer
    gc.collect()
    assert log.metrics()["records-consumed-total"] == 1
    with log.consumer(client_id="mine") as other:
        assert other.client_id == "mine"


def test_lag_of_a_partition_that_is_being_read_is_what_was_seen_last(log):
    """A reader in the middle of something is not waited for."""
    log.create_topic("events").append(b"x")
    with log.consumer("events", auto_offset_reset="earliest") as consumer:
        consumer.seek_to_beginning()
        assert consumer.metrics()["records-lag-max"] == 1
        position = consumer._assignment.positions[TopicPartition("events", 0)]
        log.topic("events").append(b"y")
        with position.reader._mutex:
            assert consumer.metrics()["records-lag-max"] == 1
        assert consumer.metrics()["records-lag-max"] == 2


def test_metrics_of_an_async_consumer(log):
    """`poll_async` counts as `poll` does."""
    log.create_topic("events").append(b"x")

    async def main():
        async with log.consumer("events", auto_offset_reset="earliest") as consumer:
            assert len(await consumer.poll_async(PATIENCE)) == 1
            return consumer.metrics()

    metrics = asyncio.run(main())
    assert (metrics["poll-total"], metrics["records-consumed-total"]) == (1, 1)


def test_fenced_consumer_counts_a_failed_rebalance(log):
    """It is a member again afterwards: a second rebalance."""
    log.create_topic("events").append(b"x")
    options = {"group_id": "g", "auto_offset_reset": "earliest", "enable_auto_commit": False}
    with log.consumer("events", **options) as consumer:
        assert len(consumer.poll(PATIENCE)) == 1
        log.admin.remove_members_from_consumer_group("g")
        assert len(consumer.poll(PATIENCE)) == 1
        metrics = consumer.metrics()
        assert (metrics["rebalance-total"], metrics["failed-rebalance-total"]) == (2, 1)


def test_full_buffer_shows_who_waits(log):
    """A thread that waits in `send`, and then how long it did."""
    from tests.embedded.conftest import held_lock  # noqa: PLC0415

    log.create_topic("events").append(b"x")
    with log.producer(buffer_memory=1, linger_ms=0) as producer, held_lock(log.path):
        thread = threading.Thread(target=producer.send, args=("events", b"y"))
        thread.start()
        while not producer.metrics()["waiting-threads"]:
            assert thread.is_alive()
        assert producer.metrics()["buffer-available-bytes"] == 0
    thread.join(PATIENCE)
    assert producer.metrics()["waiting-threads"] == 0
    assert producer.metrics()["bufferpool-wait-time-ns-total"] > 0
