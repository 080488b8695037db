"""Retention: old segments go, whole and from the oldest on; clocks that jump delete nothing; one process does it."""

import contextlib
import errno
import logging
import os
import threading
import time

import msgspec
import pytest

import pystreamlog
from pystreamlog import TopicPartition
from pystreamlog.clock import to_datetime
from pystreamlog.coordination.compaction import Compaction
from pystreamlog.coordination.locks import FileLock
from pystreamlog.coordination.maintenance import LOCK_FILE, Maintenance
from pystreamlog.errors import (
    ConfigError,
    CorruptLogError,
    LockTimeoutError,
    OffsetOutOfRangeError,
    ReadOnlyError,
    StorageError,
)
from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File, Files
from pystreamlog.storage.reader import Cursor
from tests.coordination.moving import BOOT, NEXT_BOOT

SECOND, HOUR, DAY = 1000, 3_600_000, 86_400_000
TP = TopicPartition("t", 0)
PER_SEGMENT = 13


@pytest.fixture
def log(opened):
    """The test's log."""
    return opened()


def fill(log, count=100, *, name="t", **config):
    """A topic of small segments, with records."""
    topic = log.create_topic(name, exist_ok=True, **{"segment_bytes": 4096, **config})
    for _ in range(count):
        number = topic.end_offsets()[0]
        topic.append(b"%d" % number + b"." * 100, timestamp_ms=log._clock.now_ms())
    return topic


def fill_compacted(log, name):
    """A compacted topic with sealed segments of one key."""
    topic = log.create_topic(name, segment_bytes=4096, cleanup_policy="compact")
    for _ in range(40):
        topic.append(b"." * 200, b"key")


def writer_of(log, name="t"):
    """The writer of the topic's partition."""
    return log._partitions.writer(log._topics.find(name), 0)


def bases_of(log, name="t"):
    """Base offsets of the segment files there are."""
    return writer_of(log, name).folder.segments()


def offsets(topic):
    """What can be read, which says its offset."""
    records = list(topic.read())
    assert [int(record.value.rstrip(b".")) for record in records] == [record.offset for record in records]
    return [record.offset for record in records]


# --- which segments go


def test_segment_goes_when_its_newest_record_is_older(log, clock):
    """And no segment behind one that stays."""
    topic = fill(log, 30, retention_ms=HOUR)
    clock.passed_ms += HOUR
    fill(log, 30)
    before = bases_of(log)
    clock.passed_ms += 10 * SECOND
    report = log.maintain()
    start = max(base for base in before if base <= 30)
    assert bases_of(log) == [base for base in before if base >= start]
    assert offsets(topic) == list(range(start, 60))
    assert topic.beginning_offsets() == {0: start}
    assert report.deleted[TP].segments == report.segments == before.index(start)
    assert report.deleted[TP].bytes == report.bytes > 4000 * report.segments
    assert report.deleted[TP].log_start_offset == start
    assert report.waits_ms == 0
    assert log.maintain().deleted == {}
    assert log.verify().ok


def test_active_segment_goes_too_when_all_of_it_is_old(log, clock):
    """A new one takes its place, and offsets go on."""
    topic = fill(log, 20, retention_ms=HOUR)
    clock.passed_ms += 2 * HOUR
    sequence = writer_of(log)._end.sequence
    report = log.maintain()
    assert writer_of(log)._end.sequence == sequence + 2, "a slot that rules was overwritten"
    assert (report.segments, bases_of(log)) == (2, [20])
    assert (offsets(topic), topic.beginning_offsets(), topic.end_offsets()) == ([], {0: 20}, {0: 20})
    assert log.maintain().deleted == {}
    assert topic.append(b"20").offset == 20
    assert offsets(topic) == [20]
    assert log.verify().ok


def test_as_much_as_retention_bytes_is_left(log):
    """The oldest segment goes while the partition has as much without it."""
    topic = fill(log, 100, retention_bytes=3 * 4096)
    report = log.maintain()
    left = bases_of(log)
    folder = writer_of(log).folder
    sizes = [folder.files.status(f"{folder.path}/{layout.segment_name(base)}").st_size for base in left[:-1]]
    active = writer_of(log)._end.end_position
    assert 3 * 4096 <= sum(sizes) + active < 3 * 4096 + sizes[0]
    assert report.deleted[TP].log_start_offset == left[0] == topic.beginning_offsets()[0]
    assert log.maintain().deleted == {}


