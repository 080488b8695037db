"""Descriptors: many partitions under a small limit, the oldest handle closed first, and clear errors without any."""

import os
import resource
import threading
import time

import pytest

import pystreamlog
from pystreamlog.coordination import open_files as module
from pystreamlog.coordination import partition_files, partition_reader, wakeups
from pystreamlog.coordination.open_files import OpenFiles


class Handle:
    """A handle that notes when it is closed."""

    def __init__(self, name, closed, *, busy=False):
        self.name = name
        self.closed = closed
        self.busy = busy
        self.recent = False

    def try_close(self):
        """Close unless it is in use."""
        if self.busy:
            return False
        self.closed.append(self.name)
        return True


def opened(limit, count, **busy):
    """Handles opened one after the other, and the names of those that were closed for it."""
    files, closed = OpenFiles(limit), []
    handles = [Handle(number, closed) for number in range(count)]
    for handle in handles:
        files.opened(handle)
    return files, handles, closed


# --- which handle goes ------------------------------------------------------------------------------------------------


def test_nothing_is_closed_below_the_limit():
    """Up to the limit all stay open."""
    _, _, closed = opened(8, 8)
    assert closed == []


def test_the_oldest_is_closed_past_the_limit():
    """The handle that was opened first goes first, an eighth of the limit at a time."""
    _, _, closed = opened(8, 9)
    assert closed == [0, 1]
    _, _, closed = opened(8, 11)
    assert closed == [0, 1, 2, 3]


def test_a_handle_used_since_gets_a_second_chance():
    """What was used stays once; what was not, goes before it."""
    files, handles, closed = opened(8, 8)
    for number in (0, 1, 2):
        handles[number].recent = True
    files.opened(Handle(8, closed))
    assert closed == [3, 4]
    assert not any(handle.recent for handle in handles)
    files.opened(Handle(9, closed))
    files.opened(Handle(10, closed))
    assert closed == [3, 4, 5, 6]


def test_when_all_were_used_the_oldest_goes():
    """A second chance is not a third."""
    files, handles, closed = opened(8, 8)
    for handle in handles:
        handle.recent = True
    files.opened(Handle(8, closed))
    assert len(closed) == 2


def test_busy_handles_stay():
    """A handle in use is skipped, though that leaves more open than the limit."""
    files, handles, closed = opened(8, 8)
    for handle in handles:
        handle.busy = True
    late = Handle(8, closed, busy=True)
    files.opened(late)
    assert closed == []
    for handle in handles:
        handle.busy = False
    files.opened(Handle(9, closed, busy=True))
    assert len(closed) == 3


def test_closed_handles_count_no_more():
    """Who closes by itself makes room."""
    files, handles, closed = opened(8, 8)
    files.closed(handles[0])
    files.closed(handles[0])
    files.opened(Handle(8, closed))
    assert closed == []


def test_opening_again_is_opening_once():
    """A handle is in the list once."""
    files, handles, closed = opened(8, 8)
    for _ in range(20):
        files.opened(handles[3])
    assert closed == []


def test_shrinking_closes_half():
    """When the system has no descriptors left, half is closed; with nothing to close, that is said."""
    files, handles, closed = opened(8, 8)
    handles[0].recent = True
    assert files.shrink()
    assert len(closed) == 5
    assert 0 not in closed
    assert files.shrink()
    assert files.shrink()
    assert not files.shrink()


def test_limit_follows_the_process(monkeypatch):
    """Three fifths of the descriptors, three for each handle, from 8 to 4096."""
    for soft, expected in [(20, 8), (1024, 204), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)]:
        monkeypatch.setattr(resource, "getrlimit", lambda which, soft=soft: (soft, soft))
        assert module._limit() == expected


def test_threads_open_and_close_at_once():
    """The list stays whole under threads."""
    files, closed = OpenFiles(8), []

    def work(number):
        for index in range(300):
            handle = Handle((number, index), closed)
            files.opened(handle)
            if index % 3 == 0:
                files.closed(handle)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(closed) == len(set(closed))
    assert len(files._handles) <= 8


