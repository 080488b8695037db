"""Damage to a group's files, and disks that refuse: an error or a repair, never offsets that are silently gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time

import pytest

import pystreamlog
from pystreamlog import OffsetAndMetadata, TopicPartition
from pystreamlog.clock import Clock
from pystreamlog.coordination import offset_layout as layout
from pystreamlog.coordination.group import Group
from pystreamlog.coordination.group_state import _AREA, StateFile, keys_of
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import (
    ClosedError,
    CommitFailedError,
    CorruptLogError,
    IncompatibleFormatError,
    ReadOnlyError,
    StorageError,
    StreamLogError,
    UnknownGroupError,
)
from pystreamlog.storage import format as partition_layout
from pystreamlog.storage.files import File
from tests.coordination import conftest as programs

from .conftest import PATIENCE
from .members import GROUP, TOPIC, group_folder, group_state, poll_until, starting, until

PARTITIONS = 4
ALL = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
LONG = programs.LONG

start = programs.start
nobody = programs.nobody
public_path = programs.public_path
mounted = programs.mounted


class Told:
    """The callbacks of one consumer."""

    def __init__(self):
        self.assigned, self.revoked, self.lost = [], [], []

    def options(self):
        """As settings of a consumer."""
        return {
            "on_assign": lambda _, tps: self.assigned.append(tps),
            "on_revoke": lambda _, tps: self.revoked.append(tps),
            "on_lost": lambda _, tps: self.lost.append(tps),
        }


@pytest.fixture
def events(log):
    """The topic, with three records in each of its partitions."""
    topic = log.create_topic(TOPIC, partitions=PARTITIONS)
    fill(log, 3)
    return topic


def fill(log, count):
    """Append some records to each partition."""
    with log.producer() as producer:
        for number in range(count):
            for tp in ALL:
                producer.send(TOPIC, b"%d" % number, partition=tp.partition)


def join(log, group=GROUP, **options):
    """A member that commits by hand."""
    options = {"auto_offset_reset": "earliest", "enable_auto_commit": False} | options
    return log.consumer(TOPIC, group_id=group, **options)


def settle(*consumers, count=PARTITIONS, timeout=PATIENCE):
    """Poll in turn, until these members have all partitions, each its part; what they read meanwhile."""
    end = time.monotonic() + timeout
    seen = []
    while True:
        for consumer in consumers:
            seen += consumer.poll(0)
        owned = [consumer.assignment() for consumer in consumers]
        least = count // len(consumers)
        if len(set().union(*owned)) == sum(map(len, owned)) == count and all(len(each) >= least for each in owned):
            return seen
        assert time.monotonic() < end, owned
        time.sleep(0.001)


def committed(log, group=GROUP):
    """The offsets that are committed, by partition; None where nothing is."""
    with log.consumer(group_id=group) as consumer:
        found = consumer.committed(*ALL)
    return [None if found[tp] is None else found[tp].offset for tp in ALL]


def overwrite(name, data, position=0):
    """Damage a file in place."""
    fd = os.open(name, os.O_WRONLY)
    os.pwrite(fd, data, position)
    os.close(fd)


def ruin_members(path, what=b"\xa5", group=GROUP):
    """Damage both areas of `members`: fill their heads and the beginning of the state."""
    for area in (0, _AREA):
        overwrite(group_folder(path, group) / "members", what * 64, area)


def no_partition_has_two_owners(path):
    """In the group's state nobody owns what another does."""
    owned = [key for member in group_state(path).members for key in keys_of(member.owned)]
    assert len(owned) == len(set(owned))


# --- `members` --------------------------------------------------------------------------------------------------------


class Still(Clock):
    """A clock whose wall time stands."""

    def __init__(self, now_ms):
        self.now_ns = lambda: now_ms * 1_000_000


