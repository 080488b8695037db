"""A partition shared by processes: appends take turns, a death costs nothing, a power loss leaves a prefix."""

import errno
import functools
import logging
import operator
import os
import random
import shutil
import signal
import threading
import time

import msgspec
import pytest

import pystreamlog
from pystreamlog.coordination import partition as partition_module
from pystreamlog.coordination import partition_files
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import (
    ClosedError,
    CorruptLogError,
    LockTimeoutError,
    ReadOnlyError,
    StorageError,
    UnknownTopicError,
)
from pystreamlog.record.batch import encode
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control
from pystreamlog.storage.epochs import EPOCHS, read_epochs
from pystreamlog.storage.files import Files
from tests.coordination.moving import BOOT, NEXT_BOOT

SEGMENT = f"{0:020d}.log"

APPEND_FOR_EVER = """
log = pystreamlog.open(sys.argv[1])
topic = log.topic("t")
number = 0
while True:
    offset = topic.append(b"%s %d" % (sys.argv[2].encode(), number)).offset
    os.write(1, b"%d %d\\n" % (number, offset))
    number += 1
"""


def booted(path, boot=BOOT, **options):
    """The log as it is opened in a boot of the machine."""
    return EmbeddedLog(str(path), boot=lambda: boot, **options)


def filled(path, count=10, *, boot=BOOT, **config):
    """A closed log with records in one partition, none of them known to be on disk; each tells its offset."""
    with booted(path, boot) as log:
        log._partitions.sync_later = lambda *_: None
        topic = log.create_topic("t", exist_ok=True, **config)
        first = topic.end_offsets()[0]
        for number in range(first, first + count):
            assert topic.append(b"%d" % number + b"." * 30).offset == number
    return f"{path}/topics/t/0"


def numbers(topic):
    """What the records say."""
    return [int(record.value.rstrip(b".")) for record in topic.read()]


def test_topic_that_is_deleted_while_it_is_recovered_is_no_damage(tmp_path, monkeypatch):
    """Its segments go under the eyes of who recovers it; else such a loss is one."""
    filled(tmp_path / "log")
    recover = partition_files.recover
    deletes = False

    def recover_late(folder, control, *arguments, **options):
        end = control.published()
        flags = end.flags | layout.FLAG_DELETED if deletes else end.flags
        control.publish(msgspec.structs.replace(end, sequence=end.sequence + 1, flags=flags))
        os.unlink(folder.files.path(f"{folder.path}/{SEGMENT}"))
        return recover(folder, control, *arguments, **options)

    monkeypatch.setattr(partition_files, "recover", recover_late)
    shutil.copytree(tmp_path / "log", tmp_path / "deleted")
    with booted(tmp_path / "log", NEXT_BOOT) as log, pytest.raises(CorruptLogError, match="no segment"):
        log.topic("t").append(b"x")
    deletes = True
    with booted(tmp_path / "deleted", NEXT_BOOT) as log, pytest.raises(UnknownTopicError, match="was deleted"):
        log.topic("t").append(b"x")


def damage(folder, position, data, name=SEGMENT):
    """Overwrite a part of a file."""
    with open(f"{folder}/{name}", "r+b") as file:
        file.seek(position)
        file.write(data)


def content(folder):
    """Every file of a partition, but for the stamps of who held a lock."""
    found = {}
    for name in sorted(os.listdir(folder)):
        with open(f"{folder}/{name}", "rb") as file:
            found[name] = file.read()[: layout.APPEND_STAMP_POSITION if name == "control" else None]
    return found


