"""What a power loss leaves of transactions: each whole with its offsets, or gone with all that built on it."""

import os
import shutil
from contextlib import closing
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pystreamlog.coordination import journal as journal_module
from pystreamlog.coordination import transactions
from pystreamlog.coordination.committed import Committed, Origin, what_is_left
from pystreamlog.coordination.journal import Entry, OffsetChange, Participant
from pystreamlog.coordination.offset_store import OffsetStore
from pystreamlog.coordination.transaction_recovery import Recovery, judge
from pystreamlog.errors import CorruptLogError
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import Files as StorageFiles

from .committing import (
    BOOTS,
    JOURNAL,
    commit,
    committed,
    die,
    ends,
    in_child,
    lose,
    lose_group_control,
    opened,
    position,
    stored,
    writes,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

A, B, C, D = (f"topics/{name}/0" for name in "abcd")


@pytest.fixture
def path(tmp_path):
    """A log with an input of nine records and four outputs, with a durable transaction in all of them."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.create_topic("in", partitions=2)
        for name in "abcd":
            log.create_topic(name)
        with log.producer() as producer:
            for number in range(18):
                producer.send("in", b"%d" % number, partition=number % 2)
        commit(log, *(("abcd"[n], 0, b"0") for n in range(4)), offsets={0: 1, 1: 1}, durability="fsync")
    return path


def transact(log, value, topics, offsets=None, **config):
    """A transaction that sends one value to each topic; where each ended before."""
    places = {f"topics/{name}/0": position(log, f"topics/{name}/0") for name in topics}
    places[JOURNAL] = position(log, JOURNAL)
    commit(log, *((name, 0, value) for name in topics), offsets=offsets, **config)
    return places


def state(log):
    """All that transactions changed."""
    return {name: stored(log, name) for name in "abcd"}, (committed(log), committed(log, 1))


def expected(*values, offsets=(1, 1)):
    """The same, from (value, topics) of the transactions that count."""
    found = {name: [b"0", *(value for value, topics in values if name in topics)] for name in "abcd"}
    return found, offsets


def check(path, wanted, boot=1):
    """All see the same: read-only ones, which recover nothing, who recovers, and others; and work goes on."""
    with opened(path, boot, read_only=True) as log:
        assert {name: stored(log, name) for name in "abcd"} == wanted[0]
    with opened(path, boot) as log:
        assert state(log) == wanted
    with opened(path, boot) as log:
        assert state(log) == wanted
        transact(log, b"next", "abcd", {0: 9})
    with opened(path, boot + 1) as log:
        assert state(log) == ({name: [*found, b"next"] for name, found in wanted[0].items()}, (9, wanted[1][1]))


# --- judging

GROUPS = ["g", "h"]
PARTITIONS = [(b"t" * 16, number) for number in range(4)]


def published(offset):
    """An end."""
    return Published(0, 0, 1, offset, offset, 0, 0, 0, 0, 1, 0, -1, 0)


@st.composite
def journals(draw):
    """Transactions over partitions and offsets with plain appends between them, and how much of each is left."""
    ends, offsets = dict.fromkeys(PARTITIONS, 0), {}
    entries = []
    for number in range(draw(st.integers(0, 8))):
        for key in draw(st.sets(st.sampled_from(PARTITIONS), max_size=2)):
            ends[key] += 1  # a plain append
        participants = []
        for key in sorted(draw(st.sets(st.sampled_from(PARTITIONS), max_size=3))):
            old = ends[key]
            ends[key] += draw(st.integers(1, 3))
            participants.append(Participant("t", *key, published(old), published(ends[key])))
        changes = []
        for group in sorted(draw(st.sets(st.sampled_from(GROUPS), max_size=2))):
            old, new = offsets.get(group), Committed(number + 1, 1, 0)
            changes.append(OffsetChange(group, *PARTITIONS[0], number + 1, old, new))
            offsets[group] = new
        entries.append(Entry(1, number, tuple(participants), tuple(changes)))
    left = {key: draw(st.one_of(st.just(inf), st.integers(0, end))) for key, end in ends.items()}
    return entries, left


@given(journals())
def test_judge_agrees_with_brute_force(made):
    """Whatever is left: an entry goes if a participant is short, or if one goes that it built on, and nothing else."""
    entries, left = made
    gone: set[int] = set()
    while True:
        more = {
            entry.nonce
            for entry in entries
            if any(part.new.end_offset > left[part.key] for part in entry.participants)
            or any(
                {part.key for part in other.participants} & {part.key for part in entry.participants}
                or {change.group_id for change in other.offsets} & {change.group_id for change in entry.offsets}
                for other in entries[: entry.nonce]
                if other.nonce in gone
            )
        }
        if more == gone:
            break
        gone = more
    verdict = judge(entries, {(key, 1): end for key, end in left.items()})
    assert {entry.nonce for entry in verdict.undone} == gone
    for key in PARTITIONS:
        olds = [part.old for entry in entries if entry.nonce in gone for part in entry.participants if part.key == key]
        assert verdict.cuts.get(key) == (min(olds, key=lambda old: old.end_offset) if olds else None)
    for group in GROUPS:
        mine = [(entry.nonce, change) for entry in entries for change in entry.offsets if change.group_id == group]
        lost = [change for nonce, change in mine if nonce in gone]
        wanted = (lost[0], False) if lost else (mine[-1][1], True) if mine else None
        assert verdict.offsets.get((group, PARTITIONS[0])) == wanted


# --- power losses


def test_nothing_is_lost(path):
    """Then all of it counts."""
    with opened(path) as log:
        transact(log, b"1", "ab", {0: 2})
        transact(log, b"2", "bc", {1: 3})
    check(path, expected((b"1", "ab"), (b"2", "bc"), offsets=(2, 3)))


@pytest.mark.parametrize("folder", [A, B, JOURNAL])
def test_one_participant_is_lost(path, folder):
    """Or the journal's entry: all participants go back, and the offsets."""
    with opened(path) as log:
        places = transact(log, b"1", "ab", {0: 2, 1: 4})
    lose(path, folder, places[folder])
    check(path, expected())


def test_everything_but_one_participant_is_lost(path):
    """What is left of it goes too."""
    with opened(path) as log:
        places = transact(log, b"1", "abc", {0: 2})
    for folder in (A, B, JOURNAL):
        lose(path, folder, places[folder])
    check(path, expected())


def test_torn_participant(path):
    """Half of a batch is none."""
    with opened(path) as log:
        transact(log, b"1", "ab", {0: 2})
        base, end = position(log, A)
    lose(path, A, (base, end - 8))
    check(path, expected())


def test_what_was_built_on_it_goes_too(path):
    """Transactions that share a partition, or a committed offset, with one that goes; and plain records behind it."""
    with opened(path) as log:
        first = transact(log, b"1", "ab")
        transact(log, b"2", "bc", {0: 3})
        transact(log, b"3", "d", {0: 4, 1: 5})
        log.topic("c").append(b"plain")
        log.topic("d").append(b"plain")
    lose(path, A, first[A])
    check(path, expected())


def test_what_was_not_built_on_it_stays(path):
    """Transactions before it, and beside it."""
    with opened(path) as log:
        transact(log, b"1", "ab", {0: 2})
        second = transact(log, b"2", "bc", {0: 3})
        transact(log, b"3", "ad", {1: 5})
    lose(path, C, second[C])
    check(path, expected((b"1", "ab"), (b"3", "ad"), offsets=(2, 5)))


def test_first_transaction_of_all(tmp_path):
    """There is nothing to go back to: partitions are empty, and nothing is committed."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.create_topic("in")
        for name in "ab":
            log.create_topic(name)
        log.topic("in").append(b"x")
        places = transact(log, b"1", "ab", {0: 1})
    lose(path, A, places[A])
    with opened(path, 1) as log:
        assert (stored(log, "a"), stored(log, "b"), committed(log)) == ([], [], None)
        transact(log, b"2", "ab", {0: 1})
        assert (stored(log, "a"), stored(log, "b"), committed(log)) == ([b"2"], [b"2"], 1)


def test_later_boots_change_nothing(path):
    """Recovery is over when it is over; what is committed then survives the next loss for itself."""
    with opened(path) as log:
        places = transact(log, b"1", "ab", {0: 2})
    lose(path, A, places[A])
    with opened(path, 1) as log:
        places = transact(log, b"2", "ab", {0: 3})
        transact(log, b"3", "cd", {1: 4})
    with opened(path, 2) as log:
        assert state(log) == expected((b"2", "ab"), (b"3", "cd"), offsets=(3, 4))
    lose(path, B, places[B])
    with pytest.raises(CorruptLogError), opened(path, 3) as log:
        stored(log, "b")  # it was known to be on disk


@pytest.mark.parametrize("lost", ["nothing", "participant", "name"])
def test_committer_had_died_after_the_commit_point(path, monkeypatch, lost):
    """Then the machine died: it counts if all is there, wherever its offsets are written."""

    def killed():
        monkeypatch.setattr(transactions, "_spread", die)
        with opened(path) as log:
            transact(log, b"1", "ab", {0: 2})

    with opened(path) as log:
        place = position(log, A)
    assert in_child(killed) == -9
    if lost == "participant":
        lose(path, A, place)
    elif lost == "name":
        lose_group_control(path)
    check(path, expected() if lost == "participant" else expected((b"1", "ab"), offsets=(2, 1)))


@pytest.mark.parametrize("lost", [False, True])
def test_committer_had_died_and_its_transaction_was_made_durable_by_another(path, monkeypatch, lost):
    """Its offsets are part of that, though no group had stored them."""

    def killed():
        monkeypatch.setattr(transactions, "_spread", die)
        with opened(path) as log:
            transact(log, b"1", "ab", {0: 2})

    assert in_child(killed) == -9
    with opened(path) as log:
        transact(log, b"2", "cd", durability="fsync")
    if lost:
        lose_group_control(path)
    check(path, expected((b"1", "ab"), (b"2", "cd"), offsets=(2, 1)))


def test_first_look_at_offsets_finds_what_recovery_leaves(path):
    """Though nobody has looked at a partition before."""
    with opened(path) as log:
        places = transact(log, b"1", "ab", {0: 2})
    lose(path, A, places[A])
    with opened(path, 1) as log:
        assert committed(log) == 1
    with (
        opened(path, 1) as log,
        log.consumer("in", group_id="g", enable_auto_commit=False) as consumer,
    ):
        records = consumer.poll(10)
        assert min(record.offset for record in records) == 1


def test_fsync_of_one_partition_makes_durable_what_lies_below(path):
    """All participants of all transactions there, and the journal; what comes later may still go."""
    with opened(path) as log:
        transact(log, b"1", "ab", {0: 2})
        transact(log, b"2", "bc", {1: 3})
        with log.producer(durability="fsync") as producer:
            producer.send("b", b"plain").result()
        durable = {name: log.topic(name).durable_offsets()[0] for name in "abcd"}
        assert durable == {"a": 2, "b": 4, "c": 2, "d": 1}
        later = transact(log, b"3", "cd", {1: 4})
    for folder in (C, D, JOURNAL):
        lose(path, folder, later[folder])
    with opened(path, 1) as log:
        assert {name: stored(log, name) for name in "abcd"} == {
            "a": [b"0", b"1"],
            "b": [b"0", b"1", b"2", b"plain"],
            "c": [b"0", b"2"],
            "d": [b"0"],
        }
        assert (committed(log), committed(log, 1)) == (2, 3)


def test_damage_of_what_was_acknowledged_is_told(path):
    """A durable transaction never goes silently."""
    with opened(path) as log:
        places = transact(log, b"1", "ab", {0: 2}, durability="fsync")
    lose(path, A, places[A])
    with opened(path, 1) as log:
        with pytest.raises(CorruptLogError):
            stored(log, "a")
        assert stored(log, "b") == [b"0", b"1"]
        assert committed(log) == 2


@pytest.mark.parametrize("participant_is_lost", [False, True])
def test_deleted_participants(path, participant_is_lost):
    """Topics and groups that are gone stand in nobody's way."""
    with opened(path) as log:
        places = transact(log, b"1", "abc", {0: 2})
        commit(log, ("a", 0, b"2"), offsets={0: 2}, group_id="gone")
        log.delete_topic("c")
        log.create_topic("c")
        log.topic("c").append(b"0")
    shutil.rmtree(next(found for found in (path / "groups").iterdir() if found.name.startswith("gone")))
    if participant_is_lost:
        lose(path, B, places[B])
    with opened(path, 1) as log:
        assert stored(log, "c") == [b"0"]
        assert stored(log, "b") == ([b"0"] if participant_is_lost else [b"0", b"1"])
        assert stored(log, "a") == ([b"0"] if participant_is_lost else [b"0", b"1", b"2"])
        assert committed(log) == (1 if participant_is_lost else 2)
        assert committed(log, group_id="gone") is None


def test_journal_that_rolled(path, monkeypatch):
    """Its old segments are dropped once nobody needs them; what is left is recovered as ever."""
    monkeypatch.setattr(journal_module, "_SEGMENT_BYTES", 4096)
    with opened(path) as log:
        for number in range(60):
            transact(log, b"%d" % number, "ab", {0: number % 9, 1: 1 + number % 5}, durability="fsync")
        bases = log._transactions._journal.folder.segments()
        assert 0 not in bases
        assert len(bases) <= 4
        last = transact(log, b"last", "ab", {0: 8})
    lose(path, A, last[A])
    with opened(path, 1) as log:
        assert stored(log, "a") == stored(log, "b") == [b"0", *(b"%d" % number for number in range(60))]
        assert (committed(log), committed(log, 1)) == (59 % 9, 1 + 59 % 5)


def test_journal_drops_no_offsets_that_no_group_has_stored(path, monkeypatch):
    """Its committer died: who drops the entry stores them first."""
    monkeypatch.setattr(journal_module, "_SEGMENT_BYTES", 4096)

    def killed():
        monkeypatch.setattr(transactions, "_spread", die)
        with opened(path) as log:
            transact(log, b"1", "ab", {0: 2})

    assert in_child(killed) == -9
    with opened(path) as log:
        for number in range(60):
            commit(log, ("c", 0, b"%d" % number), ("d", 0, b"x"), offsets={1: 3}, group_id="other", durability="fsync")
        assert 0 not in log._transactions._journal.folder.segments()
    with opened(path, 1) as log:
        assert (committed(log), committed(log, group_id="other", partition=1)) == (2, 3)
        assert stored(log, "a") == stored(log, "b") == [b"0", b"1"]


# --- recovery that is killed


@pytest.mark.faults
@pytest.mark.parametrize("same_boot", [True, False])
def test_recovery_killed_at_any_write(path, tmp_path, monkeypatch, same_boot):
    """It is begun anew, and comes to the same end, whatever was used and written in between."""
    with opened(path) as log:
        transact(log, b"1", "ab", {0: 2})
        second = transact(log, b"2", "bc", {0: 3, 1: 3})
        transact(log, b"3", "cd", {1: 4})
        transact(log, b"4", "a", {0: 5})
    lose(path, B, second[B])
    wanted = expected((b"1", "ab"), offsets=(2, 1))
    doomed = 0
    while True:
        victim = tmp_path / "victim"
        shutil.copytree(path, victim)

        def recover(victim=victim, doomed=doomed):
            def act(number, call):
                if number == doomed:
                    die()
                return call()

            with opened(victim, 1) as log, writes(monkeypatch, act):
                assert state(log) == wanted

        status = in_child(recover)
        with opened(victim, 1 if same_boot else 2) as log:
            assert state(log) == wanted, f"killed at write {doomed}"
            transact(log, b"next", "abcd", {0: 9})
        with opened(victim, 3) as log:
            found, offsets = state(log)
            assert found == {name: [*values, b"next"] for name, values in wanted[0].items()}
            assert offsets == (9, 1)
        shutil.rmtree(victim)
        if status == 0:
            break
        assert status == -9
        doomed += 4
    assert doomed > len(BOOTS)


def test_offsets_of_two_groups_and_ends(path):
    """A group beside it keeps its own."""
    with opened(path) as log:
        commit(log, ("a", 0, b"1"), ("b", 0, b"1"), offsets={0: 5}, group_id="h")
        places = transact(log, b"2", "bc", {0: 2})
    lose(path, C, places[C])
    with opened(path, 1) as log:
        assert (committed(log), committed(log, group_id="h")) == (1, 5)
        assert (ends(log, "a"), ends(log, "b"), ends(log, "c")) == ([2], [2], [1])


# --- the file of offsets reaches the disk before the journal does


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_offsets_of_transactions_that_the_journal_lost(path, lost):
    """Any number of them: what the journal still has holds, or what was committed before."""
    with opened(path) as log:
        places = [transact(log, b"%d" % number, "ab", {0: 2 + number}) for number in range(4)]
    for folder in (A, B, JOURNAL):
        lose(path, folder, places[4 - lost][folder])
    left = [(b"%d" % number, "ab") for number in range(4 - lost)]
    check(path, expected(*left, offsets=(1 + len(left), 1)))


def test_first_offset_that_the_journal_lost(path):
    """Nothing was committed before."""
    with opened(path) as log:
        place = position(log, JOURNAL)
        commit(log, ("a", 0, b"x"), offsets={0: 5}, group_id="new")
        commit(log, ("a", 0, b"x"), offsets={0: 6}, group_id="new")
    lose(path, JOURNAL, place)
    with opened(path, 1) as log:
        assert committed(log, group_id="new") is None
        assert state(log) == expected()


class Files:
    """Where the store of a model lies."""

    def __init__(self, folder):
        self.files = StorageFiles(str(folder))
        self.name = os.urandom(8).hex()
        self.files.write(self.name, OffsetStore.image(log_id=b"l" * 16, group_id="g"))

    def open(self):
        """The store."""
        return OffsetStore.open(self.files, self.name, log_id=b"l" * 16, group_id="g", write=True)

    def close(self):
        """Close the door."""
        self.files.close()


@settings(max_examples=150)
@given(data=st.data())
def test_what_is_left_of_an_offset_agrees_with_brute_force(tmp_path_factory, data):
    """Commits by transactions and by hand; the journal keeps what was synced and some more, the file any state since.

    The newest of what the journal keeps, and of what the file has from no transaction, is what counts.
    """
    with closing(Files(tmp_path_factory.getbasetemp())) as where:
        check_what_is_left(where, data)


def check_what_is_left(where, data):
    """One example."""
    key = b"t" * 16, 0
    steps = data.draw(st.lists(st.sampled_from(["txn", "txn", "plain", "sync", "drop"]), min_size=1, max_size=14))
    values, entries, states, durable, start, first_state = [], [], [], 0, 0, 0
    with closing(where.open()) as store:
        states.append(where.files.read(where.name, limit=1 << 20))
        for number, step in enumerate(steps, 1):
            new = Committed(number, 1, number)
            if step == "txn":
                position, nonce = len(entries), 1000 + number
                change = OffsetChange("g", *key, store.next_sequence(*key), store.get(*key), new)
                entries.append((position, nonce, number, change))
                store.put(*key, new, Origin(position, nonce, durable))
                values.append((number, position))
            elif step == "plain":
                store.put(*key, new)
                values.append((number, -1))
            elif step == "sync":
                durable, first_state = len(entries), len(states) - 1
            else:
                start = durable
            if step in ("txn", "plain"):
                states.append(where.files.read(where.name, limit=1 << 20))
    kept = data.draw(st.integers(durable, len(entries)))
    state_number = data.draw(st.integers(first_state, len(states) - 1))
    where.files.write(where.name, states[state_number])
    nonces = {nonce for position, nonce, _, _ in entries if start <= position < kept}
    counting = [change for position, _, _, change in entries if start <= position < kept]
    with closing(where.open()) as store:
        left = {
            found: what_is_left(raw, at, store.salt, lambda position, nonce: position >= start and nonce not in nonces)
            for found, raw, at in store.entries()
        }
        Recovery._restore_one(store, key, (counting[-1], True) if counting else None, left.get(key))
        found = store.get(*key)
    written = values[:state_number]
    wanted = [number for number, position in written if position < 0 or position < kept]
    wanted += [number for number, position in values if start <= position < kept]
    assert (found.offset if found else None) == max(wanted, default=None)