def test_nothing_goes_without_a_retention(log, clock):
    """By default, and where the policy is to keep everything, whatever else is set."""
    fill(log, 30)
    fill(log, 30, name="kept", cleanup_policy="", retention_ms=0, retention_bytes=0)
    clock.passed_ms += 1000 * DAY
    assert log.maintain().deleted == {}
    log.topic("kept").alter(cleanup_policy="delete")
    clock.passed_ms += DAY
    assert log.maintain().deleted[TopicPartition("kept", 0)].segments == 3


def test_segment_with_late_records_only_goes_by_its_own(log, clock):
    """A record of the future that was deleted, in a segment before, keeps none alive."""
    topic = fill(log, PER_SEGMENT, retention_ms=HOUR)
    topic.append(b"13", timestamp_ms=clock.now_ms() + 1000 * DAY)
    fill(log, 30)
    writer_of(log).delete_records(bases_of(log)[2])
    clock.passed_ms += 2 * HOUR
    log.maintain()
    assert (offsets(topic), bases_of(log)) == ([], [44])


def test_record_of_the_future_keeps_its_segment_and_what_follows(log, clock):
    """As in Kafka."""
    topic = fill(log, 20, retention_ms=HOUR)
    topic.append(b"20", timestamp_ms=clock.now_ms() + 1000 * DAY)
    fill(log, 30)
    clock.passed_ms += 2 * HOUR
    log.maintain()
    assert offsets(topic) == list(range(13, 51))


def test_indexes_and_snapshots_of_producers_go_with_their_segment(log, clock):
    """And what a producer sent stays known."""
    fill(log, 0, retention_ms=HOUR, segment_bytes=100_000, producer_id_expiration_ms=DAY)
    with log.producer(producer_id="p") as producer:
        for number in range(300):
            producer.send("t", b"x" * 1000, sequence=number, partition=0).result()
    folder = writer_of(log).folder
    assert any(name.endswith(".index") for name in folder.files.list(folder.path))
    clock.passed_ms += 2 * HOUR
    log.maintain()
    names = {name for name in folder.files.list(folder.path) if name != "control"}
    assert names == {f"{300:020d}.log", f"{300:020d}.producers"}
    log.close()


@pytest.mark.parametrize("boot", [BOOT, NEXT_BOOT])
def test_producer_is_known_after_its_records_were_deleted(opened, clock, boot):
    """To a process that was not there, and after a power loss."""
    log = opened()
    fill(log, 0, retention_ms=HOUR, producer_id_expiration_ms=DAY)
    with log.producer(producer_id="p") as producer:
        producer.send("t", b"x", sequence=7, partition=0).result()
    clock.passed_ms += 2 * HOUR
    assert log.maintain().segments == 1
    log.close()
    log = opened(boot)
    with log.producer(producer_id="p") as producer:
        producer.send("t", b"x", sequence=7, partition=0).result()
        assert producer.send("t", b"y", sequence=8, partition=0).result().offset == 1
    assert [record.value for record in log.topic("t").read()] == [b"y"]


# --- readers


def test_reader_that_holds_a_deleted_segment_finishes_it(log):
    """Then it is told that the log starts later."""
    fill(log, 40)
    reader, cursor = log._partitions.reader(log._topics.find("t"), 0), Cursor(0)
    assert len(reader.fetch(cursor, max_records=1)) == 1
    log.admin.delete_records({TP: 40})
    assert len(reader.fetch(cursor, max_records=1000)) == PER_SEGMENT - 1
    with pytest.raises(OffsetOutOfRangeError, match="seek"):
        reader.fetch(cursor, max_records=1)


def test_reading_below_the_start_is_refused(log):
    """Also within a segment that is there."""
    topic = fill(log, 30)
    log.admin.delete_records({TP: 20})
    assert (bases_of(log)[0], topic.beginning_offsets()) == (13, {0: 20})
    assert offsets(topic) == list(range(20, 30))
    for start in (0, 13, 19):
        with pytest.raises(OffsetOutOfRangeError):
            topic.read(partition=0, start=start)


