"""A group's folder, lock, seats, bells and commits, as processes see them."""

import os
import random
import signal
import threading
import time

import pytest

from pystreamlog.clock import SYSTEM, Clock
from pystreamlog.coordination.assignors import uniform
from pystreamlog.coordination.directory import open_directory
from pystreamlog.coordination.group import Group, GroupBusyError
from pystreamlog.coordination.group_change import MemberConfig
from pystreamlog.coordination.group_state import keys_of
from pystreamlog.coordination.groups import Groups
from pystreamlog.coordination.offset_store import Committed
from pystreamlog.coordination.topics import Topics
from pystreamlog.errors import (
    ClosedError,
    CommitFailedError,
    CorruptLogError,
    LockTimeoutError,
    StreamLogError,
    UnknownGroupError,
)
from tests.coordination.changing import changing

LONG = 20.0
TOPIC = b"topic-id-16-byte"
KEY = (TOPIC, 0)
BOOT = b"this-boot-16-byt"

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

OPENED = """
from pystreamlog.clock import SYSTEM
from pystreamlog.coordination.assignors import uniform
from pystreamlog.coordination.directory import open_directory
from pystreamlog.coordination.groups import Groups
from pystreamlog.coordination.group_change import MemberConfig
from pystreamlog.coordination.topics import Topics

path = sys.argv[1]
files, log_id, _ = open_directory(
    path, create=True, read_only=False, mode=0o700, allow_network_filesystem=False, clock=SYSTEM
)
topics = Topics(files, SYSTEM, read_only=False)
groups = Groups(files, log_id, SYSTEM, lambda: b"this-boot-16-byt", topics.changing, lambda *_: None, lambda: None)
config = MemberConfig(("events",), None, None, uniform, "uniform", 300_000, 45_000)
"""


class Process:
    """What one process has open of a log."""

    def __init__(self, path, clock=SYSTEM):
        self.files, log_id, _ = open_directory(
            str(path), create=True, read_only=False, mode=0o700, allow_network_filesystem=False, clock=clock
        )
        self.topics = Topics(self.files, clock, read_only=False)
        self.groups = Groups(
            self.files, log_id, clock, lambda: BOOT, self.topics.changing, lambda *_: None, lambda: None
        )

    def close(self):
        """End it."""
        self.groups.close()
        self.topics.close()
        self.files.close()


@pytest.fixture
def path(tmp_path):
    """Where the log lies."""
    return tmp_path / "log"


@pytest.fixture
def process(path):
    """Opens the log as another process would."""
    made = []

    def open_log(**options):
        made.append(Process(path, **options))
        return made[-1]

    yield open_log
    for each in made:
        each.close()


@pytest.fixture
def group(process):
    """An open group."""
    return process().groups.open("workers")


def config(**options):
    """What a member joins with."""
    values = {
        "topics": ("events",),
        "pattern": None,
        "instance_id": None,
        "assignor": uniform,
        "assignor_name": "uniform",
        "max_poll_interval_ms": 300_000,
        "session_timeout_ms": 45_000,
    }
    return MemberConfig(**(values | options))


def join(group, *owned):
    """A member that owns these keys, and its seat."""
    with changing(group) as change:
        seat = group.sit_down(change, None)
        member = change.join(config(), seat.slot, None)
        for topic_id, number in owned:
            member.owned.setdefault(topic_id, []).append(number)
    return member, seat


def rang(seat, since):
    """Whether the bell was rung since its file had that time."""
    return os.stat(seat.bell).st_mtime_ns != since


def quiet(seat):
    """The bell's time, made old, so that any ring changes it."""
    os.utime(seat.bell, ns=(1, 1))
    return os.stat(seat.bell).st_mtime_ns


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_group_is_made_whole_at_first_use(process, path):
    """With all of its files, and nothing left of its making."""
    process().groups.open("größe")
    folder = path / "groups" / "gr%c3%b6%c3%9fe"
    assert {name.name for name in folder.iterdir()} == {"group.json", "control", "members", "offsets", "bells"}
    assert [name.name for name in (path / "groups").iterdir()] == [folder.name]


