"""Groups over many processes: whatever becomes of a member, its partitions go on where the group committed."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback

import pytest

import pystreamlog
from pystreamlog import TopicPartition
from pystreamlog.coordination.deaths import deaths

from .conftest import PATIENCE
from .members import GROUP, TOPIC, Refused, group_folder, group_state, poll_until, starting, until, until_shared

# From Python 3.12 on, `os.fork` warns in a process with threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

PARTITIONS = 4
LINUX = sys.platform == "linux"

NO_INOTIFY = """
import pystreamlog.coordination.wakeups as wakeups_module
def refuse():
    raise OSError(24, "no instance left")
wakeups_module.open_inotify = refuse
"""


@pytest.fixture
def member(path):
    """Starts members."""
    with starting(path) as start:
        yield start


@pytest.fixture
def events(log):
    """The topic, with three records in each of its partitions."""
    topic = log.create_topic(TOPIC, partitions=PARTITIONS)
    fill(log, 3)
    return topic


def fill(log, count, partitions=range(PARTITIONS)):
    """Append some records to each of these partitions."""
    with log.producer() as producer:
        for number in range(count):
            for partition in partitions:
                producer.send(TOPIC, b"%d" % number, partition=partition)


def commit(member, offset):
    """Have a member commit that offset in all partitions that it has."""
    offsets = ", ".join(f"TopicPartition({TOPIC!r}, {partition}): {offset}" for partition in sorted(member.owned))
    member.do(f"consumer.commit({{{offsets}}})")


def first_offsets(member, partitions, since=0):
    """The first offset that a member read in each of these partitions."""
    found = {}
    for partition, offset, _ in member.records[since:]:
        if partition in partitions:
            found.setdefault(partition, offset)
    return found


def until_read(member, count):
    """Wait until a member has read so many records."""
    member.until(lambda: len(member.records) >= count)


# --- members that are killed ------------------------------------------------------------------------------------------


def test_killed_member_is_replaced_where_it_committed(member, events):
    """A survivor that waits without end wakes, takes over, and starts at the dead one's commit."""
    one, other = member(), member()
    until_shared([one, other], PARTITIONS)
    commit(one, 2)
    orphaned = set(one.owned)
    read = len(other.records)
    one.kill()
    other.until_it_owns(*range(PARTITIONS))
    other.until(lambda: set(first_offsets(other, orphaned, read)) == orphaned)
    assert first_offsets(other, orphaned, read) == dict.fromkeys(orphaned, 2)


def test_all_survivors_share_what_a_killed_member_had(member, log):
    """Each gets its part, and nobody gives anything up."""
    log.create_topic(TOPIC, partitions=6)
    members = [member() for _ in range(3)]
    until_shared(members, 6)
    kept = [set(survivor.owned) for survivor in members[1:]]
    revoked = [survivor.told("revoked") for survivor in members[1:]]
    members[0].kill()
    until_shared(members[1:], 6)
    assert all(before <= survivor.owned for before, survivor in zip(kept, members[1:], strict=True))
    assert [survivor.told("revoked") for survivor in members[1:]] == revoked


def test_offsets_survive_the_death_of_all_members(member, events, log):
    """The next member goes on there."""
    members = [member(), member()]
    until_shared(members, PARTITIONS)
    for each in members:
        commit(each, 1 + each.pid % 2)
    expected = {partition: 1 + each.pid % 2 for each in members for partition in each.owned}
    for each in members:
        each.signal(signal.SIGKILL)
    for each in members:
        each.process.wait(PATIENCE)
    with log.consumer(TOPIC, group_id=GROUP, auto_offset_reset="latest") as consumer:
        assert {tp.partition: at.offset for tp, at in consumer.committed(*all_of(consumer)).items()} == expected
        seen = []
        while len(seen) < sum(3 - offset for offset in expected.values()):
            seen += [(record.partition, record.offset) for record in consumer.poll(PATIENCE)]
    assert sorted(seen) == sorted((partition, at) for partition, first in expected.items() for at in range(first, 3))


def all_of(consumer):
    """All partitions of the topic."""
    return [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]


