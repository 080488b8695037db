"""Group commit, and what a failed fsync does to every process."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import pystreamlog
from pystreamlog.coordination import partition_sync
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import ClosedError, LockTimeoutError, StorageError, VersionConflictError
from pystreamlog.storage.files import File

PATIENCE = 30


@pytest.fixture
def log(tmp_path):
    """A log with a topic."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t")
        yield log


@pytest.fixture
def syncs(monkeypatch):
    """The paths of the segments that were synced."""
    paths = []
    real = File.datasync

    def datasync(self):
        if self.path.endswith(".log"):
            paths.append(self.path)
        return real(self)

    monkeypatch.setattr(File, "datasync", datasync)
    return paths


def failing(monkeypatch, code=errno.EIO):
    """Have every fdatasync fail until the context is left."""

    def fail(fd):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fdatasync", fail)


def test_an_acknowledged_record_is_durable(log):
    """And so is all before it."""
    topic = log.topic("t")
    topic.append(b"a")
    assert topic.durable_offsets() == {0: 0}
    topic.append(b"b", durability="fsync")
    topic.append(b"c")
    assert topic.durable_offsets() == {0: 2}


def test_threads_that_wait_share_one_sync(log, monkeypatch):
    """Eight append while one syncs: one more sync serves them all."""
    topic = log.topic("t")
    topic.append(b"first", durability="fsync")
    inside, go_on = threading.Event(), threading.Event()
    count = []
    real = File.datasync

    def slow(self):
        if self.path.endswith(".log"):
            count.append(1)
            if len(count) == 1:
                inside.set()
                assert go_on.wait(PATIENCE)
        return real(self)

    monkeypatch.setattr(File, "datasync", slow)
    with ThreadPoolExecutor(9) as pool:
        leader = pool.submit(topic.append, b"leader", durability="fsync")
        assert inside.wait(PATIENCE)
        others = [pool.submit(topic.append, b"%d" % n, durability="fsync") for n in range(8)]
        sync = log._partitions.writer(log._topics.find("t"), 0).sync
        while len(sync._waiting) < 8:
            threading.Event().wait(0.001)
        go_on.set()
        offsets = sorted(future.result(PATIENCE).offset for future in [leader, *others])
    assert offsets == list(range(1, 10))
    assert len(count) == 2


@pytest.fixture
def queued(log, monkeypatch):
    """Has threads append while another one syncs, and returns their futures; what the function does comes before."""

    def append_while_syncing(calls, before=lambda: None):
        topic = log.topic("t")
        topic.append(b"first", durability="fsync")
        inside, go_on = threading.Event(), threading.Event()
        real = File.datasync

        def slow(self):
            if self.path.endswith(".log") and not inside.is_set():
                inside.set()
                assert go_on.wait(PATIENCE)
            return real(self)

        monkeypatch.setattr(File, "datasync", slow)
        sync = log._partitions.writer(log._topics.find("t"), 0).sync
        with ThreadPoolExecutor(len(calls) + 1) as pool:
            leader = pool.submit(topic.append, b"leader", durability="fsync")
            assert inside.wait(PATIENCE)
            futures = []
            for arguments in calls:
                futures.append(pool.submit(topic.append, durability="fsync", **arguments))
                while len(sync._waiting) < len(futures):
                    threading.Event().wait(0.001)
            assert topic.end_offsets() == {0: 2}, "they have nothing written yet"
            before()
            go_on.set()
            assert leader.result(PATIENCE).offset == 1
        return futures

    return append_while_syncing


def test_who_syncs_next_appends_for_all(log, queued):
    """In the order in which they came, and each is told its own offset."""
    futures = queued([{"value": b"%d" % number} for number in range(6)])
    assert [future.result(PATIENCE).offset for future in futures] == list(range(2, 8))
    values = [record.value for record in log.topic("t").read()]
    assert values == [b"first", b"leader", b"0", b"1", b"2", b"3", b"4", b"5"]
    assert log.topic("t").durable_offsets() == {0: 8}


