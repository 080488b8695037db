"""The process that compacts and repacks a log in the background: `python -m pystreamlog compact`.

A thread that is busy in Python makes every other thread wait for the GIL, 5 ms and more at a time; another process only
shares the machine, and gives way (`nice`). It inherits no descriptor and no lock, imports what this process imports
from where this one does, and ends when this one ends or closes the log.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO

__all__ = ["NICENESS", "RewritingProcess"]

_log = logging.getLogger("pystreamlog")

NICENESS = 10
"""How far the process gives way to others."""
_POLL_SECONDS = 0.2
_END_SECONDS = 10.0
_ERROR_SIZE = 2000
_INHERITED: list[subprocess.Popen[bytes]] = []
"""Never let go of: to close its pipe would wait for a thread that is not there after a fork."""


class RewritingProcess:
    """Runs the process, one at a time. Safe from any thread.

    Args:
        root: The log's directory.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self.start_anew()

    def start_anew(self) -> None:
        """Forget what the parent of this process has started: it is the parent's to wait for."""
        if self._process is not None:
            _INHERITED.append(self._process)
            self._process.returncode = 0
        self._lock = threading.Lock()
        self._process = None
        self._has_warned = False

    @property
    def is_possible(self) -> bool:
        """Whether this program can start it: it is a Python interpreter."""
        return _command(self._root) is not None

    def run(self, ended: threading.Event) -> None:
        """Run it to its end, or until `ended` is set; what goes wrong is logged."""
        command = _command(self._root)
        if command is None:
            if not self._has_warned:
                self._has_warned = True
                _log.warning(
                    "%s is not compacted in the background, as %r is no Python to run: call `maintain` now and then",
                    self._root,
                    sys.executable,
                )
            return
        try:
            with self._lock:
                if ended.is_set():
                    return
                self._process = process = subprocess.Popen(  # noqa: S603 - this interpreter, with this package
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=_environment(),
                    cwd="/",
                )
        except OSError as error:
            _log.warning("%s is not compacted in the background: %s", self._root, error)
            return
        self._follow(process, ended)

    def _follow(self, process: subprocess.Popen[bytes], ended: threading.Event) -> None:
        """Wait for the process; what it complains of is logged."""
        said: list[bytes] = []
        assert process.stderr is not None
        reader = threading.Thread(target=_read, args=(process.stderr, said), name="pystreamlog-compaction")
        reader.daemon = True
        try:
            reader.start()
        except RuntimeError:  # the interpreter is shutting down
            process.stderr.close()
            self.end()
            return
        while process.poll() is None:
            if ended.wait(_POLL_SECONDS):
                self.end()
                break
        with self._lock:
            self._process = None
        reader.join(_END_SECONDS)  # it closes the pipe
        if process.returncode and not ended.is_set():
            words = b"".join(said).decode(errors="replace").strip()
            _log.warning("%s: compaction ended with %d: %s", self._root, process.returncode, words or "no message")

    def end(self) -> None:
        """End the process, if there is one, and wait for that; again is harmless."""
        with self._lock:
            process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        with suppress(OSError):
            process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                process.kill()  # whatever it was at, the log is whole
            process.wait()


def _command(root: str) -> list[str] | None:
    """What to run; None where this program is no Python interpreter."""
    executable = sys.executable or ""
    name = os.path.basename(executable).lower()
    if getattr(sys, "frozen", False) or not ("python" in name or "pypy" in name):
        return None
    return [executable, "-m", "pystreamlog", "compact", "--log", root, "--child-of", str(os.getpid())]


def _environment() -> dict[str, str]:
    """This process's, with its module path: the package may be found there only."""
    paths = [os.path.abspath(path) for path in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _read(stream: IO[bytes], said: list[bytes]) -> None:
    """Take what the process writes, and keep the end of it."""
    with suppress(OSError, ValueError), stream:
        for line in stream:
            said.append(line)
            while len(said) > 1 and sum(map(len, said)) > _ERROR_SIZE:
                said.pop(0)
