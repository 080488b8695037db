"""Topics come, change and go while other processes read and write them."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time

import pytest

import pystreamlog
from pystreamlog.coordination import topics
from pystreamlog.coordination.names import check_topic_name, is_topic_name
from pystreamlog.coordination.partition_files import PartitionFiles
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    CorruptLogError,
    IncompatibleFormatError,
    InvalidTopicError,
    LockTimeoutError,
    OffsetOutOfRangeError,
    ReadOnlyError,
    StreamLogError,
    TopicExistsError,
    UnknownPartitionError,
    UnknownTopicError,
)

from .conftest import LONG

BAD_NAMES = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "slash": "a/b",
    "leading slash": "/etc",
    "up": "../outside",
    "NUL": "a\0b",
    "250 characters": "x" * 250,
    "a million characters": "x" * 1_000_000,
    "surrogate": "a\udc80",
    "umlaut": "bücher",
    "arabic digit": "t٣",
    "space": "a b",
    "line end": "topic\n",
    "temporary": "~new-1",
    "bytes": b"topic",
    "number": 5,
    "none": None,
}


@pytest.fixture
def log(tmp_path):
    """An open log."""
    with pystreamlog.open(tmp_path / "log") as opened:
        yield opened


@pytest.fixture
def other(log):
    """Another opening of the same log, with a cache of its own, as another process has it."""
    with pystreamlog.open(log.path) as opened:
        yield opened


def entries(log):
    """What lies in the folder of topics."""
    return sorted(os.listdir(f"{log.path}/topics"))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_bad_name_is_refused_everywhere(log, tmp_path, name):
    """A name that Kafka would not take is refused, with a short message, and nothing is made."""
    for call in (
        lambda: log.create_topic(name),
        lambda: log.topic(name),
        lambda: log.delete_topic(name),
        lambda: check_topic_name(name),
    ):
        with pytest.raises(InvalidTopicError) as caught:
            call()
        assert len(str(caught.value)) < 500
    assert not isinstance(name, str) or not is_topic_name(name)
    assert entries(log) == []
    assert os.listdir(tmp_path) == ["log"]


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "...", "-", "_", "x" * 249, "con", "0"])
def test_good_name_is_taken(log, name):
    """Every name that Kafka takes can be a topic."""
    log.create_topic(name).append(b"x")
    assert log.topics() == [name]


def test_case_twins_are_refused(log, other):
    """Two topics that differ only in case could not lie on every file system; the first one stays."""
    log.create_topic("Orders")
    for opened in (log, other):
        for exist_ok in (False, True):
            with pytest.raises(InvalidTopicError, match="Orders"):
                opened.create_topic("orders", exist_ok=exist_ok)
        with pytest.raises(UnknownTopicError):
            opened.topic("ORDERS")
    log.delete_topic("Orders")
    assert other.create_topic("orders").name == "orders"


def test_case_twin_of_another_process_is_refused(log, other):
    """What another process made since this one looked counts too."""
    log.create_topic("a")
    other.create_topic("Zebra")
    with pytest.raises(InvalidTopicError):
        log.create_topic("zebra")


# --- creating ---------------------------------------------------------------------------------------------------------


def test_existing_topic_is_refused_or_returned(log, other):
    """`exist_ok` returns the topic as it is; another partition count is an error."""
    log.create_topic("t", partitions=3, segment_ms=5)
    for opened in (log, other):
        with pytest.raises(TopicExistsError):
            opened.create_topic("t", partitions=3)
        found = opened.create_topic("t", partitions=3, exist_ok=True, segment_ms=7)
        assert (found.partitions, found.config["segment_ms"]) == (3, 5)
        with pytest.raises(TopicExistsError, match="add_partitions"):
            opened.create_topic("t", partitions=2, exist_ok=True)


@pytest.mark.parametrize("partitions", [0, -1, 1.0, "2", None, True, topics.MAX_PARTITIONS + 1, 1 << 70])
def test_bad_partition_count_is_refused(log, partitions):
    """A count is a whole number from 1."""
    with pytest.raises(ConfigError, match="partitions"):
        log.create_topic("t", partitions=partitions)
    assert entries(log) == []


@pytest.mark.parametrize(
    "config",
    [
        {"segment_byte": 5000},
        {"segment_bytes": "5000"},
        {"segment_bytes": 10},
        {"segment_bytes": True},
        {"segment_ms": 0},
        {"message_timestamp_type": "Never"},
        {"max_message_bytes": 1 << 40},
    ],
)
def test_bad_setting_is_refused(log, config):
    """Unknown, of the wrong type or out of range; nothing is made and nothing changed."""
    with pytest.raises(ConfigError, match=next(iter(config))):
        log.create_topic("t", **config)
    assert entries(log) == []
    topic = log.create_topic("t")
    with pytest.raises(ConfigError, match=next(iter(config))):
        topic.alter(**config)
    assert topic.config == log.create_topic("u").config


@pytest.mark.parametrize("partition", [-1, 2, 1 << 70, "0", 0.0])
def test_unknown_partition_is_refused(log, partition):
    """A topic of two partitions has 0 and 1."""
    topic = log.create_topic("t", partitions=2)
    with pytest.raises(UnknownPartitionError):
        topic.append(b"x", partition=partition)
    with pytest.raises(UnknownPartitionError):
        list(topic.read(partition=partition))


def test_two_processes_make_one_topic(tmp_path, start):
    """All that make the same topic at once get the same one, or learn that it exists; nothing is left over."""
    children = [
        start(
            """
            log = pystreamlog.open(sys.argv[1])
            hear()
            made = 0
            for number in range(30):
                try:
                    log.create_topic(f"mine-{number}")
                    made += 1
                except TopicExistsError:
                    pass
                topic = log.create_topic(f"ours-{number}", partitions=2, exist_ok=True)
                topic.append(sys.argv[2].encode(), partition=1)
            say(made)
            log.close()
            """,
            tmp_path / "log",
            number,
        )
        for number in range(3)
    ]
    for child in children:
        child.say()
    assert sum(int(child.finish()[0]) for child in children) == 30
    with pystreamlog.open(tmp_path / "log") as log:
        assert len(log.topics()) == 60
        for number in range(30):
            records = list(log.topic(f"ours-{number}").read(partition=1))
            assert sorted(record.value for record in records) == [b"0", b"1", b"2"]
        assert not [name for _, folders, names in os.walk(log.path) for name in folders + names if "~" in name]


def test_topic_that_cannot_be_made_is_not_there(log, monkeypatch):
    """A failure at any step leaves no half topic."""
    for failing in ("fdatasync", "rename", "mkdir", "fchmod"):
        with monkeypatch.context() as patch:

            def fail(*args, **kwargs):
                raise OSError(28, "No space left on device")

            patch.setattr(os, failing, fail)
            with pytest.raises(StreamLogError):
                log.create_topic("t")
        assert log.topics() == []
        with pytest.raises(UnknownTopicError):
            log.topic("t")
    assert log.create_topic("t").append(b"x").offset == 0
    assert entries(log) == ["t"]


def test_what_a_dead_process_left_is_removed(log):
    """Half made and half deleted topics of a killed process go with the next topic; others' files stay."""
    log.create_topic("a").append(b"x")
    folder = f"{log.path}/topics"
    shutil.copytree(f"{folder}/a", f"{folder}/~gone-0123")
    os.makedirs(f"{folder}/~new-4567")
    with open(f"{folder}/note~", "w", encoding="utf-8"):
        pass
    log.create_topic("b")
    assert entries(log) == ["a", "b", "note~"]
    assert log.topics() == ["a", "b"]