def test_consumer_goes_on_as_auto_offset_reset_says(log):
    """When the position it would read from is deleted."""
    fill(log, 30)
    with (
        log.consumer(group_id="g", auto_offset_reset="earliest") as consumer,
        log.consumer(group_id="h", auto_offset_reset="none") as strict,
    ):
        for each in (consumer, strict):
            each.assign([TP])
            each.seek(TP, 3)
        log.admin.delete_records({TP: 25})
        assert [record.offset for record in consumer.poll()] == [25, 26, 27, 28, 29]
        with pytest.raises(OffsetOutOfRangeError):
            strict.poll()


def test_consumer_at_the_end_loses_nothing(log, clock):
    """It stands behind a segment that is gone, and no reader has it open any more."""
    fill(log, 20, retention_ms=HOUR)
    with log.consumer("t", auto_offset_reset="latest") as latest, log.consumer(auto_offset_reset="none") as consumer:
        consumer.assign([TP])
        consumer.seek_to_beginning(TP)
        assert len(consumer.poll()) == 20
        assert not latest.poll(0)
        for reader in log._partitions._readers:
            reader.try_close()
        clock.passed_ms += 2 * HOUR
        assert log.maintain().segments == 2
        log.topic("t").append(b"20")
        assert [record.offset for record in consumer.poll()] == [20]
        assert [record.offset for record in latest.poll()] == [20]


def test_look_up_by_time_sees_what_is_left(log, clock):
    """Not what lies before the start, in the same segment."""
    topic = fill(log, 30)
    log.admin.delete_records({TP: 20})
    with log.consumer() as consumer:
        consumer.assign([TP])
        assert consumer.offsets_for_times({TP: 0}) == {TP: 20}
    assert next(topic.read(start=to_datetime(0))).offset == 20


# --- delete_records


def test_delete_records_raises_the_start(log):
    """To an offset, or to the end; never back."""
    topic = fill(log, 30)
    assert log.admin.delete_records({TP: 20}) == {TP: 20}
    assert log.admin.delete_records({TP: 5}) == {TP: 20}
    assert log.admin.delete_records({TP: 20}) == {TP: 20}
    assert log.admin.delete_records({TP: -1}) == {TP: 30}
    assert (bases_of(log), offsets(topic)) == ([30], [])
    assert topic.append(b"30").offset == 30


@pytest.mark.parametrize("offset", [-2, 31, 1 << 62])
def test_delete_records_beyond_the_end_is_refused(log, offset):
    """The others are done all the same."""
    fill(log, 30)
    fill(log, 5, name="other")
    with pytest.raises(ExceptionGroup) as caught:
        log.admin.delete_records({TP: offset, TopicPartition("other", 0): 3})
    assert isinstance(caught.value.exceptions[0], OffsetOutOfRangeError)
    assert log.topic("t").beginning_offsets() == {0: 0}
    assert log.topic("other").beginning_offsets() == {0: 3}


def test_topic_with_a_key_index_deletes_nothing(log):
    """Its versions count every record: neither by a retention nor by hand."""
    log.create_topic("keyed", key_index=True).append(b"x", b"k")
    with pytest.raises(ExceptionGroup) as caught:
        log.admin.delete_records({TopicPartition("keyed", 0): 1})
    assert isinstance(caught.value.exceptions[0], ConfigError)
    for setting in ("retention_ms", "retention_bytes"):
        with pytest.raises(ConfigError, match="key_index"):
            log.topic("keyed").alter(**{setting: 5})
        with pytest.raises(ConfigError, match="key_index"):
            log.create_topic("another", key_index=True, **{setting: 0})


# --- what is left half done


def died_at(monkeypatch, owner, name, number=1):
    """Have the n-th call of a method raise, as a death before it would end everything."""
    original, calls = getattr(owner, name), []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


