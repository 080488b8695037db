"""`StreamLog.snapshot`: a consistent copy of a log that is being written, which is a log of its own."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

import pystreamlog
from pystreamlog import OffsetAndMetadata, TopicPartition, VersionConflictError
from pystreamlog.coordination import snapshot as building
from pystreamlog.coordination import snapshot_cut
from pystreamlog.coordination.topics import Topics
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    CorruptLogError,
    InvalidTopicError,
    ReadOnlyError,
    StorageError,
    UnknownTopicError,
)
from pystreamlog.storage import files as door
from pystreamlog.storage import format as layout
from pystreamlog.storage.partition_copy import MovedError

from .conftest import start

SMALL = 4096


@pytest.fixture
def target(tmp_path):
    """Where a snapshot is to go."""
    return str(tmp_path / "snapshot")


def filled(log, name="orders", count=60, *, partitions=2, **config):
    """A topic of some segments."""
    topic = log.create_topic(name, partitions=partitions, segment_bytes=SMALL, **config)
    for number in range(count):
        topic.append(b"%d" % number * 100, partition=number % partitions)
    return topic


def records(log, name="orders"):
    """All records of a topic: partitions, offsets, values."""
    return [(record.partition, record.offset, record.value) for record in log.topic(name).read()]


def sums(root):
    """A checksum of every file that holds records or what is derived from them."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(root).rglob("*")
        if path.is_file() and path.suffix in (".log", ".index", ".producers")
    }


def segments(root):
    """The segment files of a log's topics."""
    return [*Path(root, "topics").rglob("*.log")]


def committed(log, group_id="billing"):
    """The offsets that a group committed."""
    found = log.admin.list_consumer_group_offsets(group_id)[group_id]
    return {tp: each.offset for tp, each in found.items() if each is not None}


def commit(log, tp, offset, metadata="", group_id="billing"):
    """Commit an offset."""
    with log.consumer(group_id=group_id, enable_auto_commit=False) as consumer:
        consumer.assign([tp])
        consumer.commit({tp: OffsetAndMetadata(offset, metadata)})


def assert_whole(path, **options):
    """Verify a log, and open it for writing; returns nothing."""
    with pystreamlog.open(path, create=False, **options) as log:
        report = log.verify()
        assert report.ok, report
        assert not report.notes, report


def nothing_left(target):
    """Neither a snapshot nor what was begun of one."""
    return not [entry for entry in os.listdir(os.path.dirname(target)) if "snapshot" in entry]


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_snapshot_holds_what_the_log_held(log, target):
    """Records, settings, committed offsets; under another id."""
    filled(log, retention_ms=10**12)
    log.create_topic("unused", partitions=3)
    commit(log, TopicPartition("orders", 1), 7, "a note")
    report = log.snapshot(target)
    assert (report.path, report.topics, report.partitions, report.groups) == (target, ("orders", "unused"), 5, 1)
    assert report.end_offsets[TopicPartition("orders", 0)] == 30
    assert report.segments_copied == 2
    assert report.segments_linked == len(segments(log.path)) - 2 > 2
    with pystreamlog.open(target, create=False) as copy:
        assert records(copy) == records(log)
        assert copy.topic("orders").config == log.topic("orders").config
        assert copy.topic("orders").end_offsets() == {0: 30, 1: 30}
        found = copy.admin.list_consumer_group_offsets("billing")["billing"]
        assert found[TopicPartition("orders", 1)] == OffsetAndMetadata(7, "a note")
        assert copy.admin.describe_cluster().cluster_id == report.log_id != log.admin.describe_cluster().cluster_id
    assert_whole(target)


def test_sealed_segments_are_links_and_nothing_else_is(log, path, target):
    """The files that are written in place are the snapshot's own."""
    filled(log)
    log.snapshot(target)
    for number in (0, 1):
        mine, other = Path(path, "topics", "orders", str(number)), Path(target, "topics", "orders", str(number))
        *sealed, active = sorted(entry.name for entry in mine.iterdir() if entry.suffix == ".log")
        assert sealed
        assert all((mine / name).samefile(other / name) for name in sealed)
        assert not any((mine / name).samefile(other / name) for name in (active, "control"))
        assert (other / active).stat().st_size < (mine / active).stat().st_size, "what was reserved is not copied"


