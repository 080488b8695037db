"""The lock excludes threads and processes, names its holder, and survives forks, kills and interrupts."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pystreamlog.clock import Clock
from pystreamlog.coordination import holders, locks
from pystreamlog.coordination.locks import FileLock, enter, register_inherited
from pystreamlog.errors import ClosedError, IllegalStateError, LockTimeoutError, StorageError

pytestmark = pytest.mark.timeout(60)

LINUX = sys.platform == "linux"
ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import os, sys
from pystreamlog.coordination import locks
path, byte, stamp, ofd = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stamp", sys.argv[4] == "ofd"
locks._OFD = ofd
fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
lock = locks.FileLock(fd, path, byte=byte)
lock.acquire(10, stamp=stamp)
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(params=["ofd", "flock"] if LINUX else ["flock"])
def kernel(request, monkeypatch):
    """Both kinds of kernel lock; a test that does not ask for this one takes the platform's own."""
    monkeypatch.setattr(locks, "_OFD", request.param == "ofd")
    return request.param


@pytest.fixture
def path(tmp_path):
    """A file to lock, with room for a stamp."""
    name = tmp_path / "control"
    name.write_bytes(bytes(512))
    return str(name)


@pytest.fixture
def opened(path):
    """Opens the file and makes a lock on it; closes what it opened."""
    with contextlib.ExitStack() as stack:

        def make(**options):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            lock = FileLock(fd, path, **options)
            stack.callback(lock.close)
            return lock

        yield make