def test_files_among_the_topics_are_no_topics(log):
    """Only folders are topics, whatever a file's name."""
    log.create_topic("a")
    for name in (".DS_Store", "README", "x~"):
        with open(f"{log.path}/topics/{name}", "w", encoding="utf-8"):
            pass
    assert log.topics() == ["a"]
    assert log.create_topic("b").name == "b"


# --- topic.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        b"",
        b"\0" * 100,
        b"{}",
        b"[" * 50_000,
        b'{"format":1,"config":' + b'{"x":' * 50_000,
        {"id": "00"},
        {"id": "x" * 32},
        {"partitions": 0},
        {"partitions": 10**9},
        {"partitions": "4"},
        {"format": 0},
        {"name": 5},
        {"config": []},
    ],
    ids=lambda change: str(change)[:20],
)
def test_damaged_topic_file_is_corrupt(log, other, change):
    """A `topic.json` that does not decode names its path, in little time, and harms no other topic."""
    log.create_topic("t").append(b"x")
    path = f"{log.path}/topics/t/topic.json"
    if isinstance(change, dict):
        with open(path, encoding="utf-8") as file:
            change = json.dumps(json.load(file) | change).encode()
    with open(path, "wb") as file:
        file.write(change)
    with pytest.raises(CorruptLogError) as caught:
        other.topic("t")
    assert caught.value.path == path
    assert other.create_topic("u").append(b"x").offset == 0
    assert other.topics() == ["t", "u"]