def last_batch(folder):
    """Where the last batch starts and ends."""
    with open(f"{folder}/{SEGMENT}", "rb") as file:
        data = file.read().rstrip(b"\0")
    return data.rindex(b"PSLB"), -(-len(data) // 8) * 8


@pytest.fixture
def log(tmp_path):
    """An open log with a topic of one partition."""
    with booted(tmp_path / "log") as opened:
        opened.create_topic("t")
        yield opened


def writer_of(log, partition=0):
    """The partition's writer."""
    return log._partitions.writer(log._topics.find("t"), partition)


# --- lazily made ------------------------------------------------------------------------------------------------------


def test_partition_is_made_at_the_first_append(log):
    """Reading an unmade partition is reading an empty one, and makes nothing."""
    topic = log.topic("t")
    assert list(topic.read()) == []
    assert topic.end_offsets() == topic.beginning_offsets() == {0: 0}
    assert os.listdir(f"{log.path}/topics/t") == ["topic.json"]
    topic.append(b"x")
    assert sorted(os.listdir(f"{log.path}/topics/t")) == ["0", "topic.json"]


def test_two_processes_make_one_partition(tmp_path, start):
    """All first appends go to the same partition; nobody's is lost."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t", partitions=30)
    children = [
        start(
            """
            log = pystreamlog.open(sys.argv[1])
            topic = log.topic("t")
            say("ready")
            hear()
            for partition in range(30):
                topic.append(sys.argv[2].encode(), partition=partition)
            log.close()
            """,
            tmp_path / "log",
            number,
        )
        for number in range(3)
    ]
    for child in children:
        child.hear()
    for child in children:
        child.say()
    for child in children:
        child.finish()
    with pystreamlog.open(tmp_path / "log") as log:
        for partition in range(30):
            values = [record.value for record in log.topic("t").read(partition=partition)]
            assert sorted(values) == [b"0", b"1", b"2"]
    assert not [name for name in os.listdir(tmp_path / "log" / "topics" / "t") if "~" in name]


def test_partition_that_cannot_be_made_is_not_there(log, monkeypatch):
    """A failure at any step of making it leaves nothing; the next append makes it."""
    for failing in ("fdatasync", "rename", "pwrite", "mkdir"):
        with monkeypatch.context() as patch:

            def fail(*args, **kwargs):
                raise OSError(28, "No space left on device")

            patch.setattr(os, failing, fail)
            with pytest.raises(StorageError):
                log.topic("t").append(b"x")
        assert os.listdir(f"{log.path}/topics/t") == ["topic.json"]
        assert log.topic("t").end_offsets() == {0: 0}
    assert log.topic("t").append(b"x").offset == 0


def test_folder_without_control_file_is_corrupt(tmp_path):
    """A partition that lost its control file is not taken for one that was never made."""
    folder = filled(tmp_path / "log")
    os.unlink(f"{folder}/control")
    before = content(folder)
    for options in ({}, {"read_only": True}):
        with booted(tmp_path / "log", **options) as log:
            topic = log.topic("t")
            with pytest.raises(CorruptLogError, match="control"):
                list(topic.read())
            with pytest.raises((CorruptLogError, ReadOnlyError)):
                topic.append(b"x")
    assert content(folder) == before


def test_swapped_partitions_are_corrupt(tmp_path):
    """The folders of two partitions exchanged: neither is read as the other."""
    with booted(tmp_path / "log") as log:
        topic = log.create_topic("t", partitions=2)
        for partition in (0, 1):
            topic.append(b"x", partition=partition)
    folder = tmp_path / "log" / "topics" / "t"
    (folder / "0").rename(folder / "2")
    (folder / "1").rename(folder / "0")
    (folder / "2").rename(folder / "1")
    with booted(tmp_path / "log") as log:
        for partition in (0, 1):
            with pytest.raises(CorruptLogError, match="swapped"):
                list(log.topic("t").read(partition=partition))
            with pytest.raises(CorruptLogError, match="swapped"):
                log.topic("t").append(b"x", partition=partition)


# --- appends take turns -----------------------------------------------------------------------------------------------


def test_writers_of_many_processes_lose_and_double_nothing(tmp_path, start):
    """Four processes append at once: offsets are dense, and each process's records in its order."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t", segment_bytes=20_000)
    children = [
        start(
            """
            log = pystreamlog.open(sys.argv[1])
            topic = log.topic("t")
            say("ready")
            hear()
            for number in range(300):
                say(topic.append(b"%s %d" % (sys.argv[2].encode(), number)).offset)
            log.close()
            """,
            tmp_path / "log",
            number,
        )
        for number in range(4)
    ]
    for child in children:
        child.hear()
    for child in children:
        child.say()
    offsets = [list(map(int, child.finish())) for child in children]
    assert sorted(functools.reduce(operator.iadd, offsets, [])) == list(range(1200))
    with pystreamlog.open(tmp_path / "log") as log:
        found = {record.offset: record.value for record in log.topic("t").read()}
    for number, mine in enumerate(offsets):
        assert [found[offset] for offset in mine] == [b"%d %d" % (number, index) for index in range(300)]


def test_threads_share_a_writer(log):
    """Threads of a process append through one writer: dense offsets, each acknowledged once."""
    topic, offsets = log.topic("t"), []

    def work(number):
        for index in range(200):
            value = b"%d %d" % (number, index)
            offsets.append((topic.append(value).offset, value))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(offsets) == [(record.offset, record.value) for record in topic.read()]
    assert len(offsets) == 800


def test_two_openings_in_one_process_take_turns(log):
    """Two logs on the same directory exclude each other as processes do."""
    with booted(log.path) as other:
        for number in range(50):
            assert (log, other)[number % 2].topic("t").append(b"%d" % number).offset == number
        assert numbers(other.topic("t")) == list(range(50))


STOP_INSIDE_THE_LOCK = """
from pystreamlog.storage.appender import LogAppender
log = pystreamlog.open(sys.argv[1])
topic = log.topic("t")
topic.append(b"before")
real = LogAppender.write
def stop(*args, **kwargs):
    say("inside")
    os.kill(os.getpid(), signal.SIGSTOP)
    return real(*args, **kwargs)
LogAppender.write = stop
say(topic.append(b"stopped").offset)
log.close()
"""


@pytest.fixture
def stopped(tmp_path, start):
    """A log, and a child that is stopped while it holds the append lock."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t").append(b"first")
        child = start(STOP_INSIDE_THE_LOCK, log.path)
        assert child.hear() == "inside"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with open(f"/proc/{child.pid}/stat", encoding="ascii") as file:
                if file.read().rpartition(")")[2].split()[0] == "T":
                    break
            time.sleep(0.005)
        yield log, child


@pytest.mark.faults
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only Linux tells whether a process is stopped")
class TestStoppedWriter:
    """A writer stopped with SIGSTOP inside the lock is waited for, then named; nothing is taken from it."""

    def test_append_names_the_holder_and_goes_on_later(self, stopped, monkeypatch):
        """The time-out's error tells the process; after SIGCONT both records are there."""
        log, child = stopped
        writer = writer_of(log)
        began = time.monotonic()
        with pytest.raises(LockTimeoutError) as caught:
            writer.append(encode([b"waits"], None, 1), 0.3)
        assert 0.25 < time.monotonic() - began < 5
        assert str(child.pid) in caught.value.holder
        assert str(child.pid) in str(caught.value)
        child.signal(signal.SIGCONT)
        assert child.hear() == "2"
        child.finish()
        assert log.topic("t").append(b"waits").offset == 3
        assert [record.value for record in log.topic("t").read()] == [b"first", b"before", b"stopped", b"waits"]

    def test_try_once_does_not_wait(self, stopped):
        """A time-out of 0 tries once and tells at once."""
        log, _child = stopped
        writer = writer_of(log)
        with pytest.raises(LockTimeoutError):
            writer.append(encode([b"x"], None, 1), 0)
        assert log.topic("t").end_offsets() == {0: 2}

    def test_readers_do_not_wait(self, stopped):
        """Reading takes no lock."""
        log, _child = stopped
        began = time.monotonic()
        assert [record.value for record in log.topic("t").read()] == [b"first", b"before"]
        assert time.monotonic() - began < 2

    def test_send_waits_and_is_delivered(self, stopped):
        """A producer's record is written once the stopped process goes on."""
        log, child = stopped
        with log.producer() as producer:
            delivery = producer.send("t", b"sent")
            assert not delivery.done()
            child.signal(signal.SIGCONT)
            assert delivery.result(10).offset == 3

    def test_send_fails_with_the_holders_name(self, stopped):
        """A record that is not written in time fails, and its error is a time-out that names the process."""
        log, child = stopped
        with log.producer(delivery_timeout_ms=300, linger_ms=0) as producer:
            error = producer.send("t", b"x").exception(10)
            assert isinstance(error, TimeoutError)
            assert str(child.pid) in str(error)
        child.signal(signal.SIGCONT)
        child.finish()
        assert log.topic("t").end_offsets() == {0: 3}

    def test_killed_holder_frees_the_lock_at_once(self, stopped):
        """When the stopped process dies, the next append goes through, and its record is not there."""
        log, child = stopped
        child.kill()
        began = time.monotonic()
        assert log.topic("t").append(b"next").offset == 2
        assert time.monotonic() - began < 1


@pytest.mark.slow
@pytest.mark.faults
def test_killed_writers_lose_and_double_nothing(tmp_path, start):
    """Kill -9 at any moment, many times: survivors go on at once, what was acknowledged is there exactly once."""
    seed = int(os.environ.get("PYTEST_SEED", random.SystemRandom().getrandbits(32)))
    dice = random.Random(seed)
    with pystreamlog.open(tmp_path / "log") as log:
        topic = log.create_topic("t", segment_bytes=8000)
        acknowledged, longest = {}, 0.0
        deadline = time.monotonic() + 5
        generation = 0
        while time.monotonic() < deadline:
            children = [start(APPEND_FOR_EVER, log.path, f"{generation}-{number}") for number in range(2)]
            for child in children:
                child.hear()
            time.sleep(dice.uniform(0, 0.1))
            for number, child in enumerate(children):
                child.kill()
                began = time.monotonic()
                value = b"survivor %d-%d" % (generation, number)
                acknowledged[topic.append(value).offset] = value
                longest = max(longest, time.monotonic() - began)
                for line in child.process.stdout.read().split("\n")[:-1]:
                    index, offset = map(int, line.split())
                    acknowledged[offset] = b"%d-%d %d" % (generation, number, index)
            generation += 1
        values = [record.value for record in topic.read()]
    assert generation > 2
    assert longest < 1
    assert len(set(values)) == len(values)
    # The first line of each child was heard at the start, and is not among these.
    assert all(values[offset] == value for offset, value in acknowledged.items())
    assert len(acknowledged) > 100


@pytest.mark.faults
@pytest.mark.parametrize("call", ["pwrite", "pwritev", "posix_fallocate", "fdatasync", "rename", "fsync"])
def test_writer_killed_at_each_system_call_leaves_a_log(tmp_path, start, call):
    """A process that dies just before or after its n-th call of a kind leaves nothing to repair."""
    with pystreamlog.open(tmp_path / "log") as log:
        topic = log.create_topic("t", segment_bytes=4096)
        topic.append(b"first")
        expected = 1
        for count in (1, 2, 3, 5, 8):
            for after in (False, True):
                child = start(
                    """
                    log = pystreamlog.open(sys.argv[1])
                    topic = log.topic("t")
                    call, left, after = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
                    real = getattr(os, call)
                    def dies(*args, **kwargs):
                        global left
                        left -= 1
                        if not left and not after:
                            os.kill(os.getpid(), signal.SIGKILL)
                        result = real(*args, **kwargs)
                        if not left:
                            os.kill(os.getpid(), signal.SIGKILL)
                        return result
                    setattr(os, call, dies)
                    for number in range(30):
                        say(topic.append(b"x" * (4000 if number % 3 else 10)).offset)
                    """,
                    log.path,
                    call,
                    count,
                    after,
                )
                offsets = [int(line) for line in child.process.stdout.read().split()]
                child.process.wait(30)
                assert offsets == list(range(expected, expected + len(offsets)))
                end = topic.end_offsets()[0]
                # One append may have been published and not acknowledged.
                assert expected + len(offsets) <= end <= expected + len(offsets) + 1
                assert topic.append(b"survivor").offset == end
                expected = end + 1
                assert [record.offset for record in topic.read()] == list(range(expected))


# --- power loss -------------------------------------------------------------------------------------------------------


def test_intact_log_is_the_same_after_a_reboot(tmp_path, caplog):
    """Nothing is lost, no warning is given, and a new epoch begins."""
    folder = filled(tmp_path / "log", 100, segment_bytes=4096)
    with caplog.at_level(logging.WARNING, "pystreamlog"), booted(tmp_path / "log", NEXT_BOOT) as log:
        assert numbers(log.topic("t")) == list(range(100))
        assert log.topic("t").append(b"100").offset == 100
    assert caplog.records == []
    assert os.path.exists(f"{folder}/{EPOCHS}")


def test_torn_tail_is_dropped_and_reported(tmp_path, caplog):
    """What the disk lost is gone, with a warning that says how much; appends go on."""
    folder = filled(tmp_path / "log")
    position, end = last_batch(folder)
    damage(folder, position + 200, bytes(end - position - 200))
    with booted(tmp_path / "log", NEXT_BOOT) as log:
        assert numbers(log.topic("t")) == list(range(9))
        assert log.topic("t").append(b"9").offset == 9
        assert numbers(log.topic("t")) == list(range(10))
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    message = record.getMessage()
    assert "ends at offset 9" in message
    assert "published 10" in message
    assert folder in message


def test_truncation_at_every_byte_after_a_reboot_leaves_a_prefix(tmp_path):
    """The same at each length of the last batch, through the whole log."""
    folder = filled(tmp_path / "log", 3)
    position, end = last_batch(folder)
    before = content(folder)
    for size in range(position, end, 9):
        for name, data in before.items():
            damage(folder, 0, data, name)
        os.truncate(f"{folder}/{SEGMENT}", size)
        boot = b"boot %011d" % size
        with booted(tmp_path / "log", boot) as log:
            assert numbers(log.topic("t")) == [0, 1]
            assert log.topic("t").append(b"2").offset == 2
            assert numbers(log.topic("t")) == [0, 1, 2]


def test_truncation_in_the_same_boot_is_corrupt(tmp_path):
    """Published data that is missing without a power loss is damage, and never skipped."""
    folder = filled(tmp_path / "log", 3)
    position, end = last_batch(folder)
    with open(f"{folder}/{SEGMENT}", "rb") as file:
        data = file.read(end)
    for size in range(position, end, 9):
        os.truncate(f"{folder}/{SEGMENT}", size)
        for options in ({}, {"map_reads": False}, {"read_only": True}, {"recover_always": True}):
            with booted(tmp_path / "log", **options) as log:
                with pytest.raises(CorruptLogError) as caught:
                    list(log.topic("t").read())
                assert caught.value.position == position
        damage(folder, 0, data)
    with booted(tmp_path / "log") as log:
        assert numbers(log.topic("t")) == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"map_reads": False}, {"read_only": True}, {"recover_always": True}])