def test_segments_below_the_start_are_removed_by_the_next_run(opened, monkeypatch):
    """Whoever died left them; reading, verifying and recovering cope, though there is a hole between them."""
    log = opened()
    topic = fill(log, 100)
    folder = writer_of(log).folder
    with monkeypatch.context() as patch:
        died_at(patch, type(folder), "drop", 3)
        with pytest.raises(KeyboardInterrupt):
            writer_of(log).delete_records(70)
    before = bases_of(log)
    assert before[0] < 65
    folder.files.unlink(f"{folder.path}/{layout.segment_name(before[1])}")
    assert offsets(topic) == list(range(70, 100))
    report = log.verify()
    assert report.ok, report
    assert "leftover" in {note.kind for note in report.notes}
    log.close()
    with opened(NEXT_BOOT, read_only=True) as reading:
        assert offsets(reading.topic("t")) == list(range(70, 100))
    log = opened(NEXT_BOOT)
    assert offsets(log.topic("t")) == list(range(70, 100))
    assert log.maintain().deleted[TP].log_start_offset == 70
    assert bases_of(log) == [65, 78, 91]
    assert log.verify().notes == ()


def test_nothing_is_removed_unless_the_start_is_on_disk(log, monkeypatch):
    """The next run publishes it once more before it syncs, as a second sync alone would say that all is well."""
    topic = fill(log, 30)
    control = writer_of(log).folder.open_control(write=False)
    path, original, failed = control.file.path, File.datasync, []
    control.close()

    def datasync(file):
        if file.path == path and not failed:
            failed.append(file)
            raise StorageError("the disk is no more", path=path, errno=5)
        original(file)

    monkeypatch.setattr(File, "datasync", datasync)
    with pytest.raises(StorageError):
        writer_of(log).delete_records(20)
    assert bases_of(log) == [0, 13, 26]
    sequence = writer_of(log)._end.sequence
    assert log.maintain().deleted[TP].segments == 1
    assert writer_of(log)._end.sequence == sequence + 2
    assert offsets(topic) == list(range(20, 30))


@pytest.mark.parametrize("damaged", [None, 0, 1])
@pytest.mark.parametrize("start", [20, 26, 30])
def test_raised_start_outlives_a_power_loss(opened, start, damaged):
    """Also when one of the slots is lost with it, whichever."""
    log = opened()
    fill(log, 30)
    log.admin.delete_records({TP: start})
    path, name = log.path, f"{writer_of(log).folder.path}/control"
    log.close()
    if damaged is not None:
        files = Files(path)
        file = files.open(name, write=True)
        file.pwrite(b"\xff" * 64, layout.PUBLISHED_POSITION + damaged * layout.SLOT_STRIDE)
        file.close()
        files.close()
    topic = opened(NEXT_BOOT).topic("t")
    assert offsets(topic) == list(range(start, 30))
    assert topic.beginning_offsets() == {0: start}
    assert topic.append(b"30").offset == 30


def test_missing_segment_that_holds_the_start_is_damage(opened):
    """A left-over does not stand in for it."""
    log = opened()
    fill(log, 30)
    folder = writer_of(log).folder
    end = writer_of(log)
    with end.locked(1) as slot:
        end.publish_locked(msgspec.structs.replace(slot, sequence=slot.sequence + 1, log_start_offset=14), last=True)
    folder.files.unlink(f"{folder.path}/{layout.segment_name(13)}")
    with pytest.raises((CorruptLogError, OffsetOutOfRangeError)):
        offsets(log.topic("t"))
    assert not log.verify().ok


def test_transaction_is_on_disk_everywhere_before_it_is_deleted(log):
    """Else a power loss would undo it in the other partition, and have to cut this one below its start."""
    fill(log, 20)
    fill(log, 1, name="other")
    with log.producer() as producer, producer.transaction():
        producer.send("t", b"20", partition=0)
        producer.send("other", b"1", partition=0)
    assert log.topic("other").durable_offsets() == {0: 0}
    log.admin.delete_records({TP: 21})
    assert log.topic("other").durable_offsets() == {0: 2}


def test_retention_beside_an_appender(opened):
    """Records go at one end while they come at the other: the reader sees no gap."""
    log = opened()
    topic = fill(log, 10, retention_bytes=8192)
    ended = threading.Event()
    failures = []

    def run():
        try:
            while not ended.is_set():
                log.maintain()
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        last = -1
        for number in range(10, 2000):
            topic.append(b"%d" % number + b"." * 100)
            if not number % 50:
                found = [record.offset for record in consumer.poll(0)]
                assert found == sorted(set(found))
                assert not found or found[0] > last
                last = found[-1] if found else last
    ended.set()
    thread.join()
    assert failures == []
    assert topic.end_offsets() == {0: 2000}
    log.maintain()
    assert len(bases_of(log)) <= 4
    report = log.verify()
    assert report.ok, report


