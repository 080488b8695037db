"""The rules of groups: each finds the smallest history that breaks it, by its name and no other."""

from __future__ import annotations

import pytest

from .histories import Made
from .rules import check


def bad(history):
    """The rules that a history breaks."""
    return check(history).bad


@pytest.fixture
def made():
    """Three members that subscribed, ten records, and a reader who has them all."""
    made = Made(members=3)
    for offset in range(10):
        made.send(9, offset, offset)
    made.poll(8, 0, *range(10))
    for process in (1, 2, 3):
        made.op(process, "subscribe", keys=frozenset({"k"}))
    return made


def commit(made, process, offset, kind="ok"):
    """A commit by hand."""
    return made.op(process, "commit", kind, offsets={"k": offset})


def look(made, process, offset):
    """A member asks what is committed."""
    return made.op(process, "committed", offsets={"k": offset})


# --- ownership


def test_handing_over(made):
    """Revoked, then given to another; every rule has something to compare."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1)
    made.poll(1, 2, 2)
    commit(made, 1, 3)
    made.taken(1)
    made.given(2, k=3)
    made.poll(2, 3, 3)
    look(made, 2, 3)
    report = check(made)
    assert report.bad == set()
    report.demand({"commit-regression", "committed-too-far", "double-ownership", "hold-skip", "start-mismatch"})
    assert report.bad == set()


def test_double_ownership(made):
    """Given to one while another has it and polls."""
    made.given(1, k=0)
    made.given(2, k=0)
    assert bad(made) == {"double-ownership"}


def test_double_ownership_during_the_revoke_callback(made):
    """Until the callback returns, the old owner may still commit."""
    made.given(1, k=0)
    begun = made.tick()
    made.callback(1, "revoke", "k")
    revoke = made.events[-1]
    made.op(1, "poll", begun=begun)
    made.given(2, k=0)
    assert bad(made) == set()
    given = made.events[-1]
    given.since = given.time = revoke.time - 1
    assert bad(made) == {"double-ownership"}


@pytest.mark.parametrize(("pause", "found"), [(50, {"double-ownership"}), (200, set())])
def test_double_ownership_after_a_pause(made, pause, found):
    """Who did not poll for `max_poll_interval_ms` (100 ticks) has lost it without knowing; who paused less has not."""
    made.given(1, k=0)
    made.happens(1, "stop")
    made.tick(pause)
    made.given(2, k=0)
    made.happens(1, "continue")
    made.taken(1, what="lost")
    assert bad(made) == found


def test_double_ownership_while_it_polls_seldom_enough(made):
    """Polls that are each a little less apart than they may be keep the partition."""
    made.given(1, k=0)
    for _ in range(5):
        made.tick(90)
        made.poll(1, 0)
    made.given(2, k=0)
    assert bad(made) == {"double-ownership"}


@pytest.mark.parametrize(("how", "found"), [("poll", {"double-ownership"}), ("next", set())])
def test_reading_on_after_the_loss(made, how, found):
    """A poll that begins after another was given the partition must not hand it out; a loop may, from what it holds."""
    made.given(1, k=0)
    made.poll(1, 0, 0)
    made.tick(200)
    made.given(2, k=0)
    op = made.poll(1, 1, 1)
    op.how = how
    made.taken(1, what="lost")
    assert bad(made) == found


def test_member_that_was_killed_holds_nothing(made):
    """From the kill on; not before."""
    made.given(1, k=0)
    made.happens(1, "kill")
    made.given(2, k=0)
    assert bad(made) == set()
    kill = made.events[-2]
    kill.time = made.tick()
    assert bad(made) == {"double-ownership"}


def test_member_that_closes_holds_until_it_has_revoked(made):
    """Closing lets go; its callbacks come first, if there are any."""
    made.given(1, k=0)
    made.op(1, "close")
    made.given(2, k=0)
    assert bad(made) == set()
    begun = made.tick()
    made.callback(2, "revoke", "k")
    revoke = made.events[-1]
    made.op(2, "close", begun=begun)
    made.given(3, k=0)
    assert bad(made) == set()
    revoke.time = made.tick()
    assert bad(made) == {"double-ownership"}


def test_assigned_twice(made):
    """Callbacks name only what changes."""
    made.given(1, k=0)
    made.given(1, k=0)
    assert bad(made) == {"double-ownership"}


def test_unowned_read(made):
    """Records of a partition that was taken away, or never given."""
    made.given(1, k=0)
    made.poll(1, 0, 0)
    made.taken(1)
    assert bad(made) == set()
    made.poll(1, 1, 1)
    assert bad(made) == {"unowned-read"}


def test_copier_looks_at_what_it_writes(made):
    """It is no member for that, and need not have written any of it itself."""
    made.given(1, k=0)
    look = made.op(1, "txn", keys=frozenset({"copy"}))
    look.reads = {"copy": ([0], [0])}
    assert "unowned-read" not in bad(made)
    look.keys = frozenset()
    assert "unowned-read" in bad(made)


# --- where owners start and go on


@pytest.mark.parametrize(("start", "found"), [(1, set()), (0, {"start-mismatch"}), (2, {"start-mismatch"})])
def test_start_mismatch(made, start, found):
    """A new owner starts at what is committed: neither before nor behind it."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1)
    commit(made, 1, 1)
    made.happens(1, "kill")
    made.given(2, k=1)
    made.poll(2, start, start)
    assert bad(made) == found


