"""What the shell completes: topics, groups and settings, of a log that can be read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer

import pystreamlog
from pystreamlog.cli.app import app
from pystreamlog.cli.options import (
    LOG_VARIABLE,
    complete_groups,
    complete_settings,
    complete_topic_settings,
    complete_topics,
)
from tests.cli.terminals import ROOT


@pytest.fixture
def context():
    """A command line on which nothing was named yet."""
    return typer.Context(typer.main.get_command(app))


def test_names_of_the_log_are_completed(filled, monkeypatch, context):
    """Of the log that the environment names."""
    monkeypatch.setenv(LOG_VARIABLE, filled)
    assert complete_topics(context, "or") == ["orders"]
    assert complete_topics(context, "") == ["idle", "orders"]
    assert complete_groups(context, "b") == ["billing"]
    assert complete_groups(context, "x") == []


@pytest.mark.parametrize("target", [None, "missing", __file__])
def test_no_log_completes_nothing(monkeypatch, context, target):
    """The shell is never disturbed by an error."""
    if target:
        monkeypatch.setenv(LOG_VARIABLE, target)
    assert complete_topics(context, "") == complete_groups(context, "") == []


def test_settings_are_completed():
    """With the `=` where a value follows."""
    assert complete_topic_settings("retention") == ["retention_ms", "retention_bytes"]
    assert complete_settings("retention_m") == ["retention_ms="]


@pytest.mark.parametrize(
    "words",
    [
        "pystreamlog topics describe o",
        "pystreamlog topics describe --log {other} --log {log} o",
        "pystreamlog --log {log} topics describe o",
        "pystreamlog consume --log {log} --topic o",
    ],
)
def test_shell_is_answered(filled, tmp_path, words):
    """The completion that `--install-completion` sets up works end to end, of the log that the line names."""
    other = str(tmp_path / "other")
    pystreamlog.open(other).close()
    line = words.format(log=filled, other=other)
    done = subprocess.run(
        [sys.executable, "-m", "pystreamlog"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            LOG_VARIABLE: other if "--log" in words else filled,
            "_PYSTREAMLOG_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["orders"], done.stderr