@pytest.mark.parametrize("what", [b"\0", b"\xa5", b"\xff"], ids=["zeros", "garbage", "ones"])
@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("changes", [0, 1])
def test_members_damaged_in_both_areas_while_members_live(path, caplog, what, parity, changes):
    """All rejoin, with their offsets; afterwards nobody owns what another does, and nobody commits in its place.

    The repair begins a new sequence; whatever sequence a member had seen before, it must notice.
    """
    clock = Still(1_700_000_000_000 + parity)
    with EmbeddedLog(path, clock=clock) as log, EmbeddedLog(path, clock=clock) as other_log:
        log.create_topic(TOPIC, partitions=PARTITIONS)
        fill(log, 3)
        one, told = None, Told()
        one = join(log, **told.options())
        settle(one)
        one.commit(dict.fromkeys(ALL, 2))
        if changes:
            with join(log) as short:
                settle(one, short)
            settle(one)
        generation = group_state(path).generation
        ruin_members(path, what)
        newcomer = join(other_log)
        newcomer.poll(0)
        assert newcomer.assignment() == set(ALL)  # it found a group without members
        if told.lost == []:
            with pytest.raises(CommitFailedError):
                one.commit(dict.fromkeys(ALL, 1))
        settle(one, newcomer)
        assert told.lost == [ALL]
        assert group_state(path).generation > generation
        no_partition_has_two_owners(path)
        assert committed(log) == [2] * PARTITIONS
        for consumer in (one, newcomer):
            consumer.commit(dict.fromkeys(consumer.assignment(), 3))
        assert committed(log) == [3] * PARTITIONS
        one.close()
        newcomer.close()


def are_shared(assignment, members):
    """Whether a consumer and members in other processes have all partitions between them."""
    for each in members:
        each.note()
    owned = [{tp.partition for tp in assignment}, *(each.owned for each in members)]
    return sorted(number for share in owned for number in share) == [0, 1, 2, 3] and all(owned)


def test_members_damaged_in_both_areas_under_other_processes(log, events, path):
    """Members that wait, and know the state by heart, are woken by the repair and join again."""
    with starting(path) as start_member:
        members = [start_member() for _ in range(2)]
        until(lambda: [each.note() or len(each.owned) for each in members] == [2, 2])
        ruin_members(path)
        with join(log) as newcomer:
            poll_until(newcomer, lambda: len(newcomer.assignment()) in (1, 2))
            poll_until(newcomer, lambda: are_shared(newcomer.assignment(), members))
        until(lambda: [each.note() or len(each.owned) for each in members] == [2, 2])
        for each in members:
            assert (
                each.do("consumer.commit({TopicPartition('events', p.partition): 1 for p in consumer.assignment()})")
                is None
            )
    assert committed(log) == [1] * PARTITIONS
    no_partition_has_two_owners(path)


@pytest.mark.parametrize("what", [b"\0", b"\xa5", b"\xff"], ids=["zeros", "garbage", "ones"])
def test_members_damaged_while_nobody_lives(log, events, path, what):
    """The next member joins, at a higher generation, where the group committed."""
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 2))
    generation = group_state(path).generation
    ruin_members(path, what)
    with pystreamlog.open(path) as again, join(again) as consumer:
        read = settle(consumer)
        while len(read) < PARTITIONS:
            read += consumer.poll(PATIENCE)
        assert sorted((record.partition, record.offset) for record in read) == [(number, 2) for number in range(4)]
    assert group_state(path).generation > generation


@pytest.mark.parametrize("newer", [True, False])
def test_one_damaged_area_of_members(log, events, path, newer):
    """Members settle again, without two owners."""
    one, other = join(log), join(log)
    settle(one, other)
    fd = os.open(group_folder(path) / "members", os.O_RDONLY)
    sequence, _ = StateFile(File(fd, "members")).read()
    os.close(fd)
    overwrite(group_folder(path) / "members", b"\xa5" * 64, ((sequence + (not newer)) & 1) * _AREA)
    with pystreamlog.open(path) as other_log, join(other_log) as third:
        settle(one, other, third)
        no_partition_has_two_owners(path)
        for consumer in (one, other, third):
            consumer.commit(dict.fromkeys(consumer.assignment(), 3))
    settle(one, other)
    assert committed(log) == [3] * PARTITIONS


@pytest.mark.parametrize("size", [0, 10, 100, _AREA, _AREA + 10])
def test_members_cut_short(log, events, path, size):
    """As damaged: a state, or none, is repaired by the next change."""
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 2))
    os.truncate(group_folder(path) / "members", size)
    with pystreamlog.open(path) as again, join(again) as one, join(again) as other:
        settle(one, other)
        no_partition_has_two_owners(path)
    assert committed(log) == [2] * PARTITIONS


# --- `offsets` --------------------------------------------------------------------------------------------------------


