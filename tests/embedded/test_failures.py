"""Failures put in from inside: some batches of a call fail, writers that are slow to settle, wrong clocks."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pystreamlog.coordination.partition_sync import PartitionSync
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.errors import StorageError, UnknownTopicError

from .conftest import PATIENCE


@pytest.fixture
def broken(monkeypatch):
    """A set of partitions that refuse to be written."""
    partitions = set()
    append = PartitionWriter.append

    def refuse(self, batch, timeout):
        if self.folder.partition in partitions:
            raise StorageError("the disk is full", path=self.folder.path, errno=28)
        return append(self, batch, timeout)

    monkeypatch.setattr(PartitionWriter, "append", refuse)
    return partitions


@pytest.mark.parametrize("way", ["result", "await"])
def test_part_of_a_column_fails(log, broken, way):
    """The group holds an error per failed batch, with the records it is about; the others are written."""
    log.create_topic("events", partitions=4)
    broken |= {1, 3}
    keys = [b"%d" % number for number in range(200)]
    with log.producer() as producer:
        deliveries = producer.send_many("events", [b"x"] * 200, keys)

        async def awaited():
            return await deliveries

        with pytest.raises(ExceptionGroup) as caught:
            deliveries.result(PATIENCE) if way == "result" else asyncio.run(awaited())
        producer.flush()
    lost = {index for error in caught.value.exceptions for index in error.indices}
    assert all(isinstance(error, StorageError) and error.errno == 28 for error in caught.value.exceptions)
    records = list(log.topic("events").read())
    assert {record.partition for record in records} == {0, 2}
    assert {record.key for record in records} == {key for index, key in enumerate(keys) if index not in lost}
    assert len(records) + len(lost) == 200


def test_unseen_failures_of_several_partitions_are_one_group(log, broken):
    """`flush` raises them all; afterwards the producer goes on, and so do the partitions."""
    topic = log.create_topic("events", partitions=3)
    broken |= {0, 1}
    with log.producer() as producer:
        for partition in range(3):
            producer.send("events", b"x", partition=partition)
        with pytest.raises(ExceptionGroup) as caught:
            producer.flush()
        assert len(caught.value.exceptions) == 2
        broken.clear()
        for partition in range(3):
            assert producer.send("events", b"y", partition=partition).result(PATIENCE).offset == partition // 2
    assert topic.end_offsets() == {0: 1, 1: 1, 2: 2}


def test_later_batches_are_written_after_one_that_failed(log, broken):
    """Order is kept among what is written; no batch is tried twice."""
    topic = log.create_topic("events")
    with log.producer(linger_ms=0) as producer:
        outcomes = []
        for number in range(10):
            broken |= {0} if number % 3 == 0 else set()
            outcomes.append(producer.send("events", b"%d" % number).exception(PATIENCE))
            broken.clear()
    assert [type(outcome) for outcome in outcomes] == [StorageError if n % 3 == 0 else type(None) for n in range(10)]
    assert [record.value for record in topic.read()] == [b"%d" % n for n in range(10) if n % 3]


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_flush_waits_for_what_another_thread_is_settling(log, broken, durability):
    """A failure that is just being told of is seen by `flush`, not lost between two calls."""
    log.create_topic("events")
    broken.add(0)
    settling, go_on = threading.Event(), threading.Event()

    class Slow:
        def on_acknowledgement(self, metadata, error):
            settling.set()
            assert go_on.wait(PATIENCE)

    producer = log.producer(interceptors=[Slow()], linger_ms=0, durability=durability)
    sender = threading.Thread(target=producer.send, args=("events", b"x"))
    sender.start()
    assert settling.wait(PATIENCE)
    raised = []

    def flush():
        try:
            producer.flush()
        except ExceptionGroup as group:
            raised.extend(group.exceptions)

    flusher = threading.Thread(target=flush)
    flusher.start()
    flusher.join(0.05)
    assert flusher.is_alive()
    go_on.set()
    flusher.join(PATIENCE)
    sender.join(PATIENCE)
    assert [type(error) for error in raised] == [StorageError]
    producer.close()


def test_fsync_failure_fails_the_delivery(log, monkeypatch):
    """Written is not acknowledged: the delivery raises, though the record may be seen."""
    log.create_topic("events")

    def fail(self, offset):
        raise StorageError("fsync failed", path=str(self), errno=5)

    with log.producer(durability="fsync") as producer:
        with monkeypatch.context() as patch:
            patch.setattr(PartitionSync, "__call__", fail)
            assert isinstance(producer.send("events", b"x").exception(PATIENCE), StorageError)
        producer.flush()


def test_fsync_failure_of_a_transaction_fails_its_deliveries(log, monkeypatch):
    """It is committed, for all to see; but what was promised to be on disk may not be there."""
    topic = log.create_topic("events")
    with log.producer(durability="fsync") as producer:
        with producer.transaction():
            producer.send("events", b"before")
        producer.begin_transaction()
        deliveries = [producer.send("events", value) for value in (b"1", b"2")]

        def fails(self):
            raise StorageError("the disk failed", errno=5)

        monkeypatch.setattr("pystreamlog.storage.files.File.datasync", fails)
        with pytest.raises(StorageError):
            producer.commit_transaction()
        assert [type(delivery.exception()) for delivery in deliveries] == [StorageError, StorageError]
    assert [record.value for record in topic.read()] == [b"before", b"1", b"2"]


def test_nothing_syncs_on_an_event_loop(log, monkeypatch):
    """Neither for a record, nor for a column, nor for a full buffer; a background thread does."""
    log.create_topic("events")
    on_loop = []
    sync = PartitionSync.__call__
    loop_thread = threading.get_ident()

    def watched(self, offset):
        on_loop.append(threading.get_ident() == loop_thread)
        return sync(self, offset)

    monkeypatch.setattr(PartitionSync, "__call__", watched)

    async def main():
        async with log.producer(durability="fsync", buffer_memory=1000, batch_size=200) as producer:
            for _ in range(20):
                await producer.send("events", b"x")
                await producer.send_many("events", [b"x" * 50] * 3)
                producer.send("events", b"x" * 300)
                await producer.drain()
            await producer.flush_async()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert on_loop
    assert not any(on_loop)


def test_wall_clock_set_back_holds_nothing_up(log, monkeypatch):
    """What lingers is written soon, though its time seems far off."""
    log.create_topic("events")
    written = threading.Event()
    with log.producer(linger_ms=20) as producer:
        producer.send("events", b"x")
        producer.send("events", b"x").add_done_callback(lambda _: written.set())
        from pystreamlog.embedded import sender  # noqa: PLC0415 - its clock only

        now = sender.time_ns
        monkeypatch.setattr(sender, "time_ns", lambda: now() - 10**13)
        assert written.wait(PATIENCE)


def test_deleted_topic_ends_a_replay(log):
    """By an error: what was not read is gone, and a shorter replay would hide that."""
    topic = log.create_topic("events", partitions=2)
    for partition in range(2):
        topic.append(b"x", partition=partition)
    reading = topic.read()
    assert next(reading).partition == 0
    log.delete_topic("events")
    with pytest.raises(UnknownTopicError):
        list(reading)
