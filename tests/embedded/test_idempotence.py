"""Records with sequences are written once: whoever dies, whatever is lost, however many send them at once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest

import pystreamlog
from pystreamlog.clock import Clock
from pystreamlog.coordination import sequence_admission
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import ClosedError, CorruptLogError, IllegalStateError, StorageError
from pystreamlog.storage.reader import LogReader
from pystreamlog.storage.segment import Segment

from .conftest import PATIENCE, held_lock, run, start

DAY = 86_400_000
COUNT = 3_000

# Sends a source from its first line on, as it does after each start; prints what was acknowledged, at the end.
INGEST = """
import json, sys, pystreamlog

path, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with pystreamlog.open(path) as log, log.producer(producer_id="ingest", linger_ms=1, batch_size=1000 + seed) as producer:
    print("ready", flush=True)
    sys.stdin.readline()
    deliveries = []
    for line in range(count):
        deliveries.append(producer.send("events", b"%d" % line, b"%d" % (line % 7), sequence=line))
        if line % 100 == seed % 100:
            deliveries[-1].result()
    found = [(one.partition, one.offset) for one in [delivery.result() for delivery in deliveries]]
print(json.dumps(found), flush=True)
"""


def stored(log, topic="events"):
    """The payloads as numbers, partition by partition."""
    partitions = {}
    for record in log.topic(topic).read():
        partitions.setdefault(record.partition, []).append(int(record.value))
    return partitions


def check_once(log, count=COUNT, partitions=2):
    """Each line is there once, in the order of the source."""
    found = stored(log)
    assert sorted(line for lines in found.values() for line in lines) == list(range(count))
    assert all(lines == sorted(lines) for lines in found.values())
    assert len(found) == partitions


def send(log, sequences, *, name="ingest", **options):
    """Send these sequences one by one; their offsets."""
    with log.producer(producer_id=name, **{"linger_ms": 600_000, **options}) as producer:
        deliveries = [producer.send("events", b"%d" % one, sequence=one) for one in sequences]
        return [delivery.result(PATIENCE).offset for delivery in deliveries]


# --- processes


@pytest.mark.faults
def test_killed_between_append_and_acknowledgement(log, path):
    """Nobody was told, and yet it is written: the next process learns where."""
    log.create_topic("events")
    program = """
    import os, signal, sys, pystreamlog
    from pystreamlog.storage.control import Control

    publish = Control.publish

    def publish_and_die(self, slot):
        publish(self, slot)
        if slot.end_offset >= 5:
            os.kill(os.getpid(), signal.SIGKILL)

    Control.publish = publish_and_die
    log = pystreamlog.open(sys.argv[1])
    producer = log.producer(producer_id="ingest", linger_ms=600_000)
    for line in range(10):
        producer.send("events", b"%d" % line, sequence=line)
    producer.flush()
    """
    run(program, path, returncode=-signal.SIGKILL)
    appended = log.topic("events").end_offsets()[0]
    assert appended >= 5
    assert send(log, range(20)) == list(range(20))
    check_once(log, 20, 1)


def finish(process):
    """Have a program of `INGEST` go through its source; what was acknowledged."""
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    out, err = process.communicate("\n", timeout=PATIENCE)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2])
def test_source_is_sent_again_after_each_kill(log, path, seed):
    """From its first line on: what was written before is acknowledged, what was not is written."""
    topic = log.create_topic("events", partitions=2, segment_bytes=1 << 14)
    generator = random.Random(seed)
    for number in range(6):
        process = start(INGEST, path, COUNT, generator.randrange(1000))
        process.stdin.write("\n")
        process.stdin.flush()
        target = number * COUNT // 7 + generator.randrange(COUNT // 7)
        while sum(topic.end_offsets().values()) <= target:
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        assert all(lines == sorted(set(lines)) for lines in stored(log).values()), f"seed {seed}"
    assert len(finish(start(INGEST, path, COUNT, 0))) == COUNT
    check_once(log)


@pytest.mark.faults
def test_processes_race_through_one_source(log, path):
    """Three processes with one id: each line is written by one of them, and all are told where, if they are told."""
    log.create_topic("events", partitions=2, segment_bytes=1 << 16)
    processes = [start(INGEST, path, COUNT, 331 * number) for number in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = []
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        found.append(json.loads(out))
    check_once(log)
    for places in zip(*found, strict=True):
        assert len({(partition, offset) for partition, offset in places if offset >= 0}) <= 1
        assert len({partition for partition, _ in places}) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_forked_child_sends_on(log):
    """It sees what its parent appended, and the parent what it did."""
    log.create_topic("events")
    assert send(log, range(5)) == list(range(5))
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(int(PATIENCE))
            status = 0 if send(log, range(8)) == list(range(8)) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert send(log, range(10)) == list(range(10))
    check_once(log, 10, 1)


# --- restarts and lost power

BOOTS = [bytes([number]) * 16 for number in range(1, 30)]


def test_reopened_log_remembers(path, monkeypatch):
    """From the log alone, from snapshots, and when these are deleted between."""
    monkeypatch.setattr(sequence_admission, "_ROLLED_INTERVAL", 5_000)
    with pystreamlog.open(path) as log:
        log.create_topic("events", segment_bytes=1 << 14)
    partition = Path(path, "topics", "events", "0")
    for number in range(12):
        with pystreamlog.open(path) as log:
            count = 20 * (number + 1)
            assert send(log, range(0, 3 * count, 3), linger_ms=0)[-1] == count - 1
            found = list(partition.glob("*.producers"))
            assert len(found) <= 2
            for snapshot in found if number % 4 == 3 else []:
                snapshot.unlink()
    assert found
    with pystreamlog.open(path) as log:
        assert [line for lines in stored(log).values() for line in lines] == list(range(0, 3 * count, 3))


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
def test_what_a_power_loss_took_is_accepted_again(path, seed, monkeypatch):
    """Also where snapshots knew of it. Nothing is doubled, nothing is missing."""
    monkeypatch.setattr(sequence_admission, "_ROLLED_INTERVAL", 1_000)
    monkeypatch.setattr(sequence_admission, "_INTERVAL", 1_000)
    generator = random.Random(seed)
    with EmbeddedLog(path, boot=lambda: BOOTS[0]) as log:
        log.create_topic("events")
    partition = Path(path, "topics", "events", "0")
    done = 0
    for boot in BOOTS[1:12]:
        with EmbeddedLog(path, boot=lambda boot=boot: boot) as log:
            durable = log.topic("events").end_offsets()[0]  # what a recovery leaves is on disk
            assert durable <= done
            done += generator.randrange(20, 200)
            for first in range(0, done, 25):
                send(log, range(first, min(done, first + 25)))
            lines = stored(log).get(0, [])
            assert lines == list(range(done)), f"seed {seed}"
            positions = positions_of(log, durable)
        segment, position = generator.choice(positions)
        with open(partition / segment, "r+b") as file:
            file.seek(position)
            file.write(bytes(300))
    with EmbeddedLog(path, boot=lambda: BOOTS[-1]) as log:
        assert len(stored(log).get(0, [])) < done
        send(log, range(done))
        assert stored(log)[0] == list(range(done)), f"seed {seed}"


def positions_of(log, offset):
    """Segment and position of the batches that begin at an offset or behind it."""
    reader = log._partitions.reader(log._find("events"), 0)
    try:
        reader.exists()
        found = reader._reader.batches(reader._published())
        return [
            (f"{segment.header.base_offset:020d}.log", position)
            for segment, position, header in found
            if header.base_offset >= offset
        ]
    finally:
        reader.close()


# --- failures


@pytest.fixture
def broken(monkeypatch):
    """A set of partitions that refuse to be written."""
    partitions = set()
    write = Segment.write

    def refuse(self, *arguments):
        if int(self.file.path.split("/")[-2]) in partitions:
            raise StorageError("the disk is full", path=self.file.path, errno=28)
        return write(self, *arguments)

    monkeypatch.setattr(Segment, "write", refuse)
    return partitions


def test_nothing_is_written_behind_a_failure(log, broken):
    """It would make the records that failed look as if they had been appended. They must be sent again first."""
    topic = log.create_topic("events", partitions=2)
    with log.producer(producer_id="ingest", linger_ms=600_000) as producer:
        producer.send("events", b"0", sequence=0, partition=0).result(PATIENCE)
        with held_lock(log.path):
            behind = [producer.send("events", b"%d" % line, sequence=line, partition=0) for line in (3, 4, 5, 4, 9)]
            broken.add(0)
        assert {type(delivery.exception(PATIENCE)) for delivery in behind} == {StorageError}
        broken.clear()
        for send_one in (
            lambda line: producer.send("events", b"%d" % line, sequence=line, partition=0),
            lambda line: producer.send_many("events", [b"%d" % line], sequences=[line], partition=0),
            lambda line: producer.send_many("events", [b"x" * 100_000], sequences=[line], partition=0),
        ):
            with pytest.raises(IllegalStateError, match="sequence 3"):
                send_one(4)
        producer.send("events", b"7", sequence=7, partition=1).result(PATIENCE)
        producer.send("events", b"3", sequence=3, partition=0)
        assert producer.send("events", b"4", sequence=4, partition=0).result(PATIENCE).offset == 2
    assert stored(log) == {0: [0, 3, 4], 1: [7]}
    assert topic.end_offsets() == {0: 3, 1: 1}


def test_what_waits_behind_a_failure_fails_with_it(log, broken):
    """Batches that were closed before it failed, too; and a callback that sends again at once is in time."""
    log.create_topic("events")
    resent = []
    with log.producer(producer_id="ingest", linger_ms=600_000, batch_size=20) as producer:

        def again(delivery):
            broken.clear()
            resent.append(producer.send("events", b"1", sequence=1))

        producer.send("events", b"0", sequence=0).result(PATIENCE)
        with held_lock(log.path):
            first = producer.send("events", b"1" * 15, sequence=1)
            first.add_done_callback(again)
            behind = [producer.send("events", b"2" * 15, sequence=line) for line in range(2, 12)]
            broken.add(0)
        assert {type(delivery.exception(PATIENCE)) for delivery in (first, *behind)} == {StorageError}
        assert resent[0].result(PATIENCE).offset == 1
    assert stored(log) == {0: [0, 1]}


def test_failed_write_is_forgotten(log, monkeypatch):
    """A batch that did not get into the log is new when it is sent again."""
    log.create_topic("events")
    send(log, range(3))
    with monkeypatch.context() as patch:

        def full(*args):
            raise StorageError("the disk is full", errno=28)

        patch.setattr("pystreamlog.storage.segment.Segment.write", full)
        with pytest.raises(ExceptionGroup, match="not written"):
            send(log, range(2, 6))
    assert send(log, range(8)) == list(range(8))
    check_once(log, 8, 1)


def test_failed_write_is_not_published_by_another(log, monkeypatch):
    """Of a producer without an id in the same process, say."""
    topic = log.create_topic("events")
    with log.producer(producer_id="ingest") as producer:
        producer.send("events", b"0", sequence=0).result(PATIENCE)
        with monkeypatch.context() as patch:

            def full(*args):
                raise StorageError("the disk is full", errno=28)

            patch.setattr("pystreamlog.storage.segment.Segment.write", full)
            assert producer.send("events", b"1", sequence=1).exception(PATIENCE)
        topic.append(b"-1")
        assert producer.send("events", b"1", sequence=1).result(PATIENCE).offset == 2
    assert stored(log) == {0: [0, -1, 1]}


def test_damage_where_it_must_be_known_is_told(path):
    """Nothing is written that might have been written before; producers without an id go on."""
    with pystreamlog.open(path) as log:
        log.create_topic("events")
        send(log, range(3), linger_ms=0)
        send(log, range(6), linger_ms=0)
    with open(Path(path, "topics", "events", "0", f"{0:020d}.log"), "r+b") as file:
        file.seek(120 + 30)
        file.write(b"damage")
    with pystreamlog.open(path) as log:
        with pytest.raises(CorruptLogError):
            send(log, [6])
        with log.producer() as producer:
            assert producer.send("events", b"6").result(PATIENCE).offset == 6


def test_closed_log_takes_no_sequences(log):
    """As for any producer."""
    log.create_topic("events")
    producer = log.producer(producer_id="ingest")
    producer.send("events", b"0", sequence=0)
    log.close()
    with pytest.raises(ClosedError):
        producer.send("events", b"1", sequence=1)


# --- costs


def test_first_use_of_a_topic_walks_nothing(path, monkeypatch):
    """As long as no producer had an id there, however long the log is."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic("events")
        for number in range(50):
            topic.append(b"%d" % number)
    with pystreamlog.open(path) as log, monkeypatch.context() as patch:
        patch.setattr(LogReader, "headers", None)
        assert send(log, range(50, 55), linger_ms=0) == list(range(50, 55))
        assert send(log, range(50, 60), linger_ms=0) == list(range(50, 60))


