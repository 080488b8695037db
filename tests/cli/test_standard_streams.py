"""Standard streams that are closed, full, or whose encoding lacks characters: told, and never taken for the log's."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

import pystreamlog
from pystreamlog.cli import output
from tests.cli.commands import COMMANDS
from tests.cli.shell import COMMAND, PATIENCE, environment

WITHOUT_OUTPUT = {"produce", "verify", "repair", "demo"}
"""Commands that need no standard output: they print nothing, or their exit status says it."""
ON_LOGS = [command for command in COMMANDS if command.takes_log]
every_command_on_a_log = pytest.mark.parametrize("command", ON_LOGS, ids=lambda command: command.name)


def alone(log, arguments, redirection, **variables):
    """Run a command in a process of its own, with standard streams as a shell redirects them."""
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", *COMMAND, *map(str, arguments)],
        env={**environment(log), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


def contents(directory):
    """All files of a log but those that say who looks at it."""
    found = {}
    for place, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                found[os.path.join(place, name)] = file.read()
    return found


@every_command_on_a_log
def test_output_is_closed(monkeypatch, on, filled, command):
    """Nothing is done that could not be told, and that is said."""
    before = contents(filled)
    monkeypatch.setattr(sys, "stdout", None)
    done = on(*command.arguments())
    monkeypatch.undo()
    if command.name in WITHOUT_OUTPUT:
        assert done.status == 0, done.err
        return
    assert done.status == 2
    assert "no standard output" in done.err
    assert contents(filled) == before


@every_command_on_a_log
def test_errors_cannot_be_told(monkeypatch, on, command):
    """Without a standard error stream a command does the same."""
    monkeypatch.setattr(sys, "stderr", None)
    assert on(*command.arguments()).status == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@every_command_on_a_log
def test_output_is_full(monkeypatch, on, command):
    """It is the output that is called full, once, and not the log."""
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        done = on(*command.arguments())
        monkeypatch.undo()
        if done.status == 0:
            return  # it had nothing to print
    assert done.status == 1
    assert done.err.count("space") == 1
    assert "pystreamlog: the standard output cannot be written: No space left on device\n" in done.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["topics", "list"]])
def test_full_output_of_a_process(filled, arguments):
    """The interpreter's last flush has nothing to say either."""
    done = alone(filled, arguments, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"pystreamlog: the standard output cannot be written: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_status_of_verify(filled, redirection):
    """Who closed the streams has the exit status: a whole log is whole."""
    assert alone(filled, ["verify"], redirection).returncode == 0
    assert alone(filled, ["verify", "--json"], redirection).returncode == 0


def test_no_file_of_the_log_is_a_standard_stream(filled):
    """What writes to a stream that was closed must not write into a segment."""
    done = alone(filled, ["produce", "orders"], "<&- >&- 2>&-")
    assert done.returncode == 2  # there is no standard input
    script = (
        "import os, runpy, sys; sys.argv = ['pystreamlog', 'topics', 'list']\n"
        "try: runpy.run_module('pystreamlog', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(0 if all(os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in range(3)) else 7)"
    )
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", script],
        env=environment(filled),
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0


def test_question_without_streams(filled):
    """What cannot be undone is not done where nobody can be asked."""
    assert alone(filled, ["topics", "delete", "orders"], "<&- 2>&-").returncode == 2
    with pystreamlog.open(filled) as log:
        assert "orders" in log.topics()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_locale_lacks_characters(filled, encoding):
    """They are printed as escapes, which in JSON are the same text."""
    name = "größe-日本"
    with pystreamlog.open(filled) as log:
        log.admin.alter_consumer_group_offsets(name, {pystreamlog.TopicPartition("orders", 0): 3})
        log.topic("orders").append(b"\xc3\xbc", "日".encode(), headers=[("é", b"\xc3\xa9")])
    for arguments in (
        ["groups", "list"],
        ["dump", "orders", "--print-data-log"],
        ["top", "--once", "--interval", "0.1"],
    ):
        done = alone(filled, arguments, "", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        done.stdout.decode(encoding)
    done = alone(filled, ["groups", "list", "--json"], "", PYTHONIOENCODING=encoding)
    assert name in [each["group_id"] for each in msgspec.json.decode(done.stdout.decode(encoding))]


def test_warning_before_a_closed_pipe(monkeypatch, capsys):
    """A warning comes through also when nobody reads what is printed."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        output.print_line("a line")
        output.warn("careful")
        with pytest.raises(BrokenPipeError):
            output.flush_output()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())
        monkeypatch.undo()
    assert "careful" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_path_is_no_text(run, filled, tmp_path):
    """It is printed with escapes, as JSON too."""
    place = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.rename(filled, place)
    for number, words in enumerate((["verify"], ["repair"], ["compact"], ["expire"], ["dump", "orders"], ["snapshot"])):
        more = [place + "-copy"] if words == ["snapshot"] else []
        done = run("--log", place, *words, *more)
        assert done.status == 0, done.err
        assert "caf\\udce9" in done.out
        more = [f"{place}-copy-{number}"] if words == ["snapshot"] else []
        done = run("--log", place, *words, *more, "--json")
        assert done.status == 0, done.err
        assert all(msgspec.json.decode(line) for line in done.lines)
        assert "caf\\\\udce9" in done.out