# --- with a limit of eight --------------------------------------------------------------------------------------------


@pytest.fixture
def eight(monkeypatch):
    """At most 8 handles are open."""
    limited = OpenFiles(8)
    monkeypatch.setattr(partition_files, "open_files", limited)
    monkeypatch.setattr(partition_reader, "open_files", limited)
    return limited


def descriptors():
    """How many descriptors the process has open."""
    return len(os.listdir("/dev/fd"))


def test_everything_works_with_eight_handles(tmp_path, eight):
    """Forty partitions written and read in turn, over rolls, by topic, producer and consumer."""
    with pystreamlog.open(tmp_path / "log") as log:
        topics = [log.create_topic(f"t-{number}", partitions=10, segment_bytes=4096) for number in range(4)]
        before = descriptors()
        for turn in range(5):
            for topic in topics:
                for number in range(10):
                    assert topic.append(b"%d" % turn + b"." * 1500, partition=number).offset == turn
        assert len(eight._handles) <= 8
        deadline = time.monotonic() + 30
        while descriptors() > before + 8 * 3 + 4:  # what is being synced in the background stays open meanwhile
            assert time.monotonic() < deadline, f"{descriptors()} descriptors, {before} before"
            time.sleep(0.01)
        with log.producer() as producer:
            deliveries = [
                producer.send(f"t-{topic}", b"5", partition=number) for topic in range(4) for number in range(10)
            ]
        assert all(delivery.result(10).offset == 5 for delivery in deliveries)
        for topic in topics:
            for number in range(10):
                values = [int(record.value[:1]) for record in topic.read(partition=number)]
                assert values == list(range(6))
        with log.consumer(*topics, auto_offset_reset="earliest") as consumer:
            seen = {}
            for _ in range(200):
                for record in consumer.poll(0.05, max_records=7):
                    seen.setdefault((record.topic, record.partition), []).append(record.offset)
                if sum(map(len, seen.values())) == 240:
                    break
            assert len(seen) == 40
            assert all(offsets == list(range(6)) for offsets in seen.values())
        assert len(eight._handles) <= 8
        assert topics[0].append(b"x", partition=0, durability="fsync").offset == 6


def test_threads_share_eight_handles(tmp_path, eight):
    """Threads that push each other's handles out lose nothing."""
    with pystreamlog.open(tmp_path / "log") as log:
        topic = log.create_topic("t", partitions=30)

        def work(number):
            for turn in range(20):
                for index in range(number, 30, 3):
                    topic.append(b"%d" % turn, partition=index)
                list(topic.read(partition=(number + turn) % 30))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert topic.end_offsets() == dict.fromkeys(range(30), 20)


