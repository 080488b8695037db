"""`python -m pystreamlog`, with the `cli` extra and without it: what it says, and with which exit status."""

from __future__ import annotations

import msgspec
import pytest

import pystreamlog
from pystreamlog import __main__ as command_line


@pytest.fixture(params=["typer", "rich"])
def run(request, monkeypatch):
    """Runs a command line where one of the extra's libraries is missing, and returns its exit status."""
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == request.param else object())

    def run_arguments(*arguments):
        monkeypatch.setattr("sys.argv", ["pystreamlog", *map(str, arguments)])
        return command_line.main()

    return run_arguments


@pytest.fixture
def log(tmp_path):
    """A log with a record."""
    with pystreamlog.open(tmp_path / "log") as log:
        log.create_topic("orders").append(b"x")
    return tmp_path / "log"


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)], ids=["nothing", "-h", "--help"])
def test_usage_is_printed(run, capsys, arguments):
    """Who asks for nothing is told what there is, and what more there could be."""
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ")
    assert "demo" in printed
    assert 'pip install "pystreamlog[cli]"' in printed


def test_version_is_printed(run, capsys):
    """`--version` prints the name and the version."""
    assert run("--version") == 0
    assert capsys.readouterr().out == f"pystreamlog {pystreamlog.__version__}\n"


@pytest.mark.parametrize("arguments", [("topics", "list"), ("--log", "data", "verify"), ("--surely-not",)])
def test_extra_is_named(run, capsys, arguments):
    """A command that needs the extra says how to get it, and names itself."""
    assert run(*arguments) == 2
    printed = capsys.readouterr().err
    assert 'pip install "pystreamlog[cli]"' in printed
    assert repr(arguments[0]) in printed


def test_log_is_verified_and_repaired_without_the_extra(run, capsys, log):
    """0 when it is whole, 1 when it is damaged, 2 where there is none."""
    assert run("verify", log) == 0
    assert "whole; 1 records" in capsys.readouterr().out
    assert run("verify", log, "--json") == 0
    assert msgspec.json.decode(capsys.readouterr().out)["records"] == 1
    assert run("repair", log) == 0
    (log / "topics" / "orders" / "topic.json").write_bytes(b"{")
    assert run("verify", log) == 1
    assert "topic.json" in capsys.readouterr().out
    assert run("verify", log / "missing") == 2
    assert "does not exist" in capsys.readouterr().err


def test_log_is_compacted_without_the_extra(run, capsys, log):
    """The maintenance of an open log runs it so, in a process of its own, whether the extra is there or not."""
    assert run("compact", "--log", log) == 0
    assert "deleted 0 segments" in capsys.readouterr().out


def test_process_of_a_log_does_without_the_extra(monkeypatch, log):
    """It starts at once, and takes no memory for what it does not need."""
    monkeypatch.setattr("sys.argv", ["pystreamlog", "compact", "--log", str(log), "--child-of", "1"])
    monkeypatch.setattr(command_line, "find_spec", lambda name: pytest.fail(f"it looked for {name}"))
    monkeypatch.setattr(command_line, "_run_core", len)
    assert command_line.main() == 5


@pytest.mark.parametrize("arguments", [("verify",), ("repair", "data", "--force"), ("demo", "--seconds", "x")])
def test_command_line_without_the_extra_makes_no_sense(run, capsys, arguments):
    """It ends with 2, and says what is wrong."""
    with pytest.raises(SystemExit) as exited:
        run(*arguments)
    assert exited.value.code == 2
    assert "error" in capsys.readouterr().err


def test_interrupt_without_the_extra(run, monkeypatch, log):
    """Ctrl-C ends with 130, as with the extra."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pystreamlog, "open", interrupt)
    assert run("verify", log) == 130


def test_all_commands_are_there_with_the_extra(monkeypatch, capsys):
    """The same console script has them all, once the extra is installed."""
    monkeypatch.setattr("sys.argv", ["pystreamlog", "--help"])
    with pytest.raises(SystemExit) as exited:
        command_line.main()
    assert exited.value.code == 0
    printed = capsys.readouterr().out
    for name in ("demo", "groups", "offsets", "repair", "top", "topics", "verify"):
        assert name in printed
