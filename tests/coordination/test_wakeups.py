"""A waiter is woken by every change, whoever else waits, and by nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pystreamlog.coordination import inotify
from pystreamlog.coordination import wakeups as module
from pystreamlog.coordination.wakeups import Wakeups, wakeups
from pystreamlog.errors import ClosedError

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere waiting always polls"),
]

LONG = 20.0
"""Seconds that only a failing test waits."""


def make_wakeups(stack):
    """A `Wakeups` like a process's own, whose descriptors are closed at the end."""
    shared = Wakeups()

    def close():
        if not shared.inherited:
            shared.close_inherited()

    stack.callback(close)
    return shared


@pytest.fixture
def shared():
    """What the subscriptions of a process share."""
    with contextlib.ExitStack() as stack:
        yield make_wakeups(stack)


@pytest.fixture
def subscribe(shared):
    """Subscribes and watches files under their names, and has already looked at everything."""

    def make(*paths):
        subscription = shared.subscribe()
        for path in paths:
            assert subscription.watch(path.name, str(path))
        assert subscription.changed() is None
        return subscription

    return make


@pytest.fixture
def files(tmp_path):
    """Three files."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(bytes(64))
    return paths


def write(path):
    """Overwrite some bytes in place, as a publication does."""
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"new", 0)
    os.close(fd)


def in_thread(call, *arguments):
    """Run in a thread; `.result()` waits for what it returned or raised."""
    outcome = []

    def run():
        try:
            outcome.append((call(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - handed to who asks for the result
            outcome.append((None, error))

    thread = threading.Thread(target=run)

    def result():
        thread.join(LONG)
        assert outcome, "the thread still waits"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    thread.result = result
    thread.start()
    return thread


def until_waiting(*subscriptions):
    """Return once each has somebody waiting."""
    end = time.monotonic() + LONG
    while any(subscription._inbox.waiter is None for subscription in subscriptions):
        assert time.monotonic() < end
        time.sleep(0.001)


def in_fork(action):
    """Run in a forked child; whether it returned True."""
    pid = os.fork()
    if not pid:
        code = 2
        try:
            code = 0 if action() is True else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def raises_closed(call):
    """Whether the call raises `ClosedError`."""
    try:
        call()
    except ClosedError:
        return True
    return False


# --- watching ---------------------------------------------------------------------------------------------------------


def test_fresh_subscription_looks_at_everything_once(shared, files):
    """At first nothing is known; then nothing has changed."""
    subscription = shared.subscribe()
    subscription.watch("a", str(files[0]))
    assert subscription.wait(LONG)
    assert subscription.changed() is None
    assert subscription.changed() == set()


def test_changed_names_the_written_files(subscribe, files):
    """Each key once, however often its file was written, and gone once asked for."""
    subscription = subscribe(*files)
    for _ in range(3):
        write(files[0])
        write(files[2])
    assert subscription.changed() == {"a", "c"}
    assert subscription.changed() == set()


def test_watching_twice_is_watching_once(subscribe, files):
    """A key that is watched already stays as it is."""
    subscription = subscribe(files[0])
    assert subscription.watch("a", str(files[0]))
    subscription.unwatch("a")
    write(files[0])
    assert subscription.changed() == set()


def test_missing_file_is_not_found(subscribe, tmp_path):
    """And leaves the subscription as it was."""
    subscription = subscribe()
    with pytest.raises(FileNotFoundError):
        subscription.watch("a", str(tmp_path / "missing"))
    assert not subscription.polling


def test_directory_tells_of_names_that_come_and_go(subscribe, tmp_path):
    """Creating, renaming and deleting count; writing into a file of it does not."""
    folder = tmp_path / "topics"
    folder.mkdir()
    subscription = subscribe(folder)
    (folder / "one").mkdir()
    assert subscription.changed() == {"topics"}
    (folder / "two").write_bytes(b"x")
    assert subscription.changed() == {"topics"}
    write(folder / "two")
    assert subscription.changed() == set()
    (folder / "two").rename(tmp_path / "elsewhere")
    assert subscription.changed() == {"topics"}
    (tmp_path / "elsewhere").rename(folder / "back")
    assert subscription.changed() == {"topics"}
    (folder / "back").unlink()
    assert subscription.changed() == {"topics"}


def test_two_subscriptions_share_a_file(subscribe, files):
    """The kernel has one watch per file: it ends with the last who wants it."""
    first, second = subscribe(files[0]), subscribe(files[0])
    write(files[0])
    assert first.changed() == {"a"}
    assert second.changed() == {"a"}
    first.unwatch("a")
    write(files[0])
    assert first.changed() == set()
    assert second.changed() == {"a"}
    second.close()
    assert first._queue._watchers == {}
    assert first.watch("a", str(files[0]))
    write(files[0])
    assert first.changed() == {"a"}


def test_one_file_under_two_keys_is_told_under_both(subscribe, files):
    """Also when the second key is another name of the file."""
    subscription = subscribe(files[0])
    link = files[0].with_name("link")
    os.link(files[0], link)
    subscription.watch("link", str(link))
    write(files[0])
    assert subscription.changed() == {"a", "link"}
    subscription.unwatch("a")
    write(files[0])
    assert subscription.changed() == {"link"}


def test_deleted_file_counts_as_changed_and_can_be_watched_anew(subscribe, files):
    """A watch follows the file, so its successor of the same name needs another."""
    first, second = subscribe(files[0]), subscribe(files[0], files[1])
    files[0].unlink()
    assert first.wait(LONG)
    assert first.changed() == {"a"}
    assert second.changed() == {"a"}
    files[0].write_bytes(b"new")
    assert first.watch("a", str(files[0]))
    assert first.changed() == set()
    write(files[0])
    write(files[1])
    assert first.changed() == {"a"}
    assert second.changed() == {"b"}
    second.unwatch("a")


def test_last_event_of_a_removed_watch_does_not_end_its_successor(subscribe, files):
    """Should the kernel give its number to a new watch before that event was read."""
    subscription = subscribe(files[0])
    queue = subscription._queue
    number = subscription._inbox.watches["a"]
    subscription.unwatch("a")
    queue._inotify = queue._inotify._replace(add=lambda path, events: number)
    subscription.watch("b", str(files[1]))
    subscription.changed()
    assert queue._watchers == {number: [(subscription._inbox, "b")]}
    assert queue._ending == {}


def test_many_files(subscribe, tmp_path):
    """One subscription watches thousands, through one descriptor."""
    paths = [tmp_path / str(number) for number in range(3000)]
    for path in paths:
        path.touch()
    before = len(os.listdir("/proc/self/fd"))
    subscription = subscribe(*paths)
    for path in paths:
        write(path)
    assert subscription.changed() == {path.name for path in paths}
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    subscription.close()
    assert subscription._queue._watchers == {}


# --- waiting in threads -----------------------------------------------------------------------------------------------


def test_write_of_another_process_wakes(subscribe, files):
    """Nobody registers with the writer: a `pwrite` is enough."""
    subscription = subscribe(*files)
    waiting = in_thread(subscription.wait, LONG)
    until_waiting(subscription)
    script = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b'x', 0)"
    subprocess.run([sys.executable, "-c", script, str(files[1])], check=True, timeout=LONG)
    assert waiting.result() is True
    assert subscription.changed() == {"b"}


def test_change_before_the_wait_is_not_lost(subscribe, files):
    """Watch, look, wait: what changes in between ends the wait at once."""
    subscription = subscribe(*files)
    for _ in range(50):
        write(files[0])
        assert subscription.wait(LONG)
        assert subscription.changed() == {"a"}


def test_time_out_ends_the_wait(subscribe, files):
    """With False, also when others' files change meanwhile; 0 does not wait."""
    subscription, other = subscribe(files[0]), subscribe(files[1])
    assert subscription.wait(0) is False
    write(files[1])
    began = time.monotonic()
    assert subscription.wait(0.05) is False
    assert time.monotonic() - began >= 0.049
    assert other.changed() == {"b"}


