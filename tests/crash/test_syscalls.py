"""A system call may fail in any operation: an error of the library says so, nothing is lost, and the log goes on."""

from __future__ import annotations

import os

import pytest

import pystreamlog
from pystreamlog import TopicPartition
from pystreamlog.errors import StorageError, StreamLogError

from . import mounts, traced
from .kills import fast_folder
from .procedures import PROCEDURES
from .syscalls import HARMLESS, Report, fail_everywhere
from .traced import SCENARIOS
from .transacted import TRANSACTED
from .world import value_of

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

ALL = HARMLESS + PROCEDURES + TRANSACTED


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names the files of descriptors by /proc")
@pytest.mark.parametrize("make", ALL, ids=[make().name for make in ALL])
def test_operation_gets_over_a_failing_call(make):
    """A sample of its calls, each in one of the ways in which it may fail; `tests.crash.syscalls` tries all."""
    operation, report = make(), Report()
    with fast_folder() as folder:
        every = {"transact": 31, "recover": 61, "read": 31}.get(operation.name.split()[0], 13)
        fail_everywhere(operation, folder, report, every=every)
        if not report.faults:
            fail_everywhere(operation, f"{folder}/short", report, every=2)
    assert not report.failures
    assert report.faults, "the operation makes no calls: is it still made through the door?"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.inject for scenario in SCENARIOS])
def test_traced_process_loses_nothing(scenario, tmp_path):
    """The kernel answers a process with an error, or kills it at a system call."""
    if reason := traced.reason_against():
        pytest.skip(f"no process is traced here: {reason}")
    acknowledged, _ = traced.run(scenario, scenario.calls[0], str(tmp_path))
    assert acknowledged >= 3


def test_full_file_system_is_got_over(tmp_path):
    """Everything that writes fails with what to do while the disk is full, and works once there is space again."""
    if reason := mounts.reason_against(loop=False):
        pytest.skip(f"no small file system is mounted here: {reason}")
    with mounts.full_tmpfs(str(tmp_path), 2 << 20) as folder, pystreamlog.open(f"{folder}/log") as log:
        topic = log.create_topic("events", segment_bytes=65536, max_message_bytes=1 << 20)
        tp = TopicPartition("events", 0)
        consumer = log.consumer(group_id="readers", enable_auto_commit=False)
        consumer.assign([tp])
        values = []
        with open(f"{folder}/filler", "wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, 1 << 20)
        with pytest.raises(StorageError, match="disk is full"):
            _append_all(topic, values)
        assert values
        with pytest.raises(StorageError):
            log.create_topic("more").append(bytes(60_000))
        with log.producer() as producer, pytest.raises(StreamLogError):
            producer.send("events", bytes(100_000)).result()
        consumer.commit({tp: len(values)})  # has its room already
        assert [record.value for record in topic.read()] == values
        os.unlink(f"{folder}/filler")
        for number in range(1000, 1010):
            values.append(value_of(number, 9000))
            topic.append(values[-1], durability="fsync")
        assert [record.value for record in topic.read()] == values
        log.create_topic("others").append(b"x")
        with pystreamlog.open(f"{folder}/log") as fresh:
            assert [record.value for record in fresh.topic("events").read()] == values
        consumer.close(commit=False)


def _append_all(topic, values):
    for number in range(1000):
        topic.append(value_of(number, 9000))
        values.append(value_of(number, 9000))