def test_many_topics_under_a_small_limit(tmp_path, start):
    """Three hundred topics are written and read by a process that may open 64 files."""
    child = start(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        log = pystreamlog.open(sys.argv[1])
        topics = [log.create_topic(f"t-{number}") for number in range(300)]
        for turn in range(3):
            for topic in topics:
                assert topic.append(b"x").offset == turn
        for topic in topics:
            assert [record.offset for record in topic.read()] == [0, 1, 2]
        say(len(os.listdir("/dev/fd")) < 64)
        log.close()
        """,
        tmp_path / "log",
    )
    assert child.finish() == ["True"]


# --- out of descriptors, out of watches -------------------------------------------------------------------------------


@pytest.mark.faults
def test_out_of_descriptors_is_a_clear_error(tmp_path, start):
    """With none left, each call fails with a StorageError that says so, and works again once there are some."""
    child = start(
        """
        import errno, resource
        from pystreamlog.coordination.open_files import open_files
        log = pystreamlog.open(sys.argv[1])
        topic = log.create_topic("t", partitions=4)  # no roll, so no sync in the background
        for number in range(4):
            topic.append(b"%d" % number + b"." * 2000, partition=0)
        while open_files.shrink():  # what the log itself could give up
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        calls = {
            "read": lambda: list(topic.read(partition=0)),
            "append": lambda: topic.append(b"x", partition=1),
            "create": lambda: log.create_topic("u", exist_ok=True),
            "open": lambda: pystreamlog.open(sys.argv[1]),
            "list": log.topics,
        }
        for name, call in calls.items():
            try:
                call()
            except StorageError as error:
                say(name, error.errno == errno.EMFILE, "descriptors" in str(error))
        for fd in taken:
            os.close(fd)
        for name, call in calls.items():
            result = call()
            if name == "open":
                result.close()
        offsets = [record.offset for record in topic.read(partition=1)]
        say(len(calls["read"]()), offsets == list(range(len(offsets))), log.topics())
        log.close()
        """,
        tmp_path / "log",
    )
    lines = child.finish()
    assert lines[-1] == "4 True ['t', 'u']"
    assert lines[:-1] == [f"{name} True True" for name in ("read", "append", "create", "open", "list")]


@pytest.mark.faults
def test_shortage_closes_what_is_not_in_use(tmp_path, start):
    """When the rest of the process takes all descriptors, the log gives up its own before it fails."""
    child = start(
        """
        import resource
        log = pystreamlog.open(sys.argv[1])
        topic = log.create_topic("t", partitions=12)
        for number in range(10):
            topic.append(b"x", partition=number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        for fd in taken[:2]:
            os.close(fd)
        done = 0
        for number in (10, 11, 0, 1, 2):
            done += topic.append(b"y", partition=number).offset >= 0
        say(done)
        for fd in taken[2:]:
            os.close(fd)
        log.close()
        """,
        tmp_path / "log",
    )
    assert child.finish() == ["5"]


@pytest.mark.faults
def test_any_number_of_free_descriptors_ends_each_call(tmp_path, start):
    """With few left, a call works or fails clearly; it never goes round in circles, and nothing is half done."""
    child = start(
        """
        import errno, resource
        log = pystreamlog.open(sys.argv[1])
        topic = log.create_topic("t", partitions=40)
        for number in range(3):
            topic.append(b"x", partition=0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        for free in range(12):
            taken = []
            try:
                while True:
                    taken.append(os.dup(0))
            except OSError:
                pass
            for fd in taken[:free]:
                os.close(fd)
            done = []
            for call in (
                lambda: list(topic.read(partition=0)),
                lambda: topic.append(b"x", partition=free),
                lambda: topic.append(b"x", partition=free + 20, durability="fsync"),
            ):
                try:
                    call()
                    done.append("done")
                except StorageError as error:
                    assert error.errno == errno.EMFILE, error
                    done.append("no")
            for fd in taken[free:]:
                os.close(fd)
            ends = topic.end_offsets()
            assert ends[free] <= 1 + 3 * (free == 0) and ends[free + 20] <= 1, ends
            say(*done)
        say(not [name for name in os.listdir(log.path + "/topics/t") if "~" in name])
        log.close()
        """,
        tmp_path / "log",
    )
    lines = child.finish()
    assert lines[11] == "done done done"
    assert lines[12] == "True"


def test_out_of_inotify_instances_falls_back_with_a_warning(tmp_path, monkeypatch, caplog):
    """Without a watch, consumers poll, and say so once."""

    def none_left():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(wakeups, "open_inotify", none_left)
    monkeypatch.setattr(wakeups, "_current", None)
    with pystreamlog.open(tmp_path / "log") as log:
        topic = log.create_topic("t")
        with (
            log.consumer("t", auto_offset_reset="earliest") as consumer,
            log.consumer("t", auto_offset_reset="earliest") as another,
        ):
            assert len(consumer.poll(0.01)) == 0
            topic.append(b"x")
            assert consumer.poll(10).values == [b"x"]
            assert another.poll(10).values == [b"x"]
    warnings = [record.getMessage() for record in caplog.records if "inotify" in record.getMessage()]
    assert len(warnings) == 1
    assert "max_user_instances" in warnings[0]
    monkeypatch.undo()