@pytest.fixture
def start(tmp_path, path):
    """Starts a process, `worker.py`, that holds the lock until a line is written to it."""
    script = tmp_path / "worker.py"
    script.write_text(HOLDER)
    with contextlib.ExitStack() as stack:

        def run(byte=0, stamp="stamp", kernel="ofd" if LINUX else "flock"):
            process = subprocess.Popen(
                [sys.executable, str(script), path, str(byte), stamp, kernel, "a-secret"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout.readline() == "held\n"
            return process

        yield run


def let_go(process):
    """Have a holder release its lock."""
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "released\n"


def in_fork(action):
    """Run in a forked child; 0 when it returned True, 1 when it returned something else, 2 when it raised."""
    pid = os.fork()
    if not pid:
        code = 2
        try:
            code = 0 if action() is True else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def raises_closed(call):
    """Whether the call raises `ClosedError`."""
    try:
        call()
    except ClosedError:
        return True
    return False


@contextlib.contextmanager
def interrupted_after(seconds):
    """Have `KeyboardInterrupt` raised in the main thread."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


# --- holding ----------------------------------------------------------------------------------------------------------


def test_lock_is_taken_and_given_back(opened, kernel):
    """What was released can be acquired again."""
    lock = opened()
    for _ in range(3):
        lock.acquire(0)
        assert lock.locked
        lock.release()
        assert not lock.locked


def test_releasing_what_is_not_held_is_an_error(opened):
    """A release too many would free what another thread holds."""
    with pytest.raises(IllegalStateError):
        opened().release()


def test_two_opens_of_one_file_exclude_each_other(opened, kernel):
    """Also within one process, and through different descriptors."""
    first, second = opened(), opened()
    first.acquire(0)
    assert not first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()


def test_bytes_of_a_file_are_independent_locks(opened, start, kernel):
    """Each byte is a lock of its own, within a process and between processes, and releasing one leaves the other."""
    process = start(byte=7, kernel=kernel)
    zero, seven, eight = opened(), opened(byte=7), opened(byte=8)
    assert zero.try_acquire()
    assert eight.try_acquire()
    assert not seven.try_acquire()
    eight.release()
    assert not opened().try_acquire()
    let_go(process)
    assert seven.try_acquire()


def test_lock_excludes_another_process(opened, start, kernel):
    """And is free once that one releases it."""
    process = start(kernel=kernel)
    lock = opened()
    assert not lock.try_acquire()
    let_go(process)
    assert lock.try_acquire()


def test_held_releases_after_an_exception(opened):
    """The context manager gives the lock back whatever happens."""
    lock = opened()
    with pytest.raises(ZeroDivisionError), lock.held(0):
        1 / (0 if lock.locked else 1)
    assert not lock.locked
    assert opened().try_acquire()


def test_waiter_gets_the_lock_when_a_thread_releases_it(opened):
    """Waiting for ever ends with the release."""
    first, second = opened(), opened()
    first.acquire(0)
    waiting = threading.Thread(target=second.acquire, args=(None,))
    waiting.start()
    first.release()
    waiting.join(10)
    assert second.locked


def test_threads_and_processes_lose_no_update(path, opened, tmp_path):
    """A counter that is read and written under the lock counts every turn."""
    turns, workers = 300, 4
    count = os.open(path, os.O_RDWR)

    def work():
        lock = opened()
        for _ in range(turns):
            with lock.held(30):
                number = int.from_bytes(os.pread(count, 8, 256), "little") + 1
                os.pwrite(count, number.to_bytes(8, "little"), 256)

    children = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert int.from_bytes(os.pread(count, 8, 256), "little") == (workers + 2) * turns
    os.close(count)


def test_dropped_lock_frees_the_other_threads(path, opened):
    """A lock that was lost without release, and its descriptor closed, blocks nobody for ever."""
    fd = os.open(path, os.O_RDWR)
    lock = FileLock(fd, path)
    lock.acquire(0)
    other = opened()
    del lock
    os.close(fd)
    assert other.try_acquire()


def test_lock_on_a_read_only_descriptor_is_a_storage_error(path):
    """What the kernel refuses for another reason than a holder is no time-out."""
    if not locks._OFD:
        pytest.skip("flock takes read-only descriptors")
    fd = os.open(path, os.O_RDONLY)
    lock = FileLock(fd, path)
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            lock.acquire(1)
        assert caught.value.path == path
        assert caught.value.errno
    os.close(fd)


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, -1, 0.02])
def test_time_out_raises(opened, start, timeout):
    """The error is a `TimeoutError`, and nothing stays locked behind it."""
    process = start()
    lock = opened()
    with pytest.raises(LockTimeoutError) as caught:
        lock.acquire(timeout)
    assert isinstance(caught.value, TimeoutError)
    assert not lock.locked
    let_go(process)
    assert lock.try_acquire()


def test_time_out_behind_a_thread_names_this_process(opened, path):
    """Whoever deadlocks with himself is told so."""
    first = opened()
    first.acquire(0, stamp=True)
    with pytest.raises(LockTimeoutError, match=r"this process itself.*end that process") as caught:
        opened().acquire(0.01)
    assert caught.value.path == path
    assert f"pid {os.getpid()} " in caught.value.holder


def test_waiting_ends_under_a_clock_of_a_test(opened, start):
    """A clock that moves only when slept on makes a long time-out short."""

    class Still(Clock):
        now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    start()
    clock = Still()
    with pytest.raises(LockTimeoutError):
        opened(clock=clock).acquire(1.0)
    assert clock.now == pytest.approx(1.0)


@pytest.mark.faults
def test_killed_holder_frees_the_lock_at_once(opened, start, kernel):
    """The kernel frees it within milliseconds of kill -9; the bound leaves room for a busy machine."""
    process = start(kernel=kernel)
    lock = opened()
    killed_at = []

    def kill():
        killed_at.append(time.monotonic())
        process.kill()

    timer = threading.Timer(0.05, kill)
    timer.start()
    lock.acquire(30)
    assert time.monotonic() - killed_at[0] < 2
    timer.join()


def test_interrupt_while_another_process_holds_leaves_nothing_locked(opened, start):
    """`KeyboardInterrupt` ends the wait for the kernel's lock."""
    process = start()
    lock = opened()
    with interrupted_after(0.05):
        lock.acquire(None)
    assert not lock.locked
    let_go(process)
    assert opened().try_acquire()


def test_interrupt_while_another_thread_holds_leaves_nothing_locked(opened):
    """`KeyboardInterrupt` ends the wait for the in-process lock."""
    first, second = opened(), opened()
    first.acquire(0)
    with interrupted_after(0.05):
        second.acquire(None)
    assert not second.locked
    first.release()
    assert second.try_acquire()


@pytest.mark.parametrize("wait", [False, True])
def test_interrupt_just_after_the_kernel_granted_leaves_nothing_locked(opened, start, monkeypatch, wait):
    """Neither in the first try nor in a later one."""
    lock, other = opened(), opened()
    tried, take = [], lock.lock_kernel

    def take_and_interrupt():
        tried.append(1)
        if wait and len(tried) < 3:
            raise BlockingIOError(11, "taken")
        take()
        raise KeyboardInterrupt

    monkeypatch.setattr(lock, "lock_kernel", take_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        lock.acquire(1)
    assert not lock.locked
    assert other.try_acquire()


def test_failed_stamp_leaves_nothing_locked(opened, monkeypatch):
    """Who asked for a stamp and got an error does not hold the lock."""

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    lock = opened()
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StorageError):
        lock.acquire(0, stamp=True)
    assert not lock.locked


def test_waiter_does_not_starve_behind_a_tight_loop(opened, start, path):
    """Four processes that take and give the lock without pause all get it, again and again."""
    done_read, done_write = os.pipe()
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                lock = opened()
                end, longest = time.monotonic() + 0.5, 0.0
                while (asked := time.monotonic()) < end:
                    lock.acquire(20)
                    longest = max(longest, time.monotonic() - asked)
                    os.pwrite(lock._fd, b"x" * 128, 256)
                    lock.release()
                os.write(done_write, f"{longest}\n".encode())
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    longest = max(map(float, os.read(done_read, 4096).split()))
    os.close(done_read)
    os.close(done_write)
    # 20 to 40 ms measured; what is excluded is starving for as long as the others go on.
    assert longest < 0.4


# --- naming the holder ------------------------------------------------------------------------------------------------


def test_holder_is_named_by_its_stamp(opened, start):
    """By pid, program and host, and never by its arguments."""
    process = start()
    with pytest.raises(LockTimeoutError) as caught:
        opened().acquire(0)
    message, holder = str(caught.value), caught.value.holder
    assert f"pid {process.pid} (worker.py) on host {os.uname().nodename}" in holder
    assert holder in message
    assert "a-secret" not in message
    if LINUX:
        assert ", started 20" in holder


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_stopped_holder_is_named_as_stopped(opened, start):
    """With what lets it go on."""
    process = start()
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    try:
        with pytest.raises(LockTimeoutError, match=f"stopped.*kill -CONT {process.pid}"):
            opened().acquire(0.01)
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_holder_without_stamp_is_found_in_proc(opened, start, kernel):
    """The kernel knows whose descriptor holds the lock."""
    process = start(stamp="none", kernel=kernel)
    assert f"pid {process.pid} (" in opened().holder()


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_holder_of_another_byte_is_not_named(opened, start):
    """Only the descriptor that locks this very byte counts."""
    process = start(byte=3, stamp="none")
    assert f"pid {process.pid} (" not in opened(byte=4).holder()


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_stale_stamp_does_not_hide_the_true_holder(opened, start, path):
    """A stamp of a process that is gone gives way to who really holds the lock."""
    gone = start()
    let_go(gone)
    gone.kill()
    gone.wait()
    process = start(stamp="none")
    holder = opened().holder()
    assert f"pid {process.pid} (" in holder
    assert f"pid {gone.pid} " not in holder


def test_dead_holder_is_said_to_be_gone(opened, start):
    """Where nobody is seen to hold the lock, the stamp speaks, and says that its process ended."""
    gone = start()
    gone.kill()
    gone.wait()
    holder = opened().holder()
    assert f"pid {gone.pid} (worker.py)" in holder
    assert "no longer exists" in holder


def written_stamp(path, **changes):
    """Write a valid stamp that differs from this process's."""
    stamp = holders._parse(holders.own_stamp())._replace(**changes)
    host, program = stamp.host.encode("latin-1"), stamp.program.encode("latin-1")
    body = holders._STAMP.pack(b"PSL1", stamp.pid, stamp.namespace, stamp.ticks, stamp.started, host, program)
    Path(path).write_bytes(body + holders._checksum(body))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "elsewhere"}, "on host elsewhere.*another host"),
        ({"namespace": 17}, "another pid namespace"),
        ({"pid": 4_000_000_000}, "no longer exists"),
        ({"started": -(1 << 62), "host": "elsewhere"}, "elsewhere, which"),
        ({"started": (1 << 62), "host": "elsewhere"}, "elsewhere, which"),
    ],
)
def test_stamp_from_afar_is_described(opened, path, changes, words):
    """Other hosts and containers are named as such, and impossible times are left out."""
    written_stamp(path, **changes)
    holder = opened().holder()
    assert re.search(words, holder), holder


