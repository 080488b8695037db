"""Commits across partitions and groups: whole or gone whoever dies, whatever fails, and whoever looks meanwhile."""

import os
import threading
import time

import pytest

from pystreamlog import TopicPartition
from pystreamlog.coordination import transactions
from pystreamlog.coordination.journal import Journal
from pystreamlog.errors import (
    ClosedError,
    FencedError,
    LockTimeoutError,
    StorageError,
    StreamLogError,
    TransactionAbortedError,
    UnknownTopicError,
)
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control
from pystreamlog.storage.files import File

from .committing import commit, committed, die, ends, in_child, opened, stored, writes

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

SENDS = (("out", 0, b"a"), ("out", 1, b"b"), ("other", 0, b"c"))


@pytest.fixture
def path(tmp_path):
    """A log with three records in each partition of the input, and two outputs; a group has read nothing."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.create_topic("in", partitions=2)
        log.create_topic("out", partitions=2)
        log.create_topic("other")
        with log.producer() as producer:
            for number in range(6):
                producer.send("in", b"%d" % number, partition=number % 2)
        commit(log, ("out", 0, b"0"), ("out", 1, b"1"), ("other", 0, b"2"), offsets={0: 1})
    return path


def state(log):
    """What a transaction of `work` changes, as anybody sees it."""
    return stored(log), stored(log, "other"), ends(log), committed(log), committed(log, 1)


BEFORE = [b"0", b"1"], [b"2"], [1, 1], 1, None
AFTER = [b"0", b"a", b"1", b"b"], [b"2", b"c"], [2, 2], 2, 3


def work(log, **config):
    """A transaction over three partitions and the offsets of two."""
    commit(log, *SENDS, offsets={0: 2, 1: 3}, **config)


def goes_on(path, seen):
    """The next process sees the same, and appends, reads and commits."""
    with opened(path) as log:
        assert state(log) == seen
        log.topic("out").append(b"plain", partition=0)
        work(log)
        assert stored(log, "other")[-1] == b"c"
        assert ends(log)[1] == seen[2][1] + 1


class Turns:
    """Transactions over three partitions and the offsets of two, each with values and offsets of its own.

    Attributes:
        now: What everybody must see: the values in each partition, and the offsets.
        then: The same if the next one counts.
    """

    def __init__(self):
        self.now = [b"0"], [b"1"], [b"2"], (1, None)
        self._number = 0
        self._choose()

    def _choose(self):
        self._number += 1
        self._offsets = {0: self._number % 4, 1: (self._number + 1) % 4}
        value = b"turn %d" % self._number
        self._sends = ("out", 0, value), ("out", 1, value), ("other", 0, value)
        first, second, third, _ = self.now
        self.then = [*first, value], [*second, value], [*third, value], tuple(self._offsets.values())

    def work(self, log):
        """One transaction."""
        commit(log, *self._sends, offsets=self._offsets)

    def seen(self, log, counts):
        """It counts, or it does not: that is what is visible; choose another."""
        for look in (self.look(log), self.look(log)):
            assert look == (self.then if counts else self.now)
        self.now = self.look(log)
        self._choose()

    def look(self, log):
        """What somebody sees."""
        values = [[record.value for record in log.topic("out").read(partition=number)] for number in (0, 1)]
        assert ends(log) == [len(found) for found in values]
        return *values, stored(log, "other"), (committed(log), committed(log, 1))

    def count_writes(self, path, monkeypatch):
        """How many writes a process makes for it, where none is the first of its kind."""
        with opened(path) as log:
            self.work(log)
            self.seen(log, True)
        read_fd, write_fd = os.pipe()

        def count():
            numbers = []

            def act(number, call):
                numbers.append(number)
                return call()

            with opened(path) as log, writes(monkeypatch, act):
                self.work(log)
            os.write(write_fd, b"%d" % len(numbers))

        assert in_child(count) == 0
        with opened(path) as log:
            self.seen(log, True)
        with os.fdopen(read_fd, "rb") as told:
            os.close(write_fd)
            return int(told.read())


# --- killed


@pytest.mark.faults
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write(path, monkeypatch, after):
    """Before or after it: the transaction is whole or gone, at once for readers with open files, and work goes on."""
    turns = Turns()
    total = turns.count_writes(path, monkeypatch)
    outcomes = []
    with opened(path) as watching, watching.consumer("out", "other", auto_offset_reset="earliest") as consumer:
        for doomed in range(total):
            while consumer.poll(0.01):
                pass

            def killed(doomed=doomed):
                def act(number, call):
                    if number == doomed and not after:
                        die()
                    result = call()
                    if number == doomed:
                        die()
                    return result

                with opened(path) as log, writes(monkeypatch, act):
                    turns.work(log)

            assert in_child(killed) == -9, f"write {doomed} of {total}"
            counts = turns.look(watching) == turns.then
            outcomes.append(counts)
            new = [record.value for _ in range(4) for record in consumer.poll(0)]
            assert len(new) == len(set(new)) * 3 == 3 * counts
            with opened(path, read_only=True) as log:
                assert stored(log) == [*turns.look(watching)[0], *turns.look(watching)[1]]
            turns.seen(watching, counts)
            with opened(path) as log:
                turns.work(log)
                turns.seen(log, True)
                assert turns.look(watching) == turns.now
    assert outcomes == sorted(outcomes), "there is one commit point"
    assert set(outcomes) == {False, True}


@pytest.mark.parametrize("recover", [False, True])
@pytest.mark.parametrize("step", ["_spread", "remember"])
def test_committer_that_dies_after_the_commit_point(path, monkeypatch, step, recover):
    """Everything counts, also for who recovers what it opens."""

    def killed():
        monkeypatch.setattr(*((transactions, step) if step == "_spread" else (Journal, step)), die)
        with opened(path) as log:
            work(log)

    assert in_child(killed) == -9
    with opened(path, recover_always=recover) as log:
        assert state(log) == AFTER
    goes_on(path, AFTER)


def test_waiting_consumer_learns_of_a_dead_committer(path, monkeypatch):
    """Nobody rings any more: it looks again by itself, soon."""
    with opened(path) as log, log.consumer("out", auto_offset_reset="latest") as consumer:
        consumer.poll(0)
        began = time.monotonic()

        def killed():
            real = Control.publish

            def publish(self, slot):
                if "journal" in self.file.path:
                    time.sleep(0.2)
                real(self, slot)

            monkeypatch.setattr(Control, "publish", publish)
            monkeypatch.setattr(Journal, "remember", die)
            with opened(path) as mine:
                work(mine)

        thread = threading.Thread(target=in_child, args=(killed,))
        thread.start()
        seen = []
        while len(seen) < 2 and time.monotonic() - began < 20:
            seen += consumer.poll(20)
        thread.join()
        assert time.monotonic() - began < 10
        assert sorted(record.value for record in seen) == [b"a", b"b"]


@pytest.mark.parametrize("flag", [layout.FLAG_DELETED, layout.FLAG_POISONED])
def test_flags_that_came_after_the_committer_died_hold(path, monkeypatch, flag):
    """A partition that was deleted or poisoned meanwhile is so with the transaction's records."""

    def killed():
        monkeypatch.setattr(transactions, "_spread", die)
        with opened(path) as log:
            work(log)

    assert in_child(killed) == -9
    with opened(path) as log:
        writer = log._partitions.writer(log._topics.find("other"), 0)
        if flag == layout.FLAG_DELETED:
            writer.mark_deleted(1)
        else:
            writer.publish_poison()
    with opened(path) as log:
        reader = log._partitions.reader(log._topics.find("other"), 0)
        assert reader.offsets() == (0, 2)
        assert reader.deleted() == (flag == layout.FLAG_DELETED)
        if flag == layout.FLAG_DELETED:
            with pytest.raises(UnknownTopicError):
                log.topic("other").append(b"x")
        else:
            log.topic("other").append(b"x")  # a new log heals it
            assert stored(log, "other") == [b"2", b"c", b"x"]