@pytest.mark.parametrize("change", [{"format": 2}, {"format": 2, "id": 7}, {"config": {"tiering": True}}])
def test_topic_of_a_newer_release_is_refused(log, other, change):
    """A later format, or a setting that this release does not know, says so."""
    log.create_topic("t")
    path = f"{log.path}/topics/t/topic.json"
    with open(path, encoding="utf-8") as file:
        contents = json.load(file) | change
    with open(path, "w", encoding="utf-8") as file:
        json.dump(contents, file)
    with pytest.raises(IncompatibleFormatError, match="upgrade"):
        other.topic("t")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("place", ["topic.json", "", "0", "0/control", "0/00000000000000000000.log"])
@pytest.mark.parametrize("what", ["link", "fifo"])
def test_links_and_fifos_are_refused(log, other, tmp_path, place, what):
    """In the place of any file or folder of a topic; nothing outside is read or written, and nothing waits."""
    topic = log.create_topic("t")
    topic.append(b"x")
    log.close()
    path = f"{log.path}/topics/t/{place}".rstrip("/")
    os.rename(path, tmp_path / "outside")
    before = sorted(os.walk(tmp_path / "outside"))
    if what == "link":
        os.symlink(tmp_path / "outside", path)
    else:
        os.mkfifo(path)
    for call in (
        lambda: list(other.topic("t").read()),
        lambda: other.topic("t").append(b"y"),
    ):
        with pytest.raises(StreamLogError):
            call()
    assert sorted(os.walk(tmp_path / "outside")) == before


# --- altering ---------------------------------------------------------------------------------------------------------


def eventually(check, seconds=5.0):
    """Whether `check` comes true within some seconds; looks often."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.01)
    return False


def test_alteration_is_seen_by_another_process_within_about_a_second(log, start):
    """Settings and partitions that one process changes, another uses soon, without opening the log anew."""
    log.create_topic("t", segment_bytes=1 << 20)
    child = start(
        """
        log = pystreamlog.open(sys.argv[1])
        topic = log.topic("t")
        topic.append(b"x" * 3000)
        say("ready")
        hear()
        began = time.monotonic()
        while topic.config["segment_bytes"] != 4096 or topic.partitions != 3:
            time.sleep(0.01)
        say(time.monotonic() - began)
        topic.append(b"x" * 3000, partition=0)
        say(topic.append(b"x", partition=2).partition)
        log.close()
        """,
        log.path,
    )
    child.hear()
    log.topic("t").alter(segment_bytes=4096)
    log.topic("t").add_partitions(3)
    child.say()
    assert float(child.hear()) < topics.METADATA_MAX_AGE + 1
    assert child.finish() == ["2"]
    assert os.path.exists(f"{log.path}/topics/t/0/00000000000000000001.log")


def test_altering_keeps_the_other_settings(log, other):
    """Only what is named changes; the changing process sees it at once."""
    topic = log.create_topic("t", segment_bytes=5000, segment_ms=6000)
    assert other.topic("t").config["segment_bytes"] == 5000
    topic.alter(segment_ms=7000)
    assert (topic.config["segment_bytes"], topic.config["segment_ms"]) == (5000, 7000)
    assert eventually(lambda: other.topic("t").config["segment_ms"] == 7000)


@pytest.mark.parametrize("total", [1, 2, 0, "5", 2.5])
def test_partitions_only_grow(log, total):
    """A count that is no larger, or no count, is refused."""
    topic = log.create_topic("t", partitions=2)
    with pytest.raises(ConfigError):
        topic.add_partitions(total)
    assert topic.partitions == 2


def test_changing_what_does_not_exist_is_unknown(log):
    """Altering, growing and deleting need the topic."""
    topic = log.create_topic("t")
    log.delete_topic("t")
    for call in (lambda: topic.alter(segment_ms=5), lambda: topic.add_partitions(5), lambda: log.delete_topic("t")):
        with pytest.raises(UnknownTopicError):
            call()


def test_changes_of_many_processes_are_all_kept(tmp_path, start):
    """Alterations take turns: none is lost."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t")
    names = ["segment_bytes", "segment_ms", "max_message_bytes"]
    children = [
        start(
            """
            log = pystreamlog.open(sys.argv[1])
            for number in range(20):
                log.topic("t").alter(**{sys.argv[2]: 5000 + number})
            log.close()
            """,
            tmp_path / "log",
            name,
        )
        for name in names
    ]
    for child in children:
        child.finish()
    with pystreamlog.open(tmp_path / "log") as log:
        assert [log.topic("t").config[name] for name in names] == [5019] * 3


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_deleted_topic_takes_no_appends(log, other):
    """Nowhere: not through this log, not through another, with files open or not."""
    mine, theirs = log.create_topic("t", partitions=2), other.topic("t")
    mine.append(b"x", partition=0)
    theirs.append(b"y", partition=0)
    other.delete_topic("t")
    for topic in (mine, theirs):
        for partition in (0, 1):
            with pytest.raises(UnknownTopicError):
                topic.append(b"z", partition=partition)
    assert entries(log) == []
    assert log.topics() == []


