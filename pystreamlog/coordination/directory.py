"""The log's directory: made on first opening, recognised by its `log.json`, refused where locks cannot be trusted."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress

import msgspec

from pystreamlog.clock import Clock
from pystreamlog.errors import (
    ConfigError,
    CorruptLogError,
    IncompatibleFormatError,
    NotSupportedError,
)
from pystreamlog.storage.files import Files, translated

__all__ = ["FORMAT_VERSION", "LOG_FILE", "open_directory", "read_log_id", "write_log_file"]

FORMAT_VERSION = 1
LOG_FILE = "log.json"
_OWN = frozenset({"groups", "maintenance.lock", "topics.lock", "transactions"})
"""What lies beside `log.json` and `topics`."""
_LIMIT = 64 << 10
_ID_SIZE = 16
_OCTAL = re.compile(rb"\\([0-3][0-7][0-7])")
"""How the kernel writes spaces, line ends and backslashes in the paths of mount points."""

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "afs", "gpfs", "vboxsf"}
)
_PREALLOCATES = frozenset({"ext2", "ext3", "ext4", "xfs", "tmpfs", "f2fs"})
"""File systems where `fallocate` is one quick call and guarantees the later write: not copy-on-write, not emulated."""


class _LogFormat(msgspec.Struct, frozen=True):
    """What `log.json` of any format holds."""

    format: int


class _LogFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """The contents of `log.json`."""

    format: int
    id: str
    created_ms: int
    lineage: tuple[str, ...] = ()


def open_directory(
    path: str, *, create: bool, read_only: bool, mode: int, allow_network_filesystem: bool, clock: Clock
) -> tuple[Files, bytes, tuple[bytes, ...]]:
    """The door to a log's directory, the log's id (16 bytes), and those of the logs that it is a snapshot of.

    Args:
        path: The directory.
        create: Make it, and a log in it, if it is missing or empty.
        read_only: Make nothing, whatever `create` says.
        mode: Permission bits of what is made.
        allow_network_filesystem: Open it though its locks and caches may not hold.
        clock: Dates a new log.

    Raises:
        ConfigError: The directory does not exist and may not be made.
        IncompatibleFormatError: It is a file, no log, or a newer version's.
        NotSupportedError: It lies on a network file system.
        ReadOnlyError: It may not be written.
        CorruptLogError: `log.json` is damaged.
    """
    if "\0" in path:
        raise ConfigError(f"a path cannot hold a NUL byte: {path!r}")
    may_create = create and not read_only
    if not _is_directory(path):
        if not may_create:
            raise ConfigError(f"directory {path} does not exist: pass create=True to make it, or check the path")
        try:
            os.makedirs(path, mode=mode, exist_ok=True)
            os.chmod(path, mode | (0o2000 if mode & 0o070 else 0))
        except (FileExistsError, NotADirectoryError) as error:
            message = f"{path} leads to a file or a broken link: pass a directory"
            raise IncompatibleFormatError(message, path=path) from error
        except OSError as error:
            raise translated(error, path) from error
    kind = _filesystem(path)
    if not allow_network_filesystem and (kind in _NETWORK or kind.startswith("fuse")):
        raise NotSupportedError(
            f"{path} lies on {kind}: file locks and caches do not hold between hosts there; use a local disk, or pass "
            f"allow_network_filesystem=True if only one host uses it"
        )
    files = Files(path, mode=mode, preallocate=kind in _PREALLOCATES)
    try:
        return files, *_identity(files, may_create=may_create, clock=clock)
    except BaseException:
        files.close()
        raise


def _is_directory(path: str) -> bool:
    """Whether the directory is there; one question only, as another process may make it at any moment."""
    try:
        found = stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        found = False
    except OSError as error:
        raise translated(error, path, reading=True) from error
    if not found:
        raise IncompatibleFormatError(f"{path} is a file, or leads through one: pass a directory", path=path)
    return True


def read_log_id(files: Files) -> bytes:
    """The id that `log.json` tells.

    Raises:
        FileNotFoundError: There is no `log.json`.
        IncompatibleFormatError: A newer version's.
        CorruptLogError: It is damaged.
    """
    return _read(files)[0]


def write_log_file(files: Files, log_id: bytes, lineage: Iterable[bytes], *, created_ms: int) -> None:
    """Make a directory a log, as the last step: once this returns, `log.json` is on disk.

    Args:
        files: The door to it; all else that is in it is on disk.
        log_id: The log's id, 16 bytes.
        lineage: Ids of the logs that it is a snapshot of, newest first.
        created_ms: When it was made.
    """
    contents = _LogFile(FORMAT_VERSION, log_id.hex(), created_ms, tuple(each.hex() for each in lineage))
    files.write(LOG_FILE, msgspec.json.encode(contents))


def _identity(files: Files, *, may_create: bool, clock: Clock) -> tuple[bytes, tuple[bytes, ...]]:
    try:
        return _read(files)
    except FileNotFoundError as error:
        names = files.list("")
        if LOG_FILE in names:  # another process has just made it
            return _identity(files, may_create=may_create, clock=clock)
        others = [name for name in names if "~" not in name and name != "topics"]
        if others:
            if _OWN.issuperset(others):
                raise CorruptLogError(
                    f"{files.root} has a log's files and no {LOG_FILE}: restore that from a copy, or check the path",
                    path=files.path(LOG_FILE),
                ) from error
            raise IncompatibleFormatError(
                f"{files.root} holds {others[0]!r} and is no log: pass an empty or a new directory", path=files.root
            ) from error
        if not may_create:
            raise IncompatibleFormatError(
                f"{files.root} is no log: open it once with create=True, or check the path", path=files.root
            ) from error
        return _parsed(files, _create(files, clock))


def _read(files: Files) -> tuple[bytes, tuple[bytes, ...]]:
    return _parsed(files, files.read(LOG_FILE, limit=_LIMIT))


def _parsed(files: Files, raw: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The id and the lineage in what `log.json` holds."""
    path = files.path(LOG_FILE)
    try:
        version = msgspec.json.decode(raw, type=_LogFormat).format
        if version > FORMAT_VERSION:
            raise IncompatibleFormatError(
                f"{files.root} has format {version}, this release reads {FORMAT_VERSION}: upgrade", path=files.root
            )
        found = msgspec.json.decode(raw, type=_LogFile)
        log_id, *lineage = (bytes.fromhex(text) for text in (found.id, *found.lineage))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptLogError(f"{path} is damaged: {error}: restore it from a copy", path=path) from error
    sizes = {len(log_id), *map(len, lineage)}
    if version != FORMAT_VERSION or sizes != {_ID_SIZE}:
        raise CorruptLogError(f"{path} is damaged: format {version}, ids of {sorted(sizes)} bytes", path=path)
    return log_id, tuple(lineage)


