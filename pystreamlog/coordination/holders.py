"""Naming the process that holds a lock, for the message of an error.

Who takes a lock for long writes a stamp beside it; the stamp is a hint and never trusted. On Linux the kernel is asked
too, through /proc: it knows the true holder, as far as this process may look. Everything here runs only when a lock was
not free in time, except `own_stamp`; any thread may call it.

A stamp is 256 little-endian bytes:

| bytes | field |
|---|---|
| 0-3 | magic and version, `PSL1` |
| 4-7 | process id, in its own pid namespace |
| 8-15 | inode of that pid namespace, 0 where there are none |
| 16-23 | start of the process in clock ticks since boot, 0 where unknown |
| 24-31 | start of the process in seconds since 1970, 0 where unknown |
| 32-95 | host name, ASCII, zero padded |
| 96-247 | name of the program, ASCII, zero padded |
| 248-255 | xxh3-64 of the bytes before |
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from pystreamlog.clock import Clock, to_datetime

__all__ = ["STAMP_SIZE", "describe_holder", "host_name", "own_stamp", "pid_namespace"]

STAMP_SIZE = 256
"""Bytes that a stamp takes in a file."""

_STAMP = struct.Struct("<4sIQQq64s152s")
_CHECKSUM = struct.Struct("<Q")
_MAGIC = b"PSL1"

_SCAN_SECONDS = 0.5
"""How long the search for a holder through /proc may take; a thousand processes take some 50 ms."""

_MAX_NAMED = 3
"""How many processes that share one lock (through fork) a message names."""

_LATEST_START = 1 << 32
"""Seconds since 1970 past which a start (year 2106) is not believed: a stamp may hold anything."""

_own_stamps: dict[int, bytes] = {}
"""This process's stamp by its pid, which a forked child does not share."""


def own_stamp() -> bytes:
    """The stamp of this process: `STAMP_SIZE` bytes, computed once (some 100 us) and again after a fork."""
    pid = os.getpid()
    stamp = _own_stamps.get(pid)
    if stamp is None:
        _, ticks = _process_status(pid)
        started, host, program = _started_at(ticks), host_name().encode(), _program_name().encode()
        body = _STAMP.pack(_MAGIC, pid, pid_namespace(), ticks, started, host, program)
        _own_stamps[pid] = stamp = body + _checksum(body)
    return stamp


def describe_holder(stamp: bytes, fd: int, byte: int, clock: Clock) -> str:
    """Who holds a lock, in words, as far as this process can see.

    Takes up to half a second on a busy machine, in the search through /proc.

    Args:
        stamp: What stands in the lock's file where a stamp belongs; anything else than a valid one is ignored.
        fd: A descriptor of the locked file.
        byte: Position of the byte that is locked.
        clock: What bounds the search.
    """
    named = _parse(stamp)
    pids = list(_find_holders(None if named is None else named.pid, fd, byte, clock))
    if named is not None and (not pids or (named.pid in pids and named.is_alive())):
        return named.describe()
    if not pids:
        return "a process that left no name and that this one cannot see (another user's, or in another container)"
    more = f" and {len(pids) - _MAX_NAMED} more" if len(pids) > _MAX_NAMED else ""
    return " and ".join(map(_describe_pid, pids[:_MAX_NAMED])) + more


# --- the stamp --------------------------------------------------------------------------------------------------------


class _Stamp(NamedTuple):
    """Who acquired a lock last and said so."""

    pid: int
    namespace: int
    ticks: int
    started: int
    host: str
    program: str

    def is_alive(self) -> bool:
        """Whether the process, one of this host and pid namespace, still runs."""
        if self.ticks:
            return _process_status(self.pid)[1] == self.ticks
        try:
            os.kill(self.pid, 0)
        except (OSError, OverflowError) as error:
            return not isinstance(error, ProcessLookupError)
        return True

    def describe(self) -> str:
        """The process in words, and what is known of its present state."""
        text = f"pid {self.pid} ({self.program}) on host {self.host}{_describe_start(self.started)}"
        if self.host != host_name():
            return f"{text}, which is another host or container"
        if self.namespace != pid_namespace():
            return f"{text}, in another pid namespace (a container)"
        if not self.is_alive():
            return f"{text}, which no longer exists: somebody took the lock after it without leaving a name"
        return text + _describe_state(self.pid)


