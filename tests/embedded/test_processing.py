"""`Consumer.process` from inside: its bookkeeping against a model, Ctrl-C anywhere, and processes that die."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections import Counter, defaultdict
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pystreamlog
from pystreamlog import TopicPartition, serde
from pystreamlog.embedded import work as bookkeeping
from pystreamlog.embedded.work import Stage, Work
from pystreamlog.record.record import Record
from pystreamlog.testing.contract import fill
from pystreamlog.testing.processing_driving import Handler, committed, eventually, processing

from .conftest import PATIENCE, start

PACKAGE = os.path.dirname(pystreamlog.__file__)
GUARDED = tuple(f"{PACKAGE}/{folder}/" for folder in ("backend", "embedded", "record"))
TP = TopicPartition("events", 0)


# --- the bookkeeping


class Place:
    """What `Work` needs of a position."""

    def __init__(self):
        self.tp = TP
        self.offset = 0


class Model:
    """Does to `Work` what drivers and workers do, and knows what must be true."""

    def __init__(self, order, limit):
        self.work = Work(order=order, max_in_flight=limit, wake=lambda: None)
        self.order = order
        self.limit = limit
        self.place = Place()
        self.running = []
        self.log = []  # the key of each offset
        self.finished = set()
        self.drained = False
        self.begun = set()  # offsets, since the partition came
        self.since = 0  # it came at this offset

    def lane(self, task):
        """The lane that a task is in."""
        if self.order == "partition":
            return ""
        return task.record.key if self.order == "key" else None

    def take(self, keys):
        """Take records with these keys, as far as there is room; those that come again keep theirs."""
        keys = keys[: self.work.room()]
        first = self.place.offset
        records = []
        for key in keys:
            self.place.offset += 1
            if self.place.offset > len(self.log):
                self.log.append(key)
            offset = self.place.offset - 1
            records.append(Record("events", 0, offset, 0, self.log[offset], None))
        if records:
            part = self.work.part(self.place, first)
            self.work.add(part, records, [record.key for record in records], None)

    def begin(self):
        """What a worker does that is free."""
        task = self.work.begin()
        if task is not None:
            lane = self.lane(task)
            assert lane is None or lane not in {self.lane(other) for other in self.running}
            before = [number for number, key in enumerate(self.log[: task.offset]) if self.same(key, lane)]
            ours = [number for number in before if number >= self.since]
            assert set(ours) <= self.finished, "something before it in its lane is not finished"
            if self.drained:
                assert any(task.offset < other for other in self.begun), "it fills no gap"
            self.begun.add(task.offset)
            self.running.append(task)

    def same(self, key, lane):
        """Whether a key belongs to a lane."""
        return self.order == "partition" or (self.order == "key" and lane is not None and key == lane)

    def end(self, number):
        """What a worker does that has finished; which one is free."""
        if self.running:
            task = self.running.pop(number % len(self.running))
            current = not task.part.is_gone
            self.work.end(task, finished=True)
            if current:
                self.finished.add(task.offset)

    def lose(self):
        """The partition goes, and comes back at what was finished."""
        part = self.work.parts.get(TP)
        if part is not None and not self.drained:
            prefix = part.prefix
            self.place = Place()
            self.place.offset = self.since = prefix
            self.begun = set()
            self.finished = {offset for offset in self.finished if offset < prefix}
            self.work.part(self.place, prefix)
            self.work.parts[TP].taken = prefix

    def check(self):
        """What must always be true."""
        work = self.work
        part = work.parts.get(TP)
        assert len(work.running) == len(self.running)
        if part is None:
            return
        prefix = part.prefix
        assert set(range(prefix)) <= self.finished | set(range(self.since))
        assert prefix not in self.finished
        assert work.in_flight == part.left == sum(entry.state.value in ("waiting", "running") for entry in part.entries)
        assert work.in_flight <= self.limit
        assert work.held == len(part.entries)


@given(
    st.sampled_from([None, "key", "partition"]),
    st.integers(1, 12),
    st.lists(
        st.one_of(
            st.lists(st.sampled_from([b"a", b"b", b"c", None]), min_size=1, max_size=6),
            st.just("begin"),
            st.integers(0, 5),
            st.just("begin"),
            st.sampled_from(["lose", "drain"]),
        ),
        max_size=60,
    ),
)
def test_bookkeeping_keeps_its_invariants(order, limit, steps):
    """Lanes, prefixes and counts, whatever the driver and the workers do; a drain ends."""
    model = Model(order, limit)
    for step in steps:
        if isinstance(step, list):
            model.take(step)
        elif step == "begin":
            model.begin()
        elif step == "lose":
            model.lose()
        elif step == "drain":
            model.work.drain()
            model.drained = True
        else:
            model.end(step)
        model.check()
    model.work.drain()
    model.drained = True
    for _ in range(200):
        model.begin()
        model.end(0)
        model.check()
    assert model.work.is_over()
    part = model.work.parts.get(TP)
    if part is not None:
        assert not part.entries
        assert model.finished == set(range(part.prefix)) - set(range(model.since)) | {
            offset for offset in model.finished if offset < model.since
        }


def test_halted_work_begins_nothing():
    """Nor does it take; what runs may end, and the first error counts, but Ctrl-C before all."""
    model = Model("key", 10)
    model.take([b"a", b"a", b"b", None])
    model.begin()
    error = ValueError("first")
    model.work.stop(error)
    assert model.work.stage is Stage.HALTED
    assert model.work.begin() is None
    assert model.work.room() == 0
    assert not model.work.is_over()
    model.end(0)
    assert model.work.is_over()
    assert model.work.parts[TP].prefix == 1
    assert model.work.stop(late := TypeError()) is late
    assert model.work.error is error
    assert model.work.stop(KeyboardInterrupt()) is error
    assert isinstance(model.work.error, KeyboardInterrupt)


def test_finished_records_are_not_held_without_end(log, monkeypatch):
    """Behind one that hangs, only so many are handled: they are held, and come again after a crash."""
    monkeypatch.setattr(bookkeeping, "_HELD_LIMIT", 50)
    fill(log, 500)
    handler = Handler()
    handler.block(3)
    with (
        log.consumer("events", group_id="g", auto_offset_reset="earliest", auto_commit_interval_ms=0) as consumer,
        processing(consumer, handler, workers=2, max_in_flight=20),
    ):
        eventually(lambda: committed(log) == 3 and len(handler.done) > 40)
        eventually(lambda: consumer.metrics()["records-consumed-total"] == 3 + 50 + 1)
        eventually(lambda: len(handler.done) == 3 + 50)
        handler.release()
        eventually(lambda: committed(log) == 500)


# --- Ctrl-C


def interrupted(place, call):
    """Call it, and raise `KeyboardInterrupt` at the n-th place where Python would handle a signal in this thread."""
    places = 0

    def interrupt(frame, event, function):
        nonlocal places
        name = frame.f_code.co_filename
        if not name.startswith(GUARDED):
            return
        if event == "call" or (event == "c_return" and function.__name__ not in {"acquire", "setprofile"}):
            places += 1
            if places == place:
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


def test_interrupt_anywhere_loses_nothing(log):
    """Every record is handled, none is committed before that, no thread stays, and the consumer is used on."""
    log.create_topic("events", partitions=2)
    with log.producer() as producer:
        for number in range(24):
            producer.send("events", b"%d" % number, b"k%d" % (number % 5), partition=number % 2)
    place, hit = 0, True
    while hit:
        place += 1 + place // 30
        done = Counter()
        lock = threading.Lock()
        group_id = f"g{place}"
        consumer = log.consumer(
            "events",
            group_id=group_id,
            auto_offset_reset="earliest",
            max_poll_records=7,
            value_serde=serde.json,
            auto_commit_interval_ms=0,
            enable_auto_commit=bool(place % 2),
        )
        with consumer:

            def handle(record, done=done, lock=lock, consumer=consumer):
                with lock:
                    done[record.partition, record.offset] += 1
                    if len(done) == 24:
                        consumer.wakeup()

            before = threading.active_count()
            hit = interrupted(place, lambda: consumer.process(handle, workers=2, max_in_flight=9))  # noqa: B023 - called at once
            eventually(lambda: threading.active_count() == before)  # noqa: B023 - the same
            for part in range(2):
                offset = max(0, committed(log, part, group_id=group_id))
                assert all(done[part, number] for number in range(offset)), f"interrupted at place {place}"
            if len(done) < 24:
                consumer.process(handle, workers=2)
            assert len(done) == 24, f"interrupted at place {place}"
            assert not consumer.poll(0) or hit
    assert place > 300


# --- processes


WORKER = """
import os, sys, time
import pystreamlog

