"""Deleting groups and their offsets: whole or not at all, whoever dies when; no transaction brings them back."""

import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest

from pystreamlog import TopicPartition
from pystreamlog.coordination import offset_layout
from pystreamlog.coordination.damaged_group import DamagedGroup
from pystreamlog.coordination.group_offsets import delete_group
from pystreamlog.coordination.transaction_log import Transactions
from pystreamlog.errors import CorruptLogError, GroupNotEmptyError, UnknownGroupError
from pystreamlog.storage.files import File, Files

from .committing import commit, committed, die, in_child, opened

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

CALLS = [
    (File, "pwrite"),
    (Files, "rename"),
    (Files, "unlink"),
    (Files, "remove_directory"),
    (Files, "sync_directory"),
    (Files, "write"),
]


@pytest.fixture
def path(tmp_path):
    """A log with a topic of nine records, in whose partitions group "g" has committed by a transaction."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.create_topic("in", partitions=2)
        log.create_topic("out")
        for number in range(18):
            log.topic("in").append(b"%d" % number, partition=number % 2)
        commit(log, ("out", 0, b"0"), offsets={0: 4, 1: 5})
    return path


def offsets(log, group_id="g"):
    """What the admin says that a group has committed."""
    found = log.admin.list_consumer_group_offsets(group_id)[group_id]
    return {tp.partition: each.offset for tp, each in found.items()}


def put(log, number, offset):
    """Commit in one partition."""
    log.admin.alter_consumer_group_offsets("g", {TopicPartition("in", number): offset})


def dying_at(monkeypatch, number):
    """Have the process die just before the given one of the calls that change files."""
    count = 0

    def patched(real):
        def call(self, *arguments, **options):
            nonlocal count
            count += 1
            if count == number:
                die()
            return real(self, *arguments, **options)

        return call

    for owner, name in CALLS:
        monkeypatch.setattr(owner, name, patched(getattr(owner, name)))


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_killed_deletion_leaves_a_whole_group_or_none(path, tmp_path, monkeypatch, durability):
    """At whatever call the process dies; and a group of that name is made anew, or goes on."""
    with opened(path) as log:
        commit(log, ("out", 0, b"1"), offsets={0: 6}, durability=durability)
    found = set()
    for number in range(1, 100):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(path, copy)
        with opened(copy) as log:  # so that its files are of this place
            assert offsets(log) == {0: 6, 1: 5}
        with opened(copy) as other, other.consumer(group_id="g", enable_auto_commit=False) as consumer:
            consumer.assign([TopicPartition("in", 1)])

            def work(copy=copy, number=number):
                with opened(copy) as log, monkeypatch.context() as patch:
                    dying_at(patch, number)
                    log.admin.delete_consumer_groups("g")

            ended = in_child(work)
            with opened(copy) as log:
                is_there = bool(log.admin.list_consumer_groups())
                found.add(is_there)
                assert offsets(log) == ({0: 6, 1: 5} if is_there else {})
                if is_there:
                    consumer.commit({TopicPartition("in", 1): 7})
                    assert offsets(log) == {0: 6, 1: 7}
                else:
                    with pytest.raises(UnknownGroupError):
                        consumer.commit({TopicPartition("in", 1): 7})
                    put(log, 0, 2)
                    with pytest.raises(UnknownGroupError):
                        consumer.commit({TopicPartition("in", 1): 7})
                    assert offsets(log) == {0: 2}
                    assert log.verify().ok
                    assert [entry.name for entry in Path(copy, "groups").iterdir()] == ["g"]
        shutil.rmtree(copy)
        if not ended:
            break
    assert found == {True, False}
    assert number > 8


@pytest.mark.parametrize("durability", ["os", "fsync"])
@pytest.mark.parametrize("anew", [False, True])
def test_recovery_brings_no_deleted_group_back(path, anew, durability):
    """Neither what it had committed, nor into a group of its name that was made since."""
    with opened(path) as log:
        commit(log, ("out", 0, b"1"), offsets={0: 6}, durability=durability)
        log.admin.delete_consumer_groups("g")
        if anew:
            put(log, 0, 1)
    with opened(path, 1) as log:
        assert offsets(log) == ({0: 1} if anew else {})
        assert committed(log) == (1 if anew else None)
        assert committed(log, 1) is None
        commit(log, offsets={1: 8}, durability="fsync")
    with opened(path, 2) as log:
        assert offsets(log) == ({0: 1} if anew else {}) | {1: 8}


def test_recovery_brings_back_what_a_new_group_committed_by_transactions(path):
    """Its entries come after those that do not concern it."""
    with opened(path) as log:
        log.admin.delete_consumer_groups("g")
        commit(log, offsets={0: 3}, durability="fsync")
        offsets_file = Path(path, "groups", "g", "offsets")
        before = offsets_file.read_bytes()
        commit(log, offsets={0: 7, 1: 2}, durability="fsync")
    offsets_file.write_bytes(before)  # as a committer leaves it that dies before it stores them
    with opened(path, 1) as log:
        assert offsets(log) == {0: 7, 1: 2}


def test_recovery_brings_no_deleted_offset_back(path):
    """The group's others stay, and what is committed in that partition later too."""
    with opened(path) as log:
        log.admin.delete_consumer_group_offsets("g", [TopicPartition("in", 0)])
        assert offsets(log) == {1: 5}
    with opened(path, 1) as log:
        assert offsets(log) == {1: 5}
        commit(log, offsets={0: 9})
    with opened(path, 2) as log:
        assert offsets(log) == {0: 9, 1: 5}


