"""One life of a machine: from its start, or the death of all processes, to the next power loss or the next death.

The files lie in a directory of their own, in memory where the system has that. Nothing runs in the background: what a
thread would do waits in `Machine.rolled` until somebody does it.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pystreamlog.coordination import directory, snapshot_target
from pystreamlog.coordination.syncer import Syncer
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.embedded.sender import Sender
from pystreamlog.errors import ClosedError, UnknownTopicError

from .disk import ROOT, Disk, Image, Recorder, RecordingFiles

__all__ = ["Machine", "simulated"]

_MACHINES: dict[str, Machine] = {}


@contextmanager
def simulated() -> Iterator[str]:
    """A directory for machines; while it lasts, every log that is opened must be one of a machine."""
    shared = Path("/dev/shm")  # noqa: S108 - a directory of random name is made in it
    parent = str(shared) if os.access(shared, os.W_OK) else None
    before = set(threading.enumerate())
    saved = directory.Files, directory._filesystem, Syncer.schedule, Sender.schedule
    directory.Files = snapshot_target.Files = _door
    directory._filesystem = lambda path: "tmpfs"
    Syncer.schedule = _sync_later
    Sender.schedule = lambda sender, accumulator, due_ns: None
    logger = logging.getLogger("pystreamlog")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # every recovery says what it did
    try:
        with tempfile.TemporaryDirectory(prefix="pystreamlog-crash-", dir=parent) as home:
            yield home
    finally:
        directory.Files, directory._filesystem, Syncer.schedule, Sender.schedule = saved
        snapshot_target.Files = saved[0]
        logger.setLevel(level)
        assert before.issuperset(threading.enumerate()), threading.enumerate()


def _door(root: str, *, mode: int, preallocate: bool = True) -> RecordingFiles:
    machine = _machine(root)
    folder = machine.recorder.find(root[len(machine.home) + 1 :])
    assert folder, f"{root} was not made through the door"
    return RecordingFiles(root, machine.recorder, folder, mode=mode, preallocate=preallocate)


def _machine(path: str) -> Machine:
    """The machine on whose disk that lies."""
    return next(machine for home, machine in _MACHINES.items() if f"{path}/".startswith(f"{home}/"))


def _sync_later(syncer: Syncer, writer: object, offset: int, seconds: float) -> None:
    """Instead of the thread."""
    _machine(writer.folder.files.root).rolled.append((writer, offset))


class Machine:
    """A running machine.

    Args:
        home: Where directories for machines are made.
        disk: What is on its disk.
        boot: Tells its boots apart.
        folder: The log's directory, which is there; the disk's own when there is nothing beside the log.

    Attributes:
        home: The disk's directory.
        path: Of the log.
        start: The disk as it was when this life began.
        rolled: Syncs that wait to be done in the background: writers and offsets.
        recorder: The trace since.
    """

    def __init__(self, home: str, disk: Disk, boot: bytes, folder: str = "") -> None:
        self.start = disk
        self.recorder = Recorder(disk)
        self.rolled: list[tuple] = []
        self.boot = boot
        self.home = f"{home}/{len(_MACHINES)}"
        self.path = f"{self.home}/{folder}" if folder else self.home
        self._folder = self.recorder.find(folder)
        self._logs: list[EmbeddedLog] = []
        _lay_out(disk.cached(), self.home)
        _MACHINES[self.home] = self

    @property
    def now(self) -> int:
        """How many steps the trace has."""
        return len(self.recorder.trace)

    def open(self, beside: str = "", **options: object) -> EmbeddedLog:
        """Open the log, or the one of that name beside it, as a process of its own."""
        path = f"{self.home}/{beside}" if beside else self.path
        log = EmbeddedLog(path, boot=lambda: self.boot, **{"map_reads": False, "maintenance": False, **options})
        self._logs.append(log)
        return log

    def make_directory(self, name: str) -> None:
        """Make a directory beside the log."""
        files = _door(self.home, mode=0o700)
        try:
            files.make_directory(name)
        finally:
            files.close()

    def break_file(self, folder: str, suffix: str) -> bool:
        """Have the next sync of the last file of that folder and suffix fail, if there is one."""
        recorder = self.recorder
        names = recorder.names.get(recorder.find(folder, self._folder), {})
        last = max((name for name in names if name.endswith(suffix)), default=None)
        if last is not None:
            recorder.failing.add(names[last])
        return last is not None

    def sync_rolled(self, count: int) -> None:
        """Do so many of the syncs that wait."""
        for writer, offset in self.rolled[:count]:
            with suppress(ClosedError, UnknownTopicError, FileNotFoundError):
                writer.sync(offset)
        del self.rolled[:count]

    def disks(self, steps: list[int]) -> Iterator[Disk]:
        """The disk as it was after each of these numbers of steps, ascending; not to be kept."""
        disk, done = self.start.copy(), 0
        for step in steps:
            for number in range(done, step):
                disk.apply(self.recorder.trace[number])
            done = step
            yield disk

    def end(self) -> None:
        """End all processes and forget the files."""
        self.recorder.recording = False
        for log in self._logs:
            with suppress(Exception):
                log.close()
        del _MACHINES[self.home]
        shutil.rmtree(self.home)


def _lay_out(image: Image, path: str) -> None:
    """Make the files; one that has several names is one."""
    waiting = [(ROOT, path)]
    made: dict[int, str] = {}
    while waiting:
        number, name = waiting.pop()
        if number in image.folders:
            os.mkdir(name, 0o700)
            waiting += [(inner, f"{name}/{last}") for last, inner in image.folders[number].items()]
        elif number in made:
            os.link(made[number], name)
        else:
            made[number] = name
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, image.files[number])
            os.close(fd)
