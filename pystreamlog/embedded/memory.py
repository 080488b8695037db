"""`":memory:"`: a private log in a temporary directory, gone with the process that made it.

It lies on tmpfs where 64 MiB are free there, else in the temporary folder. A lock tells that its owner lives; the next
`:memory:` log sweeps the directories whose owners died without removing theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from typing import Any

from pystreamlog.embedded.exits import removed, removing_at_exit
from pystreamlog.embedded.log import EmbeddedLog
from pystreamlog.errors import ConfigError
from pystreamlog.storage.files import translated

__all__ = ["open_memory"]

_PREFIX = "pystreamlog-memory-"
_NEEDED_BYTES = 64 << 20
_OWNER = "owner.lock"
_OWNER_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_memory(settings: dict[str, Any]) -> EmbeddedLog:
    """Open a new log that nobody else knows of.

    Raises:
        ConfigError: It would be read-only, and empty for ever.
    """
    if settings["read_only"] or not settings["create"]:
        raise ConfigError("a ':memory:' log is made by opening it: it is neither read_only=True nor create=False")
    parent = _parent()
    _sweep(parent)
    home = _Home(parent)
    try:
        log = EmbeddedLog(f"{home.path}/log", **settings)
    except BaseException:
        home.close_at_exit()
        raise
    log.on_close = home.close_at_exit
    return log


class _Home:
    """The directory of one memory log.

    Args:
        parent: Where it is made.
    """

    def __init__(self, parent: str) -> None:
        try:
            while True:
                self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
                self._owner = os.open(f"{self.path}/{_OWNER}", _OWNER_FLAGS | os.O_CREAT, 0o600)
                fcntl.flock(self._owner, fcntl.LOCK_EX)
                if os.path.exists(self.path):
                    break
                os.close(self._owner)  # swept between its making and its locking
        except OSError as error:
            raise translated(error, parent) from error
        removing_at_exit(self)

    def close_at_exit(self) -> None:
        """Remove the directory; again is harmless."""
        owner, self._owner = self._owner, -1
        if owner >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(owner)
            removed(self)

    def disown(self) -> None:
        """A forked child closes the lock, which the parent holds, and removes nothing."""
        owner, self._owner = self._owner, -1
        if owner >= 0:
            os.close(owner)


def _parent() -> str:
    with contextlib.suppress(OSError):
        status = os.statvfs("/dev/shm")  # noqa: S108 - a private directory is made there
        if status.f_bavail * status.f_frsize >= _NEEDED_BYTES and os.access("/dev/shm", os.W_OK | os.X_OK):  # noqa: S108
            return "/dev/shm"  # noqa: S108
    return tempfile.gettempdir()


def _sweep(parent: str) -> None:
    """Remove this user's memory logs whose owner is dead: whose lock is free."""
    with os.scandir(parent) as entries:
        homes = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    for home in homes:
        with contextlib.suppress(OSError):  # just being made or removed, or its owner lives
            status = os.lstat(home)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            fd = os.open(f"{home}/{_OWNER}", _OWNER_FLAGS)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home, ignore_errors=True)
            finally:
                os.close(fd)
