"""Progress is one line of the terminal, and nothing where there is none."""

from __future__ import annotations

import os

import pytest

from pystreamlog.cli import progress
from pystreamlog.cli.progress import Progress


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by a second each time, and a terminal."""
    times = iter(range(1000))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(times)))
    monkeypatch.setattr(progress, "is_terminal", lambda: True)

    def columns(count):
        monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((count, 24)))

    return columns


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (80, "[##########          ]  50%  1,000,000,000 records  1.0 GiB  1,000,000,000/s"),
        (59, " 50%  1,000,000,000 records  1.0 GiB  1,000,000,000/s"),
        (40, " 50%  1,000,000,000 records  1.0 GiB  1"),
    ],
)
def test_line_fits_the_terminal(ticking, capsys, columns, line):
    """With a bar where there is room, and cut where there is not enough."""
    ticking(columns)
    shown = Progress("records", total=2_000_000_000)
    shown.advance(1_000_000_000, 1 << 30)
    assert capsys.readouterr().err == f"\r{line}\x1b[K"
    shown.end()
    shown.end()
    assert capsys.readouterr().err == "\r\x1b[K"


def test_nothing_is_drawn_without_a_terminal(capsys, monkeypatch):
    """Nor of work that is soon done, nor where it was not wanted."""
    shown = Progress("records")
    shown.advance(1, 1)
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    for shown in (Progress("records"), Progress("records", shown=False)):
        shown.advance(1, 1)
        shown.end()
    assert capsys.readouterr().err == ""
