"""The journal of transactions: what its entries hold, who finds them, and what is damage."""

import os
import threading

import msgspec
import pytest

from pystreamlog.coordination.journal import Entry, OffsetChange, Participant, decoded, encoded
from pystreamlog.coordination.offset_store import Committed
from pystreamlog.errors import CorruptLogError
from pystreamlog.storage.control import Published

from .committing import JOURNAL, commit, in_child, opened

END = Published(1, 2, 2**64 - 1, 4, 5, 2**64 - 1, -1, 8, 9, 10, 11, -1, 0)
PARTICIPANT = Participant("topic-a", bytes(range(16)), 7, END, END)
CHANGE = OffsetChange("ü☃", bytes(16), 3, 9, None, Committed(5, 1, 2, "note"))

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")


@pytest.fixture
def log(tmp_path):
    """A log with two topics."""
    with opened(tmp_path / "log") as log:
        log.create_topic("a")
        log.create_topic("b")
        log.create_topic("in")
        log.topic("in").append(b"x")
        yield log


def journal(log):
    """The log's journal."""
    return log._transactions._journal


def found(log):
    """All entries."""
    return list(journal(log).entries(0, journal(log).reader.offsets()[1]))


@pytest.mark.parametrize("participants", [(), (PARTICIPANT,), (PARTICIPANT,) * 300])
@pytest.mark.parametrize("offsets", [(), (CHANGE,)])
def test_entry_survives(participants, offsets):
    """What goes in comes out."""
    entry, batch = encoded(2**64 - 1, participants, offsets, 5)
    assert (entry.nonce, entry.participants, entry.offsets) == (2**64 - 1, participants, offsets)
    assert batch.count == 1
    assert decoded(msgspec.msgpack.encode(entry), "somewhere") == entry


@pytest.mark.parametrize("value", [None, b"", b"\0" * 8, b"\x94\x01\x02\x90", b"\xff" * 100])
def test_value_that_is_no_entry(value):
    """Is damage."""
    with pytest.raises(CorruptLogError):
        decoded(value, "somewhere")


def test_entry_of_a_later_version():
    """Is not guessed at."""
    value = msgspec.msgpack.encode(Entry(2, 1, (), ()))
    with pytest.raises(CorruptLogError, match="version 2"):
        decoded(value, "somewhere")


def test_log_without_transactions_has_no_journal(log):
    """It is made by the first that needs it; one batch in one partition needs none."""
    assert not journal(log).exists()
    assert journal(log).entry(0, 1) is None
    assert log.topic("a").append(b"x").offset == 0
    assert not os.path.exists(f"{log.path}/{JOURNAL}")
    commit(log, ("a", 0, b"x"))
    assert found(log) == []


def test_entries_say_what_changed(log):
    """In the order of commits: participants by id, ends before and after, offsets before and after."""
    commit(log, ("a", 0, b"1"), ("b", 0, b"2"))
    commit(log, ("b", 0, b"3"), offsets={0: 1})
    commit(log, offsets={0: 0})
    entries = [entry for _, entry in found(log)]
    assert [offset for offset, _ in found(log)] == [0, 1, 2]
    first, second, third = entries
    assert sorted(part.topic for part in first.participants) == ["a", "b"]
    assert [part.key for part in first.participants] == sorted(part.key for part in first.participants)
    assert [(part.old.end_offset, part.new.end_offset) for part in second.participants] == [(1, 2)]
    assert (second.offsets[0].old, second.offsets[0].new.offset) == (None, 1)
    assert (third.participants, third.offsets[0].old.offset, third.offsets[0].new.offset) == ((), 1, 0)
    assert len({entry.nonce for entry in entries}) == 3


def test_entry_is_found_by_place_and_nonce(log):
    """By the process that wrote it, and by others; one with another nonce is none, and nothing lies past the end."""
    commit(log, ("a", 0, b"1"), ("b", 0, b"2"))
    ((_, entry),) = found(log)
    with opened(log.path) as other:
        for one in (log, other):
            assert journal(one).entry(0, entry.nonce) == entry
            assert journal(one).entry(0, entry.nonce ^ 1) is None
            assert journal(one).entry(1, entry.nonce) is None
            assert journal(one).entry(-1, entry.nonce) is None


def test_damaged_journal_is_told(log):
    """Never taken for one without entries."""
    commit(log, ("a", 0, b"1"), ("b", 0, b"2"))
    ((_, entry),) = found(log)
    path = f"{log.path}/{JOURNAL}/{0:020d}.log"
    with open(path, "r+b") as file:
        file.seek(300)
        file.write(b"damage!")
    with opened(log.path) as other, pytest.raises(CorruptLogError):
        journal(other).entry(0, entry.nonce)


def test_threads_and_forked_children(log):
    """All commit through one journal."""
    threads = [
        threading.Thread(target=lambda: [commit(log, ("a", 0, b"1"), ("b", 0, b"2")) for _ in range(10)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert in_child(lambda: commit(log, ("a", 0, b"1"), ("b", 0, b"2"))) == 0
    for thread in threads:
        thread.join()
    entries = [entry for _, entry in found(log)]
    assert len(entries) == 31
    ends = {}
    for entry in entries:
        for part in entry.participants:
            assert part.old.end_offset == ends.get(part.key, 0)
            ends[part.key] = part.new.end_offset
    assert set(ends.values()) == {31}
