"""Commands on a terminal of 40 columns, behind pipes, and interrupted by Ctrl-C: as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest

import pystreamlog
from tests.cli.terminals import PATIENCE, ROOT, Terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals")


def start(*arguments, **options):
    """A command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pystreamlog", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def test_table_without_room_becomes_blocks(filled):
    """A line per cell, none wider than the terminal, and nothing is left out."""
    with closing(Terminal("--log", filled, "groups", "describe", "billing")) as terminal:
        assert terminal.end() == 0
        shown = [line for line in terminal.lines if "no active members" not in line]
        assert max(map(len, shown)) <= 40
        assert shown.count("LOG-END-OFFSET  10") == 2


def test_question_is_asked(filled):
    """On a terminal nothing is destroyed before somebody says y."""
    for keys, status, left in ((b"n\n", 1, 2), (b"\x03", 130, 2), (b"\x04", 1, 2), (b"y\n", 0, 1)):
        with closing(Terminal("--log", filled, "topics", "delete", "orders")) as terminal:
            terminal.wait_for("Do it?")
            terminal.press(keys)
            assert terminal.end(b"\x03" if status == 130 else b"") == status
        with pystreamlog.open(filled) as log:
            assert len(log.topics()) == left


@pytest.mark.parametrize(("key", "status"), [(b"q", 0), (b"\x03", 130)], ids=["q", "Ctrl-C"])
@pytest.mark.parametrize(("columns", "rows"), [(40, 5), (100, 30)])
def test_live_screen(filled, key, status, columns, rows):
    """It fits the terminal, shows what comes in, ends when told, and leaves the terminal as it was."""
    arguments = ("--log", filled, "top", "--interval", "0.1")
    with pystreamlog.open(filled) as log, closing(Terminal(*arguments, columns=columns, rows=rows)) as terminal:
        before = terminal.mode
        terminal.wait_for("orders")
        log.topic("orders").append(b"x", partition=0)
        terminal.wait_for("21")  # the sum of the ends
        terminal.press(b"x")
        terminal.press(key)
        assert terminal.end() == status
        assert terminal.mode == before
        assert terminal.printed.count("\x1b[?1049h") == terminal.printed.count("\x1b[?1049l") == 1
        assert max(map(len, terminal.lines)) <= columns
        assert ("billing" in terminal.printed) == (rows > 5)
        assert "Traceback" not in terminal.printed


def test_live_screen_that_is_terminated(filled):
    """SIGTERM too leaves the terminal as it was."""
    with closing(Terminal("--log", filled, "top", "--interval", "0.1")) as terminal:
        before = terminal.mode
        terminal.wait_for("orders")
        terminal.process.terminate()
        assert terminal.end() == 128 + signal.SIGTERM
        assert terminal.mode == before
        assert "\x1b[?1049l" in terminal.printed


@pytest.mark.parametrize(("command", "what"), [("verify", "looking"), ("repair", "repairing")])
def test_care_shows_its_progress(filled, command, what):
    """As a snapshot does."""
    with closing(Terminal("--log", filled, command, columns=80)) as terminal:
        assert terminal.end() == 0
        assert what in terminal.printed
        assert "whole" in " ".join(terminal.lines[-3:])


def test_snapshot_shows_its_progress(filled, tmp_path):
    """On a terminal a bar is drawn, and gone when it is done."""
    with closing(Terminal("--log", filled, "snapshot", str(tmp_path / "copy"), columns=80)) as terminal:
        assert terminal.end() == 0
        assert "copying" in terminal.printed
        assert "segments linked" in " ".join(terminal.lines[-3:])


def test_lines_of_json_until_interrupted(filled):
    """Behind a pipe, `top --json` prints a line per interval at once, and ends with 130 by Ctrl-C."""
    with start("--log", filled, "top", "--json", "--interval", "0.1", process_group=0) as process:
        assert process.stdout is not None
        assert b'"orders"' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert b"Traceback" not in process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 130


def test_pipe_that_is_closed_early(path):
    """As `| head -1` does it: no complaint, neither by the command nor by the interpreter."""
    with pystreamlog.open(path) as log:
        for number in range(300):
            log.create_topic(f"{number}{'x' * 240}")
    with start("--log", path, "topics", "list") as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"0"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1
