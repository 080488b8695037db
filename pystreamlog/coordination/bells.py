"""The bells of a consumer group, `bells/<slot>`: files that are written to when the member of that slot must act."""

from __future__ import annotations

from contextlib import suppress

from pystreamlog.errors import CorruptLogError, ReadOnlyError
from pystreamlog.storage.files import Files

__all__ = ["make_bell", "ring"]


def ring(files: Files, folder: str, slot: int) -> None:
    """Wake the member of that slot, if there is one.

    Args:
        files: The door to the log's directory.
        folder: The group's.
        slot: The member's.

    Raises:
        StorageError: It could not be: no descriptors are left, or no space.
    """
    with suppress(FileNotFoundError, CorruptLogError, ReadOnlyError):
        bell = files.open(f"{folder}/bells/{slot}", write=True)
        try:
            bell.pwrite(b"!", 0)
        finally:
            bell.close()


def make_bell(files: Files, folder: str, slot: int) -> str:
    """A bell that can be rung, by its name; what is in its place goes, for bells hold nothing.

    Args:
        files: The door to the log's directory.
        folder: The group's.
        slot: The member's.
    """
    bells = f"{folder}/bells"
    bell = f"{bells}/{slot}"
    if not files.exists(bells):
        files.make_directory(bells)
    files.unlink(bell)
    file = files.create(bell)
    try:
        file.pwrite(b"!", 0)  # now, for ringing must not need space on the disk
    finally:
        file.close()
    return bell
