"""A partition's `epochs.json`: where each of its epochs began. A recovery that may have cut something begins one."""

from __future__ import annotations

import msgspec

from pystreamlog.errors import CorruptLogError
from pystreamlog.storage.control import Published
from pystreamlog.storage.folder import Folder

__all__ = ["EPOCHS", "Epoch", "read_epochs", "start_epoch"]

EPOCHS = "epochs.json"
_EPOCHS_LIMIT = 1 << 20
_EPOCHS_KEPT = 1 << 12


class Epoch(msgspec.Struct, frozen=True, array_like=True):
    """A partition epoch and the offset of the first record that was written in it."""

    epoch: int
    start_offset: int


def read_epochs(folder: Folder) -> list[Epoch]:
    """The partition's epochs, oldest first; empty when it never was recovered.

    Raises:
        CorruptLogError: The file does not decode.
    """
    name = f"{folder.path}/{EPOCHS}"
    try:
        return msgspec.json.decode(folder.files.read(name, limit=_EPOCHS_LIMIT), type=list[Epoch])
    except FileNotFoundError:
        return []
    except (msgspec.DecodeError, RecursionError) as error:
        path = folder.files.path(name)
        raise CorruptLogError(f"{path} is damaged: {error}", path=path) from error


def start_epoch(folder: Folder, end: Published) -> int:
    """Note, on disk, that a new epoch begins at an end, and return it."""
    epochs = read_epochs(folder)
    epoch = 1 + max([end.epoch, *(known.epoch for known in epochs)])
    # An epoch that started at the cut, or behind it, has no record left: the new one ends the epoch before it.
    left = [known for known in epochs if known.start_offset < end.end_offset][-_EPOCHS_KEPT:]
    folder.files.write(f"{folder.path}/{EPOCHS}", msgspec.json.encode([*left, Epoch(epoch, end.end_offset)]))
    return epoch
