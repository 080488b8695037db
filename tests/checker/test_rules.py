"""Each rule finds the smallest history that breaks it, by its name and no other, and passes its good neighbour."""

from __future__ import annotations

import pytest

from .histories import Made, column
from .history import Op
from .rules import ASSIGNED_RULES, check


def bad(history):
    """The rules that a history breaks."""
    return check(history).bad


@pytest.fixture
def made():
    """An empty history."""
    return Made()


# --- values and offsets


def test_empty_history_is_invalid(made):
    """Nothing done is nothing proved; nor does an assignment prove anything."""
    assert bad(made) == {"empty"}
    made.op(1, "assign", keys=frozenset({"k"}))
    assert bad(made) == {"empty"}


def test_reading_what_was_sent_is_fine(made):
    """And each rule that a plain run must feed has compared something."""
    for value in range(3):
        made.send(1, value, value)
    made.send(1, 3, 3, 4)
    made.poll(2, 0, 0, 1, 2)
    made.poll(2, 3, 3, 4)
    report = check(made)
    assert report.bad == set()
    report.demand(ASSIGNED_RULES)
    assert report.bad == set()


def test_rule_that_compared_nothing_is_found(made):
    """A reader who never went on says nothing about skips."""
    made.send(1, 0, 7)
    made.poll(2, 0, 7)
    report = check(made)
    report.demand({"poll-skip"})
    assert report.bad == {"vacuous"}


def test_inconsistent_offsets(made):
    """Two values at one offset, as two readers saw them."""
    made.send(1, 0, 10)
    made.send(9, None, 11, kind="info")
    made.poll(2, 0, 10)
    assert bad(made) == set()
    made.poll(3, 0, 11)
    assert bad(made) == {"inconsistent-offsets"}


def test_inconsistent_offsets_counts_polls_of_unknown_outcome(made):
    """Nobody may be handed bad data, whatever became of the poll."""
    made.send(1, 0, 10)
    made.send(9, None, 11, kind="info")
    made.poll(2, 0, 10)
    made.poll(3, 0, 11, kind="info")
    assert bad(made) == {"inconsistent-offsets"}


def test_inconsistent_offsets_counts_acknowledgements(made):
    """The producer was told one place, the reader found another's value there."""
    made.send(1, 0, 10)
    made.send(2, None, 11, kind="info")
    made.poll(3, [0, 1], 11, 10)
    assert bad(made) == {"inconsistent-offsets", "duplicate"}


def test_duplicate(made):
    """A value at two offsets."""
    made.send(1, 0, 10)
    made.send(1, 1, 11)
    made.poll(2, 0, 10, 11)
    assert bad(made) == set()
    made.poll(2, 2, 10)
    assert bad(made) == {"duplicate"}


def test_duplicate_compares_values_and_not_hashes(made):
    """-1 and -2 have one hash in CPython, and so have 1 and 2**61; they are no duplicates."""
    values = [-1, -2, 1, 2**61, 0, 2**61 - 1]
    assert len({hash(value) for value in values}) == 3
    for offset, value in enumerate(values):
        made.send(1, offset, value)
    made.poll(2, 0, *values)
    assert bad(made) == set()
    made.poll(2, 6, int("2305843009213693952"))
    assert bad(made) == {"duplicate"}


def test_same_value_in_two_keys_is_no_duplicate(made):
    """Values are unique per key."""
    for key in ("k", "l"):
        made.send(1, 0, 10, key=key)
        made.poll(2, 0, 10, key=key)
    assert bad(made) == set()


def test_unwritten_read(made):
    """A record that nobody sent."""
    made.send(1, 0, 10)
    made.poll(2, 0, 10)
    made.poll(2, 1, 99)
    assert bad(made) == {"unwritten-read"}


def test_aborted_read(made):
    """A record whose send certainly failed; one of unknown outcome may be read."""
    made.send(1, None, 10, kind="info")
    made.poll(2, 0, 10)
    assert bad(made) == set()
    made.send(1, None, 11, kind="fail")
    made.poll(2, 1, 11, kind="info")
    assert bad(made) == set()
    made.poll(3, 1, 11)
    assert bad(made) == {"G1a"}