def test_readers_of_a_deleted_topic_finish_what_they_have_open(log, other):
    """A replay that is under way gets the records of its open segment, and then ends or says why not."""
    topic = log.create_topic("t", segment_bytes=1 << 20)
    for number in range(100):
        topic.append(b"%d" % number)
    replay = other.topic("t").read()
    seen = [int(next(replay).value)]
    log.delete_topic("t")
    seen += [int(record.value) for record in replay]
    assert seen == list(range(100))


def test_reader_that_needs_a_deleted_file_gets_a_clear_error(log, other):
    """A replay over many segments of a topic that goes meanwhile ends with an error of the library."""
    topic = log.create_topic("t", segment_bytes=4096)
    for number in range(3000):
        topic.append(b"%08d" % number + b"." * 5000)
        if number > 30:
            break
    reader = other.topic("t").read()
    next(reader)
    log.delete_topic("t")
    log.create_topic("t", segment_bytes=4096).append(b"another topic")
    seen = []
    with contextlib.suppress(UnknownTopicError, OffsetOutOfRangeError):
        seen.extend(int(record.value[:8]) for record in reader)
    assert seen == list(range(1, len(seen) + 1))


def test_topic_made_again_is_another_topic(log, other):
    """After delete and create, the old handles see the new topic, and never the old records."""
    old = other.topic("t") if "t" in other.topics() else other.create_topic("t")
    old.append(b"old")
    log.delete_topic("t")
    log.create_topic("t", partitions=2)

    def appended():
        try:
            return old.append(b"new", partition=0).offset == 0
        except UnknownTopicError:
            return False

    assert eventually(appended)
    for opened in (log, other):
        assert eventually(lambda: opened.topic("t").partitions == 2)  # noqa: B023
        assert [record.value for record in opened.topic("t").read()] == [b"new"]


def test_sends_buffered_for_a_deleted_topic_fail(log, other):
    """Nothing is dropped silently: each delivery says that the topic is gone; other topics are not held up."""
    for deleter in (log, other):
        log.create_topic("t", exist_ok=True)
        log.create_topic("u", exist_ok=True)
        producer = log.producer(linger_ms=60_000)
        producer.send("t", b"first").result(10)  # opens the partition
        deliveries = [producer.send("t", b"x") for _ in range(5)]
        kept = [producer.send("u", b"x") for _ in range(5)]
        assert not any(delivery.done() for delivery in deliveries[1:])
        deleter.delete_topic("t")
        failed = [delivery.exception(10) for delivery in deliveries]
        assert all(isinstance(error, UnknownTopicError) for error in failed if error is not None)
        assert sum(error is not None for error in failed) >= 4
        assert all(delivery.result(10) for delivery in kept)
        producer.close()
        with pytest.raises(UnknownTopicError):
            log.topic("t").append(b"x")


