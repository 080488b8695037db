"""Fencing: of the producers with one transactional id only the newest may commit.

`transactions/ids/<encoded id>` holds the epoch in two checksummed slots. A new producer raises it under the file's
lock, byte 0; a commit holds that lock from the moment it has compared its own epoch until it is done.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from pystreamlog.coordination.journal import TRANSACTIONS
from pystreamlog.coordination.locks import FileLock, register_inherited
from pystreamlog.coordination.names import encoded_id
from pystreamlog.errors import CorruptLogError, FencedError, IncompatibleFormatError
from pystreamlog.storage.files import File, Files

__all__ = ["IDS_FOLDER", "IdState", "TransactionalId", "check_image", "listed_ids", "read_id"]

IDS_FOLDER = f"{TRANSACTIONS}/ids"
_MAGIC = b"PSLTXI\r\n"
_HEADER = struct.Struct("<8sII16sQQ")
"""magic, version, reserved, log id, xxh3-64 of the id, checksum."""
_SLOT = struct.Struct("<QQ")
"""epoch, checksum."""
_VERSION = 1
_SLOTS = 256
_STRIDE = 256
_STAMP = 1024
_SIZE = 2048


def _checked(raw: bytes) -> bytes:
    return raw + struct.pack("<Q", xxh3_64_intdigest(raw))


def check_image(raw: bytes, path: str, log_id: bytes, known: int | None) -> int:
    """Check the bytes of an id's file; the position of a damaged slot beside a valid one, 0 when both are valid.

    Args:
        raw: The file.
        path: Its path, for messages.
        log_id: The log's id.
        known: xxh3-64 of the id; None when it is not known.

    Raises:
        CorruptLogError: The file is damaged, or another's.
    """
    head = raw[: _HEADER.size]
    if len(head) < _HEADER.size or head != _checked(head[:-8]) or head[:8] != _MAGIC:
        raise CorruptLogError(f"{path} does not start with a valid header of a transactional id", path=path)
    _, version, _, found_log_id, found, _ = _HEADER.unpack(head)
    if version != _VERSION:
        raise IncompatibleFormatError(f"{path} has format version {version}: upgrade", path=path)
    if found_log_id != log_id or found != (found if known is None else known):
        raise CorruptLogError(
            f"{path} belongs to another log or id: files were swapped",
            path=path,
            expected=(log_id.hex(), known),
            found=(found_log_id.hex(), found),
        )
    places = (_SLOTS, _SLOTS + _STRIDE)
    slots = [raw[place : place + _SLOT.size] for place in places]
    damaged = [place for place, slot in zip(places, slots, strict=True) if slot != _checked(slot[:8])]
    if len(damaged) == len(places):
        raise CorruptLogError(f"{path}: both slots are damaged", path=path, position=_SLOTS)
    return damaged[0] if damaged else 0


class IdState(NamedTuple):
    """A transactional id as one sees it who does not use it.

    Attributes:
        text: The id.
        epoch: Of the newest producer with it; 0 when there was none.
        holder: Who commits with it just now, or takes it; None when nobody does.
    """

    text: str
    epoch: int
    holder: str | None


def listed_ids(files: Files) -> list[str]:
    """All transactional ids that were ever used, sorted; of one too long for a file name, what that keeps of it."""
    names = [name for name in files.list(IDS_FOLDER) if "~" not in name]
    return sorted(name if "%%" in name else _decoded(name) for name in names)


def _decoded(name: str) -> str:
    raw = re.sub(rb"%([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), name.encode(errors="replace"))
    return raw.decode(errors="replace")


def read_id(files: Files, log_id: bytes, text: str) -> IdState:
    """How a transactional id stands. Takes no lock.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        text: The id, or what `listed_ids` tells of one that is too long.

    Raises:
        FileNotFoundError: No producer ever used it.
        CorruptLogError: Its file is damaged, or another's.
    """
    is_cut = "%%" in text and files.exists(f"{IDS_FOLDER}/{text}")
    file = files.open(f"{IDS_FOLDER}/{text if is_cut else encoded_id(text)}")
    try:
        raw = file.pread(_SIZE, 0)
        check_image(raw, file.path, log_id, None if is_cut else xxh3_64_intdigest(text.encode()))
        slots = [raw[place : place + _SLOT.size] for place in (_SLOTS, _SLOTS + _STRIDE)]
        epoch = max(int(_SLOT.unpack(slot)[0]) for slot in slots if slot == _checked(slot[:8]))
        lock = FileLock(file.fd, file.path, stamp_position=_STAMP)
        return IdState(text, epoch, None if lock.is_free() else lock.holder())
    finally:
        file.close()


class TransactionalId:
    """One transactional id of a log, as one producer holds it. Not for two threads at once.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        text: The transactional id.

    Raises:
        CorruptLogError: Its file is damaged, or another's.
    """

    def __init__(self, files: Files, log_id: bytes, text: str) -> None:
        self.text = text
        self.epoch = 0
        self._head = _checked(_HEADER.pack(_MAGIC, _VERSION, 0, log_id, xxh3_64_intdigest(text.encode()), 0)[:-8])
        name = f"{IDS_FOLDER}/{encoded_id(text)}"
        self._file = self._open(files, name)
        try:
            if self._file.pread(_HEADER.size, 0) != self._head:
                raise self._corrupt(0, self._head, self._file.pread(_HEADER.size, 0))
        except BaseException:
            self._file.close()
            raise
        self._lock = FileLock(self._file.fd, self._file.path, stamp_position=_STAMP)
        register_inherited(self)

    def _open(self, files: Files, name: str) -> File:
        try:
            return files.open(name, write=True)
        except FileNotFoundError:
            for folder in (TRANSACTIONS, IDS_FOLDER):
                with suppress(FileExistsError):
                    files.make_directory(folder)
            image = bytearray(_SIZE)
            image[: len(self._head)] = self._head
            for place in (_SLOTS, _SLOTS + _STRIDE):
                image[place : place + _SLOT.size] = _checked(struct.pack("<Q", 0))
            files.write(name, bytes(image), replace=False)
            return files.open(name, write=True)

    def _corrupt(self, position: int, expected: object, found: object) -> CorruptLogError:
        path = self._file.path
        return CorruptLogError(
            f"{path} is damaged, or another id's: remove it while no producer uses transactional_id={self.text!r}",
            path=path,
            position=position,
            expected=expected,
            found=found,
        )

    def _newest(self) -> int:
        epochs = []
        for place in (_SLOTS, _SLOTS + _STRIDE):
            raw = self._file.pread(_SLOT.size, place)
            if raw == _checked(raw[:8]):
                epochs.append(_SLOT.unpack(raw)[0])
        if not epochs:
            raise self._corrupt(_SLOTS, "a valid slot", None)
        return int(max(epochs))

    def take(self, timeout: float) -> None:
        """Become the newest producer with this id, once nobody commits with it.

        Raises:
            FencedError: This one was the newest once, and is not any more.
            LockTimeoutError: Another process went on committing for that long.
        """
        with self._lock.held(timeout, stamp=True):
            if self.epoch:
                self.check()  # who was fenced does not fence back
            self.epoch = self._newest() + 1
            raw = _checked(struct.pack("<Q", self.epoch))
            self._file.pwrite(raw, _SLOTS + (self.epoch & 1) * _STRIDE)

    def check(self) -> None:
        """Raise `FencedError` if there is a newer producer with this id."""
        newest = self._newest()
        if newest != self.epoch:
            raise FencedError(
                f"a newer producer with transactional_id={self.text!r} is at work (its epoch {newest}, this one's "
                f"{self.epoch}): close this producer, its transaction is aborted"
            )

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold the id during a commit.

        Raises:
            FencedError: There is a newer producer.
            LockTimeoutError: Another process held it for that long.
        """
        with self._lock.held(timeout):
            self.check()
            yield

    def close_inherited(self) -> None:
        """Close the file in a forked child."""
        self._file.close()

    def close(self) -> None:
        """Close the file; again is harmless."""
        self._lock.close()
        self._file.close()
