"""File systems of one's own: an ext4 image whose power can be cut, and a small tmpfs that fills up.

Both need root; `reason_against()` says what is missing. Whatever was mounted is given back when the block ends, and at
the process's end.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from random import Random
from time import sleep
from typing import Self

__all__ = ["LOGFLUSH", "NOLOGFLUSH", "Ext4", "full_tmpfs", "persist_some_pages", "reason_against"]

NOLOGFLUSH = 2
"""The journal in memory is lost."""
LOGFLUSH = 1
"""The journal is written, the data is not: a file that was renamed may have no content."""

_EXT4_IOC_SHUTDOWN = 0x8004587D
_MNT_DETACH = 2
_PAGE = 4096
_ATTEMPTS, _PAUSE = 200, 0.05
_WRITE_AND_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | WRITE | WAIT_AFTER
_KEPT = (".log", "control", "offsets", "members", ".index", ".json")


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return libc


def _checked(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


class Ext4:
    """An ext4 file system in a file, mounted through a loop device.

    Args:
        folder: Where the image and the mount point are made.
        size: Of the image, in bytes.
        options: Of the mount. `noauto_da_alloc` takes away what ext4 does for programs that forget to sync.

    Attributes:
        path: The mount point.
    """

    def __init__(self, folder: str, *, size: int = 96 << 20, options: str = "noauto_da_alloc") -> None:
        self.path = f"{folder}/mounted"
        self._options = options
        self._image = f"{folder}/image"
        self._mounted = False
        os.mkdir(self.path)
        with open(self._image, "wb") as file:
            file.truncate(size)
        _run("mkfs.ext4", "-q", "-F", "-b", f"{_PAGE}", "-E", "lazy_itable_init=0", self._image)
        self._device = _run("losetup", "--find", "--show", self._image)

    def __enter__(self) -> Self:
        try:
            self.mount()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def mount(self) -> None:
        """Mount it, replaying the journal."""
        for _ in range(_ATTEMPTS):
            data = self._options.encode()
            _checked(_libc().mount(self._device.encode(), self.path.encode(), b"ext4", 0, data), self.path)
            self._mounted = True
            try:
                os.listdir(self.path)
                os.close(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                with open(f"{self.path}/.probe", "wb"):
                    return
            except OSError:
                # A mount namespace that was copied meanwhile keeps the one alive that was shut down.
                self.unmount()
                sleep(_PAUSE)
        raise OSError(errno.EIO, "stays shut down", self.path)

    def unmount(self) -> None:
        """Unmount it; no process may use it any more."""
        _checked(_libc().umount2(self.path.encode(), 0), self.path)
        self._mounted = False

    def cut(self, flags: int) -> None:
        """Cut the power: what is not on the disk by now never gets there."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, flags.to_bytes(4, sys.byteorder))
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give everything back, whatever state it is in."""
        if self._mounted:
            _libc().umount2(self.path.encode(), _MNT_DETACH)
            self._mounted = False
        subprocess.run(["losetup", "--detach", self._device], check=False, capture_output=True)
        with suppress(OSError):
            os.unlink(self._image)


def persist_some_pages(folder: str, random: Random, share: float) -> int:
    """Write some pages of the files below a folder to the disk, in no order and without what they need to be found.

    Page write-back as the kernel may do it at any moment. Returns how many.
    """
    pages = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(_KEPT) and random.random() < 0.7:
                with suppress(OSError):
                    pages += _persist(f"{parent}/{name}", random, share)
    return pages


def _persist(path: str, random: Random, share: float) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        count = -(-os.fstat(fd).st_size // _PAGE)
        chosen = [page for page in range(min(count, 256)) if random.random() < share]
        for page in chosen:
            _libc().sync_file_range(fd, page * _PAGE, _PAGE, _WRITE_AND_WAIT)
    finally:
        os.close(fd)
    return len(chosen)


@contextmanager
def full_tmpfs(folder: str, size: int) -> Iterator[str]:
    """A file system of that many bytes, in memory."""
    path = f"{folder}/small"
    os.mkdir(path)
    _checked(_libc().mount(b"none", path.encode(), b"tmpfs", 0, f"size={size}".encode()), path)
    try:
        yield path
    finally:
        _libc().umount2(path.encode(), _MNT_DETACH)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(errno.EIO, f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@cache
def reason_against(*, loop: bool) -> str:
    """Why no file system can be mounted here; empty if one can, with loop devices or without."""
    if sys.platform != "linux":
        return f"mounts file systems of Linux, this is {sys.platform}"
    if os.geteuid():
        return "mounting a file system needs root"
    for program in ("losetup", "mkfs.ext4") if loop else ():
        if shutil.which(program) is None:
            return f"{program} is not installed (util-linux, e2fsprogs)"
    import tempfile  # noqa: PLC0415 - where it is needed

    with tempfile.TemporaryDirectory() as folder:
        try:
            if loop:
                with Ext4(folder, size=8 << 20) as disk:
                    disk.cut(NOLOGFLUSH)
            else:
                with full_tmpfs(folder, 1 << 20):
                    pass
        except OSError as error:
            return f"this machine mounts no {'ext4 image' if loop else 'tmpfs'}: {error}"
    return ""
