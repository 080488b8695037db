"""What `maintenance.lock` says of the last run: what the clocks said then, so that the next one sees if one jumped."""

from __future__ import annotations

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File

__all__ = ["NEVER_MS", "LastRun", "read_last_run", "write_last_run"]

NEVER_MS = -1 << 62
"""A moment of the monotonic clock before all others."""


class LastRun(msgspec.Struct, frozen=True):
    """The last run, in the order of the format.

    Attributes:
        magic: `MAINTENANCE_MAGIC`.
        boot_id: The boot in which it was.
        wall_ms: The wall clock.
        monotonic_ms: The monotonic clock.
        wait_until_ms: Nothing is to be deleted by age or size before, by the monotonic clock.
        whole_ms: When one went through all topics, by the monotonic clock.
    """

    magic: bytes
    boot_id: bytes
    wall_ms: int
    monotonic_ms: int
    wait_until_ms: int
    whole_ms: int


def read_last_run(file: File) -> LastRun | None:
    """What the file says; None if there was no run, or it was torn."""
    raw = file.pread(layout.MAINTENANCE_RUN.size, layout.MAINTENANCE_POSITION)
    if len(raw) < layout.MAINTENANCE_RUN.size:
        return None
    *fields, checksum = layout.MAINTENANCE_RUN.unpack(raw)
    run = LastRun(*fields)
    return run if run.magic == layout.MAINTENANCE_MAGIC and checksum == xxh3_64_intdigest(raw[:-8]) else None


def write_last_run(file: File, run: LastRun) -> None:
    """Write it; the caller holds the lock.

    Raises:
        StorageError: The disk is full or failed.
    """
    raw = layout.MAINTENANCE_RUN.pack(*msgspec.structs.astuple(run), 0)[:-8]
    file.pwrite(raw + layout.CHECKSUM.pack(xxh3_64_intdigest(raw)), layout.MAINTENANCE_POSITION)
