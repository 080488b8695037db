"""How the tests of the command line run it: in this process, in one of its own, and on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from time import monotonic

from typer.testing import CliRunner

from pystreamlog.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "pystreamlog"]
PATIENCE = 60.0


def run(log, *arguments, stdin=b"", status=0):
    """Run a command in this process; its result, whose exit status is the expected one."""
    result = CliRunner().invoke(app, list(map(str, arguments)), input=stdin, env={"PYSTREAMLOG_DIR": str(log)})
    assert result.exit_code == status, (result.exit_code, result.stdout, result.stderr, result.exception)
    return result


def environment(log):
    """The environment of a command that runs by itself."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYSTREAMLOG_DIR": str(log), "PYTHONPATH": path, "PYTHONUNBUFFERED": ""}


def start(log, *arguments, **options):
    """Start a command in a process of its own."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment(log), **options)


def shell(log, script, *, cwd=None):
    """Run a shell script in which `pystreamlog` is the command; what it did."""
    quoted = f'pystreamlog() {{ {" ".join(COMMAND)} "$@"; }}\n{script}'
    return subprocess.run(
        ["bash", "-c", quoted],
        env=environment(log),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


class Terminal:
    """A terminal of that many columns, whose other end a command has."""

    def __init__(self, columns=80):
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for descriptor in (self._ours, self.theirs):
            if descriptor >= 0:
                os.close(descriptor)

    def hand_over(self):
        """The command has its end: when it ends, the terminal is closed."""
        os.close(self.theirs)
        self.theirs = -1

    def type(self, data):
        """Type something."""
        os.write(self._ours, data)

    def glance(self):
        """Read what was printed meanwhile; waits a moment for it."""
        ready, _, _ = select.select([self._ours], [], [], 0.01)
        if ready:
            self.seen += os.read(self._ours, 1 << 16)

    def wait_for(self, text=None):
        """Read until this was printed, or to the end; all that was printed so far."""
        deadline = monotonic() + PATIENCE
        while text is None or text not in self.seen:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - monotonic()))
            assert ready, self.seen
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:  # how Linux tells that the other end is closed
                data = b""
            if not data:
                assert text is None, self.seen
                break
            self.seen += data
        return self.seen.replace(b"\r\n", b"\n")


def wait_for_output(process, text):
    """Read a process's standard output until this was in it; all of it so far."""
    seen = b""
    deadline = monotonic() + PATIENCE
    while text not in seen:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - monotonic()))
        assert ready, seen
        data = os.read(process.stdout.fileno(), 1 << 16)
        assert data, (seen, process.stderr.read())
        seen += data
    return seen