# --- clocks that jump


@pytest.mark.parametrize("days", [2, -2])
def test_nothing_is_deleted_for_an_hour_after_a_jump(log, clock, caplog, days):
    """Of the wall clock against the monotonic one, since the log was opened, or since the last run."""
    for first in (True, False):
        fill(log, 20, retention_ms=1000)
        clock.passed_ms += HOUR
        if not first:
            assert log.maintain().segments
            fill(log, 20, retention_ms=1000)
            clock.passed_ms += HOUR
        clock.jumped_ms += days * DAY
        with caplog.at_level(logging.WARNING, "pystreamlog"):
            report = log.maintain()
        assert (report.deleted, report.waits_ms) == ({}, HOUR)
        assert "set it right" in caplog.text
        caplog.clear()
        clock.passed_ms += HOUR // 2
        assert 0 < log.maintain().waits_ms <= HOUR // 2
        assert not caplog.records
        clock.passed_ms += HOUR
        report = log.maintain()
        assert report.waits_ms == 0
        assert bool(report.deleted) == (days > 0)
        clock.jumped_ms -= days * DAY
        assert log.maintain().waits_ms
        clock.passed_ms += 2 * HOUR
        log.maintain()


def test_log_that_was_not_written_for_a_day_waits(opened, clock):
    """Just after opening nobody knows whether so much time passed or the clock is wrong."""
    log = opened()
    fill(log, 20, retention_ms=HOUR)
    log.close()
    clock.passed_ms += 2 * DAY
    log = opened()
    log.topic("t").append(b"20")  # which is new, by that clock
    report = log.maintain()
    assert (report.deleted, 0 < report.waits_ms <= HOUR) == ({}, True)
    clock.passed_ms += HOUR
    assert log.maintain().deleted[TP].segments == 2


def test_time_that_passed_between_runs_is_no_jump(opened, clock):
    """Both clocks tell it: in the boot of the last run nobody waits."""
    log = opened()
    fill(log, 20, retention_ms=HOUR)
    log.maintain()
    log.close()
    clock.passed_ms += 2 * DAY
    assert opened().maintain().segments == 2


def test_another_boot_long_after_the_last_run_waits(opened, clock):
    """The monotonic clock began anew."""
    log = opened()
    fill(log, 20, retention_ms=HOUR)
    log.maintain()
    log.close()
    clock.passed_ms += 2 * DAY
    log = opened(NEXT_BOOT)
    assert log.maintain().waits_ms
    clock.passed_ms += HOUR
    assert log.maintain().segments == 2


def test_waiting_goes_on_in_another_process(opened, clock):
    """What one saw, `maintenance.lock` tells the next."""
    log = opened()
    fill(log, 20, retention_ms=HOUR)
    clock.jumped_ms += 2 * DAY
    assert log.maintain().waits_ms
    log.close()
    log = opened()
    assert log.maintain().waits_ms
    clock.passed_ms += 2 * HOUR
    assert log.maintain().segments == 2


