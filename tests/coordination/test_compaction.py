"""Compaction and repacking: what stays, what is read where records are gone, what others notice, what is left over."""

import contextlib
import functools
import os
import random
import subprocess
import sys
import time

import pytest

from pystreamlog import AlterConfigOp, TopicPartition
from pystreamlog.coordination import compaction as compaction_module
from pystreamlog.coordination import replacing
from pystreamlog.coordination.compaction import Compaction
from pystreamlog.coordination.maintenance import Maintenance
from pystreamlog.errors import ConfigError, CorruptLogError, InvalidRecordError, StorageError, UnknownTopicError
from pystreamlog.storage import format as layout
from pystreamlog.storage.coverage import read_header
from pystreamlog.storage.files import File, Files
from pystreamlog.storage.reader import Cursor
from tests.coordination.moving import BOOT, NEXT_BOOT

HOUR, DAY = 3_600_000, 86_400_000
TP = TopicPartition("t", 0)


@pytest.fixture
def opened(opened):
    """Opens the test's log: a process that leaves maintenance to the test."""
    return functools.partial(opened, maintenance=False)


@pytest.fixture
def log(opened):
    """The test's log."""
    return opened()


def compacted_topic(log, name="t", **config):
    """A topic of small segments that is compacted."""
    return log.create_topic(
        name, exist_ok=True, **{"segment_bytes": 4096, "cleanup_policy": "compact", "repack": False, **config}
    )


def fill(log, count=100, *, keys=10, name="t", **config):
    """Records with so many keys, each of which says its offset."""
    topic = compacted_topic(log, name, **config)
    for _ in range(count):
        number = topic.end_offsets()[0]
        topic.append(b"%d" % number, b"key-%d" % (number % keys), timestamp_ms=log._clock.now_ms())
    return topic


def writer_of(log, name="t"):
    """The writer of the topic's partition."""
    return log._partitions.writer(log._topics.find_anew(name), 0)


def headers_of(log, name="t"):
    """The segment headers there are, oldest first."""
    folder = writer_of(log, name).folder
    return [read_header(folder, base) for base in folder.segments()]


def offsets(topic, **bounds):
    """What can be read, which says its offset, or is a tombstone."""
    records = list(topic.read(**bounds))
    assert all(record.value is None or int(record.value) == record.offset for record in records)
    found = [record.offset for record in records]
    assert found == sorted(set(found))
    return found


def sealed_end(log, name="t"):
    """The first offset of the active segment."""
    return writer_of(log, name).folder.segments()[-1]


def expected(log, end, keys=10, name="t"):
    """The offsets that stay when all sealed segments were compacted."""
    sealed = sealed_end(log, name)
    last = {number % keys: number for number in range(sealed)}
    return [*sorted(last.values()), *range(sealed, end)]


# --- what stays


def test_last_record_of_each_key_stays(log):
    """And what is in the active segment."""
    topic = fill(log)
    report = log.maintain()
    assert offsets(topic) == expected(log, 100)
    done = report.compacted[TP]
    assert (done.records_after, done.segments_after) == (10, 1)
    assert done.records_before == sealed_end(log)
    assert done.bytes_after < done.bytes_before
    assert log.verify().ok
    assert log.maintain().compacted == {}


def test_records_keep_all_they_have(log):
    """Timestamps, headers, empty values, and keys that differ in one byte."""
    topic = compacted_topic(log)
    rows = [(b"a", b"1"), (b"b", b""), (b"", b"empty key"), (b"c", None), (b"d", b"2"), (b"a ", b"3")]
    for number, (key, value) in enumerate(rows):
        topic.append(value, key, headers=[("n", b"%d" % number)] if number % 2 else (), timestamp_ms=1000 - number)
    before = list(topic.read())
    fill(log, 60)
    assert log.maintain().compacted
    after = {record.offset: record for record in topic.read()}
    for record in before:
        assert after[record.offset] == record


def test_topic_of_records_without_keys_keeps_them_when_it_becomes_compacted(log):
    """They were taken; nobody superseded them."""
    topic = log.create_topic("t", segment_bytes=4096)
    for number in range(50):
        topic.append(b"%d" % number, None if number % 3 else b"key")
    topic.alter(cleanup_policy="compact")
    log.maintain()
    sealed = sealed_end(log)
    last = max(number for number in range(sealed) if not number % 3)
    assert offsets(topic) == [number for number in range(50) if number % 3 or number == last or number >= sealed]


