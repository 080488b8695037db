"""Many processes on one directory, however they were started; and what a forked child does with what it inherits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback

import pytest

import pystreamlog
from pystreamlog.errors import ClosedError
from pystreamlog.testing.contract import buffered

from .conftest import PATIENCE

METHODS = ["fork", "forkserver", "spawn"]
PROCESSES, RECORDS = 3, 300

# From Python 3.12 on, `os.fork` warns in a process with threads, which a producer's is.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")


def send_in_process(path, number, close):
    """Send numbered records, keyed by the process; with `close` False, leave the rest to the exit."""
    log = pystreamlog.open(path)
    producer = log.producer(linger_ms=600_000)
    for index in range(RECORDS):
        producer.send("events", b"%d" % index, b"%d" % number)
    if close:
        log.close()


def read_in_process(path, count, found):
    """Put the records that a consumer sees into a queue."""
    with pystreamlog.open(path) as log, log.consumer("events", auto_offset_reset="earliest") as consumer:
        seen = []
        while len(seen) < count:
            seen += [(record.partition, record.offset, record.value) for record in consumer.poll(PATIENCE)]
    found.put(seen)


def in_child(check):
    """Run `check` in a forked child; its exception fails the test."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(int(PATIENCE))  # a child that hangs must not outlive the test
            check()
            status = 0
        except BaseException:  # noqa: BLE001 - the parent tells
            os.write(write_fd, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(write_fd)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read_fd, "rb") as pipe:
        told = pipe.read().decode()
    assert os.waitstatus_to_exitcode(status) == 0, told


def stored(log):
    """The payloads of the topic."""
    return [record.value for record in log.topic("events").read()]


# --- processes side by side


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_processes_write_and_read_one_log(log, path, method, close):
    """Nothing is lost or doubled, each process's order is kept, and what nobody closed is flushed at exit."""
    log.create_topic("events", partitions=2)
    context = multiprocessing.get_context(method)
    found = context.Queue()
    reader = context.Process(target=read_in_process, args=(path, PROCESSES * RECORDS, found))
    writers = [context.Process(target=send_in_process, args=(path, number, close)) for number in range(PROCESSES)]
    for process in (reader, *writers):
        process.start()
    seen = found.get(timeout=PATIENCE)
    for process in (reader, *writers):
        process.join(PATIENCE)
        assert process.exitcode == 0
    records = list(log.topic("events").read())
    assert sorted(seen) == sorted((record.partition, record.offset, record.value) for record in records)
    assert len(records) == PROCESSES * RECORDS
    for number in range(PROCESSES):
        mine = [record.value for record in records if record.key == b"%d" % number]
        assert mine == [b"%d" % index for index in range(RECORDS)]


def serve(log, topic, number, seen):
    """What a worker of a pre-fork server does: use the log and the topic that its parent opened."""
    topic.append(b"append %d" % number)
    with log.consumer("events", auto_offset_reset="earliest") as consumer, log.producer() as producer:
        producer.send(topic, b"send %d" % number).result(PATIENCE)
        log.create_topic(f"mine-{number}").append(b"x")
        values = []
        while len(values) < 2 * PROCESSES + 1:
            values += consumer.poll(PATIENCE).values
    seen.put(sorted(values))


