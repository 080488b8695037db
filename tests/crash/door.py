"""Every system call of the door to files, and every kernel lock, seen by a hook: to kill, to fail, or to cut the power.

`install` puts stand-ins for `os` and `mmap` into the modules that touch files, and wraps what locks call. It is made
for forked children, which end soon: production code pays nothing, and `uninstall` gives the modules back.

A *call* is one system call. Those that *change* something, on the disk or for other processes, are the steps of an
operation; between two of them a death makes no difference to anybody.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from pystreamlog.coordination import locks
from pystreamlog.storage import files

__all__ = ["CHANGES", "DATA_WRITES", "SYNCS", "Call", "Hook", "install", "uninstall"]

DATA_WRITES = frozenset({"pwrite", "pwritev"})
SYNCS = frozenset({"fdatasync", "fsync"})
CHANGES = frozenset(
    {"copy_file_range", "create", "fchmod", "link", "lock", "mkdir", "posix_fallocate", "rename", "rmdir", "unlink"}
    | {"unlock"}
    | DATA_WRITES
    | SYNCS
)
_READS = frozenset({"fstat", "listdir", "mmap", "open", "pread", "scandir", "stat"})
_BY_DESCRIPTOR = DATA_WRITES | SYNCS | {"fchmod", "fstat", "listdir", "mmap", "posix_fallocate", "pread", "scandir"}
_SKIPPED_FILES = frozenset({"contextlib.py", "files.py", "locks.py"})
_HERE = os.path.dirname(__file__)


class Call:
    """One system call about to be made.

    Attributes:
        name: The function of `os`, but `create` for an `open` that makes a file; or `mmap`, `lock`, `unlock`.
        arguments: What it is called with.
        keywords: The same.
        make: Makes the call.
    """

    __slots__ = ("_path", "arguments", "keywords", "make", "name")

    def __init__(
        self, name: str, make: Callable[[], Any], arguments: tuple[Any, ...], keywords: dict[str, Any], path: str = ""
    ) -> None:
        self.name = name
        self.make = make
        self.arguments = arguments
        self.keywords = keywords
        self._path = path

    @property
    def changes(self) -> bool:
        """Whether it changes anything for others, or on the disk."""
        return self.name in CHANGES

    @property
    def data(self) -> bytes:
        """What is written, joined; empty for another call."""
        if self.name == "pwrite":
            return bytes(self.arguments[1])
        return b"".join(self.arguments[1]) if self.name == "pwritev" else b""

    def write_part(self, size: int) -> int:
        """Write the first `size` bytes only."""
        return os.pwrite(self.arguments[0], self.data[:size], self.arguments[2])

    @property
    def path(self) -> str:
        """The path of the file it is about."""
        if self._path:
            return self._path
        if self.name in _BY_DESCRIPTOR:
            return _descriptor_path(self.arguments[0])
        if self.name == "copy_file_range":
            return _descriptor_path(self.arguments[1])
        folder = self.keywords.get("dir_fd", self.keywords.get("src_dir_fd"))
        name = os.fsdecode(self.arguments[1] if self.name in ("rename", "link") else self.arguments[0])
        return name if folder is None else f"{_descriptor_path(folder)}/{name}"

    @property
    def kind(self) -> str:
        """What kind of file it is about."""
        return kind_of(self.path)

    def describe(self) -> str:
        """Which function makes the call through which method of the door, and on which kind of file."""
        frame = sys._getframe(1)
        method, caller = "", "?"
        while frame is not None:
            name = os.path.basename(frame.f_code.co_filename)
            if name not in _SKIPPED_FILES and os.path.dirname(frame.f_code.co_filename) != _HERE:
                caller = f"{name.removesuffix('.py')}.{frame.f_code.co_qualname}"
                break
            if name in ("files.py", "locks.py"):
                method = frame.f_code.co_qualname
            frame = frame.f_back
        return f"{caller} / {method or 'FileLock'} / {self.name} / {self.kind}"


Hook = Callable[[Call], Any]
"""Called in place of a system call; makes it by `call.make()`, or does not."""


def _descriptor_path(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"


def kind_of(path: str) -> str:
    """The kind of a log's file or folder, from its path."""
    name = os.path.basename(path.removesuffix(" (deleted)").rstrip("/"))
    temporary = "~" in name
    name = name.partition("~")[0] or "folder"
    stem, dot, suffix = name.rpartition(".")
    if name.isdecimal():
        kind = "bell" if path.rstrip("/").endswith(f"bells/{name}") else "partition folder"
    elif stem.isdecimal() and dot:
        kind = {"log": "segment", "index": "index"}.get(suffix, suffix)
    elif name in ("control", "offsets", "members", "folder", "bells") or dot:
        kind = name
    else:
        kind = "folder"
    return f"temporary {kind}" if temporary else kind


# --- the stand-ins ----------------------------------------------------------------------------------------------------


class _Watched:
    """Stands in for a module; the functions of `names` go through the hook."""

    def __init__(self, module: Any, hook: Hook, names: frozenset[str]) -> None:
        self._module = module
        for name in names:
            real = getattr(module, name, None)
            if real is not None:
                setattr(self, name, partial(self._called, hook, name, real))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @staticmethod
    def _called(hook: Hook, name: str, real: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if name == "open" and arguments[1] & os.O_CREAT:
            name = "create"
        return hook(Call(name, partial(real, *arguments, **keywords), arguments, keywords))


_Lock = locks.FileLock
_make_lock = _Lock.__init__


def install(hook: Hook) -> None:
    """Let every call go through `hook` from now on; locks that exist already are left out."""

    def make_lock(lock: Any, *arguments: Any, **keywords: Any) -> None:
        _make_lock(lock, *arguments, **keywords)
        if not stat.S_ISREG(os.fstat(lock._fd).st_mode):
            return
        path = f"{lock.path}"
        take, give = lock.lock_kernel, lock.unlock_kernel
        lock.lock_kernel = lambda: hook(Call("lock", take, (), {}, path))
        lock.unlock_kernel = lambda: hook(Call("unlock", give, (), {}, path))

    watched = _Watched(os, hook, (CHANGES | _READS) - {"create", "lock", "unlock", "mmap"})
    files.os = watched
    files.mmap = _Watched(mmap, hook, frozenset({"mmap"}))
    locks.os = _Watched(os, hook, frozenset({"pwrite"}))
    _Lock.__init__ = make_lock


def uninstall() -> None:
    """Give the modules back what they had; locks made meanwhile keep the hook."""
    files.os = locks.os = os
    files.mmap = mmap
    _Lock.__init__ = _make_lock