def test_alone_it_reads_nothing(log, monkeypatch):
    """A process that appends alone knows what it appended."""
    log.create_topic("events", segment_bytes=4096)
    send(log, range(5))
    monkeypatch.setattr(LogReader, "headers", None)
    with log.producer(producer_id="ingest", linger_ms=0) as producer:
        deliveries = [producer.send("events", b"%d" % line, sequence=line) for line in range(5, 200)]
        assert [delivery.result(PATIENCE).offset for delivery in deliveries] == list(range(5, 200))


def test_event_loop_never_walks_far(log, path, monkeypatch):
    """The first send, and one after much that others appended, is written by the background thread."""
    log.create_topic("events")
    send(log, range(5))
    walked = []

    def noted(walk):
        def call(*args, **options):
            found = walk(*args, **options)
            size = found[1] if isinstance(found, tuple) else found
            walked.append((threading.current_thread() is threading.main_thread(), walk.__name__, size))
            return found

        return call

    for name in ("rebuild", "catch_up"):
        monkeypatch.setattr(sequence_admission, name, noted(getattr(sequence_admission, name)))

    async def work(other):
        async with other.producer(producer_id="ingest") as producer:
            assert not producer._partitions.writer(other._find("events"), 0).is_quick(1, sequences=True)
            await producer.send("events", b"5", sequence=5)
            assert producer._partitions.writer(other._find("events"), 0).is_quick(1, sequences=True)
            await producer.send("events", b"6", sequence=6)
            log.topic("events").append(b"x" * 500_000)
            assert not producer._partitions.writer(other._find("events"), 0).is_quick(1, sequences=True)
            await producer.send("events", b"7", sequence=7)

    with pystreamlog.open(path) as other:
        asyncio.run(work(other))
    assert [walk for on_loop, *walk in walked if not on_loop and walk[1] > 1000] == [["catch_up", 500_200]]
    assert {name for on_loop, name, size in walked if on_loop and size > 1000} == set()
    assert [on_loop for on_loop, name, _ in walked if name == "rebuild"] == [False]