def test_precommitted_read(made):
    """A transaction that polls what it sent itself; one that polls another's is fine."""
    made.send(1, 0, 9)
    made.op(1, "txn", sends={"l": column(0, 20)}, reads={"k": column(0, 9)})
    made.poll(2, 0, 20, key="l")
    assert bad(made) == set()
    made.op(1, "txn", sends={"m": column(0, 10)}, reads={"m": column(0, 10)})
    assert bad(made) == {"precommitted-read"}


def test_lost_write(made):
    """Acknowledged at an offset below one that was read, and never read itself."""
    made.send(1, 0, 10)
    made.send(1, 1, 11)
    made.op(2, "subscribe", keys=frozenset({"k"}))
    made.poll(2, [1], 11)
    assert bad(made) == {"lost-write", "unseen"}
    made.poll(2, [0], 10)
    assert bad(made) == set()


def test_lost_write_counts_only_below_what_was_read(made):
    """What lies above the highest offset that was read may be still unread: it is unseen, not lost."""
    made.send(1, 0, 10)
    made.send(1, 1, 11)
    made.poll(2, [0], 10)
    assert bad(made) == {"unseen"}


def test_lost_write_of_unknown_outcome(made):
    """It is lost only if part of it was read: then it must have happened, all of it."""
    made.send(1, None, 10, kind="info")
    made.send(1, 1, 11)
    made.poll(2, 1, 11)
    made.poll(3, 0, 10, kind="info")
    assert bad(made) == set()
    made.op(4, "txn", "info", sends={"k": column([None], 12), "l": column([None], 20)})
    made.poll(3, 2, 12, kind="info")
    made.send(1, 3, 13)
    made.poll(6, [3], 13)
    assert bad(made) == set()
    made.poll(5, 0, 20, key="l")
    assert bad(made) == {"lost-write"}


def test_lost_write_of_a_failed_send(made):
    """A send that failed may well leave no record."""
    made.send(1, None, 10, kind="fail")
    made.send(1, 1, 11)
    made.poll(2, 0, 10, kind="info")
    made.poll(2, 1, 11)
    assert bad(made) == set()


def test_unseen(made):
    """Acknowledged and never read, at an offset that nobody told."""
    made.send(1, 0, 10)
    made.send(1, None, 11)
    made.poll(2, 0, 10)
    assert bad(made) == {"unseen"}
    made.poll(2, 1, 11)
    assert bad(made) == set()


def test_unseen_asks_each_audience(made):
    """A group must have read everything too, not only somebody."""
    grouped = Made(members=1)
    grouped.complete = {"g"}
    grouped.send(9, 0, 10)
    grouped.poll(8, 0, 10)
    assert bad(grouped) == {"unseen"}
    grouped.given(1, k=0)
    grouped.poll(1, 0, 10)
    assert bad(grouped) == set()


def test_unseen_leaves_out_what_was_not_acknowledged(made):
    """Nobody promised those."""
    made.send(1, 0, 10)
    made.send(1, None, 11, kind="info")
    made.send(1, None, 12, kind="fail")
    made.poll(2, 0, 10)
    assert bad(made) == set()


# --- order of polls


@pytest.fixture
def five(made):
    """Five records that somebody reads."""
    for offset in range(5):
        made.send(1, offset, offset)
    made.poll(2, 0, *range(5))
    return made


def test_poll_skip(five):
    """From one poll to the next, a record is left out."""
    five.poll(3, 0, 0, 1)
    five.poll(3, 2, 2)
    assert bad(five) == set()
    five.poll(3, 4, 4)
    assert bad(five) == {"poll-skip"}


def test_poll_skip_over_offsets_that_hold_nothing(made):
    """Gaps in the offsets are no records: the next known one is the next."""
    for offset in (0, 5, 9):
        made.send(1, offset, offset)
        made.poll(2, offset, offset)
    assert bad(made) == set()


def test_nonmonotonic_poll(five):
    """A record is handed out again, or one before it."""
    five.poll(3, 0, 0, 1)
    five.poll(3, 1, 1, 2)
    assert bad(five) == {"nonmonotonic-poll"}


