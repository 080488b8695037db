"""The end of another process is reported: once, to whoever watches it, and nobody else's instead."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pystreamlog.coordination import deaths as module
from pystreamlog.coordination.deaths import Deaths, deaths
from pystreamlog.coordination.wakeups import wakeups

LONG = 20.0

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no pidfd"),
    # From Python 3.12 on, `os.fork` warns in a process with threads.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]


@pytest.fixture
def start():
    """Starts processes that do nothing; ends those that are left."""
    processes = []

    def start_process():
        processes.append(subprocess.Popen(["sleep", "1000"]))
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def subscribe():
    """Makes subscriptions that have looked at everything already."""
    made = []

    def make():
        made.append(wakeups().subscribe())
        made[-1].changed()
        return made[-1]

    yield make
    for subscription in made:
        subscription.close()


def end(process):
    """Kill a process; when this returns, it is gone."""
    process.kill()
    process.wait(LONG)


def reported(subscription, count=1):
    """What is reported, once there is so much; waits for it as a consumer does."""
    found = set()
    limit = time.monotonic() + LONG
    while len(found) < count:
        assert time.monotonic() < limit, found
        subscription.wait(max(0.0, limit - time.monotonic()))
        changed = subscription.changed()
        assert changed is not None
        found |= changed
    return found


def test_an_end_wakes_who_waits(start, subscribe):
    """Within a wait that would have lasted longer."""
    child, subscription = start(), subscribe()
    assert Deaths().watch(child.pid, subscription, "key")
    threading.Timer(0.05, child.kill).start()
    assert reported(subscription) == {"key"}
    child.wait(LONG)


def test_an_end_before_the_wait_is_not_missed(start, subscribe):
    """It stands in the subscription."""
    child, subscription, other = start(), subscribe(), subscribe()
    watching = Deaths()
    assert watching.watch(child.pid, subscription, "key")
    assert watching.watch(child.pid, other, "key")
    end(child)
    assert reported(other) == {"key"}
    assert reported(subscription) == {"key"}
    assert subscription.changed() == set()


def test_an_end_wakes_an_event_loop(start, subscribe):
    """Without a thread per waiter."""
    child, subscription = start(), subscribe()
    assert Deaths().watch(child.pid, subscription, "key")

    async def main():
        waiting = asyncio.create_task(subscription.wait_async(LONG))
        await asyncio.sleep(0)
        child.kill()
        assert await waiting
        return subscription.changed()

    assert asyncio.run(main()) == {"key"}


def test_a_process_that_is_gone_cannot_be_watched(start, subscribe):
    """The caller is told, and has to look at its lock."""
    child = start()
    end(child)
    watching = Deaths()
    assert watching.watch(child.pid, subscribe(), "key") is False
    assert watching._fds == {}
    assert watching._watchers == {}


def test_a_process_that_ended_but_was_not_waited_for_is_reported_at_once(start, subscribe):
    """A zombie holds no lock."""
    child, subscription = start(), subscribe()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Deaths().watch(child.pid, subscription, "key")
    assert reported(subscription) == {"key"}


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**31 - 1])
def test_what_is_no_process_cannot_be_watched(subscribe, pid):
    """A damaged state may name any."""
    assert Deaths().watch(pid, subscribe(), "key") is False


def test_what_is_unwatched_is_not_reported(start, subscribe):
    """While others still are; unwatching what is not watched is harmless."""
    first, second, subscription = start(), start(), subscribe()
    watching = Deaths()
    for child in (first, second):
        assert watching.watch(child.pid, subscription, child.pid)
    watching.unwatch(first.pid, subscription, first.pid)
    watching.unwatch(first.pid, subscription, first.pid)
    watching.unwatch(second.pid, subscription, "another key")
    end(first)
    end(second)
    assert reported(subscription) == {second.pid}
    assert subscription.changed() == set()
    watching.unwatch(second.pid, subscription, second.pid)
    assert watching._fds == watching._watchers == {}


def test_every_watcher_of_a_process_is_told(start, subscribe):
    """Each under its keys, once though it watched twice; but for who gave up."""
    child, one, other, former = start(), subscribe(), subscribe(), subscribe()
    watching = Deaths()
    for subscription, key in ((one, "a"), (one, "a"), (one, "b"), (other, "c"), (former, "d")):
        assert watching.watch(child.pid, subscription, key)
    watching.unwatch(child.pid, former, "d")
    end(child)
    assert reported(one, 2) == {"a", "b"}
    assert reported(other) == {"c"}
    assert former.changed() == set()
    assert len(watching._fds) == 0


def test_a_subscription_that_was_closed_is_no_hindrance(start, subscribe):
    """The others are told."""
    child, closed, other = start(), subscribe(), subscribe()
    watching = Deaths()
    watching.watch(child.pid, closed, "x")
    watching.watch(child.pid, other, "y")
    closed.close()
    end(child)
    assert reported(other) == {"y"}


def test_descriptors_are_reused_without_confusion(start, subscribe):
    """Process after process under the same number: each end is reported as its own, and nothing is left open."""
    watching, subscription = Deaths(), subscribe()
    staying = start()
    assert watching.watch(staying.pid, subscription, "staying")
    numbers = set()
    for count in range(30):
        child = start()
        assert watching.watch(child.pid, subscription, count)
        numbers.add(watching._fds[child.pid])
        end(child)
        assert reported(subscription) == {count}
    assert len(numbers) < 30
    assert list(watching._fds) == [staying.pid]


def test_a_descriptor_that_is_reused_while_its_event_is_on_the_way(start, subscribe, monkeypatch):
    """The event of the old process does not become the new one's end."""
    watching, subscription = Deaths(), subscribe()
    dying, living = start(), start()
    assert watching.watch(dying.pid, subscription, "dying")
    number, pidfd_open = watching._fds[dying.pid], os.pidfd_open

    def same_number(pid):
        fd = pidfd_open(pid)
        if fd != number:
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        return number

    with watching._lock:  # where the thread, which the event wakes, has to wait
        end(dying)
        watching._close(dying.pid)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", same_number)
            watching._open(living.pid)
        watching._watchers[living.pid].add((subscription, "living"))
        time.sleep(0.02)
    other = start()
    assert watching.watch(other.pid, subscription, "other")
    end(other)
    assert reported(subscription) == {"other"}
    end(living)
    assert reported(subscription) == {"living"}