def test_timestamps_that_the_log_set_stay(log):
    """Of batches with one each, gathered into one batch."""
    topic = compacted_topic(log, message_timestamp_type="LogAppendTime")
    for number in range(100):
        log._clock.passed_ms += 7
        topic.append(b"%d" % number, b"%d" % (number % 40))
    before = {record.offset: record.timestamp_ms for record in topic.read()}
    log.maintain()
    after = {record.offset: record.timestamp_ms for record in topic.read()}
    assert len(after) < len(before)
    assert after.items() <= before.items()
    assert len(set(after.values())) == len(after)


@pytest.mark.parametrize("codec", ["none", "gzip"])
def test_codec_stays(log, codec):
    """Batches that shrank, and such as were too small to."""
    topic = compacted_topic(log, segment_bytes=16384)
    with log.producer(compression_type=codec) as producer:
        for number in range(0, 400, 8):
            numbers = range(number, number + 8)
            for part in (numbers[:1], numbers[1:]):
                producer.send_many("t", [b"%d" % each for each in part], [b"key-%d" % (each % 100) for each in part])
                producer.flush()
    assert {header.codec for header in batch_headers(log)} == ({0} if codec == "none" else {0, 1})
    log.maintain(force=True)
    assert offsets(topic) == expected(log, 400, keys=100)
    codecs = {header.codec for header in batch_headers(log) if header.count > 50}
    assert codecs == {0 if codec == "none" else 1}


def batch_headers(log, name="t"):
    """All batch headers."""
    reader = log._partitions.reader(log._topics.find_anew(name), 0)
    try:
        reader.offsets()
        return list(reader._reader.headers(Cursor(reader.offsets()[0]), reader._published()))
    finally:
        reader.close()


def test_compacted_again_and_again(log):
    """Segments that were compacted lose what was superseded since, and are merged."""
    topic = compacted_topic(log)
    for _ in range(6):
        fill(log, 80, keys=30)
        log.maintain(force=True)
        end = topic.end_offsets()[0]
        assert offsets(topic) == expected(log, end, keys=30)
        assert log.verify().ok
    generations = [header.generation for header in headers_of(log)]
    assert generations[0] >= 3
    assert len(generations) <= 4


@pytest.mark.parametrize("hashed", [hash, lambda _: 7, len])
def test_many_passes_in_little_memory(log, hashed):
    """Keys of the same hash are told apart; a pass that cannot be cut goes past its budget."""
    topic = compacted_topic(log)
    for number in range(600):
        topic.append(b"%d" % number, b"%d" % (number * 7 % 251))
    state = log._topics.find("t")
    small = Compaction(log._partitions, log._context, budget=6000, hashed=hashed)
    # a budget's share limits the records looked through at once, so more than one run may be due
    while due := small.due(state, 0, force=True):
        if small.run(state, 0, due) is None:
            break
    last = {number * 7 % 251: number for number in range(sealed_end(log))}
    assert offsets(topic) == [*sorted(last.values()), *range(sealed_end(log), 600)]
    assert log.verify().ok


# --- tombstones


def test_tombstones_stay_for_their_time(log, clock):
    """From when they were compacted first."""
    topic = compacted_topic(log, delete_retention_ms=HOUR)
    topic.append(b"0", b"gone")
    topic.append(None, b"gone")
    fill(log, 60, keys=5)
    clock.passed_ms += 2 * HOUR
    log.maintain()
    assert 1 in offsets(topic)
    assert 0 not in offsets(topic)
    clock.passed_ms += HOUR - 60_000
    log.maintain(force=True)
    assert 1 in offsets(topic)
    clock.passed_ms += 2 * 60_000
    log.maintain()
    assert 1 not in offsets(topic)
    assert log.maintain().compacted == {}
    assert log.verify().ok


def test_tombstones_are_not_kept_for_ever_by_what_comes_after_them(log, clock):
    """Segments with different times are not merged."""
    topic = compacted_topic(log, delete_retention_ms=HOUR)
    topic.append(None, b"gone")
    for _ in range(8):
        for number in range(40):
            topic.append(None if number % 9 == 0 else b"%d" % topic.end_offsets()[0], b"key-%d" % number)
        log.maintain(force=True)
        clock.passed_ms += HOUR // 5
    assert 0 not in offsets(topic)