def test_members_of_a_process_share_their_descriptors(process):
    """The last one closes them."""
    groups = process().groups
    before = len(os.listdir("/proc/self/fd"))
    first, second = groups.open("workers"), groups.open("workers")
    assert first is second
    opened = len(os.listdir("/proc/self/fd"))
    assert opened > before
    groups.close_group(first)
    first.view()
    groups.close_group(second)
    assert len(os.listdir("/proc/self/fd")) < opened
    again = groups.open("workers")
    assert again is not first
    assert again.view()[1].members == []


def test_after_close_nothing_can_be_opened(process):
    """The log was closed."""
    opened = process()
    opened.groups.open("workers")
    opened.groups.close()
    opened.groups.close()
    with pytest.raises(ClosedError):
        opened.groups.open("workers")


def test_a_half_made_group_is_removed_by_the_next(process, path):
    """Its maker was killed before the rename."""
    half = path / "groups" / "~new-group"
    opened = process()
    half.mkdir(parents=True)
    (half / "bells").mkdir()
    (half / "offsets").write_bytes(b"half")
    opened.groups.open("workers")
    assert [name.name for name in (path / "groups").iterdir()] == ["workers"]


def test_a_failed_making_leaves_nothing(process, path, monkeypatch):
    """Whatever fails; the next one succeeds."""
    opened = process()
    opened.groups.open("first")

    def fail(*_, **__):
        raise OSError(5, "no")

    for name in ("make_directory", "write", "rename", "create"):
        with monkeypatch.context() as patch:
            patch.setattr(type(opened.files), name, fail)
            with pytest.raises(OSError, match="no"):
                opened.groups.open("workers")
        assert [found.name for found in (path / "groups").iterdir()] == ["first"]
    opened.groups.open("workers")


