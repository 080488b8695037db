"""What the shell completes: topics, groups and settings, of a log that can be read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pystreamlog.cli.options import (
    LOG_VARIABLE,
    complete_groups,
    complete_settings,
    complete_topic_settings,
    complete_topics,
)
from tests.cli.terminals import ROOT


def test_names_of_the_log_are_completed(filled, monkeypatch):
    """Of the log that the environment names."""
    monkeypatch.setenv(LOG_VARIABLE, filled)
    assert complete_topics("or") == ["orders"]
    assert complete_topics("") == ["idle", "orders"]
    assert complete_groups("b") == ["billing"]
    assert complete_groups("x") == []


@pytest.mark.parametrize("target", [None, "missing", __file__])
def test_no_log_completes_nothing(monkeypatch, target):
    """The shell is never disturbed by an error."""
    if target:
        monkeypatch.setenv(LOG_VARIABLE, target)
    assert complete_topics("") == complete_groups("") == []


def test_settings_are_completed():
    """With the `=` where a value follows."""
    assert complete_topic_settings("retention") == ["retention_ms", "retention_bytes"]
    assert complete_settings("retention_m") == ["retention_ms="]


def test_shell_is_answered(filled):
    """The completion that `--install-completion` sets up works end to end."""
    done = subprocess.run(
        [sys.executable, "-m", "pystreamlog"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            LOG_VARIABLE: filled,
            "_PYSTREAMLOG_COMPLETE": "complete_bash",
            "COMP_WORDS": "pystreamlog topics describe o",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["orders"], done.stderr