def test_tombstones_of_a_key_index_stay(log, clock):
    """Or the next version of the key would be 0 again."""
    topic = compacted_topic(log, key_index=True, delete_retention_ms=0)
    topic.append(b"0", b"gone", expected_version=0)
    topic.append(None, b"gone", expected_version=1)
    fill(log, 60, keys=5, key_index=True)
    for _ in range(3):
        log.maintain(force=True)
        clock.passed_ms += DAY
        fill(log, 40, keys=5, key_index=True)
    assert 1 in offsets(topic)
    topic.append(b"%d" % topic.end_offsets()[0], b"gone", expected_version=2)


def test_log_whose_last_records_are_gone(log, clock, opened):
    """Readers come to the end all the same; the next record has the next offset."""
    topic = compacted_topic(log, delete_retention_ms=0)
    for number in range(30):
        topic.append(b"%d" % number, b"key")
    topic.append(None, b"key")
    writer = writer_of(log)
    with writer.locked(10) as end:
        writer.roll_locked(end)
    log.maintain(force=True)
    clock.passed_ms += 1
    log.maintain(force=True)
    assert offsets(topic) == []
    assert topic.end_offsets() == {0: 31}
    with log.consumer(auto_offset_reset="earliest") as consumer:
        consumer.assign([TP])
        assert not consumer.poll(timeout=0)
        assert consumer.position(TP) == 31
        topic.append(b"31", b"key")
        assert [record.offset for record in consumer.poll(timeout=5)] == [31]
    assert log.verify().ok
    log.close()
    log = opened(NEXT_BOOT)
    assert offsets(log.topic("t")) == [31]
    log.topic("t").append(b"32", b"key")
    assert log.verify().ok


# --- when


def test_ratio(log):
    """Of bytes in full segments that were not compacted yet."""
    topic = fill(log, 400, min_cleanable_dirty_ratio=0.5, segment_bytes=8192, keys=300)
    assert log.maintain().compacted
    before = offsets(topic)
    while sealed_end(log) <= 400:
        fill(log, 1, keys=300, min_cleanable_dirty_ratio=0.5)
    assert log.maintain().compacted == {}
    assert offsets(topic)[: len(before)] == before
    assert log.maintain(force=True).compacted


def test_young_records_are_left_alone(log, clock):
    """And what comes after them."""
    topic = fill(log, 60, min_compaction_lag_ms=HOUR)
    assert log.maintain(force=True).compacted == {}
    clock.passed_ms += HOUR + 1000
    old = sealed_end(log)
    fill(log, 60, min_compaction_lag_ms=HOUR)
    log.maintain(force=True)
    kept = offsets(topic)
    assert len([offset for offset in kept if offset < old]) == 10
    assert [offset for offset in kept if offset >= old] == list(range(old, 120))


def test_records_of_the_future_are_compacted(log):
    """Without a lag, timestamps mean nothing."""
    topic = compacted_topic(log)
    for number in range(60):
        topic.append(b"%d" % number, b"key-%d" % (number % 10), timestamp_ms=log._clock.now_ms() + 1000 * DAY)
    assert log.maintain().compacted
    assert offsets(topic) == expected(log, 60)


def test_old_records_are_compacted_however_few_they_are(log, clock):
    """The active segment is rolled for it."""
    topic = fill(log, 5, keys=1, max_compaction_lag_ms=HOUR, min_cleanable_dirty_ratio=1.0)
    assert log.maintain().compacted == {}
    clock.passed_ms += HOUR + 1000
    assert log.maintain().compacted[TP].records_after == 1
    assert offsets(topic) == [4]
    assert log.maintain().compacted == {}


def test_clock_that_jumped_compacts_nothing(log, clock):
    """By itself; when told to, tombstones stay."""
    topic = compacted_topic(log, delete_retention_ms=0)
    topic.append(None, b"gone")
    fill(log, 60)
    log.maintain()
    fill(log, 60)
    clock.jumped_ms += 2 * DAY
    report = log.maintain()
    assert report.waits_ms
    assert report.compacted == {}
    assert log.maintain(force=True).compacted
    assert 0 in offsets(topic)


def test_only_the_topics_that_are_named(log):
    """Others are left alone; one that is not there is an error."""
    fill(log)
    fill(log, name="other")
    report = log.maintain(topics=["other"])
    assert set(report.compacted) == {TopicPartition("other", 0)}
    with pytest.raises(UnknownTopicError):
        log.maintain(topics=["missing"])