def test_death_wakes_an_event_loop(member, events, log):
    """A coroutine that waits in `poll_async` is woken by another process's death."""
    one = member()
    one.until_it_owns(*range(PARTITIONS))
    assigned = []

    async def main():
        async with log.consumer(
            TOPIC, group_id=GROUP, on_assign=lambda _, tps: assigned.extend(tp.partition for tp in tps)
        ) as consumer:
            polling = asyncio.create_task(poll(consumer))
            await wait_for(lambda: len(assigned) == PARTITIONS // 2)
            one.kill()
            await wait_for(lambda: len(assigned) == PARTITIONS)
            polling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await polling

    async def poll(consumer):
        while True:
            await consumer.poll_async(None)

    async def wait_for(condition):
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - it comes true in another task's callbacks
                await asyncio.sleep(0.001)

    asyncio.run(main())
    assert sorted(assigned) == list(range(PARTITIONS))


@pytest.mark.parametrize(("order", "status"), [("!sys.exit(3)", 3), ("!1 / 0", 1)], ids=["exit", "exception"])
def test_application_that_ends_without_close_frees_its_place_at_once(member, events, order, status):
    """By `sys.exit`, and by an exception that nobody catches."""
    one, other = member(), member()
    until_shared([one, other], PARTITIONS)
    one.send(order)
    assert one.process.wait(PATIENCE) == status
    other.until_it_owns(*range(PARTITIONS))


def test_member_of_a_process_with_two_consumers_dies_with_it(member, events):
    """Both of its places are free."""
    one, other = member(), member()
    one.do(f"second = log.consumer({TOPIC!r}, group_id={GROUP!r})")
    one.do("while second.group_metadata().generation_id < 0: second.poll(0.01)")
    until(lambda: len(group_state(one.path).members) == 3)
    one.kill()
    other.until_it_owns(*range(PARTITIONS))
    assert len(group_state(one.path).members) == 1


# --- members that stop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in a poll", "between two polls"])
def test_stopped_member_keeps_its_partitions_for_a_while_and_then_is_fenced(member, events, log, where):
    """They move after `max_poll_interval_ms`; when it goes on it learns what it lost, may not commit, and rejoins."""
    one = member(max_poll_interval_ms=1000)
    other = member(max_poll_interval_ms=1000)
    until_shared([one, other], PARTITIONS)
    lost, revoked = set(one.owned), one.told("revoked")
    commit(one, 2)
    if where == "between two polls":
        one.stop_polling()
    one.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    other.until_it_owns(*range(PARTITIONS))
    # A member that waits says every third of the interval that it is there, one that reads on every tenth.
    assert time.monotonic() - stopped > 0.6
    commit(other, 3)
    one.signal(signal.SIGCONT)
    if where == "between two polls":
        with pytest.raises(Refused) as refused:
            commit(one, 1)
        assert refused.value.kind == "CommitFailedError"
        assert one.told("lost") == []
        one.go_on()
    until_shared([one, other], PARTITIONS)
    assert sorted(one.told("lost")[0]) == sorted(lost)
    assert len(one.told("lost")) == 1
    assert one.told("revoked") == revoked
    with log.consumer(group_id=GROUP) as consumer:
        committed = consumer.committed(*all_of(consumer))
    assert [committed[tp].offset for tp in sorted(committed)] == [3] * PARTITIONS


def test_member_that_stops_polling_is_fenced_though_its_process_lives(member, events):
    """It may commit until then, and not afterwards; nothing it says later undoes what the new owner committed."""
    one, other = member(max_poll_interval_ms=500), member(max_poll_interval_ms=60_000)
    until_shared([one, other], PARTITIONS)
    lost = set(one.owned)
    one.stop_polling()
    commit(one, 1)
    other.until_it_owns(*range(PARTITIONS))
    with pytest.raises(Refused, match="CommitFailedError"):
        commit(one, 2)
    assert one.owned == lost
    one.go_on()
    one.until(lambda: bool(one.told("lost")))
    assert set(one.told("lost")[0]) == lost


def test_waiting_in_poll_is_polling(member, log):
    """Nobody is fenced, however long there is nothing to read."""
    log.create_topic(TOPIC, partitions=2)
    members = [member(max_poll_interval_ms=300) for _ in range(2)]
    until_shared(members, 2)
    generation = group_state(log.path).generation
    time.sleep(1.0)
    assert group_state(log.path).generation == generation
    assert [each.told("lost") for each in members] == [[], []]


# --- static members ---------------------------------------------------------------------------------------------------


def test_static_member_that_comes_back_gets_its_partitions_and_others_keep_theirs(member, events):
    """The dead one's share waits for it; nobody is told anything."""
    one = member(group_instance_id="one", session_timeout_ms=600_000)
    others = [member(group_instance_id="two"), member()]
    until_shared([one, *others], PARTITIONS)
    share = set(one.owned)
    commit(one, 2)
    before = [list(other.events) for other in others]
    one.kill()
    until(lambda: any(each.left_ns for each in group_state(one.path).members))
    again = member(group_instance_id="one", session_timeout_ms=600_000)
    again.until_it_owns(*share)
    again.until(lambda: set(first_offsets(again, share)) == share)
    assert first_offsets(again, share) == dict.fromkeys(share, 2)
    for other, events_before in zip(others, before, strict=True):
        other.do("1")
        told = [kind for kind, _ in other.events[len(events_before) :]]
        assert {"assigned", "revoked", "lost"}.isdisjoint(told)


def test_static_member_that_stays_away_loses_its_partitions(member, events):
    """After `session_timeout_ms`, and not before."""
    one = member(group_instance_id="one", session_timeout_ms=700)
    other = member(group_instance_id="other")
    until_shared([one, other], PARTITIONS)
    killed = time.monotonic()
    one.kill()
    other.until_it_owns(*range(PARTITIONS))
    assert time.monotonic() - killed >= 0.7


@pytest.mark.parametrize("end", ["close", "kill"])
def test_second_live_static_member_is_fenced(member, events, end):
    """The first goes on; its place is the second's once it is gone."""
    one = member(group_instance_id="same")
    one.until_it_owns(*range(PARTITIONS))
    second = member(group_instance_id="same")
    second.until(lambda: bool(second.told("failed")))
    assert second.told("failed")[0][0] == "FencedError"
    assert f"pid {one.pid} " in second.told("failed")[0][1]
    commit(one, 2)
    one.do("consumer.close()") if end == "close" else one.kill()
    second.go_on()
    second.until_it_owns(*range(PARTITIONS))
    assert len(second.told("failed")) == 1


# --- forked children --------------------------------------------------------------------------------------------------

FORKS = {
    "os.fork": """
child = os.fork()
if not child:
    in_child()
""",
    "multiprocessing": """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=in_child)
process.start()
child = process.pid
""",
}

IN_CHILD = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)

