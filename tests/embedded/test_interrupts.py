"""Ctrl-C: what was interrupted can be used on, nothing stays locked, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading

import pytest

import pystreamlog
from pystreamlog import Records, serde

from .conftest import PATIENCE, held_lock

PACKAGE = os.path.dirname(pystreamlog.__file__)
GUARDED = tuple(f"{PACKAGE}/{folder}/" for folder in ("backend", "embedded", "record"))


def interrupt_soon(seconds=0.05):
    """Send this process what Ctrl-C sends, in a moment."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    return timer


def send(log, count, topic="events"):
    """Numbered records."""
    with log.producer() as producer:
        producer.send_many(topic, [b"%d" % number for number in range(count)]).result()


@pytest.mark.parametrize("way", ["poll", "loop"])
def test_interrupted_wait_leaves_the_consumer_usable(log, way):
    """Ctrl-C passes through, and the next call goes on."""
    log.create_topic("events")
    with log.consumer("events") as consumer:
        timer = interrupt_soon()
        wait = {"poll": lambda: consumer.poll(PATIENCE), "loop": lambda: next(iter(consumer))}[way]
        with pytest.raises(KeyboardInterrupt):
            wait()
        timer.join(PATIENCE)
        send(log, 3)
        assert consumer.poll(PATIENCE).offsets == [0, 1, 2]


def test_interrupted_deserialising_hands_out_nothing(log):
    """The records come again: of all partitions that were looked at."""
    log.create_topic("events", partitions=2)
    with log.producer() as producer:
        for number in range(10):
            producer.send("events", b"%d" % number, partition=number % 2)

    class Interrupted:
        armed = True

        def dumps(self, value):
            return value

        def loads(self, data):
            if self.armed and data == b"7":
                self.armed = False
                raise KeyboardInterrupt
            return data

    with log.consumer("events", value_serde=Interrupted(), auto_offset_reset="earliest") as consumer:
        with pytest.raises(KeyboardInterrupt):
            consumer.poll(PATIENCE)
        assert sorted(consumer.lag().values()) == [5, 5]
        seen = []
        while len(seen) < 10:
            seen += consumer.poll(PATIENCE).values
        assert sorted(seen) == [b"%d" % number for number in range(10)]


def test_interrupted_interceptor_hands_out_nothing(log):
    """The records come again."""
    log.create_topic("events")
    send(log, 5)

    class Interrupted:
        armed = True

        def on_consume(self, records):
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return records

    with log.consumer("events", interceptors=[Interrupted()], auto_offset_reset="earliest") as consumer:
        with pytest.raises(KeyboardInterrupt):
            consumer.poll(PATIENCE)
        assert consumer.poll(PATIENCE).offsets == [0, 1, 2, 3, 4]