def test_idle_wait_costs_no_processor_time(subscribe, files):
    """It sleeps in the kernel."""
    subscription = subscribe(*files)
    before = time.process_time()
    assert subscription.wait(0.5) is False
    assert time.process_time() - before < 0.05


@pytest.mark.parametrize("pipe", [False, True])
def test_every_thread_is_woken_by_its_file(subscribe, files, pipe, monkeypatch):
    """Whoever reads the kernel's queue tells the others, through an eventfd or a pipe."""
    if pipe:
        monkeypatch.delattr(os, "eventfd")
    for _ in range(30):
        subscriptions = [subscribe(files[number % 3]) for number in range(6)]
        waiting = [in_thread(subscription.wait, LONG) for subscription in subscriptions]
        until_waiting(*subscriptions)
        for path in files:
            write(path)
        assert all(thread.result() for thread in waiting)
        for number, subscription in enumerate(subscriptions):
            assert subscription.changed() == {"abc"[number % 3]}
            subscription.close()


def test_threads_miss_no_write(subscribe, files):
    """Waiters that race each other for the kernel's queue see the last write of their file."""
    turns = 400
    fds = [os.open(path, os.O_RDWR) for path in files]

    def follow(number):
        subscription = subscribe(files[number])
        while int.from_bytes(os.pread(fds[number], 8, 8), "little") < turns:
            assert subscription.wait(LONG)
            subscription.changed()
        return True

    followers = [in_thread(follow, number % 3) for number in range(6)]
    for turn in range(1, turns + 1):
        for fd in fds:
            os.pwrite(fd, turn.to_bytes(8, "little"), 8)
    assert all(thread.result() for thread in followers)
    for fd in fds:
        os.close(fd)