def _create(files: Files, clock: Clock) -> bytes:
    """Make the log, or read the one that another process made just now."""
    import uuid  # noqa: PLC0415 - needed when a log is made only

    with suppress(FileExistsError):
        files.make_directory("topics")
    files.sync_directory("")  # a power loss may keep a later name, and not this one
    raw = msgspec.json.encode(_LogFile(FORMAT_VERSION, uuid.uuid4().hex, clock.now_ms()))
    files.write(LOG_FILE, raw, replace=False)
    return files.read(LOG_FILE, limit=_LIMIT)


def _filesystem(path: str) -> str:
    """The type of the file system that `path` lies on, as the system names it; empty when it does not tell."""
    if sys.platform != "linux":
        return ""
    try:
        device = os.stat(path).st_dev
        real = os.fsencode(os.path.realpath(path))
        with open("/proc/self/mountinfo", "rb") as file:
            lines = [line.split() for line in file]
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    best, kind = b"", b""
    for fields in lines:
        mount_point = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
        if real != mount_point and not real.startswith(mount_point.rstrip(b"/") + b"/"):
            continue
        if fields[2] == wanted:
            return os.fsdecode(fields[fields.index(b"-") + 1])
        if len(mount_point) >= len(best):
            best, kind = mount_point, fields[fields.index(b"-") + 1]
    return os.fsdecode(kind)
