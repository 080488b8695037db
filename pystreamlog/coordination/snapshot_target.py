"""Where a snapshot goes: built under a temporary name beside its place, and renamed there once it is whole.

The temporary directory is `~<name>-<12 hexadecimal digits>`. Whoever builds there holds an `flock` of it, which its
death gives back; so the next snapshot to the same place removes what a process left that was killed, and nothing else.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from contextlib import suppress

from pystreamlog.coordination.directory import LOG_FILE
from pystreamlog.errors import ConfigError, StorageError
from pystreamlog.storage.files import Files, translated

if sys.platform != "win32":
    import fcntl

__all__ = ["SnapshotTarget"]

_ATTEMPTS = 100
"""How often others may take the directory for a left-over before it is claimed."""


class SnapshotTarget:
    """The place of one snapshot. Not for two threads at once.

    Args:
        target: Its path.
        source: The door to the log's directory.

    Attributes:
        path: The place, absolute.

    Raises:
        ConfigError: There is something already, or it may not lie there.
        StorageError: The directory that it would lie in cannot be read.
    """

    def __init__(self, target: str | os.PathLike[str], source: Files) -> None:
        self.path = os.path.abspath(_text(target))
        self._source = source
        parent, self._name = os.path.split(self.path)
        if not os.path.isdir(parent):
            raise ConfigError(f"directory {parent} does not exist: make it, and the snapshot in it")
        real, root = os.path.realpath(parent), os.path.realpath(source.root)
        if real == root or real.startswith(f"{root.rstrip('/')}/") or os.path.realpath(self.path) == root:
            raise ConfigError(f"{self.path} lies within the log, {root}: choose a place outside")
        self._check_free()
        self._temporary = ""
        self._claimed = -1
        self._parent = Files(parent, mode=source.mode)

    def _check_free(self) -> None:
        """Refuse a place where anything is but an empty directory."""
        path = self.path
        try:
            is_free = not os.path.lexists(path) or (
                os.path.isdir(path) and not os.path.islink(path) and not os.path.ismount(path) and not os.listdir(path)
            )
        except OSError as error:
            raise translated(error, path, reading=True) from error
        if not is_free:
            raise ConfigError(f"{path} exists, and is no empty directory: name a new place, or remove it")

    def begin(self) -> Files:
        """Make the directory to build in, and remove what dead processes left; the door to it."""
        self._sweep()
        parent = self._parent
        for attempt in range(_ATTEMPTS):
            temporary = f"~{self._name}-{os.urandom(6).hex()}"
            try:
                parent.make_directory(temporary)
                self._temporary = temporary
                self._claimed = _claimed(parent.path(temporary))
                if parent.exists(temporary):
                    break
                self._let_go()  # it was swept between its making and its claiming
            except (BlockingIOError, FileNotFoundError):  # it is being swept, or was
                if attempt == _ATTEMPTS - 1:
                    raise
        return Files(parent.path(temporary), mode=self._source.mode, preallocate=self._source.preallocate)

    def _sweep(self) -> None:
        left = re.compile(rf"~{re.escape(self._name)}-[0-9a-f]{{12}}")
        for entry in self._parent.list(""):
            if not left.fullmatch(entry):
                continue
            try:
                fd = _claimed(self._parent.path(entry))
            except BlockingIOError:
                continue  # somebody builds there
            if fd >= 0:
                try:
                    self._remove(entry)
                finally:
                    os.close(fd)

    def _remove(self, entry: str) -> None:
        """Remove a directory that was built in; what a power loss leaves of one that was whole is no log any more."""
        log_file = f"{entry}/{LOG_FILE}"
        if self._parent.exists(log_file):
            self._parent.unlink(log_file)
            self._parent.sync_directory(entry)
        self._parent.remove_directory(entry)

    def finish(self) -> None:
        """Give what was built its name, on disk.

        Raises:
            ConfigError: Somebody made something there meanwhile.
        """
        try:
            self._parent.rename(self._temporary, self._name)
        except (FileExistsError, StorageError) as error:
            if getattr(error, "errno", 0) not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise ConfigError(f"{self.path} was made meanwhile: name a new place") from error
        self._temporary = ""
        self._parent.sync_directory("")

    def abandon(self) -> None:
        """Remove what was built, unless it was finished; again is harmless."""
        temporary = self._temporary
        try:
            if temporary:
                with suppress(FileNotFoundError):
                    self._remove(temporary)
        finally:
            self._let_go()
        self._temporary = ""

    def _let_go(self) -> None:
        fd, self._claimed = self._claimed, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Abandon what is not finished, and close the files; again is harmless."""
        try:
            self.abandon()
        finally:
            self._parent.close()


def _text(target: object) -> str:
    try:
        text: object = os.fspath(target)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text or "://" in text or text == ":memory:":
        raise ConfigError(f"a snapshot goes to the path of a directory that does not exist yet, not {target!r}")
    return text


def _claimed(path: str) -> int:
    """A descriptor of a directory that holds its lock; -1 where it is gone, or there are no such locks.

    Raises:
        BlockingIOError: Somebody else holds it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            return -1
        raise
    return fd