def test_recovery_leaves_altered_offsets(path):
    """Though the transaction before them was not known to be on disk."""
    with opened(path) as log:
        put(log, 0, 1)
        assert offsets(log) == {0: 1, 1: 5}
    with opened(path, 1) as log:
        assert offsets(log) == {0: 1, 1: 5}


@pytest.fixture
def unstored(path, monkeypatch):
    """A transaction of a dead committer whose offsets nobody has stored yet."""

    def commit_and_die():
        with opened(path) as log:
            monkeypatch.setattr("pystreamlog.coordination.group.Group.store", die)
            commit(log, offsets={0: 8})

    assert in_child(commit_and_die) < 0


@pytest.mark.usefixtures("unstored")
def test_transaction_of_a_dead_committer_is_gone_with_its_group(path):
    """One whose offsets nobody had stored yet."""
    with opened(path, read_only=True) as log:
        assert offsets(log) == {0: 8, 1: 5}
    with opened(path) as log:
        log.admin.delete_consumer_groups("g")
        assert offsets(log) == {}
        put(log, 1, 3)
        assert offsets(log) == {1: 3}
    with opened(path, 1) as log:
        assert offsets(log) == {1: 3}


def test_transaction_that_comes_between_is_settled_too(path, monkeypatch):
    """A group is deleted only while the journal says nothing of it that is in doubt."""
    settle = Transactions.settle
    rounds = []

    with opened(path) as log, opened(path) as other:

        def then_commit(self):
            settle(self)
            rounds.append(self)
            if len(rounds) <= 3:
                commit(other, offsets={0: len(rounds)})

        with monkeypatch.context() as patch:
            patch.setattr(Transactions, "settle", then_commit)
            log.admin.delete_consumer_groups("g")
        assert len(rounds) == 4
        assert offsets(other) == {}
    with opened(path, 1) as log:
        assert offsets(log) == {}


def test_group_that_is_deleted_while_it_is_opened_is_made_anew(path, monkeypatch):
    """Its files are all of one group: never those of two."""
    with opened(path) as log, opened(path) as other:
        real = Files.open
        left = [2]

        def open_file(self, name, **options):
            file = real(self, name, **options)
            if self is log._files and name == "groups/g/control" and left[0]:
                left[0] -= 1
                other.admin.delete_consumer_groups("g")
                put(other, 0, left[0])
            return file

        with monkeypatch.context() as patch:
            patch.setattr(Files, "open", open_file)
            assert committed(log) == 0
            assert left == [0]
            left[0] = 1
            assert offsets(log) == {0: 0}


def test_dead_member_is_none_after_a_restart_of_the_machine(path):
    """Its lock went with its process; a static one may come back first."""
    for number, instance_id in enumerate((None, "one")):
        with opened(path, number) as log:
            put(log, 0, 1)

            def join_and_die(number=number, instance_id=instance_id):
                with opened(path, number) as log:
                    log.consumer("in", group_id="g", group_instance_id=instance_id).poll(0)
                    die()

            assert in_child(join_and_die) < 0
        with opened(path, number + 1) as log:
            if instance_id is None:
                log.admin.delete_consumer_groups("g")
                continue
            with pytest.raises(ExceptionGroup) as caught:
                log.admin.delete_consumer_groups("g")
            assert isinstance(caught.value.exceptions[0], GroupNotEmptyError)


# --- groups whose offsets are damaged


