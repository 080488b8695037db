"""Compare and append between processes, and with an index that is deleted, damaged or wrong."""

from __future__ import annotations

import itertools
import random
import signal
from pathlib import Path

import msgspec
import pytest

import pystreamlog
from pystreamlog.errors import CorruptLogError, VersionConflictError
from pystreamlog.record.batch import encode_one
from pystreamlog.record.versions import with_versions
from pystreamlog.storage.key_index_file import KeyIndexFile

from .conftest import PATIENCE, run, start

INCREMENT = """
    import sys
    import pystreamlog
    from pystreamlog.errors import VersionConflictError

    path, name, count = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
    conflicts = 0
    with pystreamlog.open(path) as log:
        topic = log.topic("events")
        for number in range(count):
            for key in (b"shared", name):
                while True:
                    version = sum(1 for _ in topic.read_key(key))
                    try:
                        topic.append(b"%d" % version, key, expected_version=version)
                    except VersionConflictError:
                        conflicts += 1
                        continue
                    break
            print(number, flush=True)
    print("conflicts", conflicts)
"""


@pytest.fixture
def topic(log):
    """A topic with a key index, and small segments."""
    return log.create_topic("events", key_index=True, segment_bytes=65536)


def index_path(path):
    """The index of the only partition."""
    return Path(path) / "topics" / "events" / "0" / "keys.index"


def fill(topic, count=300, keys=20, seed=1):
    """Append records of random keys; returns what each key has."""
    chance = random.Random(seed)
    model = {}
    for number in range(count):
        key = b"%d" % chance.randrange(keys)
        topic.append(b"%d " % number * chance.randrange(1, 100), key)
        model.setdefault(key, []).append(number)
    return model


def check(topic, model):
    """The topic has what the model says of each key, and the versions."""
    for key, numbers in model.items():
        assert [int(record.value.split()[0]) for record in topic.read_key(key)] == numbers
        with pytest.raises(VersionConflictError) as caught:
            topic.append(b"x", key, expected_version=10**9)
        assert caught.value.actual == len(numbers)
    assert list(topic.read_key(b"nobody")) == []


# --- processes


def test_processes_lose_no_update(path, topic):
    """Two processes increment the same key optimistically, each with a reader's view: every one counts once."""
    programs = [start(INCREMENT, path, name, 60) for name in ("a", "b")]
    outputs = [program.communicate(timeout=PATIENCE * 2) for program in programs]
    assert [program.returncode for program in programs] == [0, 0], outputs
    assert [record.value for record in topic.read_key(b"shared")] == [b"%d" % number for number in range(120)]
    for name in (b"a", b"b"):
        assert [record.value for record in topic.read_key(name)] == [b"%d" % number for number in range(60)]


@pytest.mark.faults
@pytest.mark.slow
def test_killed_processes_leave_versions_whole(path, topic):
    """Writers are killed at random moments, among them between publishing and noting: no version is lost or doubled."""
    chance = random.Random(4)
    acknowledged = 0
    for round_ in range(12):
        process = start(INCREMENT, path, f"w{round_ % 3}", 10_000)
        for _ in range(chance.randrange(1, 25)):
            assert process.stdout.readline().strip().isdigit(), process.stderr.read()
            acknowledged += 1
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    expected = itertools.count()
    found = [record.value for record in topic.read_key(b"shared")]
    assert found == [b"%d" % number for number, _ in zip(expected, found, strict=False)]
    assert acknowledged <= len(found)
    each = [len(list(topic.read_key(b"w%d" % number))) for number in range(3)]
    assert acknowledged <= sum(each) <= acknowledged + 12
    topic.append(b"x", b"shared", expected_version=len(found))


def test_reader_beside_a_writer_sees_a_growing_prefix(path, topic):
    """Without a lock, and read-only: what it sees only grows, and never has a hole."""
    process = start(INCREMENT, path, "w", 100)
    seen = 0
    with pystreamlog.open(path, read_only=True) as reading:
        theirs = reading.topic("events")
        while process.poll() is None:
            found = [int(record.value) for record in theirs.read_key(b"shared")]
            assert found == list(range(len(found)))
            assert len(found) >= seen
            seen = len(found)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert len(list(topic.read_key(b"shared"))) == 100