def test_interrupted_building_of_records_loses_none(log, monkeypatch):
    """A loop that is interrupted while it builds what it fetched starts again with the first."""
    log.create_topic("events")
    send(log, 5)
    with log.consumer("events", auto_offset_reset="earliest") as consumer:
        with monkeypatch.context() as patch:

            def interrupted(_):
                raise KeyboardInterrupt

            patch.setattr(Records, "__iter__", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(iter(consumer))
        assert next(iter(consumer)).offset == 0


def interrupt_at(count, call):
    """Call it, and raise `KeyboardInterrupt` at the n-th place where Python would handle a signal; whether it did.

    Those are the beginning of a Python function and the return of a C function. Left out is the return of the lock's
    own `acquire`, after which no Python code can be sure.
    """
    places = 0

    def interrupt(frame, event, function):
        nonlocal places
        if not frame.f_code.co_filename.startswith(GUARDED):
            return
        if event == "call" or (event == "c_return" and function.__name__ not in {"acquire", "setprofile"}):
            places += 1
            if places == count:
                raise KeyboardInterrupt

    gc.disable()  # what is raised in the finalizer of another test's object is lost
    sys.setprofile(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
        gc.enable()
    return False


@pytest.mark.parametrize("way", ["poll", "loop"])
def test_interrupt_anywhere_loses_and_doubles_nothing(log, way):
    """Of what a consumer reads: wherever Ctrl-C hits it, the same consumer goes on where it was."""
    log.create_topic("events", partitions=2)
    with log.producer() as producer:
        for first in range(0, 24, 4):
            values = [b"%d" % number for number in range(first, first + 4)]
            producer.send_many("events", values, partition=first // 4 % 2).result()
    topic = log.topic("events", value_serde=serde.json)
    place, interrupted = 0, True
    while interrupted:
        place += 1
        handed = []  # looked into afterwards: what was handed out is the caller's
        with log.consumer(topic, auto_offset_reset="earliest", max_poll_records=5) as consumer:

            def some(consumer=consumer, handed=handed):
                for _ in range(3 if way == "poll" else 11):
                    handed.append(consumer.poll(PATIENCE) if way == "poll" else [next(consumer)])

            interrupted = interrupt_at(place, some)
            while records := consumer.poll(0):
                handed.append(records)
        seen = [(record.partition, record.offset, record.value) for records in handed for record in records]
        assert sorted(value for _, _, value in seen) == list(range(24)), f"interrupted at place {place}"
        for partition in range(2):
            assert [offset for number, offset, _ in seen if number == partition] == list(range(12))
    assert place > 200


def test_interrupted_blocked_send_leaves_the_producer_usable(log, path):
    """It waited for room in the buffer; nothing is locked, and what was accepted is written."""
    topic = log.create_topic("events")
    topic.append(b"first")
    with log.producer(buffer_memory=500, batch_size=100) as producer:
        with held_lock(path):
            accepted = 0
            timer = interrupt_soon(0.2)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    producer.send("events", b"%d" % accepted + b" " * 90)
                    accepted += 1
            timer.join(PATIENCE)
        assert producer.send("events", b"last").result(PATIENCE)
        producer.flush(PATIENCE)
    values = [record.value.strip() for record in topic.read()]
    # The interrupted record may have been accepted just then, or not.
    assert values in (
        [b"first", *(b"%d" % number for number in range(count)), b"last"] for count in (accepted, accepted + 1)
    )
    with pystreamlog.open(path) as other:
        other.topic("events").append(b"free")


@pytest.mark.parametrize("call", ["result", "flush"])
def test_interrupted_wait_for_a_write(log, path, call):
    """The delivery stays pending and is written later."""
    topic = log.create_topic("events")
    topic.append(b"first")
    with log.producer() as producer:
        with held_lock(path):
            delivery = producer.send("events", b"x")
            timer = interrupt_soon(0.2)
            wait = {"result": delivery.result, "flush": producer.flush}[call]
            with pytest.raises(KeyboardInterrupt):
                wait()
            timer.join(PATIENCE)
            assert not delivery.done()
        assert delivery.result(PATIENCE).offset == 1
    assert [record.value for record in topic.read()] == [b"first", b"x"]


def test_interrupted_append_leaves_the_topic_usable(log, path):
    """`Topic.append` waits for the lock; afterwards it is free."""
    topic = log.create_topic("events")
    topic.append(b"first")
    with held_lock(path):
        timer = interrupt_soon(0.2)
        with pytest.raises(KeyboardInterrupt):
            topic.append(b"interrupted")
        timer.join(PATIENCE)
    assert topic.append(b"second").offset == 1
    with pystreamlog.open(path) as other:
        assert other.topic("events").append(b"third").offset == 2


def test_interrupted_callback_leaves_nobody_waiting(log):
    """The record is acknowledged, the other callbacks are called."""
    log.create_topic("events")
    called = []

    def interrupted(_):
        raise KeyboardInterrupt

    with log.producer(linger_ms=600_000) as producer:
        producer.send("events", b"alone")
        delivery = producer.send("events", b"x")
        if not delivery.done():
            delivery.add_done_callback(interrupted)
            delivery.add_done_callback(called.append)
            with pytest.raises(KeyboardInterrupt):
                producer.flush()
            assert called == [delivery]
        assert delivery.result(0)
        producer.flush(PATIENCE)