@pytest.mark.parametrize("place", [40, 200, 210], ids=["header", "offsets", "data"])
def test_flipped_bit_in_the_same_boot_is_corrupt(tmp_path, options, place):
    """Damaged published data says where it is, with every way of opening."""
    folder = filled(tmp_path / "log", 3)
    position, _ = last_batch(folder)
    with open(f"{folder}/{SEGMENT}", "rb") as file:
        byte = file.read()[position + place]
    damage(folder, position + place, bytes([byte ^ 8]))
    with booted(tmp_path / "log", **options) as log:
        with pytest.raises(CorruptLogError) as caught:
            list(log.topic("t").read())
        assert (caught.value.path, caught.value.position) == (f"{folder}/{SEGMENT}", position)


def test_damage_below_the_durable_offset_is_corrupt(tmp_path):
    """What was acknowledged at "fsync" is never cut, whoever opens the log; nothing is changed."""
    folder = filled(tmp_path / "log", 5)
    with booted(tmp_path / "log") as log:
        assert log.topic("t").append(b"5", durability="fsync").offset == 5
    position, _ = last_batch(folder)
    damage(folder, position + 60, b"\xff")
    before = content(folder)
    for options in ({}, {"read_only": True}):
        with booted(tmp_path / "log", NEXT_BOOT, **options) as log:
            for call in (lambda: list(log.topic("t").read()), lambda: log.topic("t").append(b"x")):
                with pytest.raises((CorruptLogError, ReadOnlyError)) as caught:
                    call()
            assert isinstance(caught.value, ReadOnlyError if options else CorruptLogError)
        assert content(folder) == before