def test_what_is_refused_is_refused_for_its_thread_alone(log, queued):
    """The others are written and synced."""
    futures = queued([{"value": b"a"}, {"value": b"b", "expected_end": 77}, {"value": b"c", "expected_end": 3}])
    error = futures[1].exception(PATIENCE)
    assert isinstance(error, VersionConflictError)
    assert (error.expected, error.actual) == (77, 3)
    assert [futures[0].result(PATIENCE).offset, futures[2].result(PATIENCE).offset] == [2, 3]
    assert log.topic("t").durable_offsets() == {0: 4}


@pytest.mark.parametrize("settings", [{"flush_messages": 1}, {"flush_ms": 0}])
def test_who_appends_for_others_does_not_wait_for_itself(log, queued, settings):
    """The topic's own settings want a sync of each record too."""
    log.topic("t").alter(**settings)
    futures = queued([{"value": b"%d" % number} for number in range(3)])
    assert [future.result(PATIENCE).offset for future in futures] == [2, 3, 4]


def test_one_who_appends_for_others_is_interrupted(log, queued, monkeypatch):
    """Ctrl-C in the middle of another thread's record: that thread is told, and those behind it go on."""
    writer = log._partitions.writer(log._topics.find("t"), 0)
    real = type(writer).append

    def append(self, batch, timeout, *, flush=True):
        if b"1" in bytes(batch.parts[0]):
            monkeypatch.setattr(type(writer), "append", real)
            raise KeyboardInterrupt
        return real(self, batch, timeout, flush=flush)

    futures = queued(
        [{"value": b"0"}, {"value": b"1"}, {"value": b"2"}], lambda: monkeypatch.setattr(type(writer), "append", append)
    )
    assert isinstance(futures[0].exception(PATIENCE), KeyboardInterrupt)
    with pytest.raises(StorageError, match="was interrupted"):
        futures[1].result(PATIENCE)
    assert futures[2].result(PATIENCE).offset == 3
    assert [record.value for record in log.topic("t").read()] == [b"first", b"leader", b"0", b"2"]


def test_a_lock_that_is_not_free_is_not_waited_for_by_one_after_the_other(log, queued, monkeypatch):
    """Only the first one's time passes while the leader waits; the others then wait for themselves."""
    writer = log._partitions.writer(log._topics.find("t"), 0)
    real, tries = type(writer).append, []

    def append(self, batch, timeout, *, flush=True):
        tries.append(flush)
        if len(tries) == 1:
            raise self.busy(0)
        return real(self, batch, timeout, flush=flush)

    futures = queued([{"value": b"0"}, {"value": b"1"}], lambda: monkeypatch.setattr(type(writer), "append", append))
    with pytest.raises(LockTimeoutError):
        futures[0].result(PATIENCE)
    assert futures[1].result(PATIENCE).offset == 2
    assert tries == [False, False]


def test_closing_wakes_those_that_wait_for_a_turn(log, monkeypatch):
    """They learn at once that the log was closed."""
    topic = log.topic("t")
    topic.append(b"first", durability="fsync")
    writer = log._partitions.writer(log._topics.find("t"), 0)
    with ThreadPoolExecutor(2) as pool:
        writer.sync.leading.acquire()
        waiting = pool.submit(topic.append, b"x", durability="fsync")
        while not writer.sync._waiting:
            threading.Event().wait(0.001)
        monkeypatch.setattr(partition_sync, "_LOOK_SECONDS", PATIENCE * 10)
        closing = pool.submit(writer.close)
        writer.sync.leading.release()
        closing.result(PATIENCE)
        assert isinstance(waiting.exception(PATIENCE), ClosedError)


def test_who_waits_is_not_forgotten_when_a_leader_is_interrupted(log, monkeypatch):
    """Ctrl-C takes the leader away: another one leads."""
    topic = log.topic("t")
    topic.append(b"first", durability="fsync")
    inside, go_on = threading.Event(), threading.Event()
    first = []
    real = File.datasync

    def interrupted(self):
        if self.path.endswith(".log") and not first:
            first.append(1)
            inside.set()
            assert go_on.wait(PATIENCE)
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(File, "datasync", interrupted)
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(topic.append, b"leader", durability="fsync")
        assert inside.wait(PATIENCE)
        other = pool.submit(topic.append, b"other", durability="fsync")
        sync = log._partitions.writer(log._topics.find("t"), 0).sync
        while not sync._waiting:
            threading.Event().wait(0.001)
        go_on.set()
        assert isinstance(leader.exception(PATIENCE), KeyboardInterrupt)
        assert other.result(PATIENCE).offset == 2
    assert topic.durable_offsets() == {0: 3}