def cut_short(file):
    """Not even the header is left."""
    os.truncate(file, 5)


def cut_entries(file):
    """The header and the table are left, of the entries nothing."""
    os.truncate(file, 4096)


def flip_header(file):
    """A bit of the header is another."""
    raw = bytearray(file.read_bytes())
    raw[20] ^= 1
    file.write_bytes(raw)


def of_another_group(file):
    """Files were swapped."""
    file.write_bytes(offset_layout.image(bytes(16), "other"))


DAMAGES = [cut_short, cut_entries, flip_header, of_another_group, os.unlink]


@pytest.mark.usefixtures("unstored")
@pytest.mark.parametrize("damage", DAMAGES)
def test_group_with_damaged_offsets_is_deleted_and_made_anew(path, tmp_path, damage):
    """What needs the offsets says so; a transaction, also one that nobody has stored yet, brings nothing back."""
    damage(Path(path, "groups", "g", "offsets"))
    advice = r"or delete the group, with delete_consumer_groups\(\), and set its offsets anew"
    with opened(path) as log:
        with pytest.raises(ExceptionGroup) as caught:
            offsets(log)
        assert caught.group_contains(CorruptLogError, match=advice)
        with pytest.raises(ExceptionGroup) as caught:
            put(log, 0, 3)
        assert caught.group_contains(CorruptLogError, match=advice)
        with pytest.raises(CorruptLogError, match=advice):
            log.snapshot(tmp_path / "snapshot")
        assert any("delete the group" in each.message for each in log.repair().damages)
        log.admin.delete_consumer_groups("g")
        assert [entry.name for entry in Path(path, "groups").iterdir()] == []
        log.snapshot(tmp_path / "snapshot")
        put(log, 1, 3)
        assert offsets(log) == {1: 3}
        assert log.verify().ok
    with opened(path, 1) as log:
        assert offsets(log) == {1: 3}


@pytest.mark.parametrize("damage", DAMAGES)
def test_group_with_damaged_offsets_and_members_stays(path, damage):
    """Its members still read: they close first, or are taken out."""
    with opened(path) as log, opened(path) as other:
        with other.consumer("in", group_id="g", enable_auto_commit=False) as consumer:
            consumer.poll(0)
            damage(Path(path, "groups", "g", "offsets"))
            with pytest.raises(ExceptionGroup) as caught:
                log.admin.delete_consumer_groups("g")
            assert caught.group_contains(GroupNotEmptyError)
            assert Path(path, "groups", "g").exists()
        log.admin.delete_consumer_groups("g")
        assert log.admin.list_consumer_groups() == []


def test_static_member_of_a_damaged_group_is_waited_for(path):
    """As of any group: its time runs from when it was found gone."""
    with opened(path) as log:

        def join_and_die():
            with opened(path) as log:
                log.consumer("in", group_id="g", group_instance_id="one", session_timeout_ms=200).poll(0)
                die()

        assert in_child(join_and_die) < 0
        cut_short(Path(path, "groups", "g", "offsets"))
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.delete_consumer_groups("g")
        assert caught.group_contains(GroupNotEmptyError)
        deadline = time.monotonic() + 30
        while Path(path, "groups", "g").exists():
            assert time.monotonic() < deadline
            with contextlib.suppress(ExceptionGroup):
                log.admin.delete_consumer_groups("g")


@pytest.mark.parametrize("name", ["group.json", "control", "members"])
def test_group_that_lacks_more_is_not_deleted(path, name):
    """Which group it is, or who is in it, is not known: the error says what to do."""
    Path(path, "groups", "g", "offsets").unlink()
    Path(path, "groups", "g", name).unlink()
    with opened(path) as log, pytest.raises(ExceptionGroup) as caught:
        log.admin.delete_consumer_groups("g")
    assert caught.group_contains(CorruptLogError, match="restore the folder")
    assert Path(path, "groups", "g").exists()


def test_damaged_group_that_another_process_deletes_is_none(path):
    """Whoever waited for its lock meanwhile is told."""
    cut_short(Path(path, "groups", "g", "offsets"))
    with opened(path) as log:
        context = log.admin._context
        group = DamagedGroup(context.files, "g", clock=context.clock, boot_id=context.boot_id)
        try:
            log.admin.delete_consumer_groups("g")
            with pytest.raises(UnknownGroupError):
                delete_group(context.groups, context.transactions, group)
        finally:
            group.close()
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.delete_consumer_groups("g")
        assert caught.group_contains(UnknownGroupError)