def in_child():
    answers = []
    for call in (lambda: consumer.poll(0), lambda: consumer.commit(), consumer.assignment, consumer.committed):
        try:
            answers.append(repr(call()))
        except StreamLogError as error:
            answers.append(type(error).__name__)
    consumer.close()
    consumer.wakeup()
    gc.collect()
    say("child", answers)
    signal.pause()
    os._exit(0)
"""


@pytest.mark.parametrize("way", FORKS)
def test_forked_child_is_no_member(member, events, log, way):
    """It is told so; the parent goes on; and the parent's death frees its place though the child lives on."""
    one, other = member(setup=IN_CHILD), member()
    until_shared([one, other], PARTITIONS)
    share = set(one.owned)
    one.do(FORKS[way])
    child = one.do("child")
    try:
        one.until(lambda: bool(one.told("child")))
        assert one.told("child") == [["ClosedError"] * 4]
        read = len(one.records)
        fill(log, 1)
        until_read(one, read + len(share))
        commit(one, 4)
        one.kill()
        other.until_it_owns(*range(PARTITIONS))
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_forked_child_has_no_identity_in_the_group(member, events):
    """It must not put offsets into a transaction in its parent's name."""
    one = member(
        setup="""
        def in_child():
            try:
                say("child", repr(consumer.group_metadata()))
            except ClosedError:
                say("child", "closed")
            os._exit(0)
        """
    )
    one.until_it_owns(*range(PARTITIONS))
    one.do(FORKS["os.fork"])
    one.until(lambda: bool(one.told("child")))
    one.do("os.waitpid(child, 0)")
    assert one.told("child") == ["closed"]


