"""The command line without the `cli` extra: what it says, and with which exit status."""

from __future__ import annotations

import pytest

import pystreamlog
from pystreamlog import __main__ as command_line


@pytest.fixture
def run(monkeypatch):
    """Runs a command line and returns its exit status."""

    def run_arguments(*arguments):
        monkeypatch.setattr("sys.argv", ["pystreamlog", *arguments])
        return command_line.main()

    return run_arguments


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)], ids=["nothing", "-h", "--help"])
def test_usage_is_printed(run, capsys, arguments):
    """Who asks for nothing is told what there is."""
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ")
    assert "demo" in printed


def test_version_is_printed(run, capsys):
    """`--version` prints the name and the version."""
    assert run("--version") == 0
    assert capsys.readouterr().out == f"pystreamlog {pystreamlog.__version__}\n"


def test_command_that_is_not_there_is_named(run, capsys):
    """A command of a later version is an error of the command line, and the message names it."""
    assert run("topics", "list") == 2
    assert "'topics'" in capsys.readouterr().err
