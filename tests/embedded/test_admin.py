"""The admin of a directory: beside other processes, in logs that are read-only, and with many topics."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

import pystreamlog
from pystreamlog import AlterConfigOp, NewTopic, TopicPartition
from pystreamlog.coordination.locks import FileLock
from pystreamlog.coordination.names import encoded_id
from pystreamlog.errors import (
    ConfigError,
    CorruptLogError,
    FencedError,
    GroupNotEmptyError,
    ReadOnlyError,
    UnknownTopicError,
)

from .conftest import PATIENCE, start
from .members import poll_until

MEMBER = """
import sys
import pystreamlog

log = pystreamlog.open(sys.argv[1])
consumer = log.consumer("events", group_id="g", group_instance_id=sys.argv[2] or None, session_timeout_ms=3_600_000)
while not consumer.assignment():
    consumer.poll(0.05)
print("joined", flush=True)
sys.stdin.read()
"""


def tp(number=0, topic="events"):
    """A partition."""
    return TopicPartition(topic, number)


def snapshot(path):
    """Every file below the log's directory, and when it was changed."""
    found = {}
    for folder, _, names in os.walk(path):
        found[folder] = None
        for name in names:
            status = os.stat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = status.st_mtime_ns, status.st_size
    return found


def member(path, instance_id=""):
    """A member of group "g" in a process of its own."""
    process = start(MEMBER, path, instance_id)
    assert process.stdout.readline() == "joined\n", process.stderr.read()
    return process