def test_writers_of_one_directory_take_turns(path, topic):
    """Two logs that append in turn each know what the other wrote, by every way of writing."""
    with pystreamlog.open(path) as second, second.producer(linger_ms=0) as producer:
        other = second.topic("events")
        for version in range(0, 90, 3):
            topic.append(b"1", b"key", expected_version=version, expected_end=version)
            other.append(b"2", b"key", expected_version=version + 1, expected_end=version + 1)
            producer.send("events", b"3", b"key").result()
            with pytest.raises(VersionConflictError):
                topic.append(b"x", b"key", expected_version=version + 1)
    assert [record.value for record in topic.read_key(b"key")] == [b"1", b"2", b"3"] * 30


# --- an index that is not as it should be


def test_deleted_index_is_not_missed(path, topic):
    """While it is used, by a writer, by another one, and by readers, and between two openings."""
    model = fill(topic)
    with pystreamlog.open(path) as second:
        other = second.topic("events")
        check(other, model)
        index_path(path).unlink()
        check(topic, model)
        check(other, model)
        assert index_path(path).exists()
        index_path(path).unlink()
        other.append(b"1000", b"1")
        model[b"1"].append(1000)
        topic.append(b"1001", b"1")
        model[b"1"].append(1001)
        check(other, model)
        check(topic, model)
    index_path(path).unlink()
    with pystreamlog.open(path) as third:
        check(third.topic("events"), model)
    assert index_path(path).exists()