def test_exit_with_an_open_transaction_aborts_it(path):
    """Nobody committed it."""

    def leave():
        log = opened(path)
        producer = log.producer()
        producer.begin_transaction()
        producer.send("out", b"x")
        log.topic("out").append(b"plain", partition=0)

    assert in_child(leave) == 0
    with opened(path) as log:
        assert stored(log) == [b"0", b"plain", b"1"]


# --- the disk fails


@pytest.mark.faults
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_any_write_fails(path, monkeypatch, lasting, done):
    """Once or from then on: the call says whether it counts, all agree, and what comes next works.

    With `done` the failing write took place all the same: then it may count though the call raised.
    """
    turns = Turns()
    total = turns.count_writes(path, monkeypatch)
    with opened(path) as watching:
        for failing in range(total):
            raised = False

            def act(number, call, failing=failing):
                if number == failing or (lasting and number > failing):
                    if done and number == failing:
                        call()
                    raise StorageError("the disk failed", path="x", errno=5)
                return call()

            with opened(path) as log:
                with writes(monkeypatch, act):
                    try:
                        turns.work(log)
                    except StreamLogError:
                        raised = True
                counts = turns.look(log) == turns.then
                assert counts != raised or (done and counts), f"write {failing} of {total}"
                turns.seen(watching, counts)
                for other in (log, watching):
                    turns.work(other)
                    turns.seen(log, True)