def test_consumer_of_a_deleted_topic_goes_on_with_the_others(log, other):
    """What is left of it is read, then it is dropped; a topic of the same name is taken up from its start."""
    log.create_topic("t").append(b"old")
    log.create_topic("u").append(b"u-1")
    seen = []
    with other.consumer("t", "u", auto_offset_reset="earliest") as consumer:

        def got(value):
            seen.extend(consumer.poll(0.1).values)
            return value in seen

        assert eventually(lambda: got(b"old") and got(b"u-1"))
        log.delete_topic("t")
        log.topic("u").append(b"u-2")
        assert eventually(lambda: got(b"u-2"))
        log.create_topic("t").append(b"new")
        assert eventually(lambda: got(b"new"), 10)
    assert sorted(seen) == [b"new", b"old", b"u-1", b"u-2"]


@pytest.mark.slow
def test_deleting_while_others_write_and_read(tmp_path, start):
    """A topic deleted and made again under running writers and readers: only UnknownTopicError, and no lie."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t", segment_bytes=4096)
        writers = [
            start(
                """
                log = pystreamlog.open(sys.argv[1])
                topic = log.topic("t")
                say("ready")
                count = gone = 0
                deadline = time.monotonic() + 3
                while time.monotonic() < deadline:
                    try:
                        topic.append(b"%d" % count + b"." * 300)
                        count += 1
                    except UnknownTopicError:
                        gone += 1
                say(count, gone)
                log.close()
                """,
                log.path,
            )
            for _ in range(2)
        ]
        reader = start(
            """
            log = pystreamlog.open(sys.argv[1])
            topic = log.topic("t")
            say("ready")
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                try:
                    offsets = [record.offset for record in topic.read()]
                    assert offsets == list(range(len(offsets))), offsets
                except (UnknownTopicError, OffsetOutOfRangeError):
                    pass
            log.close()
            """,
            log.path,
        )
        for child in (*writers, reader):
            child.hear()
        for _ in range(12):
            time.sleep(0.15)
            log.delete_topic("t")
            time.sleep(0.05)
            log.create_topic("t", segment_bytes=4096)
        reader.finish()
        for writer in writers:
            count, _ = map(int, writer.finish()[0].split())
            assert count > 0
        assert entries(log) == ["t"]


HOLDING = """
with pystreamlog.open(sys.argv[1]) as log:
    writer = log._partitions.writer(log._topics.find("t"), 1)
    writer.ensure()
    with writer.locked(10):
        say("holds")
        hear()
    say("done")