# --- time


class Hand(Clock):
    """A wall clock that is set by hand."""

    def __init__(self):
        self.ms = 1_700_000_000_000

    def now_ns(self):
        """The time it was set to."""
        return self.ms * 1_000_000


def test_id_lives_for_a_day_from_its_last_append(path):
    """Whatever the records' timestamps say, and through restarts; sending again does not make it live longer."""
    clock = Hand()
    with EmbeddedLog(path, clock=clock) as log:
        log.create_topic("events")
        with log.producer(producer_id="ingest") as producer:
            producer.send("events", b"0", sequence=0, timestamp_ms=5)
            producer.send("events", b"1", sequence=1, timestamp_ms=1_900_000_000_000)
        clock.ms += DAY - 1
        assert send(log, [0, 1, 2]) == [0, 1, 2]
        clock.ms += DAY
        assert send(log, [0, 1, 2]) == [0, 1, 2]
        clock.ms += 1
        assert send(log, [0, 1, 2]) == [3, 4, 5]
        clock.ms += DAY
    with EmbeddedLog(path, clock=clock) as log:
        assert send(log, [0, 1, 2]) == [3, 4, 5]
        clock.ms += DAY  # a log that was opened takes what it finds in the newest segment for just appended
        assert send(log, [0, 1, 2]) == [3, 4, 5]
        clock.ms += 1
        assert send(log, [0, 1, 2]) == [6, 7, 8]


def test_clock_set_back_expires_nothing(path):
    """Nobody appended in the future."""
    clock = Hand()
    with EmbeddedLog(path, clock=clock) as log:
        log.create_topic("events")
        send(log, range(3))
        clock.ms -= 10 * DAY
        assert send(log, range(5)) == list(range(5))