def test_failed_deliveries_say_so(path, monkeypatch):
    """The error is their cause; the same producer goes on."""

    def act(number, call):
        raise StorageError("the disk is full", path="x", errno=28)

    with opened(path) as log, log.producer() as producer:
        producer.begin_transaction()
        delivery = producer.send("out", b"x", partition=0)
        producer.send("out", b"y", partition=1)
        with writes(monkeypatch, act), pytest.raises(StorageError):
            producer.commit_transaction()
        assert isinstance(delivery.exception(), TransactionAbortedError)
        assert isinstance(delivery.exception().__cause__, StorageError)
        with producer.transaction():
            producer.send("out", b"z", partition=0)
        assert stored(log) == [b"0", b"z", b"1"]


def test_failed_fsync_is_told_and_the_transaction_counts(path, monkeypatch):
    """It is visible, but may be lost: nothing more is accepted until the log is opened anew."""
    with opened(path) as log:
        real = File.datasync

        def fail(self):
            if self.path.endswith(".log") and "/out/" in self.path:
                raise StorageError("the disk failed", path=self.path, errno=5)
            real(self)

        with monkeypatch.context() as patch:
            patch.setattr(File, "datasync", fail)
            with pytest.raises(StorageError):
                work(log, durability="fsync")
        assert state(log) == AFTER
        with pytest.raises(StorageError, match="open the log again"):
            work(log, durability="fsync")
    with opened(path) as log:
        assert state(log) == AFTER
        work(log, durability="fsync")


@pytest.mark.parametrize("records", [0, 1])
def test_large_transaction_that_fails_leaves_the_partition_as_it_was(path, monkeypatch, records):
    """Also an empty one: its segment is nobody's to replace."""
    with opened(path) as log:
        log.create_topic("large")
        for _ in range(records):
            log.topic("large").append(b"0")
        with log.producer(transaction_buffer_bytes=50_000, batch_size=10_000) as producer:
            producer.begin_transaction()
            for _ in range(100):
                producer.send("large", b"x" * 5000)
            producer.send("out", b"x", partition=0)

            def fail(*_, **__):
                raise StorageError("the disk failed", path="x", errno=5)

            with monkeypatch.context() as patch:
                patch.setattr(transactions, "_commit_written", fail)
                with pytest.raises(StorageError):
                    producer.commit_transaction()
            log.topic("large").append(b"1")
            with producer.transaction():
                for _ in range(100):
                    producer.send("large", b"y" * 5000)
        assert stored(log, "large") == [b"0"] * records + [b"1"] + [b"y" * 5000] * 100
    with opened(path, boot=1) as log:
        assert stored(log, "large") == [b"0"] * records + [b"1"] + [b"y" * 5000] * 100


# --- Ctrl-C


@pytest.mark.parametrize("sends", [SENDS[:1], SENDS])
def test_interrupt_right_after_the_commit_point(path, monkeypatch, sends):
    """It counts, and the deliveries say so: one batch alone, and many."""
    real = Control.publish
    with opened(path) as log, log.producer() as producer:
        producer.begin_transaction()
        deliveries = [producer.send(topic, value, partition=number) for topic, number, value in sends]

        def publish(self, slot):
            real(self, slot)
            if len(sends) == 1 or "journal" in self.file.path:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Control, "publish", publish)
            with pytest.raises(KeyboardInterrupt):
                producer.commit_transaction()
        assert [delivery.exception() for delivery in deliveries] == [None] * len(sends)
        assert b"a" in stored(log)
        with producer.transaction():
            producer.send("out", b"z", partition=0)
        assert stored(log)[:3] == [b"0", b"a", b"z"]


# --- locks


def test_lock_that_is_not_free_is_named(path):
    """With the process that holds it; the transaction is aborted."""
    with opened(path) as log, opened(path) as other:
        writer = other._partitions.writer(other._topics.find("out"), 1)
        writer.ensure()
        read_fd, write_fd = os.pipe()

        def hold():
            mine = opened(path)
            held = mine._partitions.writer(mine._topics.find("out"), 1)
            held.ensure()
            with held.locked(5):
                os.write(write_fd, b"x")
                time.sleep(20)

        pid = os.fork()
        if not pid:
            hold()
            os._exit(1)
        try:
            os.read(read_fd, 1)
            with pytest.raises(LockTimeoutError) as caught:
                work(log, max_block_ms=300)
            assert str(pid) in caught.value.holder
            assert state(other) == BEFORE
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(read_fd)
            os.close(write_fd)
        work(log)
        assert state(other) == AFTER