"""


def test_deletion_names_a_stopped_writer_and_changes_nothing(log, start, monkeypatch):
    """It ends in time, and no partition is flagged: the topic is as it was, and can be deleted later."""
    monkeypatch.setattr(topics, "_SETTLE_TIMEOUT", 0.2)
    topic = log.create_topic("t", partitions=2)
    topic.append(b"x", partition=0)
    child = start(HOLDING, log.path)
    assert child.hear() == "holds"
    child.signal(signal.SIGSTOP)
    with pytest.raises(LockTimeoutError) as caught:
        log.delete_topic("t")
    assert f"pid {child.pid}" in caught.value.holder
    assert caught.value.path.endswith("topics/t/1/control")
    assert topic.append(b"y", partition=0).offset == 1
    assert log.verify().ok
    child.signal(signal.SIGCONT)
    child.say()
    assert child.hear() == "done"
    child.finish()
    log.delete_topic("t")
    assert log.topics() == []


def test_other_topics_change_while_a_deletion_waits(log, other, start, monkeypatch):
    """It waits for a stopped writer without the lock of all topics."""
    monkeypatch.setattr(topics, "_SETTLE_TIMEOUT", 60.0)
    monkeypatch.setattr(topics, "_LOCK_TIMEOUT", 0.0)
    log.create_topic("t", partitions=2)
    child = start(HOLDING, log.path)
    assert child.hear() == "holds"
    waits = threading.Event()
    real = PartitionFiles.settle

    def settle(self, timeout):
        if self.folder.partition == 1:
            waits.set()
        real(self, timeout)

    monkeypatch.setattr(PartitionFiles, "settle", settle)
    deletion = threading.Thread(target=log.delete_topic, args=["t"])
    deletion.start()
    try:
        assert waits.wait(LONG)
        other.create_topic("u").append(b"x")
        other.topic("u").alter(segment_ms=5)
        other.delete_topic("u")
        assert deletion.is_alive()
    finally:
        child.say()
        deletion.join(LONG)
    assert not deletion.is_alive()
    child.finish()
    assert log.topics() == []


def test_deletion_that_meets_a_stopped_writer_late_waits_again(log, start, monkeypatch):
    """One that comes just before the partitions are flagged is waited for as the others are: without `topics.lock`."""
    monkeypatch.setattr(topics, "_SETTLE_TIMEOUT", 60.0)
    monkeypatch.setattr(topics, "_FLAG_TIMEOUT", 0.0)
    log.create_topic("t", partitions=2).append(b"x", partition=1)
    real = PartitionFiles.mark_deleted
    children, refused = [], []

    def mark_deleted(self, timeout):
        if not children:
            children.append(start(HOLDING, log.path))
            assert children[0].hear() == "holds"
        try:
            real(self, timeout)
        except LockTimeoutError:
            refused.append(self.folder.partition)
            children[0].say()
            raise

    monkeypatch.setattr(PartitionFiles, "mark_deleted", mark_deleted)
    log.delete_topic("t")
    assert refused == [1]
    assert log.topics() == []
    children[0].finish()


@pytest.mark.parametrize("damage", ["control", "segment", "slots", "no control"])
def test_damaged_topic_can_be_deleted(log, other, damage):
    """Whatever is wrong with a topic's partitions, deleting it works, and in time."""
    topic = log.create_topic("t", partitions=2)
    for partition in (0, 1):
        topic.append(b"x", partition=partition)
    log.close()
    folder = f"{log.path}/topics/t/1"
    if damage == "no control":
        os.unlink(f"{folder}/control")
    else:
        name = "00000000000000000000.log" if damage == "segment" else "control"
        with open(f"{folder}/{name}", "r+b") as file:
            file.seek(256 if damage == "slots" else 0)
            file.write(b"\xa5" * 500)
    began = time.monotonic()
    other.delete_topic("t")
    assert time.monotonic() - began < 5
    assert other.topics() == []
    assert other.create_topic("t").append(b"x").offset == 0


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_stopped_process_that_changes_topics_is_named(log, start, monkeypatch):
    """A change waits for one that is under way, and then names who holds it up."""
    monkeypatch.setattr(topics, "_LOCK_TIMEOUT", 0.3)
    child = start(
        """
        log = pystreamlog.open(sys.argv[1])
        with log._topics.changing():
            say("held")
            os.kill(os.getpid(), signal.SIGSTOP)
        log.close()
        """,
        log.path,
    )
    child.hear()
    with pytest.raises(LockTimeoutError) as caught:
        log.create_topic("t")
    assert str(child.pid) in caught.value.holder
    assert log.topics() == []
    child.signal(signal.SIGCONT)
    child.finish()
    assert log.create_topic("t").name == "t"


def test_read_only_log_changes_nothing(log, other):
    """Every change is a ReadOnlyError, reading works."""
    log.create_topic("t").append(b"x")
    with pystreamlog.open(log.path, read_only=True) as reading:
        topic = reading.topic("t")
        for call in (
            lambda: reading.create_topic("u"),
            lambda: reading.delete_topic("t"),
            lambda: topic.alter(segment_ms=5),
            lambda: topic.add_partitions(4),
            lambda: topic.append(b"y"),
        ):
            with pytest.raises(ReadOnlyError):
                call()
        assert [record.value for record in topic.read()] == [b"x"]


def test_threads_share_one_log(log):
    """Many threads make, change and delete topics through one log."""
    errors = []

    def work(number):
        try:
            for turn in range(10):
                topic = log.create_topic(f"t-{number}", exist_ok=True)
                topic.append(b"x")
                topic.alter(segment_ms=1000 + turn)
                if turn % 3 == 2:
                    log.delete_topic(f"t-{number}")
        except Exception as error:  # noqa: BLE001 - a thread tells what it met
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert log.topics() == [f"t-{number}" for number in range(6)]


def test_closed_topics_are_closed(log):
    """After the log is closed, its topics are too."""
    topic = log.create_topic("t")
    log.close()
    with pytest.raises(ClosedError):
        topic.alter(segment_ms=5)