def test_forked_child_can_be_a_member_of_its_own(member, events):
    """Beside its parent, on the log that it inherited."""
    one = member(
        setup="""
        def in_child():
            with log.consumer("events", group_id="workers") as mine:
                while len(mine.assignment()) < 2:
                    mine.poll(0.01)
                say("child", sorted(tp.partition for tp in mine.assignment()))
                mine.commit({tp: 1 for tp in mine.assignment()})
            say("child", "left")
            os._exit(0)
        """
    )
    one.until_it_owns(*range(PARTITIONS))
    one.do(FORKS["os.fork"])
    one.until(lambda: len(one.told("child")) == 2)
    share, left = one.told("child")
    assert (len(share), left) == (PARTITIONS // 2, "left")
    one.until_it_owns(*range(PARTITIONS))
    one.do("os.waitpid(child, 0)")


# --- the group's lock -------------------------------------------------------------------------------------------------

TAKEN = f"""
def hold(_):
    say("holding", 1)
    os.kill(os.getpid(), signal.%s)

log._groups.open({GROUP!r}).change(hold)
"""


def test_member_that_is_killed_while_it_holds_the_groups_lock_blocks_nobody(member, events):
    """The kernel gives the lock back; others take over, commit and join."""
    one, other = member(), member()
    until_shared([one, other], PARTITIONS)
    one.send(TAKEN % "SIGKILL")
    assert one.process.wait(PATIENCE) == -signal.SIGKILL
    other.until_it_owns(*range(PARTITIONS))
    commit(other, 1)
    third = member()
    until_shared([other, third], PARTITIONS)


def test_member_that_is_stopped_while_it_holds_the_groups_lock(member, events, log):
    """Others read on what they own; a commit names it in the end; when it goes on, so does everything."""
    impatient = "from pystreamlog.embedded.commits import Commits; Commits.commit.__defaults__ = (0.3,)"
    one, other = member(), member(setup=impatient)
    until_shared([one, other], PARTITIONS)
    until_read(other, 3 * len(other.owned))
    one.send(TAKEN % "SIGSTOP")
    one.until(lambda: bool(one.told("holding")))
    until(lambda: is_stopped(one.pid))
    read = len(other.records)
    fill(log, 5)
    until_read(other, read + 5 * len(other.owned))
    with pytest.raises(Refused) as refused:
        commit(other, 1)
    assert refused.value.kind == "LockTimeoutError"
    assert f"pid {one.pid} " in refused.value.text
    assert "stopped" in refused.value.text
    newcomer = member()
    fill(log, 5)
    until_read(other, read + 10 * len(other.owned))
    one.signal(signal.SIGCONT)
    until_shared([one, other, newcomer], PARTITIONS)
    commit(other, 1)
    commit(one, 1)
    assert [each.told("lost") for each in (one, other, newcomer)] == [[], [], []]


def is_stopped(pid):
    """Whether the process was stopped by a signal."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


# --- systems that can do less -----------------------------------------------------------------------------------------


def test_without_pidfd_deaths_are_seen_by_the_locks(member, events):
    """As on an old kernel; a little later."""
    one, other = member(), member(setup="del os.pidfd_open")
    until_shared([one, other], PARTITIONS)
    assert other.do("hasattr(os, 'pidfd_open')") is False
    one.kill()
    other.until_it_owns(*range(PARTITIONS))


def test_without_inotify_groups_poll(member, events, log):
    """Members share, read and take over, though nothing wakes them."""
    one, other = member(setup=NO_INOTIFY), member(setup=NO_INOTIFY)
    until_shared([one, other], PARTITIONS)
    read = len(other.records)
    fill(log, 1)
    until_read(other, read + len(other.owned))
    commit(one, 2)
    one.kill()
    other.until_it_owns(*range(PARTITIONS))
    third = member()  # which can be woken
    until_shared([other, third], PARTITIONS)
    third.do("consumer.close()")
    other.until_it_owns(*range(PARTITIONS))


@pytest.fixture
def container():
    """A command that runs another in a pid namespace of its own, and ends with it."""
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    if not LINUX or os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("NOT TESTED: only root can make pid namespaces, by `unshare`")
    done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED: this container may not make pid namespaces: {done.stderr}")
    return command


@pytest.mark.parametrize("mounts", [[], ["--mount-proc"]], ids=["outer /proc", "own /proc"])
def test_members_in_other_pid_namespaces(member, log, container, mounts):
    """They have the same pids; nobody is believed dead who lives, and a death is seen all the same."""
    log.create_topic(TOPIC, partitions=6)
    inside = [member(prefix=[*container, *mounts]) for _ in range(2)]
    assert [each.pid for each in inside] == [1, 1]
    outside = member()
    everyone = [*inside, outside]
    until_shared(everyone, 6)
    generation = group_state(log.path).generation
    time.sleep(0.3)  # some rounds of trying locks
    assert group_state(log.path).generation == generation
    inside[0].kill()
    until_shared(everyone[1:], 6)
    inside[1].kill()  # for whoever is outside, its pid is that of a process that lives
    outside.until_it_owns(*range(6))
    assert [each.told("lost") for each in everyone] == [[], [], []]


# --- places that are given up in other ways ---------------------------------------------------------------------------


def test_consumer_that_nobody_closed_gives_up_its_place(member, events, log):
    """When it is garbage-collected; without committing what was only handed out."""
    other = member()
    other.until_it_owns(*range(PARTITIONS))
    commit(other, 2)
    consumer = log.consumer(TOPIC, group_id=GROUP)
    seen = []
    while len(seen) < PARTITIONS // 2:
        seen += consumer.poll(PATIENCE)
    other.until(lambda: len(other.owned) == PARTITIONS // 2)
    moved = set(range(PARTITIONS)) - other.owned
    assert len(moved) == PARTITIONS // 2
    read = len(other.records)
    del consumer
    gc.collect()
    other.until_it_owns(*range(PARTITIONS))
    other.until(lambda: set(first_offsets(other, moved, read)) == moved)
    assert first_offsets(other, moved, read) == dict.fromkeys(moved, 2)


def test_consumer_that_nobody_closed_watches_nobody_any_more(events, path):
    """Neither another member's process nor a bell; nothing holds what it had."""
    with starting(path) as start, pystreamlog.open(path) as log:
        start().until_it_owns(*range(PARTITIONS))
        for _ in range(3):
            consumer = log.consumer(TOPIC, group_id=GROUP)
            poll_until(consumer, lambda consumer=consumer: len(consumer.assignment()) == PARTITIONS // 2)
            del consumer
            gc.collect()
        assert [watchers for watchers in deaths()._watchers.values() if watchers] == []


def descriptors():
    """What each open descriptor of this process is."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="counts descriptors in /proc")
def test_coming_and_going_leaves_nothing_behind(events, path):
    """Of a hundred short-lived members, half of them killed; neither files nor descriptors of who stays."""
    with pystreamlog.open(path) as log, log.consumer(TOPIC, group_id=GROUP) as consumer:
        files, opened, watched = [], [], []
        for number in range(100):
            with forked(short_life, path, number % 2 == 0):
                poll_until(consumer, lambda: len(consumer.assignment()) == PARTITIONS // 2)
            poll_until(consumer, lambda: len(consumer.assignment()) == PARTITIONS)
            if number in (10, 99):
                files.append(sorted(str(name) for name in group_folder(path).rglob("*")))
                opened.append(len(descriptors()))
                watched.append(len(deaths()._fds))
        assert files[0] == files[1]
        assert len(files[1]) <= 10
        assert opened[1] <= opened[0]
        assert watched[1] <= watched[0] <= 1


def short_life(path, is_closed, go_on):
    """Join, get a share, and leave or die when `go_on` says so."""
    log = pystreamlog.open(path)
    consumer = log.consumer(TOPIC, group_id=GROUP)
    poll_until(consumer, lambda: len(consumer.assignment()) == PARTITIONS // 2)
    os.read(go_on, 1)
    if is_closed:
        log.close()


class forked:  # noqa: N801 - reads as a statement
    """Runs a function in a forked child within the block; at its end the child goes on and ends."""

    def __init__(self, function, *arguments):
        self._go_on, self._told = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            status = 1
            try:
                signal.alarm(int(PATIENCE))
                os.close(self._told)
                function(*arguments, self._go_on)
                status = 0
            except BaseException:  # noqa: BLE001 - the parent tells
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(self._go_on)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._told)
        assert os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) == 0