def test_retention_deletes_what_was_compacted(log, clock):
    """With both policies."""
    config = {"cleanup_policy": "compact,delete", "retention_ms": DAY}
    topic = fill(log, 60, **config)
    log.maintain()
    assert len(offsets(topic)) < 60
    clock.passed_ms += 2 * DAY
    fill(log, 60, **config)
    log.maintain()
    assert offsets(topic)[0] >= 59
    assert log.verify().ok


# --- repacking


def test_repacked_log_has_large_batches_and_every_record(log):
    """With their headers, timestamps and sequences."""
    topic = log.create_topic("t", segment_bytes=32768, repack=True)
    with log.producer(producer_id="p", linger_ms=0) as producer:
        for number in range(500):
            producer.send(
                "t", b"%d" % number, headers=[("h", b"%d" % number)] if number % 3 else (), sequence=number * 2
            )
            producer.flush()
    before = list(topic.read())
    count = len(batch_headers(log))
    report = log.maintain()
    assert report.compacted[TP].records_before == report.compacted[TP].records_after == sealed_end(log)
    assert list(topic.read()) == before
    assert len(batch_headers(log)) < count / 3
    assert log.maintain().compacted == {}
    assert log.verify().ok
    with log.producer(producer_id="p", linger_ms=0) as producer:
        sent = [producer.send("t", b"%d" % number, sequence=number * 2) for number in (490, 499, 500)]
        producer.flush()
    assert [each.result().offset for each in sent] == [490, 499, 500]


def test_large_batches_are_left_as_they_are(log):
    """Nothing is gained by copying them."""
    log.create_topic("t", segment_bytes=65536, repack=True)
    with log.producer() as producer:
        for _ in range(20):
            producer.send_many("t", [b"x" * 20] * 1000)
    assert log.maintain().compacted == {}


# --- reading where records are gone


@pytest.fixture
def gaps(log):
    """A compacted topic with gaps within a batch, between batches and between segments."""
    topic = compacted_topic(log, segment_bytes=8192)
    for number in range(300):
        key = b"a%d" % number if number % 50 < 3 else b"b%d" % (number % 5)
        topic.append(b"%d" % number, key, timestamp_ms=1_000_000 + number)
    log.maintain(force=True)
    assert log.verify().ok
    return topic


def test_reading_begins_anywhere(log, gaps):
    """In a gap, at the next record."""
    there = offsets(gaps)
    assert len(there) < 150
    for start in range(300):
        assert offsets(gaps, partition=0, start=start) == [offset for offset in there if offset >= start]
    for stop in range(0, 300, 17):
        assert offsets(gaps, partition=0, stop=stop) == [offset for offset in there if offset < stop]


@pytest.mark.parametrize("reads", ["mmap", "pread"])
def test_consumer_seeks_into_gaps(log, gaps, opened, reads):
    """And commits there; lag counts offsets."""
    there = offsets(gaps)
    other = opened(map_reads=reads == "mmap")
    with other.consumer(group_id="g", auto_offset_reset="earliest", max_poll_records=3) as consumer:
        consumer.assign([TP])
        for start in (0, 3, 17, 149, 250, 299):
            consumer.seek(TP, start)
            found = []
            while consumer.position(TP) < 300:
                found += [record.offset for record in consumer.poll(timeout=1)]
            assert found == [offset for offset in there if offset >= start]
        consumer.seek(TP, 17)
        consumer.commit()
        assert consumer.committed(TP)[TP].offset == 17


def test_times_are_found(log, gaps):
    """The first record that is left from a time on."""
    there = offsets(gaps)
    reader = log._partitions.reader(log._topics.find("t"), 0)
    with log.consumer() as consumer:
        consumer.assign([TP])
        for number in range(0, 300, 7):
            wanted = next(offset for offset in there if offset >= number)
            assert consumer.offsets_for_times({TP: 1_000_000 + number})[TP] == wanted
            assert log.admin.list_offsets({TP: 1_000_000 + number})[TP].offset == wanted
            assert reader.offset_at(1_000_000 + number) == wanted
    assert log.admin.list_offsets({TP: "max_timestamp"})[TP].offset == 299
    assert log.admin.list_offsets({TP: "earliest"})[TP].offset == 0
    assert reader.offset_at(1_000_300) is None
    reader.close()