def test_wakeup_ends_one_wait(subscribe, files):
    """The current one, or the next; and only that."""
    subscription = subscribe(*files)
    waiting = in_thread(subscription.wait, LONG)
    until_waiting(subscription)
    subscription.wakeup()
    assert waiting.result() is False
    assert subscription.wait(0.01) is False
    subscription.wakeup()
    subscription.wakeup()
    began = time.monotonic()
    assert subscription.wait(LONG) is False
    assert time.monotonic() - began < LONG / 2
    waiting = in_thread(subscription.wait, LONG)
    until_waiting(subscription)
    write(files[0])
    assert waiting.result() is True


@contextlib.contextmanager
def handling(handler):
    """Handle a signal that is sent once somebody waits for the subscription that is yielded to."""
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def send_signal_once_waiting(subscription):
    """From a thread, to the main thread."""

    def send():
        until_waiting(subscription)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    return in_thread(send)


def test_signal_handler_may_wake(subscribe, files):
    """`wakeup` takes no lock."""
    subscription = subscribe(*files)
    with handling(lambda number, frame: subscription.wakeup()):
        sending = send_signal_once_waiting(subscription)
        assert subscription.wait(LONG) is False
        sending.result()


def test_interrupt_ends_the_wait(subscribe, files):
    """`KeyboardInterrupt` passes, and the subscription works on."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    subscription = subscribe(*files)
    with handling(interrupt):
        sending = send_signal_once_waiting(subscription)
        with pytest.raises(KeyboardInterrupt):
            subscription.wait(LONG)
        sending.result()
    write(files[0])
    assert subscription.wait(LONG) is True
    assert subscription.changed() == {"a"}


def test_interrupt_between_reading_and_telling_loses_nothing(subscribe, files, monkeypatch):
    """Everybody looks at everything, and who waits is woken."""
    reader, waiter = subscribe(files[0]), subscribe(files[1])
    queue = reader._queue
    waiting = in_thread(waiter.wait, LONG)
    until_waiting(waiter)
    with queue.lock:
        os.pwrite(fd := os.open(files[1], os.O_WRONLY), b"x", 0)
        os.close(fd)

        def interrupt(told):
            os.read(queue.fd, 4096)
            raise KeyboardInterrupt

        monkeypatch.setattr(queue, "_read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            queue.drain()
        monkeypatch.undo()
    assert waiting.result() is True
    assert waiter.changed() is None
    assert reader.changed() is None


def test_overflow_of_the_kernels_queue_makes_all_look_at_everything(subscribe, files):
    """More events than the queue holds, and the waiter does not know which were lost."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip("this machine's queue is too long to fill")
    first, second = subscribe(*files[:2]), subscribe(files[2])
    fds = [os.open(path, os.O_WRONLY) for path in files[:2]]
    # Two files in turn, as the kernel merges equal neighbours.
    for _ in range(limit // 2 + 10):
        os.pwrite(fds[0], b"x", 0)
        os.pwrite(fds[1], b"x", 0)
    for fd in fds:
        os.close(fd)
    assert second.wait(LONG) is True
    assert second.changed() is None
    assert first.changed() is None
    write(files[2])
    assert first.changed() == set()
    assert second.changed() == {"c"}


# --- waiting in event loops -------------------------------------------------------------------------------------------


def test_write_wakes_a_coroutine(subscribe, files):
    """Again and again, without a thread."""

    async def follow():
        subscription = subscribe(*files)
        for path in files * 3:
            waiting = asyncio.ensure_future(subscription.wait_async(LONG))
            await asyncio.sleep(0)
            write(path)
            assert await waiting is True
            assert subscription.changed() == {path.name}

    threads = threading.active_count()
    asyncio.run(follow())
    assert threading.active_count() == threads


def test_change_before_the_await_is_not_lost(subscribe, files):
    """Whether it was read from the kernel already or not."""

    async def follow():
        first, second = subscribe(files[0]), subscribe(files[1])
        write(files[0])
        assert await first.wait_async(LONG) is True
        write(files[1])
        assert first.changed() == {"a"}
        assert await second.wait_async(LONG) is True
        assert second.changed() == {"b"}

    asyncio.run(follow())


def test_time_out_ends_the_await(subscribe, files):
    """With False; 0 does not wait."""

    async def follow():
        subscription = subscribe(*files)
        assert await subscription.wait_async(0) is False
        began = time.monotonic()
        assert await subscription.wait_async(0.05) is False
        assert time.monotonic() - began >= 0.049

    asyncio.run(follow())


def test_cancelled_await_loses_nothing(subscribe, files):
    """A change that came together with the cancellation is still told."""

    async def follow():
        subscription = subscribe(*files)
        waiting = asyncio.ensure_future(subscription.wait_async(None))
        await asyncio.sleep(0)
        write(files[0])
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert subscription._inbox.waiter is None
        assert await subscription.wait_async(LONG) is True
        assert subscription.changed() == {"a"}

    asyncio.run(follow())


def test_wakeup_ends_one_await(subscribe, files):
    """From another thread, from a signal handler, or beforehand."""

    async def follow():
        subscription = subscribe(*files)
        waking = in_thread(lambda: (until_waiting(subscription), subscription.wakeup()))
        assert await subscription.wait_async(LONG) is False
        waking.result()
        subscription.wakeup()
        assert await subscription.wait_async(LONG) is False
        assert await subscription.wait_async(0.01) is False
        with handling(lambda number, frame: subscription.wakeup()):
            sending = send_signal_once_waiting(subscription)
            assert await subscription.wait_async(LONG) is False
            sending.result()

    asyncio.run(follow())


def test_hundreds_of_consumers_share_a_loop(subscribe, tmp_path):
    """Each is woken by its own file, through one descriptor for all."""
    paths = [tmp_path / str(number) for number in range(300)]
    for path in paths:
        path.touch()

    async def follow():
        subscriptions = [subscribe(path) for path in paths]
        waiting = [asyncio.ensure_future(subscription.wait_async(LONG)) for subscription in subscriptions]
        await asyncio.sleep(0)
        descriptors = len(os.listdir("/proc/self/fd"))
        for path in paths[1:]:
            write(path)
        assert all(await asyncio.gather(*waiting[1:]))
        assert not waiting[0].done()
        write(paths[0])
        assert await waiting[0] is True
        assert [subscription.changed() for subscription in subscriptions] == [{path.name} for path in paths]
        return descriptors

    assert asyncio.run(follow()) < 100


def test_loops_and_threads_wait_for_the_same_queue(subscribe, files):
    """Two loops in two threads and two more threads all see every last write."""
    turns = 300
    fds = [os.open(path, os.O_RDWR) for path in files]

    def current(number):
        return int.from_bytes(os.pread(fds[number], 8, 8), "little")

    async def follow_async(number):
        subscription = subscribe(files[number])
        while current(number) < turns:
            assert await subscription.wait_async(LONG)
            subscription.changed()

    async def follow_all():
        await asyncio.gather(*(follow_async(number) for number in (0, 1, 2, 0)))

    def follow(number):
        subscription = subscribe(files[number])
        while current(number) < turns:
            assert subscription.wait(LONG)
            subscription.changed()

    followers = [in_thread(lambda: asyncio.run(follow_all())) for _ in range(2)]
    followers += [in_thread(follow, number) for number in (0, 1)]
    for turn in range(1, turns + 1):
        for fd in fds:
            os.pwrite(fd, turn.to_bytes(8, "little"), 8)
    for follower in followers:
        follower.result()
    for fd in fds:
        os.close(fd)


def test_loop_in_which_nobody_waits_is_left_alone(subscribe, files):
    """One event finds nobody and takes the reader off; the next wait puts it on again."""

    async def follow():
        subscription = subscribe(*files)
        loop = asyncio.get_running_loop()
        assert await subscription.wait_async(0.001) is False
        reader = subscription._shared.reader(subscription._queue, loop)
        assert reader._on
        write(files[0])
        await asyncio.sleep(0.05)
        assert not reader._on
        assert await subscription.wait_async(LONG) is True
        assert subscription.changed() == {"a"}

    asyncio.run(follow())


def test_closed_loops_are_forgotten(shared, subscribe, files):
    """A program that runs one loop after another keeps none but the last."""
    subscription = subscribe(*files)
    for _ in range(5):
        assert asyncio.run(subscription.wait_async(0.001)) is False
    assert len(shared._loops) == 1


# --- without inotify --------------------------------------------------------------------------------------------------


@pytest.fixture
def without_inotify(monkeypatch):
    """The user has no inotify instance left."""

    def refuse():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(module, "open_inotify", refuse)


@pytest.mark.usefixtures("without_inotify")
def test_without_inotify_waiting_polls(shared, files, caplog):
    """Everything has to be looked at, after sleeps that get longer while nothing comes; one warning says why."""
    subscription, _ = shared.subscribe(), shared.subscribe()
    assert subscription.polling
    assert subscription.watch("a", str(files[0])) is False
    with pytest.raises(FileNotFoundError):
        subscription.watch("b", str(files[0].with_name("missing")))
    subscription.unwatch("a")
    intervals = []
    for _ in range(8):
        intervals.append(subscription._interval)
        assert subscription.wait(None) is True
        assert subscription.changed() is None
    assert intervals == pytest.approx([1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 5e-3, 5e-3])
    subscription.progress()
    assert subscription._interval == 1e-4
    assert asyncio.run(subscription.wait_async(1.0)) is True
    subscription.wakeup()
    assert subscription.wait(LONG) is False
    assert subscription.wait(0) is True
    subscription.wakeup()
    assert asyncio.run(subscription.wait_async(LONG)) is False
    subscription.close()
    with pytest.raises(ClosedError):
        subscription.wait(0)
    assert len(caplog.records) == 1
    assert "max_user_instances" in caplog.text


def test_out_of_watches_turns_that_subscription_to_polling(shared, subscribe, files, caplog):
    """The others go on; its own watches are given back."""
    other, subscription = subscribe(files[0]), subscribe(files[0])
    queue = subscription._queue

    def refuse(path, events):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real, queue._inotify = queue._inotify, queue._inotify._replace(add=refuse)
    assert subscription.watch("b", str(files[1])) is False
    assert subscription.polling
    assert subscription.wait(LONG) is True
    assert subscription.changed() is None
    queue._inotify = real
    assert list(queue._watchers.values()) == [[(other._inbox, "a")]]
    write(files[0])
    assert other.changed() == {"a"}
    assert [record.name for record in caplog.records] == ["pystreamlog"]


def test_out_of_descriptors_turns_a_wait_to_polling(shared, subscribe, files, monkeypatch, caplog):
    """A waiter that cannot be kicked sleeps instead."""
    subscription = subscribe(*files)

    def refuse():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(module._Kick, "open", refuse)
    assert subscription.wait(LONG) is True
    assert subscription.polling
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [ImportError("no ctypes"), AttributeError("inotify_init1")])
def test_python_without_ctypes_polls(shared, monkeypatch, error):
    """Neither a missing module nor a missing function stops the reader."""

    def refuse():
        raise error

    monkeypatch.setattr(module, "open_inotify", refuse)
    assert shared.subscribe().polling