def test_log_and_snapshot_go_their_own_ways(log, path, target):
    """What is written to one is not seen in the other, and no file of the log changes for the snapshot's sake."""
    filled(log)
    log.snapshot(target)
    before, seen = sums(path), records(log)
    with pystreamlog.open(target) as copy, copy.producer(transactional_id="t") as producer:
        with producer.transaction():
            for number in range(200):
                producer.send("orders", b"new" * 100, partition=number % 2)
        copy.topic("orders").append(b"last", partition=0, durability="fsync")
        assert len(records(copy)) == len(seen) + 201
        assert sums(path) == before
        assert records(log) == seen
        log.topic("orders").append(b"other", partition=0)
        assert records(copy)[:30] == seen[:30]
        assert copy.verify().ok
    assert log.verify().ok
    assert_whole(target)


def test_snapshot_of_a_snapshot(log, target):
    """Segments of all its ancestors are read; `log.json` names them, newest first."""
    filled(log)
    ids = [log.admin.describe_cluster().cluster_id]
    for turn in range(3):
        with pystreamlog.open(f"{target}{turn - 1}" if turn else log.path) as source:
            ids.insert(0, source.snapshot(f"{target}{turn}").log_id)
        with pystreamlog.open(f"{target}{turn}") as copy:
            assert len(records(copy)) == 60 + 10 * turn
            for _ in range(10):
                copy.topic("orders").append(b"more" * 500, partition=0)
        assert_whole(f"{target}{turn}")
        found = json.loads(Path(f"{target}{turn}", "log.json").read_text())
        assert [found["id"], *found["lineage"]] == ids


def test_long_lineage_keeps_the_ids_that_segments_carry(log, target, monkeypatch):
    """Else the list would grow with every generation for ever."""
    monkeypatch.setattr(building, "_LONG_LINEAGE", 1)
    log.create_topic("young")
    log.snapshot(f"{target}1")
    with pystreamlog.open(f"{target}1") as first:
        log_id = first.admin.describe_cluster().cluster_id
        first.topic("young").append(b"x")
        first.snapshot(f"{target}2")
    assert json.loads(Path(f"{target}2", "log.json").read_text())["lineage"] == [log_id]
    with pystreamlog.open(f"{target}2") as second:
        assert records(second, "young") == [(0, 0, b"x")]
    assert_whole(f"{target}2")


def test_some_topics(log, target):
    """Groups that committed nothing there are left out, and of the others what they committed elsewhere."""
    filled(log)
    filled(log, "refunds")
    commit(log, TopicPartition("orders", 0), 3)
    commit(log, TopicPartition("refunds", 0), 4)
    commit(log, TopicPartition("refunds", 0), 4, group_id="others")
    report = log.snapshot(target, topics="orders")
    assert (report.topics, report.groups) == (("orders",), 1)
    with pystreamlog.open(target) as copy:
        assert copy.topics() == ["orders"]
        assert [group.group_id for group in copy.admin.list_consumer_groups()] == ["billing"]
        assert committed(copy) == {TopicPartition("orders", 0): 3}


def test_producer_ids_are_remembered(log, target):
    """What was sent before the snapshot is not written to it once more."""
    topic = log.create_topic("orders", segment_bytes=SMALL)
    with log.producer(producer_id="import") as producer:
        for number in range(40):
            producer.send("orders", b"x" * 300, sequence=number).result()
    log.snapshot(target)
    with pystreamlog.open(target) as copy, copy.producer(producer_id="import") as producer:
        for number in range(45):
            producer.send("orders", b"x" * 300, sequence=number)
        producer.flush()
        assert copy.topic("orders").end_offsets() == {0: 45}
    assert topic.end_offsets() == {0: 40}