def test_stamp_cannot_write_to_a_terminal(opened, path):
    """Control characters of a hostile file are escaped."""
    written_stamp(path, host="\x1b[2J", program="a\nb\xe9")
    holder = opened().holder()
    assert holder.isprintable()
    assert holder.isascii()


@pytest.mark.parametrize("content", [b"", bytes(256), b"\xff" * 256, b"PSL1" + bytes(252), b"PSL1"])
def test_damaged_stamp_is_ignored(opened, path, content):
    """No stamp, zero bytes, or anything that does not verify names nobody."""
    Path(path).write_bytes(content)
    assert "left no name" in opened().holder()


def test_stamp_stands_where_it_was_asked_for(opened, path):
    """At its position, in one piece of fixed size; nowhere when there is no position."""
    opened(stamp_position=200).acquire(0, stamp=True)
    content = Path(path).read_bytes()
    assert content[200 : 200 + holders.STAMP_SIZE] == holders.own_stamp()
    assert not any(content[:200])
    Path(path).write_bytes(bytes(512))
    opened(byte=1, stamp_position=None).acquire(0, stamp=True)
    assert not any(Path(path).read_bytes())


# --- forking ----------------------------------------------------------------------------------------------------------


def test_forked_child_cannot_use_an_inherited_lock(opened, kernel):
    """Neither release what the parent holds, nor take what it does not; and the parent goes on holding it."""
    held, free = opened(), opened(byte=1)
    held.acquire(0)
    assert in_fork(lambda: raises_closed(held.release)) == 0
    assert in_fork(lambda: raises_closed(held.try_acquire)) == 0
    assert in_fork(lambda: raises_closed(lambda: free.acquire(0))) == 0
    assert in_fork(lambda: not held.locked) == 0
    assert held.locked
    assert in_fork(lambda: not opened().try_acquire()) == 0
    held.release()
    assert in_fork(lambda: opened().try_acquire()) == 0


