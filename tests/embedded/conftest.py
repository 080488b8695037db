"""What the tests of the embedded log share: a directory, programs run in processes of their own, and a taken lock."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pystreamlog

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 20.0

HOLDER = """
import sys, time
from pystreamlog.coordination.locks import FileLock
from pystreamlog.storage import format as layout
import os

fd = os.open(sys.argv[1], os.O_RDWR | os.O_CLOEXEC)
lock = FileLock(fd, sys.argv[1], byte=layout.APPEND_LOCK_BYTE, stamp_position=layout.APPEND_STAMP_POSITION)
with lock.held(10, stamp=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    """Where a log of the test's own is to lie."""
    return str(tmp_path / "log")


@pytest.fixture
def log(path):
    """A log on disk."""
    with pystreamlog.open(path) as log:
        yield log


def start(program, *arguments, **options):
    """A Python program of these lines, running."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def run(program, *arguments, returncode=0):
    """What a Python program of these lines prints; it must end with `returncode`."""
    process = start(program, *arguments)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == returncode, err
    return out, err


@contextlib.contextmanager
def held_lock(path, topic="events", partition=0):
    """Another process that holds a partition's append lock; yields it."""
    process = start(HOLDER, Path(path, "topics", topic, str(partition), "control"))
    try:
        assert process.stdout.readline() == "held\n", process.stderr.read()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.communicate(timeout=PATIENCE)