def test_pre_fork_server(log):
    """A log opened before the fork works in every child, while the parent uses it too."""
    topic = log.create_topic("events")
    topic.append(b"parent")
    list(topic.read())
    context = multiprocessing.get_context("fork")
    seen = context.Queue()
    workers = [context.Process(target=serve, args=(log, topic, number, seen)) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    expected = sorted([b"parent", *(b"%s %d" % (how, n) for how in (b"append", b"send") for n in range(PROCESSES))])
    for _ in workers:
        assert seen.get(timeout=PATIENCE) == expected
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    assert sorted(stored(log)) == expected
    assert log.topics() == ["events", *(f"mine-{number}" for number in range(PROCESSES))]


# --- forked children


def test_inherited_clients_are_closed_in_the_child(log):
    """They raise `ClosedError`, at everything; the parent's go on."""
    log.create_topic("events")
    producer, consumer = log.producer(), log.consumer("events")
    producer.send("events", b"0").result()
    assert len(consumer.poll(PATIENCE)) == 1

    def check():
        for call in (
            lambda: producer.send("events", b"x"),
            lambda: producer.send_many("events", [b"x"]),
            producer.flush,
            lambda: consumer.poll(0),
            lambda: next(iter(consumer)),
            consumer.seek_to_beginning,
            consumer.assignment,
        ):
            with pytest.raises(ClosedError, match="fork"):
                call()
        producer.close()
        consumer.close()
        consumer.wakeup()
        consumer.metrics()
        log.close()

    in_child(check)
    producer.send("events", b"1").result()
    assert consumer.poll(PATIENCE).values == [b"1"]
    producer.close()
    consumer.close()


def test_what_is_buffered_belongs_to_the_parent(log):
    """It is written once, by the parent; the child's deliveries say whose they are, and its exit writes nothing."""
    log.create_topic("events")
    with log.producer(linger_ms=600_000) as producer:
        sent = [buffered(producer)]
        many = producer.send_many("events", [b"a", b"b"])
        assert not many.done()
        written = len(stored(log))

        def check():
            import asyncio  # noqa: PLC0415 - in the child only

            async def awaited(delivery):
                return await asyncio.wait_for(delivery, PATIENCE)

            for call in (
                sent[-1].result,
                sent[-1].exception,
                many.result,
                lambda: asyncio.run(awaited(one(sent[-1]))),
                lambda: asyncio.run(awaited(one(many))),
            ):
                with pytest.raises(ClosedError, match="fork"):
                    call()
            with log.producer() as mine:
                mine.send("events", b"child").result(PATIENCE)
            pystreamlog.embedded.exits._close_all()
            assert len(stored(log)) == written + 1

        async def one(awaitable):
            return await awaitable

        in_child(check)
    assert [value for value in stored(log) if value != b"child"][-3:] == [b"buffered", b"a", b"b"]


def test_fork_while_other_threads_send(log):
    """Whatever they were doing just then, the child can use the log, and the parent loses nothing."""
    topic = log.create_topic("events", partitions=2)
    stop = threading.Event()
    sent = [0, 0]

    def send(number):
        while not stop.is_set():
            producer.send("events", b"%d" % number, b"%d" % sent[number])
            sent[number] += 1

    def check():
        with log.producer() as mine, log.consumer("events", auto_offset_reset="earliest") as consumer:
            for _ in range(20):
                mine.send("events", b"child")
            mine.flush(PATIENCE)
            assert consumer.poll(PATIENCE)
        topic.append(b"child")
        log.create_topic(f"child-{os.getpid()}")

    with log.producer() as producer:
        threads = [threading.Thread(target=send, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                in_child(check)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
    values = stored(log)
    assert [values.count(b"0"), values.count(b"1")] == sent
    assert values.count(b"child") == 10 * 21
    assert len(log.topics()) == 11


def test_fork_while_another_thread_polls(log):
    """The child polls with a consumer of its own; the parent's wait goes on."""
    log.create_topic("events")
    found = []
    with log.consumer("events") as consumer:
        thread = threading.Thread(target=lambda: found.extend(consumer.poll(PATIENCE).values))
        thread.start()

        def check():
            with log.consumer("events", auto_offset_reset="earliest") as mine, log.producer() as producer:
                producer.send("events", b"child")
                assert mine.poll(PATIENCE).values == [b"child"]

        in_child(check)
        thread.join(PATIENCE)
    assert found == [b"child"]


def test_child_of_a_child(log):
    """Each generation has its own clients."""
    log.create_topic("events")
    with log.producer() as producer:

        def grandchild():
            with pytest.raises(ClosedError):
                producer.flush()
            log.topic("events").append(b"grandchild")

        def child():
            with log.producer() as mine:
                mine.send("events", b"child").result(PATIENCE)
                in_child(grandchild)
                mine.send("events", b"child again").result(PATIENCE)

        in_child(child)
        producer.send("events", b"parent")
    assert stored(log) == [b"child", b"grandchild", b"child again", b"parent"]


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_child_keeps_no_descriptors_of_the_parent(log):
    """But that of the directory; so no lock outlives a parent that dies."""
    topic = log.create_topic("events")
    with log.producer() as producer, log.consumer("events", auto_offset_reset="earliest") as consumer:
        producer.send("events", b"x").result()
        consumer.poll(PATIENCE)
        list(topic.read())

        def check():
            names = []
            for fd in os.listdir("/proc/self/fd"):
                try:
                    names.append(os.readlink(f"/proc/self/fd/{fd}"))
                except FileNotFoundError:
                    continue
            assert [name for name in names if name.startswith(f"{log.path}/") or "inotify" in name] == []

        in_child(check)