def test_a_process_id_that_went_to_another_process_is_another(start, subscribe):
    """A watch is of the process that had the id then: its end is reported though the id lives on elsewhere."""
    watching, subscription = Deaths(), subscribe()
    child = start()
    assert watching.watch(child.pid, subscription, "first")
    end(child)
    assert reported(subscription) == {"first"}
    assert child.pid not in watching._fds  # so that the next watch of the id opens anew


@pytest.mark.parametrize(
    "error", [OSError(24, "too many open files"), OSError(38, "no such call"), PermissionError(1, "no")]
)
def test_a_process_that_the_system_does_not_let_watch(start, subscribe, monkeypatch, error):
    """The caller is told; later it may be possible."""
    child, subscription, watching = start(), subscribe(), Deaths()

    def refuse(pid, flags=0):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", refuse)
        assert watching.watch(child.pid, subscription, "key") is False
    assert watching.watch(child.pid, subscription, "key") is True
    end(child)
    assert reported(subscription) == {"key"}


def test_without_pidfd_nothing_can_be_watched(start, subscribe, monkeypatch):
    """As on kernels before 5.3, and on other systems."""
    monkeypatch.delattr(os, "pidfd_open")
    watching, subscription = Deaths(), subscribe()
    child = start()
    assert watching.watch(child.pid, subscription, "key") is False
    watching.unwatch(child.pid, subscription, "key")
    assert watching._epoll is None


def test_no_descriptor_is_left_when_there_is_no_epoll(start, subscribe, monkeypatch):
    """What was opened for a watch that failed is closed."""
    child, watching = start(), Deaths()
    opened = []
    real = os.pidfd_open

    def counting(pid, flags=0):
        opened.append(real(pid, flags))
        return opened[-1]

    def refuse():
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "pidfd_open", counting)
    monkeypatch.setattr(module.select, "epoll", refuse)
    assert watching.watch(child.pid, subscribe(), "key") is False
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_forked_child_starts_anew(start, subscribe):
    """It keeps none of its parent's descriptors, watches for itself, and the parent's watch goes on."""
    child, subscription = start(), subscribe()
    assert deaths().watch(child.pid, subscription, "parent")
    inherited = deaths()
    descriptors = [*inherited._fds.values(), inherited._epoll.fileno()]
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(int(LONG))
            code = 0 if is_new(inherited, descriptors) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    end(child)
    assert reported(subscription) == {"parent"}
    assert deaths() is inherited


def is_new(inherited, descriptors):
    """In a forked child: whether it has its own, which works."""
    for fd in descriptors:
        try:
            os.fstat(fd)
        except OSError:
            continue
        return False
    mine = wakeups().subscribe()
    mine.changed()
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    watched = deaths() is not inherited and deaths().watch(process.pid, mine, "mine")
    return watched and reported(mine) == {"mine"}


def test_there_is_one_for_the_process():
    """However many ask at once."""
    found = set()
    threads = [threading.Thread(target=lambda: found.add(deaths())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert found == {deaths()}
