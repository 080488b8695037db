"""Each rule on copies finds the smallest history that breaks it, by its name and no other, and passes its neighbour."""

from __future__ import annotations

import pytest

from .copy_rules import COPY_RULES
from .histories import Made, column
from .history import Client
from .rules import check


def bad(history):
    """The rules that a history breaks."""
    return check(history).bad


@pytest.fixture
def made():
    """Two partitions of two records each, read by a reader."""
    history = Made()
    history.op(7, "subscribe", keys=frozenset({"s", "t"}))
    history.send(1, 0, 1, 2, key="s")
    history.send(2, 0, 3, 4, key="t")
    return history


def copy(history, kind="ok", *, reads, **sends):
    """A transaction: values by key are read, and (offset, copy, origin...) are written by key."""
    return history.op(
        7,
        "txn",
        kind,
        reads={key: column(*place) for key, place in reads.items()},
        sends={
            key: column([offset + n if kind == "ok" else None for n in range(len(rest) // 2)], *rest[::2])
            for key, (offset, *rest) in sends.items()
        },
        origins={key: list(rest[1::2]) for key, (_, *rest) in sends.items()},
    )


def copies(history, kind="ok"):
    """All four, in two transactions over two outputs."""
    copy(history, reads={"s": (0, 1), "t": (0, 3)}, k=(0, 101, 1), l=(0, 103, 3))
    copy(history, kind, reads={"s": (1, 2), "t": (1, 4)}, k=(1, 102, 2), l=(1, 104, 4))


def read_all(history):
    """A reader sees them."""
    for key, values in {"s": (1, 2), "t": (3, 4), "k": (101, 102), "l": (103, 104)}.items():
        history.poll(3, 0, *values, key=key)


def look(history, process=5, **ends):
    """Somebody sees how far keys go."""
    return history.op(process, "look", ends=ends)


def test_copies_are_fine_and_compared(made):
    """And each rule has something to hold for."""
    copy(made, "fail", reads={"s": (0, 1, 2)}, k=(0, 90, 1, 91, 2))
    copy(made, reads={"s": (0, 1, 2), "t": (0, 3)}, k=(0, 101, 1, 102, 2), l=(0, 103, 3))
    last = copy(made, reads={"t": (1, 4)}, l=(1, 104, 4))
    last.keys = frozenset({"k", "l"})
    read_all(made)
    look(made, k=2, l=2)
    report = check(made)
    report.demand(COPY_RULES)
    assert report.bad == set()


def test_run_without_transactions_compares_nothing(made):
    """Copiers that did nothing prove nothing."""
    made.poll(3, 0, 1, 2, key="s")
    made.poll(3, 0, 3, 4, key="t")
    report = check(made)
    report.demand(COPY_RULES)
    assert report.violations["vacuous"] == len(COPY_RULES)


def test_lost(made):
    """A record without a copy, unless the copiers had no time for it."""
    copy(made, reads={"s": (0, 1), "t": (0, 3)}, k=(0, 101, 1), l=(0, 103, 3))
    copy(made, reads={"s": (1, 2)}, k=(1, 102, 2))
    made.poll(3, 0, 101, 102, key="k")
    made.poll(3, 0, 103, key="l")
    made.poll(3, 0, 1, 2, key="s")
    made.poll(3, 0, 3, 4, key="t")
    made.clients[7] = Client(process=7, audience="copiers")
    assert bad(made) == {"copy-lost"}
    made.complete = set()
    assert bad(made) == set()
    made.complete = {"copiers"}
    assert "copy-lost" in bad(made)


def test_doubled(made):
    """Two transactions copied one record."""
    copies(made)
    copy(made, reads={"t": (1, 4)}, k=(2, 105, 4))
    read_all(made)
    made.poll(3, 2, 105, key="k")
    assert bad(made) == {"copy-doubled"}


def test_aborted_one_is_no_double(made):
    """It is tried again."""
    copy(made, "fail", reads={"t": (1, 4)}, k=(2, 105, 4))
    copies(made)
    read_all(made)
    assert bad(made) == set()


def test_order(made):
    """Copies of one partition in one partition lie as the originals do."""
    copy(made, reads={"t": (0, 3, 4)}, l=(0, 103, 3, 104, 4))
    copy(made, reads={"s": (0, 1, 2)}, k=(0, 102, 2, 101, 1))
    made.poll(3, 0, 102, 101, key="k")
    made.poll(3, 0, 103, 104, key="l")
    made.poll(3, 0, 1, 2, key="s")
    made.poll(3, 0, 3, 4, key="t")
    assert bad(made) == {"copy-order"}


def test_order_of_two_partitions_is_free(made):
    """Or of copies in two."""
    copy(made, reads={"s": (0, 1, 2), "t": (0, 3, 4)}, k=(0, 103, 3, 101, 1), l=(0, 102, 2, 104, 4))
    made.poll(3, 0, 103, 101, key="k")
    made.poll(3, 0, 102, 104, key="l")
    made.poll(3, 0, 1, 2, key="s")
    made.poll(3, 0, 3, 4, key="t")
    assert bad(made) == set()


@pytest.mark.parametrize("kind", ["ok", "info"])
def test_aborted_read(made, kind):
    """By whomever, and whatever became of the read: that of an unknown outcome is this rule's alone."""
    copies(made)
    read_all(made)
    copy(made, "fail", reads={"s": (1, 2)}, k=(2, 109, 2))
    made.poll(4, 2, 109, key="k", kind=kind)
    assert bad(made) == {"aborted-txn-read", "copy-doubled"} | ({"G1a"} if kind == "ok" else set())


def test_part_is_missing(made):
    """One record of a transaction whose outcome nobody knows was seen, and another never."""
    copies(made, "info")
    read_all(made)
    assert bad(made) == set()
    torn = Made()
    torn.send(1, 0, 1, 2, key="s")
    copy(torn, "info", reads={"s": (0, 1, 2)}, k=(0, 101, 1), l=(0, 102, 2))
    torn.poll(3, 0, 101, key="k")
    torn.poll(3, 0, 1, 2, key="s")
    assert bad(torn) == {"torn-txn"}


def test_look_that_misses_a_part(made):
    """After a part was read, or the commit returned; what was going on at the same time proves nothing."""
    copies(made, "info")
    look(made, k=1, l=1)
    made.poll(4, 1, 102, key="k")
    read_all(made)
    assert bad(made) == set()
    look(made, k=2, l=2)
    assert bad(made) == set()
    look(made, l=1)
    assert bad(made) == {"torn-txn"}


def test_look_after_the_commit(made):
    """It counts from the moment in which the commit returns."""
    copies(made)
    last = made.ops[-1]
    read_all(made)
    early = look(made, k=1, l=2)
    early.invoked = last.completed
    assert bad(made) == set()
    early.invoked = last.completed + 1
    assert bad(made) == {"torn-txn"}


def test_interleaved(made):
    """A plain record in the middle of a transaction's."""
    copy(made, reads={"t": (0, 3, 4)}, l=(0, 103, 3, 104, 4))
    made.op(
        7,
        "txn",
        reads={"s": column(0, 1, 2)},
        sends={"k": column([0, 2], 101, 102)},
        origins={"k": [1, 2]},
    )
    made.op(8, "send", begun=made.ops[-1].invoked, sends={"k": column([1], 50)})
    made.poll(3, 0, 101, 50, 102, key="k")
    made.poll(3, 0, 103, 104, key="l")
    made.poll(3, 0, 1, 2, key="s")
    made.poll(3, 0, 3, 4, key="t")
    assert "txn-interleaved" in bad(made)


def test_precommitted_read(made):
    """A transaction saw what it sent itself."""
    copies(made)
    read_all(made)
    own = copy(made, reads={"s": (1, 2)}, k=(2, 109, 2))
    assert bad(made) == {"copy-doubled", "unseen"}
    own.reads = {**own.reads, "k": column(2, 109)}
    assert "precommitted-read" in bad(made)


def test_what_a_killed_copier_committed_is_read(made):
    """Nobody of its group reads it again; it shows in the copies."""
    copies(made, "info")
    made.clients[7] = Client(process=7, audience="copiers")
    made.complete = {"copiers"}
    assert bad(made) == {"copy-lost", "unseen"}
    read_all(made)
    assert bad(made) == set()
