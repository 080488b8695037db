"""The front door: a path, a URL or ":memory:" becomes an open log."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Literal

from pystreamlog.backend.log import StreamLog
from pystreamlog.errors import ConfigError, NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BACKENDS", "open_log"]

BACKENDS = "pystreamlog.backends"
"""Entry points of this group, named by URL scheme, open other kinds of log: `callable(url, **options) -> StreamLog`."""


def open_log(
    target: str | os.PathLike[str],
    *,
    create: bool = True,
    read_only: bool = False,
    auto_create_topics: bool = False,
    maintenance: bool = True,
    mode: int = 0o700,
    reads: Literal["map", "pread"] = "map",
    recover: Literal["auto", "always"] = "auto",
    allow_network_filesystem: bool = False,
    **options: Any,
) -> StreamLog:
    """Open a log; cheap, and safe from any number of processes and threads at once.

    Args:
        target: A path, a `file:` URL, or `":memory:"` (a private directory, removed by the process that made it).
            Other URL schemes are looked up as backends.
        create: Make the directory, and a log in it, if it is missing or empty.
        read_only: Write nothing; every change raises `ReadOnlyError`.
        auto_create_topics: Make a topic of one partition when one is named that does not exist.
        maintenance: Delete, compact and repack in the background as the topics' settings say: every few minutes, by a
            thread that starts once such a topic is used, and has another process do what takes long. Without it,
            `StreamLog.maintain` does.
        mode: Permission bits of what is made: 0o700 (the owner only) or 0o770 (the group too, setgid directories);
            files get the same less x, whatever the umask.
        reads: `"map"` reads segments through read-only maps; `"pread"` copies, so that a bad sector is an error.
        recover: `"auto"` recovers partitions last written in another boot of the machine, or copied; `"always"` each
            partition at its first opening.
        allow_network_filesystem: Open a directory on NFS, SMB or the like, whose locks do not hold between hosts.
        **options: For other backends.

    Raises:
        ConfigError: An argument is wrong, or the directory does not exist and `create` is False.
        IncompatibleFormatError: The directory is no log, or a newer version's.
        NotSupportedError: The platform or the file system cannot hold a log.
        ReadOnlyError: The directory may not be written.
    """
    try:
        text: object = os.fspath(target)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text:
        raise ConfigError(f"a log is opened by a path or a URL, not {target!r}")
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "file":
        return _backend(scheme)(text, create=create, read_only=read_only, **options)
    if options:
        raise ConfigError(f"unknown argument {next(iter(options))!r} of open() for a directory")
    if sys.platform == "win32":
        raise NotSupportedError("a log directory needs POSIX file locks, which Windows does not have")
    if sys.byteorder != "little":
        raise NotSupportedError("the files are little-endian, and so must be the machine")
    if reads not in ("map", "pread") or recover not in ("auto", "always"):
        raise ConfigError(f"reads={reads!r} is 'map' or 'pread', recover={recover!r} is 'auto' or 'always'")
    if type(mode) is not int or mode & ~0o777 or mode & 0o700 != 0o700:  # noqa: PLR2004 - permission bits
        raise ConfigError(f"mode={mode!r} is no permission of a directory that its owner can use: 0o700 or 0o770")
    from pystreamlog.embedded.log import EmbeddedLog  # noqa: PLC0415 - imports fcntl, which Windows has not

    settings: dict[str, Any] = {
        "create": create,
        "read_only": read_only,
        "auto_create_topics": auto_create_topics,
        "maintenance": maintenance,
        "mode": mode,
        "map_reads": reads == "map",
        "recover_always": recover == "always",
        "allow_network_filesystem": allow_network_filesystem,
    }
    if text == ":memory:":
        from pystreamlog.embedded.memory import open_memory  # noqa: PLC0415 - for tests mostly

        return open_memory(settings)
    return EmbeddedLog(_path_of(text, rest if separator else None), **settings)


def _path_of(text: str, rest: str | None) -> str:
    """The path of a `file:` URL, or the path itself."""
    if rest is None and not text.startswith("file:/"):
        return text
    from urllib.parse import unquote  # noqa: PLC0415 - a twentieth of the import time, for URLs only

    if rest is None:
        return unquote(text[len("file:") :])
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise ConfigError(f"{text!r} names the host {host!r}: a log lies on this one, as in file:///path")
    return unquote(slash + path)


def _backend(scheme: str) -> Callable[..., StreamLog]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow, and only for other backends

    for entry in entry_points(group=BACKENDS, name=scheme):
        backend: Callable[..., StreamLog] = entry.load()
        return backend
    raise NotSupportedError(f"no backend for {scheme}:// is installed: pass a path, or install one")
