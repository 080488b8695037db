"""A process may be killed at any step of any operation: the others go on at once, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal

import pytest

import pystreamlog
from pystreamlog.storage.format import PUBLISHED_SLOT

from . import door
from .kills import Report, fast_folder, forked, kill_everywhere
from .procedures import PROCEDURES
from .transacted import TRANSACTED, Transact
from .world import TOPIC, World

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kill points need os.fork"),
    # The survivor forks while its background threads wait, as the library allows.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

_EVERY = {"produce": 5, "snapshot": 5, "transact": 9}
"""Of operations that take the same steps for each partition, one point of so many is tried here."""
_EVERY_ELSE = 3
"""Of all others. `python -m tests.crash.kills` tries every point."""


@pytest.mark.parametrize("make", PROCEDURES + TRANSACTED, ids=[make().name for make in PROCEDURES + TRANSACTED])
def test_survivor_goes_on_after_a_kill_at_any_step(make):
    """Before and after each system call that changes anything, and in the middle of each write."""
    operation, report = make(), Report()
    with fast_folder() as folder:
        kill_everywhere(operation, folder, report, partial=1, every=_EVERY.get(operation.name.split()[0], _EVERY_ELSE))
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


def test_transaction_with_a_torn_entry_comes_back_whole_or_not_at_all():
    """Its committer dies in the middle of publishing the journal's entry; who opens the journal later decides alike."""
    operation = Transact("transact", offsets=0)
    with fast_folder() as folder:
        world = World(f"{folder}/log")
        try:
            operation.prepare(world)
            forked(lambda say: operation.act(world.log, operation.ready(world.log, world), say))  # makes the journal
            operation.prepare(world)
            _, status = forked(lambda say: _torn_entry(operation, world, say))
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            world.log.topic(TOPIC).append(b"survivor", partition=0)
            _, status = forked(lambda say: _open_and_transact(world.path))
            assert not status
            found = world.found(TOPIC)
            there = [operation.values[partition][0] in found[partition] for partition in range(2)]
            assert len(set(there)) == 1, there
        finally:
            world.close()


def _torn_entry(operation, world, say):
    def hook(call):
        if call.path.endswith("journal/control") and len(call.data) == PUBLISHED_SLOT.size:
            call.write_part(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return call.make()

    ready = operation.ready(world.log, world)
    door.install(hook)
    operation.act(world.log, ready, say)


def _open_and_transact(path):
    with pystreamlog.open(path) as log, log.producer() as producer, producer.transaction():
        for partition in (1, 2):
            producer.send(TOPIC, b"newcomer", partition=partition)