def ruin_entry(path, number, copies=2):
    """Damage the copies of the n-th entry of the offsets file."""
    first = layout.PAGE_SIZE + number * layout.ENTRY_SIZE
    for copy in range(copies):
        overwrite(group_folder(path) / "offsets", b"\xa5" * 16, first + copy * layout.COPY_SIZE + 24)


def assign_and(consumer, partitions, call):
    """Assign partitions, and go on."""
    consumer.assign(partitions)
    call()


def test_offset_damaged_in_both_copies_is_never_a_reset(log, events, path):
    """Reading on from there, asking for it and committing it all say so; intact ones are served."""
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 2))
    ruin_entry(path, 0)
    with pystreamlog.open(path) as again:
        lookup = again.consumer(group_id=GROUP)
        outcomes = {}
        for tp in ALL:
            try:
                outcomes[tp] = lookup.committed(tp)[tp]
            except CorruptLogError as error:
                outcomes[tp] = error
        damaged = [tp for tp in ALL if isinstance(outcomes[tp], CorruptLogError)]
        assert len(damaged) == 1
        assert [outcomes[tp] for tp in ALL if tp not in damaged] == [OffsetAndMetadata(2)] * (PARTITIONS - 1)
        with pytest.raises(CorruptLogError, match="offsets"):
            assign_and(lookup, damaged, lambda: lookup.commit({damaged[0]: 1}))
        lookup.close(commit=False)
        with join(again) as consumer:
            for _ in range(3):
                with pytest.raises(CorruptLogError, match="offsets"):
                    consumer.poll(0)


def test_assigned_partition_with_a_damaged_offset_is_not_read_from_elsewhere(log, events, path):
    """`auto_offset_reset` is for partitions of which nothing is committed, and that is not known here."""
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 2))
    for number in range(PARTITIONS):
        ruin_entry(path, number)
    with pystreamlog.open(path) as again:
        consumer = again.consumer(group_id=GROUP, auto_offset_reset="earliest")
        for _ in range(3):
            with pytest.raises(CorruptLogError, match="offsets"):
                assign_and(consumer, ALL, lambda: consumer.poll(0))


@pytest.mark.parametrize("reset", ["earliest", "latest"])
@pytest.mark.parametrize("member", [True, False], ids=["group", "assign"])
def test_offset_that_cannot_be_read_once_is_never_a_reset(log, events, path, monkeypatch, member, reset):
    """The disk fails in the moment in which a member looks where to start: it starts there when the disk is back."""
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 2))
    with pystreamlog.open(path) as again:
        consumer = again.consumer(group_id=GROUP, auto_offset_reset=reset, enable_auto_commit=False)
        committed_at, failures = Group.committed, [StorageError("I/O error", errno=5)] * 2

        def failing(self, topic_id, partition):
            if failures:
                raise failures.pop()
            return committed_at(self, topic_id, partition)

        monkeypatch.setattr(Group, "committed", failing)
        seen = []

        def read():
            consumer.subscribe(TOPIC) if member else consumer.assign(ALL)
            while len(seen) < PARTITIONS:
                records = consumer.poll(2)
                assert records, seen
                seen.extend((record.partition, record.offset) for record in records)

        for _ in range(2):
            with pytest.raises(StorageError):
                read()
        read()
    assert sorted(seen) == [(number, 2) for number in range(PARTITIONS)]


def test_offset_damaged_under_a_live_member(log, events, path):
    """Its commit of that partition is refused; it is not put somewhere else, and the others are committed."""
    consumer = join(log)
    settle(consumer)
    consumer.commit(dict.fromkeys(ALL, 1))
    ruin_entry(path, 0)
    outcomes = []
    for tp in ALL:
        try:
            consumer.commit({tp: 3})
            outcomes.append(3)
        except CorruptLogError:
            outcomes.append(None)
    assert sorted(outcomes, key=str) == [3, 3, 3, None]
    damaged = ALL[outcomes.index(None)]
    with pytest.raises(CorruptLogError, match="offsets"):
        consumer.committed(damaged)
    with pytest.raises(CorruptLogError, match="offsets"):
        consumer.commit(dict.fromkeys(ALL, 2))
    with pytest.raises(CorruptLogError, match="offsets"):
        consumer.close(commit=True)
    with pytest.raises(ClosedError):
        consumer.poll(0)