def test_importing_loads_neither_ctypes_nor_asyncio():
    """They cost more than all the rest, and a producer needs none."""
    unwanted = "{'asyncio', 'concurrent.futures', 'ctypes', 'logging', 'platform', 'socket'}"
    script = (
        "import sys, pystreamlog; before = {*sys.modules}; import pystreamlog.coordination.wakeups; "
        f"print({unwanted} & {{*sys.modules}} - before)"
    )
    root = str(Path(__file__).resolve().parents[2])
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert found.stdout == "set()\n"


# --- closing and forking ----------------------------------------------------------------------------------------------


def test_closing_ends_the_wait_of_another_thread(subscribe, files):
    """With `ClosedError`; and so does every later call."""
    subscription = subscribe(*files)
    waiting = in_thread(subscription.wait, LONG)
    until_waiting(subscription)
    subscription.close()
    subscription.close()
    with pytest.raises(ClosedError):
        waiting.result()
    subscription.wakeup()
    for call in (
        subscription.changed,
        lambda: subscription.wait(0),
        lambda: asyncio.run(subscription.wait_async(0)),
        lambda: subscription.watch("a", str(files[0])),
        lambda: subscription.unwatch("a"),
    ):
        assert raises_closed(call)


def test_closing_ends_an_await(subscribe, files):
    """From the same loop."""

    async def follow():
        subscription = subscribe(*files)
        waiting = asyncio.ensure_future(subscription.wait_async(LONG))
        await asyncio.sleep(0)
        subscription.close()
        with pytest.raises(ClosedError):
            await waiting

    asyncio.run(follow())


