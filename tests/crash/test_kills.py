"""A process may be killed at any step of any operation: the others go on at once, and nothing acknowledged is lost."""

from __future__ import annotations

import os

import pytest

from .kills import Report, fast_folder, forked, kill_everywhere
from .procedures import PROCEDURES
from .transacted import TRANSACTED

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kill points need os.fork"),
    # The survivor forks while its background threads wait, as the library allows.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

_EVERY = {"produce": 5, "transact": 9}
"""Operations that take the same steps for each partition: one point of so many is enough here."""


@pytest.mark.parametrize("make", PROCEDURES + TRANSACTED, ids=[make().name for make in PROCEDURES + TRANSACTED])
def test_survivor_goes_on_after_a_kill_at_any_step(make):
    """Before and after each system call that changes anything, and in the middle of each write."""
    operation, report = make(), Report()
    with fast_folder() as folder:
        kill_everywhere(operation, folder, report, partial=1, every=_EVERY.get(operation.name.split()[0], 1))
    assert not report.failures
    assert report.points or operation.name == "abort", "it has no steps: is it still made through the door?"


def test_a_victim_that_fails_is_heard():
    """What a victim raises is neither taken for a death nor for success."""

    def victim(say):
        say("ack one")
        raise ValueError("wrong")

    lines, status = forked(victim)
    assert lines[0] == "ack one"
    assert "ValueError" in lines[1]
    assert os.waitstatus_to_exitcode(status) == 1