@pytest.mark.faults
def test_processes_commit_over_the_same_partitions(path):
    """In any order, with plain appends in between: each is whole, and nobody waits for ever."""

    def committer(name):
        def run():
            with opened(path) as log:
                for number in range(15):
                    value = b"%s%d" % (name, number)
                    commit(log, ("out", 1, value), ("out", 0, value), ("other", 0, value), group_id=name.decode())
                    log.topic("other").append(b"plain")

        return run

    threads = []
    outcomes = []
    for name in (b"x", b"y", b"z"):
        threads.append(threading.Thread(target=lambda name=name: outcomes.append(in_child(committer(name)))))
        threads[-1].start()
    with opened(path) as log:
        topic = log.topic("out")
        while any(thread.is_alive() for thread in threads):
            first = [record.value for record in topic.read(partition=0)][1:]
            second = [record.value for record in topic.read(partition=1)][1:]
            assert first == second[: len(first)], "a part is visible without the other"
        assert outcomes == [0, 0, 0]
        orders = [[record.value for record in topic.read(partition=number)][1:] for number in (0, 1)]
        assert orders[0] == orders[1] == [value for value in stored(log, "other")[1:] if value != b"plain"]
        assert len(orders[0]) == 45


def test_fenced_by_another_process(path):
    """The zombie learns of it at its next call."""
    with opened(path) as log, log.producer(transactional_id="t") as producer:
        producer.begin_transaction()
        producer.send("out", b"zombie")

        def take():
            with opened(path) as mine:
                commit(mine, ("out", 0, b"new"), transactional_id="t")

        assert in_child(take) == 0
        with pytest.raises(FencedError):
            producer.commit_transaction()
        with pytest.raises(FencedError):
            producer.begin_transaction()
        assert stored(log) == [b"0", b"new", b"1"]


# --- fork


def test_forked_child_leaves_the_parents_transaction_alone(path):
    """All calls of the child are refused; the parent commits. The log itself works in both."""
    with (
        opened(path) as log,
        log.producer(transactional_id="t", transaction_buffer_bytes=1000, batch_size=100) as producer,
    ):
        producer.begin_transaction()
        for _ in range(50):
            delivery = producer.send("out", b"x" * 99, partition=0)
        with log.consumer(group_id="g") as consumer:
            producer.send_offsets_to_transaction({TopicPartition("in", 0): 3}, consumer.group_metadata())

        def child():
            for call in (
                producer.commit_transaction,
                producer.abort_transaction,
                producer.begin_transaction,
                producer.init_transactions,
                lambda: producer.send("out", b"y"),
                delivery.result,
            ):
                with pytest.raises(ClosedError):
                    call()
            commit(log, ("out", 1, b"child"))
            assert stored(log) == [b"0", b"1", b"child"]

        assert in_child(child) == 0
        producer.commit_transaction()
        assert delivery.result(0).offset == 50
        assert stored(log) == [b"0", *[b"x" * 99] * 50, b"1", b"child"]
        assert committed(log) == 3


# --- settings of topics


def test_topics_that_are_flushed(path):
    """`flush_messages` and `flush_ms` bound what a power loss takes of transactions too."""
    with opened(path) as log:
        log.create_topic("each", flush_messages=1)
        log.create_topic("soon", flush_ms=10)
        for sends in ([("each", 0, b"x")], [("each", 0, b"x"), ("soon", 0, b"x")]):
            commit(log, *sends)
            assert log.topic("each").durable_offsets() == log.topic("each").end_offsets()
        deadline = time.monotonic() + 10
        while log.topic("soon").durable_offsets() != {0: 1}:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_transaction_rolls_segments(path):
    """Of all its partitions, more than once; what an aborted one left in their place harms nobody."""
    with opened(path) as log:
        log.create_topic("small", partitions=2, segment_bytes=4096)
        for aborted in (True, False, False):
            producer = log.producer(batch_size=500)
            producer.begin_transaction()
            for number in range(100):
                producer.send("small", b"%d" % number * 50, partition=number % 2)
            if aborted:
                producer._transaction.buffer.end_with("over")

                def fail(*_, **__):
                    raise StorageError("the disk failed", path="x", errno=5)

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(transactions, "_commit_written", fail)
                    with pytest.raises(StorageError):
                        producer.commit_transaction()
            else:
                producer.commit_transaction()
            producer.close()
        assert ends(log, "small") == [100, 100]
        assert len(stored(log, "small")) == 200