def test_forked_child_closing_its_copy_leaves_the_lock(opened, kernel):
    """Closing a shared descriptor is not unlocking, and neither is `FileLock.close` there."""
    lock = opened()
    lock.acquire(0)

    def close():
        lock.close()
        os.close(lock._fd)
        return True

    assert in_fork(close) == 0
    assert in_fork(lambda: not opened().try_acquire()) == 0


def test_forked_child_is_not_blocked_by_a_thread_it_does_not_have(opened):
    """The in-process lock that another thread held at the fork is new in the child."""
    lock = opened()
    taken, finish = threading.Event(), threading.Event()

    def hold():
        with lock.held(0):
            taken.set()
            finish.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(10)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            mine = opened()
            if not mine.try_acquire():
                os.write(write_end, b"x")
                mine.acquire(10)
                code = 0
        finally:
            os._exit(code)
    assert os.read(read_end, 1) == b"x"
    finish.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(read_end)
    os.close(write_end)


ORPHAN = """
import os, sys, time
from pystreamlog.coordination import locks
class Owner:
    def __init__(self):
        self.fd = os.open(sys.argv[1], os.O_RDWR | os.O_CLOEXEC)
    def close_inherited(self):
        os.close(self.fd)
owner = Owner()
lock = locks.FileLock(owner.fd, sys.argv[1])
if sys.argv[2] == "closes":
    locks.register_inherited(owner)
lock.acquire(10)
pid = os.fork()
if pid:
    print(pid, flush=True)
time.sleep(60)
"""


@pytest.mark.faults
@pytest.mark.parametrize("manners", ["closes", "keeps"])
def test_lock_of_a_killed_parent_outlives_it_only_in_a_child_that_keeps_the_descriptor(opened, path, manners):
    """This is why owners of descriptors register with `register_inherited`."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, path, manners],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with parent:
        child = int(parent.stdout.readline())
        try:
            parent.kill()
            parent.wait()
            lock = opened()
            if manners == "keeps":
                with pytest.raises(LockTimeoutError) as caught:
                    lock.acquire(0.05)
                if LINUX:
                    assert f"pid {child} (" in caught.value.holder
                os.kill(child, signal.SIGKILL)
            lock.acquire(10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


class Owner:
    """Says through a pipe that it was told of the fork."""

    def __init__(self, fd, error=None):
        self.fd = fd
        self.error = error

    def close_inherited(self):
        """As the protocol says."""
        os.write(self.fd, b"x")
        if self.error is not None:
            raise self.error


def test_owner_that_fails_does_not_keep_the_others_from_closing(monkeypatch):
    """All are told, once, in the child only; those that are gone are not."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    read_end, write_end = os.pipe()
    owners = [Owner(write_end), Owner(write_end, ValueError("no")), Owner(write_end)]
    for owner in owners:
        register_inherited(owner)
    register_inherited(Owner(write_end))
    assert in_fork(lambda: in_fork(lambda: True) == 0) == 0
    os.close(write_end)
    assert os.read(read_end, 100) == b"xxx"
    os.close(read_end)


def test_a_lock_that_gets_free_between_two_tries_is_not_waited_for():
    """The caller tried once by itself: what counts is whether any try took it."""
    lock = threading.Lock()
    entered = [False]
    started = time.monotonic()
    assert enter(lock, 30, entered)
    assert entered == [False, True]
    assert time.monotonic() - started < 15