def end(process):
    """Kill a process."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)


# --- read-only


def test_looking_works_in_a_read_only_log_and_writes_nothing(log, path):
    """Also beside a live member; what would change anything is refused."""
    log.create_topic("events", partitions=2).append(b"x", partition=0, timestamp_ms=5)
    with (
        log.consumer("events", group_id="g", auto_offset_reset="earliest") as consumer,
        log.producer(transactional_id="t") as producer,
        pystreamlog.open(path, read_only=True) as read_only,
    ):
        poll_until(consumer, lambda: len(consumer.assignment()) == 2)
        consumer.commit({tp(): 1})
        producer.init_transactions()
        admin = read_only.admin
        before = snapshot(path)
        assert list(admin.list_topics()) == ["events"]
        assert admin.describe_topics("events") == log.admin.describe_topics("events")
        assert admin.describe_configs("events") == log.admin.describe_configs("events")
        assert admin.list_offsets({tp(): "max_timestamp", tp(1): "latest"}) == {tp(): (0, 5), tp(1): (0, -1)}
        assert admin.list_consumer_groups() == [("g", "Stable")]
        assert admin.describe_consumer_groups("g")["g"].members[0].assignment == (tp(0), tp(1))
        assert admin.list_consumer_group_offsets("g")["g"][tp()].offset == 1
        assert admin.list_transactions() == [("t", "Empty")]
        assert admin.describe_transactions("t")["t"].producer_epoch == 1
        assert admin.describe_log_dirs().keys() == {path}
        assert admin.describe_cluster() == log.admin.describe_cluster()
        for call in (
            lambda: admin.create_topics([NewTopic("a")]),
            lambda: admin.delete_topics("events"),
            lambda: admin.create_partitions({"events": 3}),
            lambda: admin.incremental_alter_configs({"events": []}),
            lambda: admin.delete_consumer_groups("g"),
            lambda: admin.alter_consumer_group_offsets("g", {tp(): 0}),
            lambda: admin.delete_consumer_group_offsets("g", [tp()]),
            lambda: admin.remove_members_from_consumer_group("g"),
            lambda: admin.fence_producers("t"),
        ):
            with pytest.raises(ReadOnlyError):
                call()
        after = snapshot(path)
        control = os.path.join(path, "groups", "g", "control")  # the member says now and then that it is there
        assert {**after, control: None} == {**before, control: None}


# --- other processes


def test_members_of_other_processes_count_until_they_die(log, path):
    """Then their group can be deleted at once."""
    log.create_topic("events")
    process = member(path)
    try:
        (described,) = log.admin.describe_consumer_groups("g")["g"].members
        assert described.pid == process.pid
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.delete_consumer_groups("g")
        assert isinstance(caught.value.exceptions[0], GroupNotEmptyError)
    finally:
        end(process)
    assert log.admin.list_consumer_groups() == [("g", "Empty")]
    log.admin.delete_consumer_groups("g")
    assert log.admin.list_consumer_groups() == []


def test_others_take_over_from_a_killed_static_member_that_is_taken_out(log, path):
    """Whose share would wait for an hour."""
    log.create_topic("events", partitions=4)
    process = member(path, "one")
    with log.consumer("events", group_id="g") as consumer:
        try:
            poll_until(consumer, lambda: log.admin.list_consumer_groups(states="Reconciling") or consumer.assignment())
        finally:
            end(process)
        poll_until(consumer, lambda: log.admin.describe_consumer_groups("g")["g"].members[0].state == "Left")
        log.admin.remove_members_from_consumer_group("g", "one")
        poll_until(consumer, lambda: len(consumer.assignment()) == 4)


def test_removal_is_seen_by_members_that_wait(log):
    """In the middle of a poll: they are rung."""
    log.create_topic("events", partitions=2)
    gone = log.consumer("events", group_id="g", group_instance_id="one", session_timeout_ms=3_600_000)
    with log.consumer("events", group_id="g") as stays:
        poll_until(gone, lambda: len(gone.assignment()) == 2)
        while len(gone.assignment()) + len(stays.assignment()) > 2 or not stays.assignment():
            gone.poll(0.01)
            stays.poll(0.01)
        gone.close()

        def wait():
            with contextlib.suppress(pystreamlog.WakeupError):
                stays.poll(PATIENCE)

        polling = threading.Thread(target=wait)
        polling.start()
        try:
            log.admin.remove_members_from_consumer_group("g", ["one"])
            deadline = time.monotonic() + PATIENCE / 8  # a member that nobody rings looks every 5 s
            while len(log.admin.describe_consumer_groups("g")["g"].members[0].assignment) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            stays.wakeup()
            polling.join(PATIENCE)


def test_threads_and_logs_share_the_work(log, path):
    """Of making and deleting the same groups and topics: each is done by one of them."""
    log.create_topic("events").append(b"x")
    wrong = []

    def work(number):
        with pystreamlog.open(path) as mine:
            admin = log.admin if number % 2 else mine.admin
            for turn in range(30):
                for call in (
                    lambda: admin.alter_consumer_group_offsets("g", {tp(): 1}),
                    lambda: admin.delete_consumer_groups("g"),
                    lambda turn=turn: admin.create_topics([NewTopic(f"t{turn % 3}")]),
                    lambda turn=turn: admin.delete_topics(f"t{turn % 3}"),
                    admin.list_topics,
                    admin.list_consumer_groups,
                    lambda: admin.list_consumer_group_offsets("g"),
                ):
                    try:
                        call()
                    except ExceptionGroup as group:
                        known = (pystreamlog.UnknownGroupError, UnknownTopicError, pystreamlog.TopicExistsError)
                        wrong.extend(error for error in group.exceptions if not isinstance(error, known))
                    except Exception as error:  # noqa: BLE001 - told below
                        wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert log.verify().ok


# --- transactions


def test_commit_under_way_is_told(log, path):
    """And who makes it; fencing waits for it."""
    with log.producer(transactional_id="t") as producer:
        producer.init_transactions()
        file = os.open(os.path.join(path, "transactions", "ids", "t"), os.O_RDWR)
        lock = FileLock(file, "t", stamp_position=1024)
        try:
            with lock.held(1, stamp=True):
                assert log.admin.list_transactions(states="PrepareCommit") == [("t", "PrepareCommit")]
                assert str(os.getpid()) in log.admin.describe_transactions("t")["t"].holder
            assert log.admin.list_transactions(states="PrepareCommit") == []
        finally:
            lock.close()
            os.close(file)
        log.admin.fence_producers("t")
        with pytest.raises(FencedError):
            producer.begin_transaction()


def test_id_too_long_for_a_file_name_is_told_as_the_file_is_called(log):
    """It is found under both."""
    text = "Ä" * 200
    log.admin.fence_producers(text)
    ((name, _),) = log.admin.list_transactions()
    assert name == encoded_id(text)
    assert log.admin.describe_transactions(text)[text].producer_epoch == 1
    assert log.admin.describe_transactions(name)[name].producer_epoch == 1


# --- damage


def test_damaged_group_and_id_are_told_beside_the_others(log, path):
    """All are tried."""
    log.create_topic("events").append(b"x")
    for group_id in ("a", "b"):
        log.admin.alter_consumer_group_offsets(group_id, {tp(): 1})
    log.admin.fence_producers(["x", "y"])
    os.truncate(os.path.join(path, "groups", "a", "offsets"), 10)
    os.truncate(os.path.join(path, "transactions", "ids", "x"), 10)
    for call, name in (
        (log.admin.list_consumer_groups, None),
        (lambda: log.admin.list_consumer_group_offsets(["a", "b"]), "group_id"),
        (log.admin.list_transactions, "transactional_id"),
    ):
        with pytest.raises(ExceptionGroup) as caught:
            call()
        (error,) = caught.value.exceptions
        assert isinstance(error, CorruptLogError)
        if name is not None:
            assert getattr(error, name) in ("a", "x")
    assert log.admin.list_consumer_group_offsets("b")["b"][tp()].offset == 1


def test_offsets_of_what_is_no_partition_are_refused(log):
    """As a mistake of the caller's."""
    with pytest.raises(ConfigError):
        log.admin.list_offsets({"events": "latest"})
    with pytest.raises(ConfigError):
        log.admin.create_topics(["events"])


# --- many


def test_work_grows_with_the_topics_and_no_faster():
    """Four times as many topics, all in use, take much less than sixteen times as long."""

    def seconds(count):
        with pystreamlog.open(":memory:") as log:
            names = [f"t{number}" for number in range(count)]
            tps = [tp(0, name) for name in names]
            log.admin.create_topics([NewTopic(name) for name in names])
            for name in names:
                log.topic(name).append(b"x")
            begin = time.perf_counter()
            log.admin.list_topics()
            log.admin.incremental_alter_configs({name: [AlterConfigOp("flush_ms", 9)] for name in names})
            log.admin.list_offsets(dict.fromkeys(tps, "max_timestamp"))
            log.admin.alter_consumer_group_offsets("g", dict.fromkeys(tps, 1))
            assert len(log.admin.list_consumer_group_offsets("g")["g"]) == count
            log.admin.delete_consumer_group_offsets("g", tps)
            log.admin.describe_log_dirs()
            log.admin.delete_topics(names)
            return time.perf_counter() - begin

    seconds(20)
    assert seconds(800) < 10 * max(seconds(200), seconds(200))