def test_one_damaged_copy_costs_at_most_the_last_commit(log, events, path):
    """The other one rules."""
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 1))
        consumer.commit(dict.fromkeys(ALL, 2))
    for number in range(PARTITIONS):
        ruin_entry(path, number, copies=1)
    with pystreamlog.open(path) as again:
        assert set(committed(again)) <= {1, 2}
        with join(again) as consumer:
            settle(consumer)
            consumer.commit(dict.fromkeys(ALL, 3))
        assert committed(again) == [3] * PARTITIONS


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut in the header", "cut in the table", "cut in the entries", "zeros"]
)
def test_offsets_file_missing_or_cut(log, events, path, damage):
    """A new consumer is refused, or its poll is; nothing is made anew in its place."""
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 2))
    name = group_folder(path) / "offsets"
    size = {"empty": 0, "cut in the header": 20, "cut in the table": 700, "cut in the entries": 4096 + 128}
    if damage == "missing":
        name.unlink()
    elif damage == "zeros":
        name.write_bytes(bytes(name.stat().st_size))
    else:
        os.truncate(name, size[damage])
    before = name.read_bytes() if name.exists() else None
    with pystreamlog.open(path) as again:
        for _ in range(2):
            with pytest.raises(CorruptLogError, match="offsets"), join(again) as consumer:
                consumer.poll(0)
    assert (name.read_bytes() if name.exists() else None) == before


def test_offsets_file_of_another_group(log, events, path):
    """Swapped files are noticed."""
    for group, offset in ((GROUP, 1), ("other", 2)):
        with join(log, group) as consumer:
            settle(consumer)
            consumer.commit(dict.fromkeys(ALL, offset))
    shutil.copy(group_folder(path, "other") / "offsets", group_folder(path) / "offsets")
    with pystreamlog.open(path) as again:
        with pytest.raises(CorruptLogError, match="belongs to another"):
            join(again)
        assert committed(again, "other") == [2] * PARTITIONS


# --- the other files --------------------------------------------------------------------------------------------------


def made_group(log, path):
    """The folder of a group that committed."""
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 2))
    return group_folder(path)


@pytest.mark.parametrize(
    ("contents", "error"),
    [
        (None, CorruptLogError),
        (b"", CorruptLogError),
        (b"{", CorruptLogError),
        (b"[" * 10_000, CorruptLogError),
        (b"\xff" * (100 << 10), CorruptLogError),
        (b'{"format": "x"}', CorruptLogError),
        (b'{"format": 1}', CorruptLogError),
        (b'{"format": 1, "id": "other", "created_ms": 1}', CorruptLogError),
        (b'{"format": 2}', IncompatibleFormatError),
    ],
    ids=["missing", "empty", "cut", "deep", "large", "wrong type", "incomplete", "another", "newer"],
)
def test_damaged_group_json_is_refused(log, events, path, contents, error):
    """It names the file; the group is not made anew."""
    name = made_group(log, path) / "group.json"
    if contents is None:
        name.unlink()
    else:
        name.write_bytes(contents)
    with pystreamlog.open(path) as again:
        with pytest.raises(error, match=r"group\.json"):
            join(again)
        with pytest.raises(error, match=r"group\.json"):
            again.consumer(group_id=GROUP)


@pytest.mark.parametrize("file", ["control", "members"])
def test_missing_file_is_refused(log, events, path, file):
    """It is named; nobody makes another beside members who have the old one open."""
    (made_group(log, path) / file).unlink()
    with pystreamlog.open(path) as again, pytest.raises(CorruptLogError, match=file):
        join(again)
    assert not (group_folder(path) / file).exists()


def test_missing_bells_folder(log, events, path):
    """Said so, or made again; nothing else than an error of the library leaves a poll."""
    shutil.rmtree(made_group(log, path) / "bells")
    with pystreamlog.open(path) as again, join(again) as consumer:
        for _ in range(2):
            try:
                settle(consumer, timeout=1)
            except CorruptLogError as error:
                assert "bells" in str(error)  # noqa: PT017 - either is right
    assert committed(log) == [2] * PARTITIONS


def test_bells_folder_removed_under_live_members(log, events, path):
    """They go on; and whoever comes is told, or comes."""
    one = join(log)
    settle(one)
    shutil.rmtree(group_folder(path) / "bells")
    one.poll(0)
    one.commit(dict.fromkeys(ALL, 2))
    with pystreamlog.open(path) as again:
        other = join(again)
        try:
            settle(one, other, timeout=PATIENCE)
        except CorruptLogError as error:
            assert "bells" in str(error)  # noqa: PT017 - either is right
        other.close()
    one.poll(0)
    one.close()
    assert committed(log) == [2] * PARTITIONS