def test_start_mismatch_without_a_commit(made):
    """With nothing committed it is the beginning."""
    made.given(1, k=None)
    made.poll(1, 0, 0)
    assert bad(made) == set()
    made.given(2, l=None)
    made.send(9, 0, 20, 21, key="l")
    made.poll(8, 0, 20, 21, key="l")
    made.poll(2, 1, 21, key="l")
    assert bad(made) == {"start-mismatch"}


def test_start_in_the_poll_that_assigns(made):
    """Callbacks run before the records of the same poll are handed out."""
    begun = made.tick()
    made.callback(1, "assign", k=0)
    made.op(1, "poll", begun=begun, reads={"k": (range(3, 4), [3])})
    assert bad(made) == {"start-mismatch"}


def test_start_after_a_seek(made):
    """Who seeks starts where it sought."""
    made.given(1, k=0)
    made.op(1, "seek", offsets={"k": 4})
    made.poll(1, 4, 4)
    assert bad(made) == set()
    made.poll(1, 4, 4)
    assert bad(made) == {"hold-skip"}


def test_start_that_nobody_asked_for(made):
    """A lock was not free when the callback asked: then there is nothing to compare."""
    made.given(1)
    made.poll(1, 4, 4)
    assert bad(made) == set()


@pytest.mark.parametrize(("offset", "found"), [(2, set()), (1, {"hold-skip"}), (3, {"hold-skip"})])
def test_hold_skip(made, offset, found):
    """While it holds a partition, a member's polls follow one another."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1)
    made.poll(1, offset, offset)
    assert bad(made) == found


# --- commits


def test_commit_regression(made):
    """An owner commits less than the one before it had committed."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1, 2)
    commit(made, 1, 3)
    made.taken(1)
    made.given(2)
    made.poll(2, 3, 3)
    commit(made, 2, 4)
    assert bad(made) == set()
    commit(made, 2, 1)
    assert bad(made) == {"commit-regression"}


def test_commit_regression_that_a_new_owner_sees(made):
    """A commit that was acknowledged is gone."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1, 2)
    commit(made, 1, 3)
    made.taken(1)
    made.given(2, k=2)
    assert bad(made) == {"commit-regression"}


def test_commit_regression_in_a_callback(made):
    """Commits in callbacks count as others do."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1, 2)
    made.taken(1)
    made.callback(1, "commit", k=3)
    made.given(2, k=2)
    assert bad(made) == {"commit-regression"}


def test_commit_lost_altogether(made):
    """Nothing is less than anything."""
    made.given(1, k=0)
    made.poll(1, 0, 0)
    commit(made, 1, 1)
    look(made, 1, None)
    assert bad(made) == {"commit-regression"}


@pytest.mark.parametrize("kind", ["fail", "info"])
def test_commit_that_may_have_failed_sets_no_floor(made, kind):
    """Only what was acknowledged must stay."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1, 2)
    commit(made, 1, 3, kind)
    made.happens(1, "kill")
    made.given(2, k=0)
    assert bad(made) == set()


def test_commit_at_the_same_time(made):
    """Of two that overlap, either may be the last."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1, 2)
    high, low = commit(made, 1, 3), look(made, 2, 1)
    assert bad(made) == {"commit-regression"}
    low.invoked = high.invoked
    assert bad(made) == set()


def test_commit_regression_after_a_seek(made):
    """Who sought may go back."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1, 2)
    commit(made, 1, 3)
    made.op(1, "seek", offsets={"k": 0})
    made.poll(1, 0, 0)
    commit(made, 1, 1)
    assert bad(made) == set()


def test_committed_too_far(made):
    """While a poll is processed, not even its first record is committed, unless by hand."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1)
    made.poll(1, 2, 2, 3)
    look(made, 1, 2)
    assert bad(made) == set()
    look(made, 1, 3)
    assert bad(made) == {"committed-too-far"}


def test_committed_too_far_that_a_new_owner_sees(made):
    """What the dead owner had not moved past must be handed out again."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1)
    made.happens(1, "kill")
    made.given(2, k=1)
    assert bad(made) == {"committed-too-far"}


@pytest.mark.parametrize("kind", ["ok", "info", "fail"])
def test_commit_by_hand_may_go_to_the_end(made, kind):
    """Also one that, as far as anybody knows, failed: somebody asked for it."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1)
    commit(made, 1, 2, kind)
    look(made, 1, 2)
    assert bad(made) == set()


def test_closing_moves_past_what_was_handed_out(made):
    """As leaving a `with` block does."""
    made.given(1, k=0)
    made.poll(1, 0, 0, 1)
    made.op(1, "close")
    made.given(2, k=2)
    assert bad(made) == set()


def test_groups_do_not_mix(made):
    """Members of another group own and commit for themselves."""
    made.clients[2].group = "h"
    made.given(1, k=0)
    made.poll(1, 0, 0, 1)
    commit(made, 1, 2)
    made.given(2, k=0)
    made.poll(2, 0, 0)
    assert bad(made) == set()