def test_unpublished_batch_of_a_killed_process(tmp_path, start):
    """A batch written and not published: unseen by survivors, whole or gone after a power loss."""
    folder = filled(tmp_path / "log")
    child = start(
        """
        from pystreamlog.storage.control import Control
        Control.publish = lambda self, slot: os.kill(os.getpid(), signal.SIGKILL)
        log = EmbeddedLog(sys.argv[1], boot=lambda: b"this-boot-of-it.")
        log.topic("t").append(b"10")
        """,
        tmp_path / "log",
    )
    assert child.process.wait(30) == -signal.SIGKILL
    shutil.copytree(tmp_path / "log", tmp_path / "before")
    with booted(tmp_path / "log") as log:
        assert numbers(log.topic("t")) == list(range(10))
        assert log.topic("t").append(b"10").offset == 10
        assert numbers(log.topic("t")) == list(range(11))
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "before").rename(tmp_path / "log")
    with booted(tmp_path / "log", NEXT_BOOT) as log:
        assert numbers(log.topic("t")) == list(range(11))
    assert os.path.exists(f"{folder}/{EPOCHS}")


def test_epochs_grow(tmp_path):
    """Each boot starts an epoch at the end it found."""
    for number in range(3):
        filled(tmp_path / "log", 4, boot=b"boot %011d" % number)
    with booted(tmp_path / "log", b"boot %011d" % 2) as log:
        epochs = read_epochs(writer_of(log).folder)
    assert [(epoch.epoch, epoch.start_offset) for epoch in epochs] == [(2, 4), (3, 8)]