def test_descriptors_are_used_again(subscribe, files):
    """Waiters that come and go leave no more descriptors than waited at once."""
    for _ in range(5):
        subscription = subscribe(*files)
        subscription.wait(0)
        shared = subscription._shared
        subscription.close()
    assert len(shared._kicks) == 1
    assert len(shared._idle_kicks) == 1


def test_forgotten_subscription_gives_its_watches_back(subscribe, files):
    """Garbage collection closes it, even within the queue's lock."""
    subscription = subscribe(*files)
    queue = subscription._queue
    with queue.lock:
        del subscription
        gc.collect()
        assert len(queue._watchers) == 3
    other = subscribe(files[0])
    assert len(queue._watchers) == 1
    assert queue.inboxes == {other._inbox}


def test_forked_child_starts_anew(files):
    """Inherited subscriptions are closed there, new ones work, and the parent's go on."""
    subscription = wakeups().subscribe()
    subscription.watch("a", str(files[0]))
    subscription.changed()
    subscription.wait(0)
    inherited = [subscription._queue.fd, *subscription._kicks[0]]

    def in_child():
        for fd in inherited:
            try:
                os.fstat(fd)
            except OSError:
                continue
            return False
        subscription.wakeup()
        calls = (subscription.changed, lambda: subscription.wait(0), lambda: subscription.watch("b", str(files[1])))
        if not all(map(raises_closed, calls)):
            return False
        subscription.close()
        mine = wakeups().subscribe()
        mine.watch("b", str(files[1]))
        mine.changed()
        write(files[1])
        return mine.wait(LONG) and mine.changed() == {"b"}

    assert in_fork(in_child)
    assert wakeups().subscribe()._queue is subscription._queue
    assert subscription.wait(0.01) is False
    write(files[0])
    assert subscription.wait(LONG) is True
    assert subscription.changed() == {"a"}
    subscription.close()


def test_fork_while_a_thread_waits(files):
    """The child has neither the thread nor its locks."""
    subscription = wakeups().subscribe()
    subscription.watch("a", str(files[0]))
    subscription.changed()
    waiting = in_thread(subscription.wait, LONG)
    until_waiting(subscription)
    with subscription._queue.lock, module._creating, subscription._shared._guard:
        assert in_fork(lambda: wakeups().subscribe().changed() is None)
    write(files[0])
    assert waiting.result() is True
    subscription.close()


def test_inotify_errors_carry_the_path(tmp_path):
    """As those of `open` do."""
    kernel = inotify.open_inotify()
    with pytest.raises(FileNotFoundError) as caught:
        kernel.add(str(tmp_path / "missing"), 2)
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.remove(12345)
    os.close(kernel.fd)