@pytest.mark.parametrize("offset", [0, 3])
def test_subscribers_may_skip_and_repeat_between_polls(five, offset):
    """A partition may have gone elsewhere and come back; one who assigned has no such excuse."""
    five.op(3, "assign", keys=frozenset({"k"}))
    five.op(4, "subscribe", keys=frozenset({"k"}))
    five.poll(4, 0, 0, 1)
    five.poll(4, offset, offset)
    assert bad(five) == set()
    five.poll(3, 0, 0, 1)
    five.poll(3, offset, offset)
    assert bad(five) == {"poll-skip" if offset else "nonmonotonic-poll"}


@pytest.mark.parametrize("kind", ["info", "fail"])
def test_only_successful_polls_move_the_position(five, kind):
    """What another poll handed out must come again."""
    five.poll(3, 0, 0, 1)
    five.poll(3, 2, 2, kind=kind)
    five.poll(3, 2, 2)
    assert bad(five) == set()
    five.poll(3, 3, 3, kind=kind)
    five.poll(3, 4, 4)
    assert bad(five) == {"poll-skip"}


@pytest.mark.parametrize("kind", ["ok", "info"])
def test_assign_forgets_the_keys_that_it_drops(five, kind):
    """A key that went and came is read from anywhere; one that stayed goes on."""
    five.poll(3, 0, 0, 1)
    five.op(3, "assign", kind, keys=frozenset({"l"}))
    five.op(3, "assign", kind, keys=frozenset({"k"}))
    five.poll(3, 4, 4)
    assert bad(five) == set()
    five.op(3, "assign", kind, keys=frozenset({"k", "l"}))
    five.poll(3, 1, 1)
    assert bad(five) == {"nonmonotonic-poll"}


def test_failed_assign_forgets_nothing(five):
    """It did not happen."""
    five.poll(3, 0, 0, 1)
    five.op(3, "assign", "fail", keys=frozenset())
    five.poll(3, 4, 4)
    assert bad(five) == {"poll-skip"}


def test_seek_moves_the_position(five):
    """The next poll begins at the offset that was sought, and nowhere else."""
    five.poll(3, 0, 0, 1, 2)
    five.op(3, "seek", offsets={"k": 1})
    five.poll(3, 1, 1, 2)
    assert bad(five) == set()
    five.op(3, "seek", offsets={"k": 1})
    five.poll(3, 2, 2)
    assert bad(five) == {"poll-skip"}


def test_int_poll_skip(five):
    """Inside one poll a record is left out."""
    five.poll(3, [0, 1, 3], 0, 1, 3)
    assert bad(five) == {"int-poll-skip"}


def test_int_nonmonotonic_poll(five):
    """Inside one poll a record comes twice, or too late."""
    five.poll(3, [0, 1, 1, 2], 0, 1, 1, 2)
    assert bad(five) == {"int-nonmonotonic-poll"}


def test_order_inside_a_poll_in_which_the_partition_moved(five):
    """It may have gone and come back in between."""
    op = five.poll(3, [3, 4, 0], 3, 4, 0)
    op.rebalanced = frozenset({"k"})
    assert bad(five) == set()
    op.rebalanced = frozenset({"l"})
    assert bad(five) == {"int-nonmonotonic-poll"}


# --- order of sends


def test_nonmonotonic_send(made):
    """What is sent later lies before; nobody needs real time to see it."""
    made.send(1, None, 10)
    made.send(1, None, 11)
    made.poll(2, 0, 10, 11)
    assert bad(made) == set()
    made.send(3, None, 20, 21, key="l")
    made.send(3, None, 22, 23, key="l")
    made.poll(2, 0, 22, 23, 20, 21, key="l")
    assert bad(made) == {"nonmonotonic-send"}


def test_nonmonotonic_send_of_unknown_outcome(made):
    """If it happened, it happened in its turn."""
    made.send(1, None, 10, 11, kind="info")
    made.send(1, None, 12, 13)
    made.poll(2, 0, 12, 13, 10, 11)
    assert bad(made) == {"nonmonotonic-send"}


def test_nonmonotonic_send_starts_anew_with_an_assignment(made):
    """As for polls, by the workload's rule."""
    made.send(1, None, 10, 11, kind="info")
    made.op(1, "assign", keys=frozenset())
    made.send(1, None, 12, 13)
    made.poll(2, 0, 12, 13, 10, 11)
    assert bad(made) == set()