def test_versions_go_on(log, opened):
    """Where earlier records of a key are gone; also when the key index is built anew."""
    topic = fill(log, 200, keys=7, key_index=True)
    log.maintain(force=True)
    for number in range(7):
        found = [record.offset for record in topic.read_key(b"key-%d" % number)]
        assert found
        assert found[-1] == max(offset for offset in range(200) if offset % 7 == number)
    folder = writer_of(log).folder
    log.close()
    os.unlink(os.path.join(folder.files.root, folder.path, "keys.index"))
    log = opened()
    topic = log.topic("t")
    for number in range(7):
        records = len([offset for offset in range(200) if offset % 7 == number])
        topic.append(b"%d" % topic.end_offsets()[0], b"key-%d" % number, expected_version=records)
    assert log.verify().ok


def test_producers_are_remembered_though_their_records_are_gone(log, opened):
    """By a snapshot in the active segment."""
    topic = compacted_topic(log)
    with log.producer(producer_id="p", linger_ms=0) as producer:
        for number in range(100):
            producer.send("t", b"%d" % number, b"key", sequence=number)
            producer.flush()
    log.maintain()
    kept = offsets(topic)
    assert len(kept) < 90
    log.close()
    log = opened()
    with log.producer(producer_id="p", linger_ms=0) as producer:
        for number in (0, 50, 99):
            producer.send("t", b"again", b"key", sequence=number)
        producer.flush()
    assert offsets(log.topic("t")) == kept


def test_producers_are_remembered_by_who_knew_the_log_before(log, opened):
    """What others appended meanwhile, and was compacted away since, he knows from the snapshot."""
    topic = compacted_topic(log)
    other = opened()
    with log.producer(producer_id="p") as producer:
        producer.send("t", b"0", b"key", sequence=0)
    with other.producer(producer_id="q", linger_ms=0) as producer:
        for number in range(60):
            producer.send("t", b"%d" % (number + 1), b"key", sequence=number)
            producer.flush()
        for number in range(60, 90):
            other.topic("t").append(b"%d" % (number + 1), b"key")
        other.maintain(force=True)
    end = topic.end_offsets()
    assert len(offsets(topic)) < 40
    with log.producer(producer_id="p") as producer:
        producer.send("t", b"0", b"key", sequence=0)
    with log.producer(producer_id="q") as producer:
        for number in range(60):
            producer.send("t", b"again", b"key", sequence=number)
    assert topic.end_offsets() == end


def test_transactions_stand_alone_once_they_are_on_disk(log, opened):
    """Their nonces go, so nobody looks for them in the journal."""
    topic = compacted_topic(log)
    with log.producer(transactional_id="x") as producer:
        for number in range(40):
            with producer.transaction():
                producer.send("t", b"%d" % (2 * number), b"key-%d" % (number % 3))
                producer.send("t", b"%d" % (2 * number + 1), b"other")
    log.maintain()
    kept = offsets(topic)
    sealed = sealed_end(log)
    assert len(kept) < 80
    assert {header.transaction_nonce for header in batch_headers(log) if header.last_offset < sealed} == {0}
    assert log.verify().ok
    log.close()
    log = opened(NEXT_BOOT)
    assert offsets(log.topic("t")) == kept
    assert log.verify().ok


# --- while it happens


def test_readers_that_are_in_the_middle_go_on(log, opened):
    """Of a segment that is replaced, or merged into another one."""
    topic = fill(log, 300, keys=20)
    before = offsets(topic)
    consumers = []
    for start in range(0, 300, 11):
        consumer = log.consumer(max_poll_records=1)
        consumer.assign([TP])
        consumer.seek(TP, start)
        assert [record.offset for record in consumer.poll(timeout=1)] == [start]
        consumers.append((start, consumer))
    log.maintain(force=True)
    left = offsets(topic)
    for start, consumer in consumers:
        found = []
        while consumer.position(TP) < 300:
            found += [record.offset for record in consumer.poll(timeout=1)]
        consumer.close()
        assert set(left) & set(range(start + 1, 300)) <= set(found) <= set(before)
        assert found == sorted(set(found))


