"""Children: programs of a few lines that use the library in processes of their own; logs with clocks that move."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pystreamlog.embedded.log import EmbeddedLog
from tests.coordination.moving import BOOT, MovedClock

ROOT = Path(__file__).resolve().parents[2]
LONG = 30.0
"""Seconds after which something that should happen has not happened."""

PRELUDE = """
import os, signal, sys, time
import pystreamlog
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import *

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()
"""


AS_NOBODY = """
# Python itself may lie in a folder of root's, where nothing can be imported afterwards: use everything once before.
with pystreamlog.open(":memory:") as log:
    log.create_topic("t").append(b"x")
    with log.consumer("t", auto_offset_reset="earliest") as consumer:
        consumer.poll()
    b"x".decode("ascii")
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
"""


class Child:
    """A Python program in a process of its own, with lines to and from it; as another user, if wanted."""

    def __init__(self, source, *arguments, nobody=False):
        program = PRELUDE + (AS_NOBODY if nobody else "") + textwrap.dedent(source)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pid = self.process.pid

    def hear(self, timeout=LONG):
        """The next line; what it printed to stderr if it ended instead."""
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            pytest.fail(f"the child said nothing for {timeout} s")
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(LONG)
            pytest.fail(f"the child ended with {self.process.returncode}: {self.process.stderr.read()}")
        return line.strip()

    def say(self, line=""):
        """Send a line."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def signal(self, number):
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self):
        """End it as a crash does."""
        self.process.kill()
        self.process.wait(LONG)

    def finish(self):
        """All it still has to say, once it has ended well."""
        out, err = self.process.communicate(timeout=LONG)
        assert self.process.returncode == 0, err
        return out.split("\n")[:-1]

    def discard(self):
        """End it, however it is."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(LONG)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def start():
    """Starts children; ends those that are left."""
    children = []

    def start_child(source, *arguments, nobody=False):
        children.append(Child(source, *arguments, nobody=nobody))
        return children[-1]

    yield start_child
    for child in children:
        child.discard()


@pytest.fixture
def clock():
    """A clock of the test's own."""
    return MovedClock()


@pytest.fixture
def opened(tmp_path, clock):
    """Opens the test's log, as a process with that clock does; closes what is left."""
    with contextlib.ExitStack() as stack:

        def open_log(boot=BOOT, **options):
            log = EmbeddedLog(str(tmp_path / "log"), boot=lambda: boot, clock=clock, **options)
            return stack.enter_context(log)

        yield open_log


@pytest.fixture
def nobody():
    """Has a child run as another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    return True


@pytest.fixture
def public_path(tmp_path):
    """A directory that other users can reach."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o055 != 0o055 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small tmpfs on a new directory, with options; unmounts it at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount file systems")
    points = []

    def mount(options):
        point = tmp_path / f"mounted-{len(points)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(point)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"this container may not mount: {done.stderr.strip()}")
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", "-l", str(point)], capture_output=True, check=False)