@pytest.mark.parametrize("damage", ["empty", "zeros", "cut", "header", "states", "leaves", "every byte", "folder"])
@pytest.mark.parametrize("in_use", [True, False])
def test_damaged_index_is_never_believed(path, topic, log, damage, in_use):
    """By a writer or a reader, in use or not: keys have the records and versions that the log says."""
    model = fill(topic)
    index = index_path(path)
    if not in_use:
        log.close()
    whole = bytearray(index.read_bytes())
    ranges = {"header": (0, 80), "states": (256, 640), "leaves": (2048, len(whole)), "every byte": (0, len(whole))}
    if damage == "folder":
        index.unlink()
        index.mkdir()
    elif damage == "cut":
        index.write_bytes(whole[: len(whole) // 3])
    elif damage in ranges:
        for position in range(*ranges[damage]):
            whole[position] ^= 0x5A
        index.write_bytes(whole)
    else:
        index.write_bytes(b"" if damage == "empty" else bytes(len(whole)))
    with pystreamlog.open(path, read_only=True) as reading:
        for key, numbers in model.items():
            assert [int(record.value.split()[0]) for record in reading.topic("events").read_key(key)] == numbers
    if in_use:
        check(topic, model)
    with pystreamlog.open(path) as later:
        check(later.topic("events"), model)


@pytest.mark.parametrize("missing", [True, False])
def test_read_only_log_reads_by_key_and_writes_nothing(path, topic, log, missing):
    """With the index, and without it by reading everything."""
    model = fill(topic)
    log.close()
    if missing:
        index_path(path).unlink()
    before = {entry: entry.read_bytes() for entry in Path(path).rglob("*") if entry.is_file()}
    with pystreamlog.open(path, read_only=True) as reading:
        for key, numbers in model.items():
            assert [int(record.value.split()[0]) for record in reading.topic("events").read_key(key)] == numbers
    assert {entry: entry.read_bytes() for entry in Path(path).rglob("*") if entry.is_file()} == before


def test_recovery_drops_the_index(path, topic, log):
    """An index of an epoch before is of no use: after a power loss its pages are of different times."""
    model = fill(topic)
    log.close()
    before = index_path(path).read_bytes()
    for _ in range(2):
        with pystreamlog.open(path, recover="always") as recovered:
            check(recovered.topic("events"), model)
        assert index_path(path).read_bytes()[:80] != before[:80]
        index_path(path).write_bytes(before)


def test_index_that_lies_is_found_out(path, topic, log):
    """Its checksums hold, but the record that it names has another key: it is built anew."""
    model = fill(topic)
    folder = log._partitions.writer(topic._find("events"), 0).folder
    file = KeyIndexFile.open(folder, write=True)
    file.note_one(b"1", model[b"2"][-1], 10**6)
    file.close()
    assert [int(record.value.split()[0]) for record in topic.read_key(b"1")] == model[b"1"]
    check(topic, model)


# --- the log under it


def write_past_a_gap(log, topic, batch, *, gap):
    """Append a batch behind a gap of offsets, as compaction leaves them."""
    writer = log._partitions.writer(topic._find("events"), 0)
    with writer.locked(PATIENCE) as end:
        behind = msgspec.structs.replace(end, end_offset=end.end_offset + gap)
        writer.publish_locked(writer.write_locked(batch, behind), last=True)


def test_chain_ends_where_compaction_removed_its_records(log, topic):
    """The version tells how many there were; what is left is what is read."""
    topic.append(b"other", b"other")
    write_past_a_gap(log, topic, with_versions(encode_one(b"left", b"key", 5), (7,), (3,)), gap=10)
    assert [(record.offset, record.value) for record in topic.read_key(b"key")] == [(11, b"left")]
    topic.append(b"next", b"key", expected_version=8)
    assert [record.value for record in topic.read_key(b"key")] == [b"left", b"next"]


def test_chain_that_leads_to_another_key_is_damage(log, topic):
    """Checksums hold, so nobody but the writer of that batch can have done it: it is not passed over."""
    topic.append(b"other", b"other")
    write_past_a_gap(log, topic, with_versions(encode_one(b"x", b"key", 5), (1,), (0,)), gap=0)
    with pytest.raises(CorruptLogError, match="offset 0"):
        topic.read_key(b"key")


def test_append_fails_before_anything_is_written_when_the_index_cannot_be_built(path, log, topic):
    """Damage in the log that the index is built from is told, as it would be to a reader."""
    fill(topic)
    log.close()
    index_path(path).unlink()
    segment = min(Path(path, "topics", "events", "0").glob("*.log"))
    data = bytearray(segment.read_bytes())
    data[400] ^= 1
    segment.write_bytes(data)
    with pystreamlog.open(path) as later:
        events = later.topic("events")
        end = events.end_offsets()
        with pytest.raises(CorruptLogError):
            events.append(b"x", b"key")
        assert events.end_offsets() == end


def test_memory_stays_small_while_the_index_is_built(path, log):
    """Of 40,000 keys, a process that builds the index anew keeps some thousands at a time."""
    log.create_topic("events", key_index=True)
    with log.producer() as producer:
        for first in range(0, 40_000, 5000):
            producer.send_many("events", [b""] * 5000, [b"%032d" % number for number in range(first, first + 5000)])
    log.close()
    index_path(path).unlink()
    out, _ = run(
        """
        import resource, sys, tracemalloc
        import pystreamlog

        with pystreamlog.open(sys.argv[1]) as log:
            topic = log.topic("events")
            tracemalloc.start()
            topic.append(b"", b"%032d" % 7, expected_version=1)
            print(tracemalloc.get_traced_memory()[1])
        """,
        path,
    )
    assert int(out) < 9 << 20


# --- verify and repair


@pytest.mark.parametrize("damage", ["leaf", "header", "of another epoch", "cut"])
def test_verify_finds_an_index_that_does_not_fit(path, topic, log, damage):
    """It is noted, as nothing is lost; repair drops it, and the next append builds it."""
    model = fill(topic)
    assert not log.verify().notes
    index = index_path(path)
    whole = bytearray(index.read_bytes())
    if damage == "of another epoch":
        log.close()
        with pystreamlog.open(path, recover="always") as recovered:
            check(recovered.topic("events"), model)
    elif damage == "cut":
        del whole[-1500:]
    else:
        whole[2048 + 30 if damage == "leaf" else 20] ^= 1
    index.write_bytes(whole)
    with pystreamlog.open(path) as later:
        report = later.verify()
        assert report.ok
        assert [(note.kind, Path(note.path).name) for note in report.notes] == [("derived", "keys.index")]
        later.repair()
        assert not index.exists()
        check(later.topic("events"), model)
        assert not later.verify().notes