def replaced(name, kind, target):
    """Put something else in the place of a file."""
    if name.is_dir():
        shutil.rmtree(name)
    elif name.exists():
        name.unlink()
    if kind == "link":
        name.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(name)
    else:
        name.mkdir()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
@pytest.mark.parametrize("file", ["control", "members", "offsets", "group.json"])
def test_something_else_in_a_files_place(log, events, path, tmp_path, file, kind):
    """It is refused at once, and nothing outside the log is read or written."""
    folder = made_group(log, path)
    outside = tmp_path / "outside"
    shutil.copy(folder / file, outside)
    before = outside.read_bytes()
    replaced(folder / file, kind, outside)
    with pystreamlog.open(path) as again, pytest.raises(CorruptLogError, match=file):
        join(again)
    assert outside.read_bytes() == before


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_something_else_in_a_bells_place(log, events, path, tmp_path, kind):
    """Ringing it neither blocks nor writes outside; its member still gives up what it must."""
    folder = made_group(log, path)
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    for slot in range(4):
        replaced(folder / "bells" / str(slot), kind, outside)
    with pystreamlog.open(path) as again, starting(path) as start_member:
        member = None
        try:
            member = start_member()
            member.until_it_owns(*range(PARTITIONS))
            with join(again) as consumer:
                poll_until(consumer, lambda: len(consumer.assignment()) == PARTITIONS // 2)
        except CorruptLogError as error:
            assert "bells" in str(error)  # noqa: PT017 - either is right
    assert outside.read_bytes() == b"untouched"


@pytest.mark.parametrize("which", ["groups", "group", "bells"])
def test_link_in_a_folders_place(log, events, path, tmp_path, which):
    """It is not followed."""
    folder = made_group(log, path)
    place = {"groups": folder.parent, "group": folder, "bells": folder / "bells"}[which]
    outside = tmp_path / "outside"
    shutil.move(place, outside)
    place.symlink_to(outside)
    before = {name: name.read_bytes() for name in outside.rglob("*") if name.is_file()}
    with pystreamlog.open(path) as again, pytest.raises(CorruptLogError), join(again) as consumer:
        consumer.poll(0)
    assert {name: name.read_bytes() for name in outside.rglob("*") if name.is_file()} == before


# --- deleted folders --------------------------------------------------------------------------------------------------


def polls(consumer, count=20):
    """The errors of some polls."""
    errors = []
    for _ in range(count):
        try:
            consumer.poll(0.002)
        except StreamLogError as error:
            errors.append(error)
    return errors


@pytest.mark.parametrize("way", ["close", "close(commit=True)", "with", "log", "async"])
def test_group_folder_deleted_under_live_members(log, events, path, way):
    """Polls, commits say so, callbacks are told at most once, and everything can be closed."""
    told = Told()
    other_log = pystreamlog.open(path)
    consumer, other = join(other_log, **told.options()), join(log)
    settle(consumer, other)
    mine = consumer.assignment()
    shutil.rmtree(group_folder(path))
    for each in (consumer, other):
        errors = polls(each)
        assert errors
        assert {type(error) for error in errors} == {UnknownGroupError}
        assert errors[0].group_id == GROUP
        with pytest.raises(UnknownGroupError):
            each.commit(dict.fromkeys(mine if each is consumer else set(ALL) - mine, 1))
    assert told.revoked[1:] == []
    assert told.lost == []
    revoked = list(told.revoked)
    errors = []
    try:
        if way == "log":
            other_log.close()
        elif way == "async":
            asyncio.run(consumer.close_async())
        elif way == "with":
            with consumer:
                pass
        else:
            consumer.close(**({"commit": True} if "commit" in way else {}))
    except* UnknownGroupError as group:
        errors += group.exceptions
    with pytest.raises(ClosedError):
        consumer.poll(0)
    consumer.close()
    assert len(told.revoked) + len(told.lost) <= len(revoked) + 1
    other_log.close()
    with pytest.raises(UnknownGroupError):
        other.close()
    other.close()
    assert not group_folder(path).exists()


def test_group_deleted_and_begun_anew(log, events, path):
    """A new consumer begins the group anew, as the error says; the old members never touch it."""
    with pystreamlog.open(path) as other_log:
        old = join(log)
        settle(old)
        old.commit(dict.fromkeys(ALL, 2))
        shutil.rmtree(group_folder(path))
        fresh = join(other_log)
        settle(fresh)
        assert set(committed(other_log)) == {0}
        fresh.commit(dict.fromkeys(ALL, 1))
        for _ in range(3):
            with pytest.raises(UnknownGroupError):
                old.commit(dict.fromkeys(ALL, 3))
        assert polls(old)
        assert committed(other_log) == [1] * PARTITIONS
        with pytest.raises(UnknownGroupError):
            old.close()
        fresh.close()


def test_group_deleted_and_begun_anew_by_a_process_that_still_has_an_old_member(log, events, path):
    """The error says: make a new consumer. That must work, whether or not the old one was closed."""
    old = join(log)
    settle(old)
    shutil.rmtree(group_folder(path))
    assert polls(old)
    fresh = join(log)
    settle(fresh)
    fresh.close()
    with pytest.raises(UnknownGroupError):
        old.close()


def test_whole_log_deleted_under_live_members(log, events, path):
    """Polls end by an error of the library, callbacks are told at most once, and everything can be closed."""
    told = Told()
    other_log = pystreamlog.open(path)
    consumer = join(other_log, **told.options())
    settle(consumer)
    revoked = len(told.revoked)
    shutil.rmtree(path)
    errors = polls(consumer)
    assert errors
    assert all(isinstance(error, StreamLogError) for error in errors)
    with pytest.raises(StreamLogError):
        consumer.commit(dict.fromkeys(ALL, 1))
    with contextlib.suppress(StreamLogError):
        consumer.close()
    with pytest.raises(ClosedError):
        consumer.poll(0)
    assert len(told.revoked) + len(told.lost) <= revoked + 1
    other_log.close()
    assert not os.path.exists(path)


# --- who may not write ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("topics", [(TOPIC,), ()])
def test_read_only_log_has_no_groups(log, events, path, made, topics):
    """Neither one that there is nor one that there is not; nothing is written."""
    if made:
        made_group(log, path)
    before = {str(name): name.stat().st_mtime_ns for name in group_folder(path).rglob("*")}
    with pystreamlog.open(path, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.consumer(*topics, group_id=GROUP)
    assert {str(name): name.stat().st_mtime_ns for name in group_folder(path).rglob("*")} == before
    assert group_folder(path).exists() == made


def test_another_users_directory_is_refused(log, events, path, public_path, start, nobody):
    """Who may read the records, but not write, may not be a member; nor who may not even read the group."""
    folder = made_group(log, path)
    for name, _, files in os.walk(path):
        os.chmod(name, 0o755)  # noqa: S103 - everybody may read it
        for file in files:
            os.chmod(os.path.join(name, file), 0o644)
    program = """
    with pystreamlog.open(sys.argv[1]) as log:
        for group in ("workers", "another"):
            try:
                with log.consumer("events", group_id=group) as consumer:
                    consumer.poll(0)
                say("joined")
            except StreamLogError as error:
                say(type(error).__name__)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            say(len(consumer.poll(10)) > 0)
    """
    assert start(program, path, nobody=nobody).finish() == ["ReadOnlyError", "ReadOnlyError", "True"]
    os.chmod(folder, 0o700)
    assert start(program, path, nobody=nobody).finish()[0] in ("ReadOnlyError", "StorageError")


# --- a full disk ------------------------------------------------------------------------------------------------------


def stuffed(point):
    """Fill a file system to its last page; the file that does."""
    ballast = point / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


@pytest.fixture
def small(mounted):
    """A log on a small file system, with a topic of some records; and where that lies."""
    point = mounted("size=4m")
    with pystreamlog.open(point / "log") as log:
        log.create_topic(TOPIC, partitions=PARTITIONS)
        fill(log, 3)
        yield log, point


def test_full_disk_at_the_first_join(small):
    """`StorageError`, and no half group; later all is well."""
    log, point = small
    ballast = stuffed(point)
    with pytest.raises(StorageError) as caught, join(log) as consumer:
        consumer.poll(0)
    assert caught.value.errno == 28
    ballast.unlink()
    with join(log) as consumer:
        settle(consumer)
        consumer.commit(dict.fromkeys(ALL, 2))
    assert committed(log) == [2] * PARTITIONS


@pytest.mark.parametrize("free_pages", range(12))
def test_almost_full_disk_while_a_group_begins(small, free_pages):
    """Wherever the space ends: an error of the library, and later all is well."""
    log, point = small
    ballast = stuffed(point)
    os.truncate(ballast, ballast.stat().st_size - 4096 * free_pages)
    consumer = None
    try:
        consumer = join(log)
        consumer.poll(0)
        consumer.commit({tp: OffsetAndMetadata(1, "note") for tp in consumer.assignment()})
    except StorageError as error:
        assert error.errno == 28  # noqa: PT017 - or nothing is raised
    stuffed(point)
    ballast.unlink()
    if consumer is None:
        consumer = join(log)
    settle(consumer)
    consumer.commit(dict.fromkeys(ALL, 2))
    consumer.close()
    assert committed(log) == [2] * PARTITIONS
    with join(log) as consumer:
        settle(consumer)


def test_full_disk_while_members_work(small):
    """What was committed stays; commits go on, as they need no space; who joins is told, and joins later."""
    log, point = small
    with pystreamlog.open(log.path) as other_log:
        one = join(log)
        settle(one)
        one.commit(dict.fromkeys(ALL, 1))
        ballast = stuffed(point)
        one.commit(dict.fromkeys(ALL, 2))
        with pytest.raises(StorageError) as caught:
            one.commit({tp: OffsetAndMetadata(3, "metadata that needs blocks") for tp in ALL})
        assert caught.value.errno == 28
        found = one.committed(*ALL)
        assert set(found.values()) <= {OffsetAndMetadata(2), OffsetAndMetadata(3, "metadata that needs blocks")}
        with pytest.raises(StorageError), log.consumer(TOPIC, group_id="new"):
            pass
        ballast.unlink()
        one.commit({tp: OffsetAndMetadata(3, "metadata that needs blocks") for tp in ALL})
        other = join(other_log)
        settle(one, other)
        assert committed(log) == [3] * PARTITIONS
        other.close()
        settle(one)
        one.close()


def test_full_disk_keeps_nobody_from_being_woken(small):
    """A member that must give something up is rung, though there is no page left for its bell; and others take over."""
    log, point = small
    with starting(log.path) as start_member:
        member = start_member(max_poll_interval_ms=600_000)
        member.until_it_owns(*range(PARTITIONS))
        with pystreamlog.open(log.path) as again:
            ballast = stuffed(point)
            other = join(again)
            try:
                other.poll(0)
            except StorageError:
                ballast.unlink()
            poll_until(other, lambda: len(other.assignment()) == PARTITIONS // 2, timeout=5)
            other.close()


def test_disk_that_fills_up_while_members_leave(small):
    """Whatever cannot be written: the place is free, and nothing that was committed is lost."""
    log, point = small
    with pystreamlog.open(log.path) as other_log:
        one, other = join(log), join(other_log)
        settle(one, other)
        for consumer in (one, other):
            consumer.commit(dict.fromkeys(consumer.assignment(), 2))
        ballast = stuffed(point)
        with contextlib.suppress(StorageError):
            other.close()
        end = time.monotonic() + PATIENCE
        while len(one.assignment()) < PARTITIONS:
            assert time.monotonic() < end
            try:
                one.poll(0.01)
            except StorageError:
                if ballast.exists():
                    ballast.unlink()
        assert committed(log) == [2] * PARTITIONS
        one.close()


# --- offsets behind a power loss --------------------------------------------------------------------------------------


def partition_file(path, number, name):
    """A file of a partition."""
    return os.path.join(path, "topics", TOPIC, str(number), name)


SEGMENT = "0".zfill(20) + ".log"
SLOTS = slice(
    partition_layout.PUBLISHED_POSITION, partition_layout.PUBLISHED_POSITION + 2 * partition_layout.SLOT_STRIDE
)


class Power:
    """Loses what was written to the partitions since it was made: their pages, and what `control` said of them."""

    def __init__(self, path):
        self._path = path
        self._sizes, self._slots = {}, {}
        for number in range(PARTITIONS):
            with open(partition_file(path, number, SEGMENT), "rb") as file:
                self._sizes[number] = -(-len(file.read().rstrip(b"\0")) // 8) * 8
            with open(partition_file(path, number, "control"), "rb") as file:
                self._slots[number] = file.read()[SLOTS]

    def fail(self, *, slots):
        """There is no power: the older slots are on the disk, or none at all."""
        for number, size in self._sizes.items():
            segment = partition_file(self._path, number, SEGMENT)
            overwrite(segment, bytes(os.path.getsize(segment) - size), size)
            kept = self._slots[number] if slots == "older" else bytes(SLOTS.stop - SLOTS.start)
            overwrite(partition_file(self._path, number, "control"), kept, SLOTS.start)


def fill_one_by_one(log, count, prefix=b""):
    """Append some records to each partition, each in a batch of its own."""
    topic = log.topic(TOPIC)
    for number in range(count):
        for tp in ALL:
            topic.append(prefix + b"%d" % number, partition=tp.partition)


@pytest.fixture(params=["older", "lost"])
def cut(request, path):
    """A log whose group committed offset 9 of each partition before a power loss left four records in each."""
    with EmbeddedLog(path, boot=lambda: b"boot-one-16-byte") as log:
        log.create_topic(TOPIC, partitions=PARTITIONS)
        fill_one_by_one(log, 4)
        power = Power(path)
        fill_one_by_one(log, 6)
        with join(log) as consumer:
            settle(consumer)
            consumer.commit(dict.fromkeys(ALL, 9))
    power.fail(slots=request.param)
    with EmbeddedLog(path, boot=lambda: b"boot-two-16-byte") as log:
        yield log


@pytest.mark.parametrize("member", [True, False], ids=["group", "assign"])
@pytest.mark.parametrize("late", [True, False], ids=["records first", "consumer first"])
def test_offset_behind_what_a_recovery_cut_is_clamped(cut, caplog, member, late):
    """A warning says so, and no record that is written later is skipped, however many there are."""
    caplog.set_level(logging.WARNING, "pystreamlog")
    if late:
        fill_one_by_one(cut, 20, b"later")
    consumer = join(cut) if member else cut.consumer(group_id=GROUP, enable_auto_commit=False)
    if not member:
        consumer.assign(ALL)
    seen = list(consumer.poll(0))
    if not late:
        fill_one_by_one(cut, 20, b"later")
    while len(seen) < 20 * PARTITIONS:
        records = consumer.poll(1)
        assert records, [record.offset for record in seen]
        seen += records
    for tp in ALL:
        assert [record.offset for record in seen if record.partition == tp.partition] == list(range(4, 24))
    warnings = [text for text in caplog.messages if "recovery cut" in text]
    assert len(warnings) == PARTITIONS
    assert all(GROUP in text and " 9 " in text and " 4" in text for text in warnings)
    consumer.commit()
    consumer.close()
    caplog.clear()
    fill_one_by_one(cut, 1, b"last")
    with join(cut) as again:
        seen = settle(again)
        while len(seen) < PARTITIONS:
            seen += again.poll(PATIENCE)
    assert {record.offset for record in seen} == {24}
    assert [text for text in caplog.messages if "recovery cut" in text] == []


def test_offset_below_what_a_recovery_cut_stays(path):
    """Another boot alone moves nothing."""
    with EmbeddedLog(path, boot=lambda: b"boot-one-16-byte") as log:
        log.create_topic(TOPIC, partitions=PARTITIONS)
        fill_one_by_one(log, 4)
        with join(log) as consumer:
            settle(consumer)
            consumer.commit(dict.fromkeys(ALL, 2))
    with EmbeddedLog(path, boot=lambda: b"boot-two-16-byte") as log, join(log) as consumer:
        seen = settle(consumer)
        while len(seen) < 2 * PARTITIONS:
            seen += consumer.poll(PATIENCE)
        assert sorted(record.offset for record in seen) == [2] * PARTITIONS + [3] * PARTITIONS


def test_what_is_committed_lies_within_the_partition(cut):
    """`committed` says where the group goes on, never a place behind the end."""
    with join(cut) as consumer:
        settle(consumer)
        ends = consumer.end_offsets(ALL)
        assert {tp: at.offset for tp, at in consumer.committed(*ALL).items() if at.offset > ends[tp]} == {}


def test_group_file_that_is_no_text_is_named(log, events, path):
    """A byte of `group.json` that is no UTF-8 is damage, as any other."""
    join(log).close()
    name = group_folder(path) / "group.json"
    name.write_bytes(name.read_bytes().replace(GROUP.encode(), b"\xec" + GROUP.encode()[1:]))
    with pytest.raises(CorruptLogError, match=r"group\.json") as caught:
        join(log)
    assert caught.value.path == str(name)