def test_two_processes_recover_at_once(tmp_path, start):
    """One recovers, the others wait, and all go on from the same end, in the same epoch."""
    folder = filled(tmp_path / "log", 200, segment_bytes=20_000)
    last = max(name for name in os.listdir(folder) if name.endswith(".log"))
    with open(f"{folder}/{last}", "r+b") as file:
        data = file.read().rstrip(b"\0")
        file.seek(data.rindex(b"PSLB") + 200)
        file.write(b"\xa5\xa5")
    children = [
        start(
            """
            log = EmbeddedLog(sys.argv[1], boot=lambda: b"next-boot-of-it.")
            topic = log.topic("t")
            say("ready")
            hear()
            if int(sys.argv[2]) % 2:
                assert len(list(topic.read())) >= 199
            say(topic.append(sys.argv[2].encode()).offset)
            log.close()
            """,
            tmp_path / "log",
            number,
        )
        for number in range(4)
    ]
    for child in children:
        child.hear()
    for child in children:
        child.say()
    offsets = sorted(int(child.finish()[0]) for child in children)
    assert offsets == [199, 200, 201, 202]
    with booted(tmp_path / "log", NEXT_BOOT) as log:
        assert [record.offset for record in log.topic("t").read()] == list(range(203))
        assert [epoch.epoch for epoch in read_epochs(writer_of(log).folder)] == [2]