def test_rolled_segments_are_synced_before_the_acknowledgement(tmp_path, syncs):
    """Every segment that the records lie in, through the descriptors that wrote them."""
    with pystreamlog.open(tmp_path / "rolled") as log:
        topic = log.create_topic("r", segment_bytes=4096, flush_messages=-1)
        for _ in range(100):
            topic.append(b"x" * 100)
        topic.append(b"x", durability="fsync")
        segments = {name for name in os.listdir(f"{log.path}/topics/r/0") if name.endswith(".log")}
        assert segments <= {os.path.basename(path) for path in syncs}
        assert topic.durable_offsets() == {0: 101}


def test_flush_messages_bounds_what_a_power_loss_takes(log):
    """Never more than that many records are not on disk once an append has returned."""
    topic = log.create_topic("f", flush_messages=10)
    for number in range(1, 101):
        topic.append(b"x")
        assert number - topic.durable_offsets()[0] < 10
    with log.producer(linger_ms=0) as producer:
        producer.send_many("f", [b"x" * 100] * 1000).result()
    assert 1100 - topic.durable_offsets()[0] < 10


def test_flush_ms_syncs_in_the_background(log):
    """Without another append."""
    topic = log.create_topic("f", flush_ms=1)
    for number in range(1, 4):
        topic.append(b"x")
        waited = threading.Event()
        for _ in range(10_000):
            if topic.durable_offsets() == {0: number}:
                break
            waited.wait(0.001)
        assert topic.durable_offsets() == {0: number}


def test_flush_ms_is_kept_when_the_log_is_closed_before(tmp_path):
    """What was due later is synced at closing."""
    with pystreamlog.open(tmp_path / "closed") as log:
        log.create_topic("f", flush_ms=3_600_000).append(b"x")
    with pystreamlog.open(tmp_path / "closed") as log:
        assert log.topic("f").durable_offsets() == {0: 1}


def test_a_failed_fsync_stops_every_process_until_the_log_is_opened_again(tmp_path, monkeypatch, caplog):
    """The other log stands for another process; a third one heals, and then all but the poisoned ones go on."""
    with pystreamlog.open(tmp_path / "log") as first, pystreamlog.open(tmp_path / "log") as second:
        topic = first.create_topic("t")
        topic.append(b"durable", durability="fsync")
        second.topic("t").append(b"from the other")
        with monkeypatch.context() as patch:
            failing(patch)
            with pytest.raises(StorageError, match="an fsync failed"):
                topic.append(b"in doubt", durability="fsync")
        for log in (first, second):
            for durability in ("os", "fsync"):
                with pytest.raises(StorageError, match="open the log again"):
                    log.topic("t").append(b"refused", durability=durability)
            with log.producer() as producer:
                assert isinstance(producer.send("t", b"refused").exception(PATIENCE), StorageError)
                producer.flush()
        assert [record.value for record in second.topic("t").read()] == [b"durable", b"from the other", b"in doubt"]
        with pystreamlog.open(tmp_path / "log") as third:
            assert third.topic("t").append(b"healed", durability="fsync").offset == 3
            assert third.topic("t").durable_offsets() == {0: 4}
        assert "an fsync had failed" in caplog.text
        values = [b"durable", b"from the other", b"in doubt", b"healed"]
        assert [record.value for record in second.topic("t").read()] == values


def test_a_failed_fsync_is_never_tried_again(log, monkeypatch):
    """The second one would say that all is well."""
    topic = log.topic("t")
    topic.append(b"kept", durability="fsync")
    calls = []

    def fail_once(fd):
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(StorageError):
        topic.append(b"lost?", durability="fsync")
    sync = log._partitions.writer(log._topics.find("t"), 0).sync
    with pytest.raises(StorageError, match="an fsync failed"):
        sync(2)
    assert len(calls) == 1
    assert topic.durable_offsets() == {0: 1}