def test_last_run_that_was_not_noted_is_none(opened, clock):
    """As when the process died, or the disk was full, while the lock's file was new: the last append tells the gap."""
    log = opened()
    fill(log, 20, retention_ms=HOUR)
    log._files.create(LOCK_FILE).close()
    log.close()
    clock.jumped_ms += 2 * DAY
    log = opened(NEXT_BOOT)
    log.topic("t")
    report = log.maintain()
    assert (report.deleted, report.waits_ms > 0) == ({}, True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_given_room(log, clock, monkeypatch, code):
    """Though nothing can be written to the lock's file, which may be new: who holds the lock, and when it ran."""
    fill(log, 20, retention_ms=HOUR)
    clock.passed_ms += 2 * HOUR
    real_write, real_stamp = File.pwrite, FileLock.stamp

    def refuse(file, data, position):
        if file.path.endswith(LOCK_FILE):
            raise StorageError("the disk is full", path=file.path, errno=code)
        return real_write(file, data, position)

    def refuse_stamp(lock):
        if lock.path.endswith(LOCK_FILE):
            raise StorageError("the disk is full", path=lock.path, errno=code)
        real_stamp(lock)

    monkeypatch.setattr(File, "pwrite", refuse)
    monkeypatch.setattr(FileLock, "stamp", refuse_stamp)
    assert log.maintain().segments == 2


def test_disk_that_fails_is_told(log, monkeypatch):
    """What is no want of room is an error."""
    fill(log, 20, retention_ms=HOUR)

    def fail(file, data, position):
        raise StorageError("it failed", path=file.path, errno=errno.EIO)

    monkeypatch.setattr(File, "pwrite", fail)
    with pytest.raises(StorageError, match="it failed"):
        log.maintain()


def test_torn_state_of_the_last_run_is_none(opened, clock):
    """It is derived from nothing, and costs an hour at most."""
    log = opened()
    fill(log, 20, retention_ms=HOUR)
    log.maintain()
    file = log._files.open(LOCK_FILE, write=True)
    file.pwrite(b"\xff", layout.MAINTENANCE_POSITION + 30)
    file.close()
    clock.passed_ms += 2 * HOUR
    assert log.maintain().segments == 2


# --- who does it


def test_one_process_does_it_at_a_time(log, clock, start):
    """The other one is told who does; in the background it leaves it at that."""
    fill(log, 20, retention_ms=0)
    time.sleep(0.002)
    log._maintenance.patience = 0.2
    log.maintain()
    program = """
        from pystreamlog.coordination.locks import FileLock
        fd = os.open(sys.argv[1], os.O_RDWR)
        with FileLock(fd, sys.argv[1]).held(10, stamp=True):
            say("held")
            hear()
    """
    child = start(program, os.path.join(log.path, LOCK_FILE))
    assert child.hear() == "held"
    time.sleep(0.002)
    fill(log, 20, retention_ms=0)
    with pytest.raises(LockTimeoutError) as caught:
        log.maintain()
    assert str(child.pid) in caught.value.holder
    log._maintenance.run_in_background()
    assert log.topic("t").end_offsets()[0] - log.topic("t").beginning_offsets()[0] == 20
    child.say()
    child.finish()
    clock.passed_ms += 300 * SECOND
    log._maintenance.run_in_background()
    assert log.topic("t").beginning_offsets() == log.topic("t").end_offsets()


def test_of_many_processes_one_does_it_in_an_interval(opened, clock):
    """The others leave it at a look at what the lock's file says; a run for some topics is none for all."""
    log, other = opened(maintenance=False), opened(maintenance=False)
    fill(log, 20, retention_ms=0)
    fill(log, 20, name="u", retention_ms=0)
    clock.passed_ms += 1
    log.maintain(topics=["u"])
    other._maintenance.run_in_background()
    assert log.topic("t").beginning_offsets() == {0: 20}
    fill(log, 20, retention_ms=0)
    clock.passed_ms += 269 * SECOND
    log._maintenance.run_in_background()
    assert log.topic("t").beginning_offsets() == {0: 20}
    clock.passed_ms += 1 * SECOND
    other._maintenance.run_in_background()
    assert log.topic("t").beginning_offsets() == {0: 40}


def test_all_deletions_come_before_anything_is_written_anew(opened, clock, monkeypatch):
    """On a full disk, they make the room that it needs."""
    log = opened(maintenance=False)
    fill_compacted(log, "a")
    fill(log, 20, name="z", retention_ms=0)
    clock.passed_ms += 1
    done, run = [], Compaction.run

    def noting_run(self, topic, *arguments, **options):
        done.append((topic.name, log.topic("z").beginning_offsets()))
        return run(self, topic, *arguments, **options)

    monkeypatch.setattr(Compaction, "run", noting_run)
    assert log.maintain().segments
    assert done == [("a", {0: 20})]


def test_deleted_topics_are_forgotten(opened):
    """Or a log of many short-lived topics would grow in memory."""
    log = opened(maintenance=False)
    for name in ("a", "b"):
        fill_compacted(log, name)
    log.maintain()
    ids = {log._topics.find(name).id for name in ("a", "b")}
    assert log._maintenance._known == ids
    log.admin.delete_topics(["b"])
    log.maintain()
    kept = {log._topics.find("a").id}
    assert log._maintenance._known == kept
    assert {key[0] for key in log._maintenance._compaction._quiet} <= kept


def test_read_only_log_is_left(opened):
    """Nor does it have a thread."""
    fill(opened(), 20, retention_ms=0)
    log = opened(read_only=True)
    assert len(offsets(log.topic("t"))) == 20
    assert log._maintenance._thread is None
    with pytest.raises(ReadOnlyError):
        log.maintain()


def threads():
    """The threads of maintenance there are."""
    return [thread for thread in threading.enumerate() if thread.name == "pystreamlog-maintenance"]


def test_thread_starts_with_the_first_topic_that_has_a_retention(opened):
    """Not before; and ends with the log."""
    log = opened()
    fill(log, 2, name="other")
    assert not threads()
    fill(log, 2, retention_ms=1000)
    assert len(threads()) == 1
    log.topic("other").alter(retention_bytes=5)
    assert len(threads()) == 1
    log.close()
    assert not threads()


def test_thread_of_a_process_that_uses_it_only(opened):
    """Without `maintenance`, there is none."""
    log = opened(maintenance=False)
    fill(log, 20, retention_ms=0)
    assert not threads()
    time.sleep(0.002)
    assert log.maintain().segments == 2


def test_thread_does_it_every_now_and_then(log, monkeypatch):
    """Once first, then again and again."""
    maintenance = Maintenance(
        log._files,
        log._topics,
        log._partitions,
        log._context,
        in_background=True,
        first_seconds=0.001,
        interval_seconds=0.005,
    )
    log._topics.seen = maintenance.seen
    try:
        topic = fill(log, 20, retention_ms=0)
        for _ in range(2):
            deadline = time.monotonic() + 20
            while topic.beginning_offsets() != topic.end_offsets():
                assert time.monotonic() < deadline
                time.sleep(0.005)
            topic.append(b"more")
    finally:
        maintenance.close()


def test_thread_ends_with_a_log_that_nobody_has(log):
    """A log that is dropped without being closed is not kept alive."""
    maintenance = Maintenance(
        log._files, log._topics, log._partitions, log._context, in_background=True, first_seconds=0.05
    )
    log._topics.seen = maintenance.seen
    fill(log, 1, retention_ms=1000)
    thread = maintenance._thread
    log._topics.seen = lambda _: None
    del maintenance
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_child_has_a_thread_of_its_own(log):
    """Once it uses the topic; the parent's does not exist there."""
    fill(log, 2, retention_ms=10_000_000)
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            before = log._maintenance._thread
            log._topics.forget("t")
            log.topic("t").append(b"x")
            code = 0 if before is None and log._maintenance._thread.is_alive() else 2
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(threads()) == 1


def test_failures_of_one_partition_leave_the_others(log, clock, caplog):
    """All are tried; what failed comes back together."""
    fill(log, 20, retention_ms=0)
    fill(log, 20, name="u", retention_ms=0)
    time.sleep(0.002)
    folder = writer_of(log).folder
    path = log._files.path(f"{folder.path}/{layout.segment_name(13)}")
    with open(path, "r+b") as file:
        file.write(b"\xff" * 64)
    with pytest.raises(ExceptionGroup) as caught:
        log.maintain()
    assert isinstance(caught.value.exceptions[0], CorruptLogError)
    assert log.topic("u").beginning_offsets() == {0: 20}
    clock.passed_ms += 300 * SECOND
    with caplog.at_level(logging.WARNING, "pystreamlog"):
        log._maintenance.run_in_background()
    assert "failed in part" in caplog.text


def test_damaged_topic_leaves_the_others(log):
    """As a partition does."""
    fill(log, 20, retention_ms=0)
    fill(log, 1, name="broken")
    time.sleep(0.002)
    with open(os.path.join(log.path, "topics", "broken", "topic.json"), "w") as file:
        file.write("{")
    log._topics.forget("broken")
    with pytest.raises(ExceptionGroup):
        log.maintain()
    assert log.topic("t").beginning_offsets() == {0: 20}


def test_memory_log_is_maintained_alike():
    """There is a directory behind it."""
    with pystreamlog.open(":memory:") as log:
        fill(log, 20, retention_ms=0)
        time.sleep(0.002)
        assert log.maintain().segments == 2