def test_processes_that_make_one_group_at_once_share_it(path, start):
    """Whoever is first makes it; all commits are in one file."""
    children = [
        start(
            OPENED
            + """
say("ready")
hear()
group = groups.open("workers")
def join(change):
    seat = group.sit_down(change, None)
    change.join(config, seat.slot, None)
    return seat

seat = group.change(join)
say("joined", seat.slot)
hear()
""",
            path,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.hear() == "ready"
    for child in children:
        child.say()
    assert sorted(child.hear() for child in children) == [f"joined {slot}" for slot in range(4)]
    assert [name.name for name in (path / "groups").iterdir()] == ["workers"]
    for child in children:
        child.say()
        child.finish()


@pytest.mark.parametrize("count", range(1, 9))
def test_a_maker_that_is_killed_at_any_step_leaves_no_half_group(path, start, process, count):
    """Either there is none, or a whole one."""
    child = start(
        OPENED
        + f"""
left = {count}
def dying(call):
    def counted(*arguments, **options):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counted
for name in ("make_directory", "write", "create", "rename", "sync_directory"):
    setattr(type(files), name, dying(getattr(type(files), name)))
groups.open("workers")
say("made")
""",
        path,
    )
    assert child.process.wait(LONG) == -signal.SIGKILL
    group = process().groups.open("workers")
    with changing(group) as change:
        assert change.state.members == []
    group.commit(None, {KEY: Committed(1, 0, 0)})
    assert sorted(name.name for name in (path / "groups").iterdir()) == ["workers"]


# --- changes ----------------------------------------------------------------------------------------------------------


def test_a_change_is_seen_by_others(process):
    """As soon as it is made; who knew the state before sees that it is another."""
    one, other = process().groups.open("workers"), process().groups.open("workers")
    sequence, state = other.view()
    assert not other.changed_since(sequence)
    member, seat = join(one, KEY)
    assert other.changed_since(sequence)
    assert other.view()[0] != sequence
    assert [each.id for each in other.view()[1].members] == [member.id]
    assert state.members == []
    seat.lock.close()


def test_a_change_that_fails_is_none(group):
    """Nothing is written, nobody rung, and the lock is free."""
    member, seat = join(group, KEY)
    before, time_before = group.view(), quiet(seat)
    with pytest.raises(ZeroDivisionError), changing(group) as change:  # noqa: PT012 - what fails is the block
        change.state.members.clear()
        change.changed = True
        change.rung.add(seat.slot)
        raise ZeroDivisionError
    assert group.view() == before
    assert not rang(seat, time_before)
    with changing(group, 0) as change:
        assert change.state.member(member.id) is not None
    seat.lock.close()


def test_a_change_of_nothing_writes_nothing(group):
    """A look under the lock is no change."""
    join(group)
    sequence, _ = group.view()
    with changing(group):
        pass
    assert not group.changed_since(sequence)


def test_who_must_act_is_rung_after_the_change_is_seen(group):
    """And others are not; a bell that is missing is no failure."""
    _, one = join(group)
    _, other = join(group)
    times = quiet(one), quiet(other)
    with changing(group) as change:
        change.rung |= {one.slot, 99}
    assert rang(one, times[0])
    assert not rang(other, times[1])
    os.unlink(other.bell)
    group.ring(other.slot)
    for seat in (one, other):
        seat.lock.close()


def test_the_lock_keeps_others_out(process):
    """Threads of this process and other opens of the group; who will not wait is told at once."""
    one, other = process().groups.open("workers"), process().groups.open("workers")
    with changing(one):
        for group in (one, other):
            with pytest.raises(GroupBusyError, match="workers"), changing(group, 0):
                pass
            with pytest.raises(LockTimeoutError) as caught, changing(group, 0.05):
                pass
            assert not isinstance(caught.value, GroupBusyError)
            with pytest.raises(GroupBusyError):
                group.commit(None, {KEY: Committed(1, 0, 0)}, 0)
    with changing(other, 0):
        pass


def test_changes_of_many_threads_are_all_made(process):
    """None is lost."""
    groups = [process().groups.open("workers") for _ in range(2)]

    def change_often(group):
        for _ in range(100):
            with changing(group, LONG) as change:
                change.state.generation += 1
                change.changed = True

    threads = [threading.Thread(target=change_often, args=(group,)) for group in groups * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert [group.view()[1].generation for group in groups] == [400, 400]


@pytest.mark.parametrize("call", ["change", "commit"])
def test_ctrl_c_anywhere_leaves_the_lock_free(group, call):
    """Whatever it interrupts: other processes would wait for as long as this one lives."""
    calls = {
        "change": lambda: group.change(lambda change: setattr(change, "changed", True)),
        "commit": lambda: group.commit(None, {KEY: Committed(1, 0, 0)}),
    }
    chance = random.Random(5)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for _ in range(1500):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 60e-6))
                for _ in range(20):
                    calls[call]()
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            group.change(lambda _: None, 0)
    except KeyboardInterrupt:
        interrupted += 1  # the last one, late
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted
    group.change(lambda _: None, 0)


# --- seats ------------------------------------------------------------------------------------------------------------


def test_the_lowest_free_seat_is_taken(group):
    """So that there are never more bells than there were members at once."""
    seats = [join(group)[1] for _ in range(3)]
    assert [seat.slot for seat in seats] == [0, 1, 2]
    seats[1].lock.close()
    with changing(group) as change:
        change.sweep()
    assert join(group)[1].slot == 1


def test_a_seat_of_somebody_who_is_no_member_any_more_is_not_taken(process):
    """It was fenced and does not know it yet: its lock is held, its polls are still written."""
    one, other = process().groups.open("workers"), process().groups.open("workers")
    member, seat = join(one)
    with changing(other) as change:
        change.remove(change.state.member(member.id))
    assert join(other)[1].slot == 1
    seat.lock.close()
    assert join(other)[1].slot == 0


def test_who_lives_is_known_to_all(process):
    """In this process, and in others; a seat that was given up is free for all."""
    one, other = process().groups.open("workers"), process().groups.open("workers")
    _, seat = join(one)
    assert one.is_alive(seat.slot)
    assert other.is_alive(seat.slot)
    assert not other.is_alive(seat.slot + 1)
    seat.lock.close()
    assert not one.is_alive(seat.slot)
    assert not other.is_alive(seat.slot)


def test_a_killed_member_is_not_alive(process, path, start):
    """As soon as its process is gone; a stopped one is."""
    child = start(
        OPENED
        + """
group = groups.open("workers")
def join(change):
    seat = group.sit_down(change, None)
    change.join(config, seat.slot, None)
    return seat

seat = group.change(join)
say(seat.slot)
hear()
""",
        path,
    )
    slot = int(child.hear())
    group = process().groups.open("workers")
    child.signal(signal.SIGSTOP)
    assert group.is_alive(slot)
    child.kill()
    assert not group.is_alive(slot)
    with changing(group) as change:
        change.sweep()
        assert change.state.members == []


def test_polls_are_told_by_slot(process):
    """Of who never polled, 0: also behind the end of the file."""
    one, other = process().groups.open("workers"), process().groups.open("workers")
    seats = [join(one)[1] for _ in range(3)]
    for number, seat in enumerate(seats):
        one.polled(seat.slot, 1000 + number)
    assert list(other.last_polls_ns(other.view()[1])) == [1000, 1001, 1002]
    os.truncate(one._control.fd, 0)
    assert list(other.last_polls_ns(other.view()[1])) == [0, 0, 0]


# --- commits ----------------------------------------------------------------------------------------------------------


def test_only_the_owner_commits(group):
    """All of it or nothing; and what was lost is lost at once."""
    other_key = (TOPIC, 1)
    member, _ = join(group, KEY)
    other, _ = join(group, other_key)
    group.commit(member.id, {KEY: Committed(5, 0, 0)})
    with pytest.raises(CommitFailedError):
        group.commit(member.id, {KEY: Committed(6, 0, 0), other_key: Committed(6, 0, 0)})
    assert group.committed(*KEY).offset == 5
    assert group.committed(*other_key) is None
    with changing(group) as change:
        change.release(change.state.member(member.id), [KEY])
        change.changed = True
    with pytest.raises(CommitFailedError):
        group.commit(member.id, {KEY: Committed(7, 0, 0)})
    with pytest.raises(CommitFailedError):
        group.commit("nobody", {KEY: Committed(7, 0, 0)})
    assert group.committed(*KEY).offset == 5
    group.commit(other.id, {other_key: Committed(7, 0, 0)})


def test_who_is_no_member_commits_only_beside_none(process):
    """Members that live; those that are gone do not count."""
    one, other = process().groups.open("workers"), process().groups.open("workers")
    other.commit(None, {KEY: Committed(1, 0, 0)})
    _, seat = join(one)
    with pytest.raises(CommitFailedError, match="another group_id"):
        other.commit(None, {KEY: Committed(2, 0, 0)})
    seat.lock.close()
    other.commit(None, {KEY: Committed(3, 0, 0)})
    assert one.committed(*KEY).offset == 3


def test_another_process_sees_a_commit_at_once(process):
    """And a topic that is forgotten."""
    one, other = process().groups.open("workers"), process().groups.open("workers")
    member, _ = join(one, KEY)
    assert other.committed(*KEY) is None
    for offset in range(3):
        one.commit(member.id, {KEY: Committed(offset, 1, 2, "note")})
        assert other.committed(*KEY) == Committed(offset, 1, 2, "note")
    with changing(one):
        one.forget_topic(TOPIC)
    assert other.committed(*KEY) is None


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Still(Clock):
    """A clock whose wall time stands."""

    def __init__(self, now_ms):
        self.now_ns = lambda: now_ms * 1_000_000


def ruin(path, what):
    """Damage both areas of the state."""
    with (path / "groups" / "workers" / "members").open("r+b") as file:
        for area in (0, 4 << 20):
            file.seek(area)
            file.write(what * 64)


@pytest.mark.parametrize("what", [b"\0", b"\xa5"], ids=["zeros", "garbage"])
@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("changes", [1, 2])
def test_a_damaged_state_is_repaired_by_the_next_change(process, path, what, parity, changes):
    """To a group without members, of a higher generation; everybody is rung, and who knew the old state sees it."""
    clock = Still(1_700_000_000_000 + parity)
    one, other = process(clock=clock).groups.open("workers"), process(clock=clock).groups.open("workers")
    for _ in range(changes):
        member, seat = join(one, KEY)
    generation = one.view()[1].generation
    before = quiet(seat)
    ruin(path, what)
    with changing(other):
        pass
    assert rang(seat, before)
    assert other.view()[1].members == []
    assert one.view()[1].members == []
    assert one.view()[1].generation > generation
    with pytest.raises(CommitFailedError):
        one.commit(member.id, {KEY: Committed(1, 0, 0)})
    newcomer, new_seat = join(other, KEY)
    assert new_seat.slot != seat.slot
    assert [each.id for each in one.view()[1].members] == [newcomer.id]


def test_a_deleted_folder_is_an_unknown_group(process, path):
    """Also when another of the same id has taken its place."""
    import shutil  # noqa: PLC0415 - for this alone

    one = process().groups.open("workers")
    member, _ = join(one, KEY)
    shutil.rmtree(path / "groups" / "workers")
    for _ in range(2):
        for call in (
            one.check_exists,
            lambda: one.commit(member.id, {KEY: Committed(1, 0, 0)}),
            lambda: one.change(lambda _: None),
        ):
            with pytest.raises(UnknownGroupError) as caught:
                call()
            assert caught.value.group_id == "workers"
        fresh = process().groups.open("workers")
        assert fresh.view()[1].members == []
        with changing(fresh, 0):
            pass
    assert fresh.committed(*KEY) is None


def test_a_seat_where_the_bells_folder_is_missing(group, path):
    """An error of the library, and the lock of the seat is free again; or the folder is made anew."""
    (path / "groups" / "workers" / "bells").rmdir()
    try:
        join(group)
    except StreamLogError as error:
        assert "bells" in str(error)  # noqa: PT017 - either is right
    assert not group.is_alive(0) or group.view()[1].members


def test_a_failed_opening_leaves_no_descriptor(process, path):
    """Of the files that could be opened."""
    opened = process()
    group = opened.groups.open("workers")
    opened.groups.close_group(group)
    (path / "groups" / "workers" / "offsets").write_bytes(b"damaged")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CorruptLogError):
            opened.groups.open("workers")
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- forked children --------------------------------------------------------------------------------------------------