def test_read_only_opener_recovers_in_memory(tmp_path):
    """It sees the same records as a recovery would leave, and writes nothing, as often as it looks."""
    folder = filled(tmp_path / "log", 60, segment_bytes=4096)
    last = max(name for name in os.listdir(folder) if name.endswith(".log"))
    with open(f"{folder}/{last}", "r+b") as file:
        data = file.read().rstrip(b"\0")
        file.seek(data.rindex(b"PSLB") + 200)
        file.write(b"\xa5\xa5")
    before = content(folder)
    with booted(tmp_path / "log", NEXT_BOOT, read_only=True) as log:
        for _ in range(3):
            assert numbers(log.topic("t")) == list(range(59))
            assert log.topic("t").end_offsets() == {0: 59}
        with log.consumer("t", auto_offset_reset="earliest") as consumer:
            assert len(consumer.poll(5)) == 59
        assert content(folder) == before
        with booted(tmp_path / "log", NEXT_BOOT) as writing:
            assert writing.topic("t").append(b"59").offset == 59
        assert numbers(log.topic("t")) == list(range(60))


def test_recovery_on_demand(tmp_path, caplog):
    """`recover="always"` looks at each partition once per opening; an intact one is as before."""
    filled(tmp_path / "log", 50, segment_bytes=4096)
    for turn in range(3):
        with caplog.at_level(logging.INFO, "pystreamlog"):
            caplog.clear()
            with booted(tmp_path / "log", recover_always=True) as log:
                topic = log.topic("t")
                assert numbers(topic) == list(range(50 + turn))
                topic.append(b"%d" % (50 + turn))
                list(topic.read())
            assert len([record for record in caplog.records if "recovered" in record.getMessage()]) == 1


def test_recovery_on_demand_finds_damage(tmp_path):
    """It reads what is not known durable, so damage there is found at once, by appenders too."""
    folder = filled(tmp_path / "log", 5)
    position, _ = last_batch(folder)
    damage(folder, position + 60, b"\xff")
    with booted(tmp_path / "log", recover_always=True) as log:
        with pytest.raises(CorruptLogError):
            log.topic("t").append(b"x")
        with pytest.raises(CorruptLogError):
            list(log.topic("t").read())