def test_cursors_of_files_that_were_closed_are_found_again(log):
    """As those of idle readers are, where descriptors are scarce."""
    topic = fill(log, 300, keys=20)
    state = log._topics.find("t")
    readers = []
    for start in range(0, 300, 11):
        reader, cursor = log._partitions.reader(state, 0), Cursor(start)
        reader.fetch(cursor, max_records=1)
        assert reader.try_close()
        readers.append((reader, cursor))
    log.maintain(force=True)
    left = offsets(topic)
    for reader, cursor in readers:
        wanted = [offset for offset in left if offset >= cursor.offset]
        found = []
        while batches := reader.fetch(cursor, max_records=1000):
            for batch, first in batches:
                found += batch.offsets(first, batch.count)
        assert found == wanted
        assert cursor.offset == 300
        reader.close()


def test_topic_that_is_deleted_meanwhile(log, monkeypatch):
    """And made again: nothing of the old one comes into the new one."""
    fill(log)
    rewrite = compaction_module.rewrite

    def deleting(*arguments, **named):
        rewritten = rewrite(*arguments, **named)
        log.delete_topic("t")
        compacted_topic(log).append(b"0", b"new")
        return rewritten

    monkeypatch.setattr(compaction_module, "rewrite", deleting)
    assert log.maintain().compacted == {}
    assert offsets(log.topic("t")) == [0]
    assert log.verify().ok


@pytest.mark.parametrize("step", ["_delete", "_rewrite"])
def test_topic_that_is_made_again_meanwhile(log, monkeypatch, step):
    """What was to be done to the old one is no damage of the new one, and the others have their turn."""
    topic = fill(log)
    other = compacted_topic(log, "u")
    for _ in range(100):
        other.append(b"." * 100, b"same")
    real = getattr(Maintenance, step)

    def deleting(self, state, partition, *arguments, **named):
        if state.name == "t" and state.id == old:
            log.delete_topic("t")
            compacted_topic(log).append(b"0", b"new")
        return real(self, state, partition, *arguments, **named)

    old = log._topics.find(topic.name).id
    monkeypatch.setattr(Maintenance, step, deleting)
    assert list(log.maintain(force=True).compacted) == [("u", 0)]
    assert offsets(log.topic("t")) == [0]


def test_log_that_is_closed_meanwhile(log, opened, monkeypatch):
    """Ends the run between two reads."""
    fill(log)
    log.pause_maintenance(log._maintenance._ended.set)
    assert log.maintain().compacted == {}
    other = opened()
    assert len(offsets(other.topic("t"))) == 100
    assert other.maintain().compacted


# --- what fails


def test_damage_changes_nothing(log):
    """And is told."""
    topic = fill(log)
    folder = writer_of(log).folder
    bases = folder.segments()
    before = {base: segment_bytes(folder, base) for base in bases}
    path = os.path.join(folder.files.root, folder.path, layout.segment_name(bases[2]))
    with open(path, "r+b") as file:
        file.seek(layout.SEGMENT_HEADER.size + 200)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ExceptionGroup) as caught:
        log.maintain()
    assert isinstance(caught.value.exceptions[0], CorruptLogError)
    with open(path, "r+b") as file:
        file.seek(layout.SEGMENT_HEADER.size + 200)
        file.write(byte)
    assert {base: segment_bytes(folder, base) for base in folder.segments()} == before
    assert log.maintain().compacted
    assert offsets(topic) == expected(log, 100)


def segment_bytes(folder, base):
    """What is in a segment's file."""
    return folder.files.read(f"{folder.path}/{layout.segment_name(base)}", limit=1 << 20)


def test_full_disk_loses_nothing(log, monkeypatch):
    """What was written so far is removed."""
    topic = fill(log)
    pwrite = File.pwrite

    def full(file, data, position):
        if layout.CLEANED_SUFFIX in file.path:
            raise StorageError("no space", path=file.path, errno=28)
        pwrite(file, data, position)

    monkeypatch.setattr(File, "pwrite", full)
    with pytest.raises(ExceptionGroup):
        log.maintain()
    monkeypatch.undo()
    assert not replacing.being_rewritten(writer_of(log).folder)
    assert len(offsets(topic)) == 100
    assert log.maintain().compacted
    assert offsets(topic) == expected(log, 100)


class Killed(BaseException):
    """As if the process were gone from here on."""