def test_int_nonmonotonic_send(made):
    """One operation's values lie the other way round."""
    made.send(1, None, 10, 11)
    made.poll(2, 0, 11, 10)
    assert bad(made) == {"int-nonmonotonic-send"}


def test_int_send_skip_is_counted_and_allowed(made):
    """Batches of two producers may lie between one another's."""
    made.op(1, "send", sends={"k": column([0, 2], 10, 11)})
    made.send(2, 1, 20)
    made.poll(3, 0, 10, 20, 11)
    report = check(made)
    assert report.bad == set()
    assert report.violations["int-send-skip"] == 1


# --- cycles


def txn(history, process, **what):
    """A transaction that sends: key = its offset and its value."""
    return history.op(process, "txn", sends={key: column(*place) for key, place in what.items()})


def overlapping(history, *ops):
    """Let these operations run at the same time."""
    begun, ended = history.tick(), history.tick()
    for op in ops:
        op.invoked, op.completed = begun, ended


def test_write_cycle(made):
    """Two transactions, each before the other in one key: then neither was one atomic publish."""
    one, two = txn(made, 1, k=(0, 1), l=(0, 1)), txn(made, 2, k=(1, 2), l=(1, 2))
    overlapping(made, one, two)
    made.poll(3, 0, 1, 2)
    made.poll(4, 0, 1, 2, key="l")
    assert bad(made) == set()
    one.sends["l"], two.sends["l"] = column(1, 1), column(0, 2)
    made.ops[-1].reads["l"] = column(0, 2, 1)
    assert bad(made) == {"G0"}


def test_write_cycle_of_plain_sends(made):
    """They may be written in parts, with others' between them."""
    one = made.op(1, "send", sends={"k": column(0, 1), "l": column(1, 1)})
    two = made.op(2, "send", sends={"k": column(1, 2), "l": column(0, 2)})
    overlapping(made, one, two)
    made.poll(3, 0, 1, 2)
    made.poll(4, 0, 2, 1, key="l")
    assert bad(made) == set()


def test_circular_information_flow(made):
    """Two transactions read what the other sent."""
    one = made.op(1, "txn", sends={"k": column(0, 1)}, reads={"l": column(0, 2)})
    two = made.op(2, "txn", sends={"l": column(0, 2)})
    overlapping(made, one, two)
    made.poll(3, 0, 1)
    assert bad(made) == set()
    two.reads = {"k": column(0, 1)}
    assert bad(made) == {"G1c"}


def test_write_cycle_through_a_process(made):
    """A process's second record lies before its first, as another's between them shows."""
    made.send(1, 2, 10)
    made.send(1, 0, 11)
    overlapping(made, *made.ops, made.send(2, 1, 20))
    made.poll(3, 0, 11, 20, 10)
    assert bad(made) == {"G0-process", "nonmonotonic-send"}


def test_information_flow_through_a_process(made):
    """A transaction reads what its reader's process sent only afterwards."""
    first = made.op(1, "txn", reads={"k": column(0, 1)})
    second = made.send(1, 0, 2, key="l")
    other = made.op(2, "txn", sends={"k": column(0, 1)}, reads={"l": column(0, 2)})
    overlapping(made, first, second, other)
    assert bad(made) == {"G1c-process"}


def test_write_cycle_in_real_time(made):
    """What was acknowledged before another was begun lies behind it."""
    made.send(1, 1, 10)
    made.send(2, 0, 20)
    made.poll(3, 0, 20, 10)
    assert bad(made) == {"G0-realtime"}


def test_reading_from_the_future(made):
    """A poll that was over before the send began."""
    made.poll(3, 0, 10)
    made.send(1, 0, 10)
    assert bad(made) == {"G1c-realtime"}
    overlapping(made, *made.ops)
    assert bad(made) == set()


def test_what_is_unknown_may_have_happened_later(made):
    """It follows what came before it; nothing follows it."""
    made.send(1, None, 10, kind="info")
    made.send(2, 0, 20)
    made.poll(3, 0, 20, 10)
    assert bad(made) == set()


def test_operation_that_never_ended(made):
    """A killed producer's record may be read as long as anybody reads."""
    made.ops.append(Op(process=1, f="send", invoked=made.tick(), sends={"k": column([None], 10)}))
    made.poll(3, 0, 10)
    assert bad(made) == set()