def test_forked_child_opens_groups_anew(process):
    """Without its parent's descriptors and seats, while another thread of the parent holds every lock."""
    opened = process()
    group = opened.groups.open("workers")
    member, seat = join(group, KEY)
    with opened.groups._lock, changing(group):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                signal.alarm(int(LONG))
                code = 0 if child_is_right(opened.groups, group, seat) else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert group.is_alive(seat.slot)
    group.commit(member.id, {KEY: Committed(1, 0, 0)})


def child_is_right(groups, group, seat):
    """In a forked child: its parent's group is closed, its own works, and sees the parent's seat taken."""
    try:
        group.view()
    except (OSError, StreamLogError, TypeError):
        pass
    else:
        return False
    end = time.monotonic() + LONG
    mine = groups.open("workers")
    while time.monotonic() < end:
        try:
            with changing(mine, 0):
                break
        except GroupBusyError:
            time.sleep(0.001)
    return isinstance(mine, Group) and mine is not group and mine.is_alive(seat.slot) and not seat.lock.locked


def test_owned_keys_survive_the_file(group):
    """What a member owns is what the next reader is told."""
    member, _ = join(group, (TOPIC, 2), (TOPIC, 5))
    assert set(keys_of(group.view()[1].member(member.id).owned)) == {(TOPIC, 2), (TOPIC, 5)}
