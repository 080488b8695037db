"""Short runs: processes, faults, and every rule with something to compare. `python -m tests.checker` runs longer."""

from __future__ import annotations

import os
import signal

import pytest

from .report import Report
from .run import Scenario, _Run, run

pytestmark = pytest.mark.faults


def verdict(report: Report) -> str:
    """What a failed test shows."""
    return "\n".join(report.lines())


@pytest.mark.slow
def test_assigned_readers():
    """Producers that are killed and stopped; readers neither skip nor repeat, and read everything."""
    scenario = Scenario(seconds=1.5, seed=1, members=0, copiers=0, readers=1, producers=2, fault_interval=0.3)
    report = run(scenario)
    assert not report.bad, f"{scenario}\n{verdict(report)}"


@pytest.mark.slow
def test_group():
    """Members that come, go, stop and die: one owner at a time, nothing lost, no commit too far or back."""
    scenario = Scenario(
        seconds=3, seed=2, members=3, copiers=0, readers=1, producers=2, fault_interval=0.25, max_poll_interval_ms=600
    )
    report = run(scenario)
    assert not report.bad, f"{scenario}\n{verdict(report)}"


@pytest.mark.slow
def test_copiers():
    """Copiers that abort, stop, die and fence each other: one copy of each record, in whole transactions."""
    scenario = Scenario(
        seconds=3, seed=4, members=0, copiers=3, readers=1, producers=2, fault_interval=0.2, max_poll_interval_ms=600
    )
    report = run(scenario)
    assert not report.bad, f"{scenario}\n{verdict(report)}"


def test_client_that_dies_is_found(tmp_path):
    """By a signal that nobody sent on purpose, or by an exception: its last words are shown."""
    course = _Run(Scenario(seconds=0, seed=3, members=0, copiers=0, readers=0, producers=1), tmp_path)
    started = []
    course._disturb = lambda: started.extend(course._live) or os.kill(started[0]._popen.pid, signal.SIGTERM)
    course.run()
    assert "client-died" in course.report().bad