@pytest.mark.parametrize("point", range(60))
def test_whoever_dies_leaves_the_log_whole(log, opened, clock, monkeypatch, point):
    """Whatever call he dies before: every record is read, and the next run does it."""
    topic = compacted_topic(log, delete_retention_ms=0)
    topic.append(b"0", b"gone")
    fill(log, 60, keys=4)
    topic.append(None, b"gone")
    fill(log, 60, keys=4)
    folder = writer_of(log).folder
    left = [point]
    calls = {name: getattr(Files, name) for name in ("rename", "unlink", "sync_directory", "create")}

    def counted(name):
        def call(files, *arguments, **named):
            path = arguments[0]
            if folder.path in path and not path.endswith("control"):
                if left[0] <= 0:
                    raise Killed
                left[0] -= 1
            return calls[name](files, *arguments, **named)

        return call

    for name in calls:
        monkeypatch.setattr(Files, name, counted(name))
    died = False
    try:
        log.maintain(force=True)
    except Killed:
        died = True
    monkeypatch.undo()
    log.close()
    log = opened()
    topic = log.topic("t")
    left_over = log.verify()
    assert left_over.ok, left_over
    check_left(log, topic)
    for start in range(0, topic.end_offsets()[0], 5):
        found = offsets(topic, partition=0, start=start)
        assert not found or found[0] >= start
    clock.passed_ms += 1000
    for _ in range(2):
        log.maintain(force=True)
        check_left(log, topic)
    assert 0 not in offsets(topic)
    assert not replacing.being_rewritten(writer_of(log).folder)
    assert not [note for note in log.verify().notes if note.kind == "leftover"]
    if not died:
        assert point > 5


def check_left(log, topic):
    """The last record of each key is there, and of what was deleted no record without its tombstone."""
    there = offsets(topic)
    last = {}
    for number in range(topic.end_offsets()[0]):
        key = b"gone" if number in (0, 61) else b"key-%d" % (number % 4)
        last[key] = number
    assert {offset for key, offset in last.items() if key != b"gone"} <= set(there)
    if 0 in there:
        assert 61 in there


@pytest.mark.parametrize("point", range(3, 22, 2))
def test_records_deleted_where_segments_are_left_over(log, opened, monkeypatch, point):
    """Deleting goes by names; the segment whose range they lie in stays as long as the log starts within it."""
    fill(log, 120, keys=40)
    removed = [0]

    def dying(writer, bases):
        if removed[0] == 0:
            removed[0] = 1
            remove(writer, bases[point % 3 :: 3])
            raise Killed
        remove(writer, bases)

    remove = replacing._remove
    monkeypatch.setattr(replacing, "_remove", dying)
    with contextlib.suppress(Killed):
        log.maintain(force=True)
    monkeypatch.undo()
    log.close()
    log = opened()
    topic = log.topic("t")
    sealed = sealed_end(log)
    offset = point * 5
    assert len(writer_of(log).folder.segments()) > 3
    last = {number % 40: number for number in range(120)}
    log.admin.delete_records({TP: offset})
    assert {each for each in last.values() if each >= offset} <= set(offsets(topic))
    log.maintain(force=True)
    assert offsets(topic)[0] >= offset
    assert {each for each in last.values() if each >= offset} <= set(offsets(topic))
    assert sealed <= 120
    assert log.verify().ok


_WRITER = """
import sys
import pystreamlog
with pystreamlog.open(sys.argv[1], maintenance=False) as log:
    topic = log.topic("t")
    for number in range(int(sys.argv[2])):
        topic.append(b"%d" % number, b"key-%d" % (number * number % 97))
"""

_READER = """
import sys
import pystreamlog
count = int(sys.argv[2])
sent = {}
with pystreamlog.open(sys.argv[1], maintenance=False) as log:
    while True:
        last, offset = {}, -1
        with log.consumer(auto_offset_reset="earliest") as consumer:
            tp = pystreamlog.TopicPartition("t", 0)
            consumer.assign([tp])
            # To the end as it is then: what was passed over may have a later one behind the end of before.
            while consumer.position(tp) < (end := log.topic("t").end_offsets()[0]):
                for record in consumer.poll(timeout=1, max_records=50):
                    assert record.offset > offset, (record.offset, offset)
                    offset = record.offset
                    assert int(record.value) == offset
                    last[record.key] = offset
        wanted = {b"key-%d" % (number * number % 97): number for number in range(end)}
        for key, number in wanted.items():
            assert last.get(key, -1) >= number, (key, number, last.get(key))
        if end == count:
            break
"""


