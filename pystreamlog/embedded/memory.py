"""`":memory:"`: a private log in a temporary directory, gone with the process that made it.

It lies on tmpfs where 64 MiB are free there, else in the temporary folder. A lock tells that its owner lives; the next
`:memory:` log sweeps the directories whose owners died without removing theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pystreamlog.embedded.exits import closing_at_exit
from pystreamlog.embedded.log import EmbeddedLog

__all__ = ["open_memory"]

_PREFIX = "pystreamlog-memory-"
_NEEDED_BYTES = 64 << 20
_OWNER = "owner.lock"


def open_memory(settings: dict[str, Any]) -> EmbeddedLog:
    """Open a new log that nobody else knows of."""
    parent = _parent()
    _sweep(parent)
    home = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    owner = os.open(f"{home}/{_OWNER}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(owner, fcntl.LOCK_EX)
    log = EmbeddedLog(f"{home}/log", **{**settings, "create": True})
    home_of_log = _Home(home, owner)
    log.on_close = home_of_log.close_at_exit
    closing_at_exit(home_of_log)
    return log


class _Home:
    """The directory of one memory log."""

    def __init__(self, path: str, owner: int) -> None:
        self._path = path
        self._owner = owner

    def close_at_exit(self) -> None:
        """Remove the directory; again is harmless."""
        owner, self._owner = self._owner, -1
        if owner >= 0:
            shutil.rmtree(self._path, ignore_errors=True)
            os.close(owner)

    def disown(self) -> None:
        """A forked child closes the lock, which the parent holds, and removes nothing."""
        owner, self._owner = self._owner, -1
        if owner >= 0:
            os.close(owner)


def _parent() -> str:
    with contextlib.suppress(OSError):
        status = os.statvfs("/dev/shm")  # noqa: S108 - a private directory is made there
        if status.f_bavail * status.f_frsize >= _NEEDED_BYTES and os.access("/dev/shm", os.W_OK):  # noqa: S108
            return "/dev/shm"  # noqa: S108
    return tempfile.gettempdir()


def _sweep(parent: str) -> None:
    """Remove memory logs whose owner is dead: whose lock is free."""
    for home in Path(parent).glob(f"{_PREFIX}*"):
        try:
            fd = os.open(home / _OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or just being made or removed
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)
        except OSError:
            continue  # its owner lives
        finally:
            os.close(fd)