def _parse(stamp: bytes) -> _Stamp | None:
    """What a stamp says, or None when it does not verify."""
    body, checksum = stamp[: _STAMP.size], stamp[_STAMP.size :]
    if len(stamp) != STAMP_SIZE or not body.startswith(_MAGIC) or checksum != _checksum(body):
        return None
    _, pid, namespace, ticks, started, host, program = _STAMP.unpack(body)
    return _Stamp(pid, namespace, ticks, started, _printable(host), _printable(program))


def _checksum(body: bytes) -> bytes:
    return _CHECKSUM.pack(xxh3_64_intdigest(body))


def _printable(text: str | bytes) -> str:
    """The text with everything escaped that is not printable ASCII, without the padding."""
    if isinstance(text, bytes):
        text = text.rstrip(b"\0").decode("latin-1")
    return "".join(mark if " " <= mark <= "~" else mark.encode("unicode_escape").decode() for mark in text)


def host_name() -> str:
    """Name of this host or container, in printable ASCII, at most 64 characters."""
    return _printable(os.uname().nodename)[:64]


def _program_name() -> str:
    """`argv[0]` without its folders, never an argument: those may hold secrets."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program in {"", "-c", "-m"}:
        program = sys.executable or "python"
    return _printable(os.path.basename(program))[:152]


def pid_namespace() -> int:
    """Inode of this process's pid namespace; 0 where there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


# --- what /proc says; every function answers "unknown" where there is none --------------------------------------------


def _find_holders(likely: int | None, fd: int, byte: int, clock: Clock) -> Iterator[int]:
    """The processes one of whose descriptors holds the lock; only `likely` when that one does."""
    status = os.fstat(fd)
    if likely is not None and _holds(likely, status, byte):
        yield likely
        return
    give_up = clock.monotonic() + _SCAN_SECONDS
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal() and _holds(int(name), status, byte):
                yield int(name)
            if clock.monotonic() > give_up:
                return


def _holds(pid: int, status: os.stat_result, byte: int) -> bool:
    """Whether the kernel lists the lock at a descriptor of that process; False where it may not be looked at."""
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # a descriptor closed meanwhile
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), status):
                    lines = _read_text(f"/proc/{pid}/fdinfo/{name}").splitlines()
                    if any(_covers(line.split(), byte) for line in lines if line.startswith("lock:")):
                        return True
    return False


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _process_status(pid: int) -> tuple[str, int]:
    """State letter and start in clock ticks since boot, or `("", 0)`."""
    try:
        # The second field, the name, is in brackets and may hold anything, brackets and spaces too.
        fields = _read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0


def _started_at(ticks: int) -> int:
    """Seconds since 1970 of a start in clock ticks since boot, or 0."""
    try:
        lines = _read_text("/proc/stat").splitlines()
        boot = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
        return boot + ticks // os.sysconf("SC_CLK_TCK") if ticks else 0
    except (OSError, StopIteration, IndexError, ValueError):
        return 0


def _describe_pid(pid: int) -> str:
    try:
        program = _printable(_read_text(f"/proc/{pid}/comm").strip())
    except OSError:
        program = "ended meanwhile"
    _, ticks = _process_status(pid)
    return f"pid {pid} ({program}) on host {host_name()}{_describe_start(_started_at(ticks))}{_describe_state(pid)}"


def _describe_start(started: int) -> str:
    if not 0 < started < _LATEST_START:
        return ""
    return f", started {to_datetime(started * 1000).astimezone():%Y-%m-%d %H:%M:%S}"


def _describe_state(pid: int) -> str:
    if pid == os.getpid():
        return ", which is this process itself"
    state, _ = _process_status(pid)
    return f", which is stopped (`kill -CONT {pid}` lets it go on)" if state in {"T", "t"} else ""


def _covers(fields: list[str], byte: int) -> bool:
    """Whether a `lock:` line of fdinfo is a write lock that a `FileLock` on the byte must wait for.

    `lock: 1: OFDLCK ADVISORY WRITE -1 fe:00:9977921 0 0`; the last field may be `EOF`.
    """
    _, _, kind, _, mode, _, _, first, last = fields
    if kind == "OFDLCK":
        return mode == "WRITE" and int(first) <= byte and (last == "EOF" or byte <= int(last))
    return kind == "FLOCK" and mode == "WRITE"