def test_both_control_slots_damaged_are_recovered(tmp_path):
    """The end is found from the data; a read-only log finds it in memory."""
    folder = filled(tmp_path / "log", 20, segment_bytes=4096)
    damage(folder, layout.PUBLISHED_POSITION, b"\xa5" * 2 * layout.SLOT_STRIDE, "control")
    before = content(folder)
    with booted(tmp_path / "log", read_only=True) as log:
        assert numbers(log.topic("t")) == list(range(20))
    assert content(folder) == before
    with booted(tmp_path / "log") as log:
        assert numbers(log.topic("t")) == list(range(20))
        assert log.topic("t").append(b"20").offset == 20


def test_control_slots_damaged_under_an_open_writer(log):
    """A writer that finds no valid end recovers, and goes on behind all that was published."""
    topic = log.topic("t")
    for number in range(5):
        topic.append(b"%d" % number)
    damage(f"{log.path}/topics/t/0", layout.PUBLISHED_POSITION, b"\xa5" * 2 * layout.SLOT_STRIDE, "control")
    assert topic.append(b"5").offset == 5
    assert numbers(topic) == list(range(6))


@pytest.mark.slow
def test_log_copied_while_it_is_written_is_a_prefix(tmp_path, start):
    """`cp -r` at any moment gives a log that opens, holds a prefix, and takes appends."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("t", segment_bytes=50_000)
    child = start(
        """
        log = pystreamlog.open(sys.argv[1])
        topic = log.topic("t")
        say("ready")
        number = 0
        while True:
            for _ in range(10):
                topic.append(b"%d" % number + b"." * 500)
                number += 1
            topic.append(b"%d" % number, durability="fsync")
            number += 1
            time.sleep(0.002)  # else a slow copy has to copy more than the next turns can read
        """,
        tmp_path / "log",
    )
    child.hear()
    lengths = []
    for turn in range(12):
        time.sleep(0.05)
        copy = tmp_path / f"copy-{turn}"
        assert os.system(f"cp -r '{tmp_path / 'log'}' '{copy}'") in (0, 256)  # noqa: S605 - 256: a file was renamed
        with pystreamlog.open(copy) as log:
            topic = log.topic("t")
            found = numbers(topic)
            assert found == list(range(len(found)))
            assert topic.append(b"%d" % len(found)).offset == len(found)
            assert numbers(topic) == list(range(len(found) + 1))
        lengths.append(len(found))
    child.kill()
    assert lengths[-1] > 100


# --- handles ----------------------------------------------------------------------------------------------------------


def test_closed_writer_stays_closed(log):
    """Closing for good is for good, and twice is harmless."""
    writer = writer_of(log)
    writer.append(encode([b"x"], None, 1), 1)
    writer.close()
    writer.close()
    with pytest.raises(ClosedError):
        writer.append(encode([b"x"], None, 1), 1)


def test_writer_closed_at_need_opens_again(log):
    """Closing the files because descriptors are short is not noticed by who appends."""
    writer = writer_of(log)
    for number in range(5):
        assert writer.append(encode([b"%d" % number], None, 1), 1) == number
        assert writer.try_close()
    assert numbers(log.topic("t")) == list(range(5))


def test_busy_handles_are_not_closed(log):
    """A handle whose files are in use right now keeps them."""
    writer = writer_of(log)
    writer.append(encode([b"x"], None, 1), 1)
    with writer._mutex:
        assert not writer.try_close()
    assert writer.try_close()


def test_deleted_flag_stops_a_writer_with_open_files(log):
    """The flag in `control` is seen at the next append."""
    topic = log.topic("t")
    topic.append(b"x")
    control = writer_of(log).folder.open_control(write=True)
    end = control.published()
    control.publish(msgspec.structs.replace(end, sequence=end.sequence + 1, flags=layout.FLAG_DELETED))
    control.close()
    with pytest.raises(LookupError, match="deleted"):
        topic.append(b"y")
    assert [record.value for record in topic.read()] == [b"x"]


def test_reader_waits_for_writers_before_it_calls_damage(log, monkeypatch):
    """A reader that finds no valid slot takes and gives back the append lock, and looks again."""
    log.topic("t").append(b"x")
    waits = []
    real = PartitionReader._settle
    monkeypatch.setattr(PartitionReader, "_settle", lambda self: waits.append(1) or real(self))
    answers = [None, None]
    published = Control.published

    def torn(self):
        return answers.pop() if answers else published(self)

    monkeypatch.setattr(Control, "published", torn)
    reader = log._partitions.reader(log._topics.find("t"), 0)
    assert reader.offsets() == (0, 1)
    assert waits
    reader.close()


def test_failed_sync_poisons_the_writer(log, monkeypatch):
    """An fsync that failed is not tried again: the partition takes no more from this process."""
    topic = log.topic("t")
    topic.append(b"kept", durability="fsync")
    with monkeypatch.context() as patch:

        def fail(fd):
            raise OSError(5, "Input/output error")

        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError, match="fsync failed"):
            topic.append(b"lost?", durability="fsync")
    for durability in ("os", "fsync"):
        with pytest.raises(StorageError, match="fsync failed"):
            topic.append(b"x", durability=durability)
    assert len(list(topic.read())) == 2


def test_reading_takes_no_lock_and_writes_nothing(tmp_path):
    """A reader changes no byte and makes no file, not even stamps."""
    folder = filled(tmp_path / "log", 50, segment_bytes=4096)
    before = content(folder)
    with open(f"{folder}/control", "rb") as file:
        stamps = file.read()
    with booted(tmp_path / "log") as log:
        assert numbers(log.topic("t")) == list(range(50))
        log.topic("t").end_offsets()
    assert content(folder) == before
    with open(f"{folder}/control", "rb") as file:
        assert file.read() == stamps


def test_lock_time_out_is_how_long_to_wait(log):
    """Within one process the lock is waited for as long, and no longer."""
    writer = writer_of(log)
    writer.append(encode([b"x"], None, 1), 1)
    with booted(log.path) as other:
        rival = writer_of(other)
        rival.append(encode([b"x"], None, 1), 1)
        with rival._lock.held(1):
            began = time.monotonic()
            with pytest.raises(LockTimeoutError):
                writer.append(encode([b"x"], None, 1), 0.2)
            assert 0.15 < time.monotonic() - began < 3
        assert writer.append(encode([b"x"], None, 1), 0.2) == 2


def test_settle_time_is_bounded():
    """A reader never waits for ever for a writer that is stopped."""
    assert 0 < partition_module.SETTLE_TIMEOUT <= 60


def test_lock_that_the_kernel_refuses_is_a_storage_error(tmp_path):
    """A kernel without a lock left is no reason for a bare `OSError`; the next append gets its lock."""
    with booted(tmp_path / "log") as log:
        topic = log.create_topic("t")
        topic.append(b"0")
        lock = log._partitions.writer(log._topics.find("t"), 0)._lock
        take = lock.lock_kernel

        def refused():
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        lock.lock_kernel = refused
        with pytest.raises(StorageError):
            topic.append(b"1")
        lock.lock_kernel = take
        assert topic.append(b"1").offset == 1


def test_process_without_descriptors_does_not_poison(tmp_path, monkeypatch):
    """An fsync that was not even tried leaves nothing in doubt: it works once there are descriptors again."""
    with booted(tmp_path / "log") as log:
        topic = log.create_topic("t")
        topic.append(b"0")
        with monkeypatch.context() as patch:

            def refused(self, name):
                raise StorageError("no descriptors", errno=errno.EMFILE)

            patch.setattr(Files, "sync_directory", refused)
            with pytest.raises(StorageError, match="no descriptors"):
                topic.append(b"1", durability="fsync")
        topic.append(b"2", durability="fsync")
        assert topic.durable_offsets() == {0: 3}


def test_damaged_newest_slot_takes_nothing_back(tmp_path):
    """The records behind the older one were acknowledged: whoever opens the partition next looks for them."""
    for durability in ("os", "fsync"):
        path = tmp_path / durability
        with booted(path) as log:
            topic = log.create_topic("t")
            for number in range(5):
                topic.append(b"%d" % number, durability=durability)
        newest = layout.PUBLISHED_POSITION + layout.SLOT_STRIDE * (1 - 5 % 2)
        with open(path / "topics/t/0/control", "r+b") as file:
            file.seek(newest + 40)
            file.write(b"damage")
        with booted(path) as log:
            assert log.topic("t").append(b"5").offset == 5
            assert numbers(log.topic("t")) == list(range(6))