def test_processes_read_and_write_while_it_is_compacted(log):
    """Whoever reads from the start to the end sees the last record of each key, at the offset that it was given."""
    compacted_topic(log, min_cleanable_dirty_ratio=0.0, segment_bytes=8192)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen([sys.executable, "-c", program, log.path, "6000"], env=environment)
        for program in (_WRITER, _READER, _READER)
    ]
    runs = 0
    try:
        deadline = time.monotonic() + 120
        while any(each.poll() is None for each in started):
            assert time.monotonic() < deadline
            runs += bool(log.maintain(force=True).compacted)
    finally:
        for each in started:
            each.kill()
            each.wait()
    assert [each.returncode for each in started] == [0, 0, 0]
    assert runs > 1
    assert log.verify().ok


# --- keys are wanted


def test_record_without_a_key_is_refused(log):
    """At the call, whichever it is; nothing of it is sent."""
    topic = compacted_topic(log)
    with pytest.raises(InvalidRecordError, match="key"):
        topic.append(b"value")
    with log.producer() as producer:
        with pytest.raises(InvalidRecordError):
            producer.send("t", b"value")
        with pytest.raises(InvalidRecordError):
            producer.send("t", b"value", headers=[("a", b"b")])
        with pytest.raises(InvalidRecordError):
            producer.send_many("t", [b"value"] * 3)
        for values in ([b"value"] * 3, [b"value" * 1000] * 3):
            with pytest.raises(InvalidRecordError) as caught:
                producer.send_many("t", values, [b"a", None, b"c"])
            assert (caught.value.topic, caught.value.index) == ("t", 1)
    with log.producer(transactional_id="x") as producer, pytest.raises(InvalidRecordError), producer.transaction():
        producer.send("t", b"value")
    assert topic.end_offsets() == {0: 0}
    topic.alter(cleanup_policy="delete")
    topic.append(b"value")


def test_policies(log):
    """Kafka's, and the list that they are there."""
    topic = log.create_topic("t", cleanup_policy="delete,compact")
    for wrong in ({"cleanup_policy": "shrink"}, {"min_cleanable_dirty_ratio": 1.5}, {"delete_retention_ms": -1}):
        with pytest.raises(ConfigError):
            topic.alter(**wrong)
    with pytest.raises(ConfigError, match="number"):
        topic.alter(min_cleanable_dirty_ratio="a lot")

    def alter(op_type, value):
        log.admin.incremental_alter_configs({"t": [AlterConfigOp("cleanup_policy", value, op_type)]})
        return log.admin.describe_configs("t")["t"]["cleanup_policy"].value

    assert alter("SUBTRACT", "delete") == "compact"
    assert alter("APPEND", "delete") == "compact,delete"
    assert alter("APPEND", "delete") == "compact,delete"
    assert alter("SUBTRACT", "compact,delete") == ""
    assert alter("APPEND", "delete") == "delete"
    with pytest.raises(ExceptionGroup):
        alter("APPEND", "shrink")


# --- a history


@pytest.mark.parametrize("seed", range(12))
def test_random_history(log, opened, clock, seed):
    """After anything that happens, the last record of each key is there, and every record is one that was sent."""
    chance = random.Random(seed)
    topic = compacted_topic(log, delete_retention_ms=HOUR, min_cleanable_dirty_ratio=0.3)
    sent, last = [], {}
    boot = BOOT
    for _ in range(60):
        what = chance.random()
        if what < 0.55:
            for _ in range(chance.randrange(40)):
                key = b"k%d" % chance.randrange(25)
                value = None if chance.random() < 0.1 else b"%d" % len(sent)
                topic.append(value, key)
                last[key] = len(sent)
                sent.append((key, value))
        elif what < 0.75:
            log.maintain(force=chance.random() < 0.7)
        elif what < 0.85:
            clock.passed_ms += chance.randrange(2 * HOUR)
        elif what < 0.92:
            log.close()
            boot = chance.choice([BOOT, NEXT_BOOT])
            log = opened(boot)
            topic = log.topic("t")
        else:
            writer = writer_of(log)
            writer.ensure()
            with writer.locked(10) as end:
                writer.roll_locked(end)
        start = chance.randrange(len(sent) + 1)
        records = list(topic.read(partition=0, start=start))
        there = [record.offset for record in records]
        assert there == sorted(set(there))
        assert all((record.key, record.value) == sent[record.offset] for record in records)
        wanted = {offset for offset in last.values() if offset >= start and sent[offset][1] is not None}
        assert wanted <= set(there)
    assert log.verify().ok