path, out = sys.argv[1:]
fd = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
with pystreamlog.open(path) as log:
    with log.consumer("events", group_id="g", auto_offset_reset="earliest", auto_commit_interval_ms=5) as consumer:
        def handle(record):
            time.sleep(0.0005)
            os.write(fd, b"%d %d %s %d\\n" % (record.partition, record.offset, record.key, os.getpid()))
        print("ready", flush=True)
        consumer.process(handle, workers=4, max_in_flight=40)
"""


@pytest.mark.faults
def test_killed_processes_lose_nothing(log, path, tmp_path):
    """Members of one group are killed and replaced while they work: every record is handled, keys keep their order."""
    log.create_topic("events", partitions=4)
    with log.producer() as producer:
        for number in range(4000):
            producer.send("events", b"%d" % number, b"k%d" % (number % 37))
    out = tmp_path / "out"
    workers = [start(WORKER, path, out) for _ in range(2)]
    lines = []
    try:
        for _ in range(4):
            killed = workers.pop(0)
            assert killed.stdout.readline() == "ready\n", killed.stderr.read()
            target = len(out.read_bytes().splitlines() if out.exists() else []) + 300
            eventually(lambda target=target: len(out.read_bytes().splitlines()) > target)
            killed.kill()
            killed.communicate(timeout=PATIENCE)
            workers.append(start(WORKER, path, out))
        deadline = monotonic() + PATIENCE
        ends = log.topic("events").end_offsets()
        while any(committed(log, part) != end for part, end in ends.items()):
            assert monotonic() < deadline
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.communicate(timeout=PATIENCE)
    lines = [line.split() for line in out.read_text().splitlines()]
    handled = {(int(part), int(offset)) for part, offset, *_ in lines}
    assert handled == {(part, offset) for part, end in ends.items() for offset in range(end)}
    keys = defaultdict(list)
    for part, offset, key, pid in lines:
        keys[part, key, pid].append(int(offset))
    for offsets in keys.values():  # one process never goes back in a key, unless it lost the partition
        assert offsets == sorted(offsets)