def test_gathering_ends_when_nobody_comes(log, monkeypatch):
    """A leader waits for those that the last sync served, but not for long."""
    topic = log.topic("t")
    topic.append(b"x", durability="fsync")
    sync = log._partitions.writer(log._topics.find("t"), 0).sync
    sync._served, sync._seconds = 30, 0.004
    slept = []
    real = partition_sync.sleep
    monkeypatch.setattr(partition_sync, "sleep", lambda seconds: slept.append(seconds) or real(seconds))
    topic.append(b"x", durability="fsync")
    assert 1 <= len(slept) <= 200


def commit_to_both(log, **settings):
    """Commit a transaction of a record in each of a topic's two partitions."""
    with log.producer(**settings) as producer, producer.transaction():
        for number in range(2):
            producer.send("t", b"x", partition=number)


def test_a_poisoned_journal_heals_whoever_opens_it_first(tmp_path, monkeypatch):
    """Its reader too, with `recover="always"`; then transactions are committed again."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t", partitions=2)
        commit_to_both(log)
        with monkeypatch.context() as patch:
            failing(patch)
            with pytest.raises(StorageError, match="an fsync failed"):
                log._transactions._journal.writer.sync(1)
    with pystreamlog.open(tmp_path / "log", recover="always") as log:
        assert log._transactions._journal.reader.offsets()[1] == 1
        commit_to_both(log, durability="fsync")
        assert log.topic("t").durable_offsets() == {0: 2, 1: 2}


def test_a_transaction_is_not_called_durable_where_another_process_failed_to_write_it(tmp_path, monkeypatch):
    """The kernel would tell the process that committed it that all is well."""
    with pystreamlog.open(tmp_path / "log") as first, pystreamlog.open(tmp_path / "log") as second:
        topic = first.create_topic("t", partitions=2)
        commit_to_both(second)
        with monkeypatch.context() as patch:
            failing(patch)
            with pytest.raises(StorageError, match="an fsync failed"):
                topic.append(b"in doubt", partition=0, durability="fsync")
        with pytest.raises(StorageError, match="an fsync failed"):
            second._transactions._journal.writer.sync(1)
        assert second._transactions._journal.reader.durable_offset() == 0


@pytest.mark.parametrize("partitions", [1, 2])
def test_a_recovery_whose_fsync_fails_is_followed_by_copying(tmp_path, monkeypatch, partitions):
    """Of one partition, or of those of a transaction: the fsync of the next recovery would say that all is well."""
    with EmbeddedLog(str(tmp_path / "log"), boot=lambda: bytes(16)) as log:
        log.create_topic("t", partitions=partitions)
        with log.producer() as producer, producer.transaction():
            for number in range(partitions):
                producer.send("t", b"sent", partition=number)
    segment = tmp_path / "log" / "topics" / "t" / "0" / f"{0:020}.log"
    before = segment.stat().st_ino
    real = File.datasync

    def fail(self):
        if self.path == str(segment):
            raise StorageError("the disk failed", path=self.path, errno=errno.EIO)
        real(self)

    with EmbeddedLog(str(tmp_path / "log"), boot=lambda: b"1" * 16) as log, monkeypatch.context() as patch:
        patch.setattr(File, "datasync", fail)
        with pytest.raises(StorageError):
            log.topic("t").append(b"refused", partition=0)
    assert segment.stat().st_ino == before
    with EmbeddedLog(str(tmp_path / "log"), boot=lambda: b"1" * 16) as log:
        topic = log.topic("t")
        assert topic.append(b"more", partition=0, durability="fsync").offset == 1
        assert [record.value for record in topic.read(partition=0)] == [b"sent", b"more"]
        assert topic.durable_offsets()[0] == 2
    assert segment.stat().st_ino != before
    with EmbeddedLog(str(tmp_path / "log"), boot=lambda: b"2" * 16) as log:
        assert [record.value for record in log.topic("t").read(partition=0)] == [b"sent", b"more"]
    assert segment.stat().st_ino != before