def test_versions_of_keys_go_on(log, target):
    """The key index is left out, and made anew from the records."""
    topic = log.create_topic("accounts", key_index=True, segment_bytes=SMALL)
    for number in range(30):
        topic.append(b"v" * 300, key=b"k%d" % (number % 3), expected_version=number // 3)
    log.snapshot(target)
    with pystreamlog.open(target) as copy:
        accounts = copy.topic("accounts")
        with pytest.raises(VersionConflictError):
            accounts.append(b"v", key=b"k1", expected_version=3)
        accounts.append(b"v", key=b"k1", expected_version=10)
    assert_whole(target)


def test_report_tells_everything_in_plain_values(log, target):
    """For JSON, and in a line."""
    filled(log, count=4)
    report = log.snapshot(target)
    assert json.loads(json.dumps(report.to_dict()))["end_offsets"] == {"orders": [2, 2]}
    assert report.bytes == report.bytes_linked + report.bytes_copied
    assert str(report).startswith(f"{target}: 2 partitions of 1 topics")


def test_progress_ends_at_the_total(log, target):
    """It rises, and is told at the start and at the end."""
    filled(log)
    told = []
    report = log.snapshot(target, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[0] == (0, report.bytes_copied)
    assert told[-1] == (report.bytes_copied, report.bytes_copied)


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_read_only_log(log, path, target):
    """Nothing of the log is written."""
    filled(log)
    commit(log, TopicPartition("orders", 0), 3)
    log.close()
    before = {entry: entry.stat().st_mtime_ns for entry in Path(path).rglob("*")}
    with pystreamlog.open(path, read_only=True) as reading:
        assert reading.snapshot(target).segments_linked
        seen = records(reading)
    assert {entry: entry.stat().st_mtime_ns for entry in Path(path).rglob("*")} == before
    assert_whole(target)
    with pystreamlog.open(target) as copy:
        assert records(copy) == seen
        assert committed(copy) == {TopicPartition("orders", 0): 3}


def test_closed_log(log, target):
    """It says so."""
    log.close()
    with pytest.raises(ClosedError):
        log.snapshot(target)
    assert nothing_left(target)


def test_memory_log(target):
    """What was in memory is kept."""
    with pystreamlog.open(":memory:") as log:
        filled(log)
        log.snapshot(target)
        seen = records(log)
    with pystreamlog.open(target) as copy:
        assert records(copy) == seen
    assert_whole(target)


def test_two_snapshots_to_one_place(log, target):
    """One of the two is made; the other is told, and neither takes the other's directory for a left-over."""
    filled(log)
    barrier = threading.Barrier(2)
    done = []

    def take():
        waited = []
        try:
            done.append(log.snapshot(target, progress=lambda *_: waited or waited.append(barrier.wait(20))).log_id)
        except ConfigError:
            done.append(None)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count(None) == 1
    with pystreamlog.open(target) as copy:
        assert copy.admin.describe_cluster().cluster_id in done
    assert_whole(target)
    assert not [entry for entry in os.listdir(os.path.dirname(target)) if "~" in entry]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_what_cannot_be_linked_is_copied(log, target, monkeypatch, number):
    """On another file system everything is."""

    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    filled(log)
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(door.os, "link", refuse)
        patch.delattr(door.os, "copy_file_range", raising=False)
        report = log.snapshot(target, progress=lambda done, total: told.append((done, total)))
    assert report.segments_linked == report.bytes_linked == 0
    assert report.segments_copied == len(segments(log.path)) > 2
    assert told[-1][0] == told[-1][1] >= report.bytes_copied
    with pystreamlog.open(target) as copy:
        assert records(copy) == records(log)
    assert_whole(target)


def test_machine_that_started_anew(log, path, target):
    """A snapshot of a log of an earlier boot; and a snapshot that was made in an earlier boot, transactions and all."""
    filled(log)
    with log.producer(transactional_id="t") as producer, producer.transaction():
        for number in range(20):
            producer.send("orders", b"t" * 500, partition=number % 2)
    seen = records(log)
    log.close()
    with (
        EmbeddedLog(path, read_only=True, boot=lambda: b"b" * 16) as reading,
        pytest.raises(ReadOnlyError, match="open the log for writing"),
    ):
        reading.snapshot(target)
    assert nothing_left(target)
    with EmbeddedLog(path, boot=lambda: b"b" * 16) as writing:
        writing.snapshot(target)
    for turn in (b"c", b"d"):
        with EmbeddedLog(target, boot=lambda turn=turn: turn * 16) as copy:
            assert records(copy)[: len(seen) // 2] == seen[: len(seen) // 2]
            copy.topic("orders").append(b"more", partition=1)
            assert copy.verify().ok


def test_read_only_log_of_an_earlier_boot(log, path, target):
    """Without transactions nothing is to be recovered first."""
    filled(log)
    seen = records(log)
    log.close()
    with EmbeddedLog(path, read_only=True, boot=lambda: b"b" * 16) as reading:
        reading.snapshot(target)
    with pystreamlog.open(target) as copy:
        assert records(copy) == seen


def test_read_only_log_that_lost_its_last_records(log, path, target):
    """What was committed beyond the end that is left means the end, as after a recovery."""
    topic = log.create_topic("orders", segment_bytes=SMALL)
    for number in range(12):
        topic.append(b"%d" % number * 100)
    commit(log, TopicPartition("orders", 0), 12)
    position = log._partitions.lookout(log._topics.find("orders"), 0).end().end_position
    log.close()
    (segment,) = Path(path, "topics", "orders", "0").glob("*.log")
    with segment.open("r+b") as file:
        file.seek(position - 500)
        file.write(bytes(500))
    with EmbeddedLog(path, read_only=True, boot=lambda: b"b" * 16) as reading:
        report = reading.snapshot(target)
        left = records(reading)
    assert report.end_offsets == {TopicPartition("orders", 0): len(left)}
    assert 0 < len(left) < 12
    with EmbeddedLog(target, boot=lambda: b"b" * 16) as copy:
        assert records(copy) == left
        for number in range(5):
            copy.topic("orders").append(b"new %d" % number)
        with copy.consumer("orders", group_id="billing", auto_offset_reset="none") as consumer:
            assert [record.value for record in consumer.poll(10)][:1] == [b"new 0"]


def test_poisoned_partition_is_refused(log, target):
    """What a failed fsync left in doubt would be lost in silence; it is healed first."""
    filled(log)
    writer = log._partitions.writer(log._topics.find("orders"), 0)
    writer.publish_poison()
    with pytest.raises(StorageError, match="fsync failed"):
        log.snapshot(target)
    assert nothing_left(target)
    with pystreamlog.open(log.path) as anew:
        anew.topic("orders").append(b"heals", partition=0)
        anew.snapshot(target)
    assert_whole(target)


def test_missing_file_is_damage(log, path, target):
    """A snapshot does not hide it."""
    filled(log)
    sorted(Path(path, "topics", "orders", "0").glob("*.log"))[2].unlink()
    Path(path, "topics", "orders", "1", "control").unlink()
    with pytest.raises(CorruptLogError):
        log.snapshot(target)
    assert nothing_left(target)


@pytest.mark.parametrize("damage", ["missing", "not JSON", "another topic's"])
def test_topic_without_its_file_is_damage(log, path, target, damage):
    """It is not left out silently; the other topics can be named."""
    filled(log)
    filled(log, "lost")
    file = Path(path, "topics", "lost", "topic.json")
    if damage == "missing":
        file.unlink()
    elif damage == "not JSON":
        file.write_bytes(b"{")
    else:
        shutil.copy(Path(path, "topics", "orders", "topic.json"), file)
    with pytest.raises(CorruptLogError, match="or name the other topics") as caught:
        log.snapshot(target)
    assert caught.value.path == str(file)
    assert "restore the file from a copy" in str(caught.value)
    assert "create_topic" not in str(caught.value)
    assert nothing_left(target)
    assert log.snapshot(target, topics=["orders"]).topics == ("orders",)


def test_what_a_deletion_left_is_no_damage(log, path, target):
    """A process that is killed leaves a folder with another name, and perhaps without its file."""
    filled(log)
    for name in ("~gone-1", "~new-1"):
        Path(path, "topics", name, "0").mkdir(parents=True)
    assert log.snapshot(target).topics == ("orders",)
    assert_whole(target)


def test_topic_that_is_deleted_meanwhile_is_left_out(log, target, monkeypatch):
    """Also between two looks at it; and one that is made again is there."""
    filled(log)
    filled(log, "gone")
    filled(log, "again")
    real = Topics.find_anew
    looked = []

    def find_anew(self, name):
        looked.append(name)
        if name in ("gone", "again") and looked.count(name) == 1:
            log.delete_topic(name)
            try:
                return real(self, name)
            finally:
                if name == "again":
                    filled(log, name, 5)
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Topics, "find_anew", find_anew)
        assert log.snapshot(target).topics == ("again", "orders")
    with pystreamlog.open(target, read_only=True) as made:
        assert made.topics() == ["again", "orders"]


# --- where it goes ----------------------------------------------------------------------------------------------------


def a_file(tmp_path):
    """A file."""
    (tmp_path / "there").write_text("mine")
    return tmp_path / "there"


def a_full_directory(tmp_path):
    """A directory with something in it."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    return tmp_path / "there"


def a_link(tmp_path):
    """A link to an empty directory."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").symlink_to(tmp_path / "empty")
    return tmp_path / "there"


REFUSED = {
    "a file": a_file,
    "a directory that is not empty": a_full_directory,
    "a link": a_link,
    "a link to nothing": lambda tmp_path: (tmp_path / "there").symlink_to("nowhere") or tmp_path / "there",
    "the log": lambda tmp_path: tmp_path / "log",
    "within the log": lambda tmp_path: tmp_path / "log" / "snapshot",
    "deep within the log": lambda tmp_path: tmp_path / "log" / "topics" / "orders" / "snapshot",
    "no parent": lambda tmp_path: tmp_path / "missing" / "snapshot",
    "the root": lambda tmp_path: "/",
    "no path": lambda tmp_path: "",
    "memory": lambda tmp_path: ":memory:",
    "a URL": lambda tmp_path: "file:///tmp/x",
    "bytes": lambda tmp_path: b"x",
    "a number": lambda tmp_path: 1,
    "a NUL byte": lambda tmp_path: "x\0y",
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_target_is_refused_and_left_alone(log, tmp_path, make):
    """Nothing is written anywhere."""
    filled(log)
    target = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError):
        log.snapshot(target)
    assert sorted(tmp_path.rglob("*")) == before
    mine = [path for path in before if path.name in ("there", "mine") and path.is_file()]
    assert all(path.read_text() == "mine" for path in mine)


def test_empty_directory_is_taken(log, tmp_path):
    """Also by a relative path and as a `Path`."""
    filled(log)
    (tmp_path / "snapshot").mkdir()
    log.snapshot(Path(os.path.relpath(tmp_path / "snapshot")))
    assert_whole(str(tmp_path / "snapshot"))


@pytest.mark.parametrize(
    ("topics", "error"),
    [
        ("missing", UnknownTopicError),
        (["orders", "missing"], UnknownTopicError),
        ([], ConfigError),
        (7, ConfigError),
        (["no/name"], InvalidTopicError),
        ([7], InvalidTopicError),
    ],
)
def test_topics_that_are_none(log, target, topics, error):
    """Nothing is made."""
    filled(log)
    with pytest.raises(error):
        log.snapshot(target, topics=topics)
    with pytest.raises(ConfigError):
        log.snapshot(target, progress=7)
    assert nothing_left(target)


def test_target_that_somebody_makes_meanwhile(log, target):
    """It is theirs."""
    filled(log)

    def make(done, total):
        os.makedirs(f"{target}/theirs", exist_ok=True)

    with pytest.raises(ConfigError, match="meanwhile"):
        log.snapshot(target, progress=make)
    assert os.listdir(os.path.dirname(target)).count("snapshot") == 1
    assert os.listdir(target) == ["theirs"]


def test_full_disk_leaves_nothing(log, target, monkeypatch):
    """The error says what to do."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    filled(log)
    with monkeypatch.context() as patch:
        patch.setattr(door.os, "pwrite", full)
        with pytest.raises(StorageError, match="free some space"):
            log.snapshot(target)
    assert nothing_left(target)
    assert log.verify().ok
    log.snapshot(target)


def test_interrupt_leaves_nothing(log, target):
    """Ctrl-C half-way."""
    filled(log)

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log.snapshot(target, progress=interrupt)
    assert nothing_left(target)
    assert log.verify().ok
    log.snapshot(target)


def test_what_a_killed_process_left_is_removed(log, path, tmp_path, target):
    """But not what another one is building just now, nor what is another snapshot's."""
    filled(log)
    program = """
    import os, signal, sys
    import pystreamlog
    log = pystreamlog.open(sys.argv[1])
    log.snapshot(sys.argv[2], progress=lambda done, total: done and os.kill(os.getpid(), signal.SIGKILL))
    """
    killed = start(program, path, target)
    killed.communicate(timeout=60)
    (left,) = [entry for entry in tmp_path.iterdir() if entry.name.startswith("~snapshot-")]
    for name in ("~snapshot-0123456789ab", "~snapshots-0123456789ab", "~snapshot-mine"):
        (tmp_path / name).mkdir()
    fd = os.open(tmp_path / "~snapshot-0123456789ab", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        log.snapshot(target)
    finally:
        os.close(fd)
    assert not left.exists()
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names >= {"~snapshot-0123456789ab", "~snapshots-0123456789ab", "~snapshot-mine"}


# --- what happens meanwhile -------------------------------------------------------------------------------------------


@pytest.fixture
def after_cut(monkeypatch):
    """Have something done once the cut is known, before anything is copied."""

    def arrange(action):
        def wrapped(*arguments):
            cut = snapshot_cut.take_cut(*arguments)
            if arranged:
                arranged.pop()()
            return cut

        arranged = [action]
        monkeypatch.setattr(building, "take_cut", wrapped)

    return arrange


def test_segment_that_is_sealed_meanwhile_is_copied(log, path, target, after_cut):
    """Up to where it was; were it linked, the snapshot's next append would change the log."""
    topic = filled(log, partitions=1)
    seen = records(log)
    after_cut(lambda: [topic.append(b"later" * 200) for _ in range(10)])
    log.snapshot(target)
    before = sums(path)
    with pystreamlog.open(target) as copy:
        assert records(copy) == seen
        for _ in range(10):
            copy.topic("orders").append(b"mine" * 200)
    assert sums(path) == before
    assert_whole(target)


@pytest.mark.parametrize("below", [5, 20, 60, 65])
def test_records_that_are_deleted_meanwhile(log, target, after_cut, below):
    """The snapshot begins later, or is empty, and goes on from its end."""
    topic = filled(log, partitions=1)
    seen = records(log)

    def delete():
        for _ in range(10):
            topic.append(b"later" * 200)
        log.admin.delete_records({TopicPartition("orders", 0): below})

    after_cut(delete)
    report = log.snapshot(target)
    assert report.end_offsets == {TopicPartition("orders", 0): 60}
    with pystreamlog.open(target) as copy:
        assert copy.topic("orders").beginning_offsets() == {0: min(below, 60)}
        assert records(copy) == seen[below:]
        assert copy.topic("orders").append(b"next").offset == 60
    assert_whole(target)


@pytest.mark.parametrize("made_again", [False, True])
def test_topic_that_is_deleted_meanwhile(log, target, after_cut, made_again):
    """It is left out, unless it was asked for; another one of its name is another one."""
    filled(log)
    filled(log, "other")
    commit(log, TopicPartition("orders", 0), 3)

    def delete():
        log.delete_topic("orders")
        if made_again:
            filled(log)

    after_cut(delete)
    assert log.snapshot(target).topics == ("other",)
    with pystreamlog.open(target) as copy:
        assert copy.topics() == ["other"]
    assert_whole(target)
    if not made_again:
        filled(log)
    after_cut(delete)
    with pytest.raises(UnknownTopicError):
        log.snapshot(f"{target}2", topics=["orders", "other"])
    assert os.listdir(os.path.dirname(target)).count("snapshot2") == 0


def test_segment_that_is_replaced_meanwhile(log, path, target, monkeypatch):
    """All of the partition is linked again: half of a replacement is no log."""
    filled(log, partitions=1)
    seen = records(log)
    sealed = sorted(Path(path, "topics", "orders", "0").glob("*.log"))[1]
    attempts = []
    link_into = door.Files.link_into

    def replace_before(self, *arguments):
        attempts.append(arguments)
        left = link_into(self, *arguments)
        if len(attempts) == 1:
            sealed.with_suffix(".new").write_bytes(sealed.read_bytes())
            sealed.with_suffix(".new").rename(sealed)
        if len(attempts) == 2:
            raise FileNotFoundError(errno.ENOENT, "gone", "00000000000000000000.log")
        return left

    monkeypatch.setattr(door.Files, "link_into", replace_before)
    log.snapshot(target)
    assert len(attempts) == 3
    assert sealed.samefile(Path(target, "topics", "orders", "0", sealed.name))
    with pystreamlog.open(target) as copy:
        assert records(copy) == seen
    assert_whole(target)


def test_partition_that_is_recovered_meanwhile(log, target, after_cut):
    """Everything is begun anew, as the cut is none any more."""
    topic = filled(log)

    def recover():
        topic.append(b"later", partition=0)
        with pystreamlog.open(log.path, recover="always") as other:
            other.topic("orders").append(b"in a new epoch", partition=0)

    after_cut(recover)
    report = log.snapshot(target)
    assert report.end_offsets[TopicPartition("orders", 0)] == 32
    assert_whole(target)


def test_last_segment_that_is_compacted_away_meanwhile(log, path, target, after_cut):
    """It is sealed, and joined with those before it: everything is begun anew, as nothing is damaged."""
    topic = log.create_topic("orders", cleanup_policy="compact", segment_bytes=4096)
    for number in range(40):
        topic.append(b"%d" % number * 200, b"key-%d" % (number % 3))
    active = max(Path(path, "topics", "orders", "0").glob("*.log"))

    def compact():
        for number in range(20):
            topic.append(b"later %d" % number * 100, b"key-%d" % (number % 3))
        log.maintain(force=True)
        assert not active.exists()

    after_cut(compact)
    log.snapshot(target)
    with pystreamlog.open(target) as copy:
        assert records(copy) == records(log)
    assert_whole(target)


def test_left_over_that_was_whole_is_no_log_once_its_removal_began(log, tmp_path, target, monkeypatch):
    """Its `log.json` goes first, and is gone on disk: what a power loss leaves is not opened as an empty log."""
    filled(log)
    log.snapshot(target)
    left = tmp_path / "~snapshot-0123456789ab"
    Path(target).rename(left)

    def fail(self, name):
        assert not (left / "log.json").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(door.Files, "remove_directory", fail)
        with pytest.raises(KeyboardInterrupt):
            log.snapshot(target)
    assert left.exists()
    log.snapshot(target)
    assert not left.exists()
    assert_whole(target)


def test_partition_that_never_comes_to_rest(log, target, monkeypatch):
    """After some attempts it is told."""
    filled(log)

    def move(*arguments, **options):
        raise MovedError

    monkeypatch.setattr(building, "copy_partition", move)
    with pytest.raises(StorageError, match="call again"):
        log.snapshot(target)
    assert nothing_left(target)


@pytest.fixture
def job(log):
    """A job that reads orders and writes an invoice for each, a few in each transaction; call it to run one."""
    topic = log.create_topic("orders", segment_bytes=SMALL)
    log.create_topic("invoices", partitions=2, segment_bytes=SMALL)
    producer = log.producer(transactional_id="invoices-1")
    consumer = log.consumer(
        "orders", group_id="billing", auto_offset_reset="earliest", enable_auto_commit=False, max_poll_records=5
    )

    def run():
        for number in range(5):
            topic.append(b"%d" % number * 200)
        with producer.transaction(consumer=consumer):
            for record in consumer.poll(timeout=10):
                producer.send("invoices", record.value, partition=record.offset % 2)

    for _ in range(3):
        run()
    yield run
    consumer.close()
    producer.close()


def assert_exactly_once(path):
    """As many invoices as orders were committed, and no more orders than there are."""
    with pystreamlog.open(path) as copy:
        done = sum(committed(copy).values())
        assert len(records(copy, "invoices")) == done
        assert done <= len(records(copy))
        return done


def test_transaction_while_offsets_are_read_is_in(job, log, target, monkeypatch):
    """With all of its records and its offsets, which were read before it."""
    read = snapshot_cut._committed

    def then_commit(*arguments):
        found = read(*arguments)
        job()
        return found

    monkeypatch.setattr(snapshot_cut, "_committed", then_commit)
    log.snapshot(target)
    assert assert_exactly_once(target) == 20
    assert_whole(target)


def test_transaction_while_ends_are_read_is_out(job, log, target, monkeypatch):
    """Though its records are there already when the ends are read; it rolled segments, too."""
    made = snapshot_cut._made

    def commit_before(files, state):
        for _ in range(3):
            job()
        return made(files, state)

    monkeypatch.setattr(snapshot_cut, "_made", commit_before)
    log.snapshot(target)
    assert assert_exactly_once(target) == 15
    assert_whole(target)
    assert log.verify().ok


def test_first_transaction_while_ends_are_read_is_out(log, target, monkeypatch):
    """There was no journal when it was looked for."""
    filled(log)
    made = snapshot_cut._made

    def commit_before(files, state):
        with log.producer(transactional_id="t") as producer, producer.transaction():
            for partition in (0, 1):
                producer.send("orders", b"x", partition=partition)
        return made(files, state)

    monkeypatch.setattr(snapshot_cut, "_made", commit_before)
    report = log.snapshot(target)
    assert set(report.end_offsets.values()) == {30}
    assert_whole(target)


def test_transaction_whose_committer_died_is_in(job, log, target, monkeypatch):
    """It counts from its entry in the journal on, whatever came after that."""
    from pystreamlog.coordination import transactions  # noqa: PLC0415

    monkeypatch.setattr(transactions, "_spread", lambda *arguments: None)
    job()
    log.snapshot(target)
    assert assert_exactly_once(target) == 20
    assert_whole(target)


WRITER = """
import random, sys
import pystreamlog

path, number = sys.argv[1], int(sys.argv[2])
with pystreamlog.open(path) as log, log.producer(transactional_id=f"pairs-{number}") as producer:
    turn = 0
    print("ready", flush=True)
    while True:
        with producer.transaction():
            for partition in (0, 1, 2):
                producer.send("pairs", b"%d %d" % (number, turn), partition=partition)
            producer.send("orders", b"%d" % turn * 50)
        turn += 1
"""

COPIER = """
import sys
import pystreamlog

with (
    pystreamlog.open(sys.argv[1]) as log,
    log.producer(transactional_id="copier") as producer,
    log.consumer("orders", group_id="billing", auto_offset_reset="earliest", enable_auto_commit=False) as consumer,
):
    print("ready", flush=True)
    while True:
        with producer.transaction(consumer=consumer):
            for record in consumer.poll(timeout=0.1):
                producer.send("invoices", record.value)
"""


@pytest.mark.slow
def test_snapshots_while_other_processes_commit(log, path, target):
    """In each of them every transaction is whole, and copied records are as many as were committed as read."""
    log.create_topic("pairs", partitions=3, segment_bytes=SMALL)
    log.create_topic("orders", segment_bytes=SMALL)
    log.create_topic("invoices", segment_bytes=SMALL)
    children = [start(WRITER, path, 0), start(WRITER, path, 1), start(COPIER, path)]
    try:
        for child in children:
            assert child.stdout.readline().strip() == "ready"
        before = 0
        for turn in range(8):
            done = 0
            while done <= before:  # so that each has more than the one before
                done = log.topic("invoices").end_offsets()[0]
            before = done
            with pystreamlog.open(path, read_only=turn % 2 == 1) as source:
                source.snapshot(f"{target}{turn}")
    finally:
        for child in children:
            child.kill()
            child.communicate()
    for turn in range(8):
        assert_whole(f"{target}{turn}")
        with pystreamlog.open(f"{target}{turn}") as copy:
            pairs = [sorted(value for where, _, value in records(copy, "pairs") if where == each) for each in (0, 1, 2)]
            assert pairs[0] == pairs[1] == pairs[2]
            assert len(pairs[0]) == len(records(copy))
        assert_exactly_once(f"{target}{turn}")
    assert log.verify().ok


# --- files that both have ---------------------------------------------------------------------------------------------


def test_recovery_cuts_no_segment_that_a_snapshot_has(log, path, target):
    """A power loss may undo a transaction that began in a segment which was sealed, and linked, since."""
    topic = filled(log, partitions=1)
    log.snapshot(target)
    seen = records(log)
    topic.append(b"x")
    log.close()
    folder = Path(path, "topics", "orders", "0")
    *sealed, active = sorted(folder.glob("*.log"))
    before = sums(target)
    # What the disk has lost: the active segment, and all that says how far it went.
    active.unlink()
    with open(folder / "control", "r+b") as control:
        for place in (layout.PUBLISHED_POSITION, layout.DURABLE_POSITION):
            control.seek(place)
            control.write(bytes(2 * layout.SLOT_STRIDE))
    with pystreamlog.open(path) as anew:
        left = records(anew)
        assert left
        assert left == seen[: len(left)]
        anew.topic("orders").append(b"y" * 100)
    assert sums(target) == before
    assert not sealed[-1].samefile(Path(target, "topics", "orders", "0", sealed[-1].name))
    with pystreamlog.open(target) as copy:
        assert records(copy) == seen


def test_repair_cuts_no_segment_that_a_snapshot_has(log, path, target):
    """It puts a copy in its place."""
    filled(log, partitions=1)
    log.snapshot(target)
    log.close()
    sealed = sorted(Path(path, "topics", "orders", "0").glob("*.log"))[1]
    raw = bytearray(sealed.read_bytes())
    raw[random.Random(1).randrange(400, 800)] ^= 0xFF
    sealed.with_suffix(".new").write_bytes(raw)
    sealed.with_suffix(".new").rename(sealed)
    os.link(sealed, sealed.with_suffix(".another"))
    with pystreamlog.open(path) as damaged:
        assert not damaged.verify().ok
        assert damaged.repair(cut_tail=True, force=True).done
    assert_whole(target)
