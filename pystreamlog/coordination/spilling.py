"""Where transactions spill: `transactions/spill/<random>/`, one folder each, swept when its process is gone."""

from __future__ import annotations

import os
from contextlib import suppress

from pystreamlog.coordination.journal import TRANSACTIONS
from pystreamlog.coordination.locks import FileLock, register_inherited
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.errors import StreamLogError
from pystreamlog.storage.files import File, Files
from pystreamlog.storage.spill import Spill

__all__ = ["SPILL_FOLDER", "SpillFolder"]

SPILL_FOLDER = f"{TRANSACTIONS}/spill"
_LOCK = "lock"


class SpillFolder:
    """The spilled batches of one transaction, by partition. Not for two threads at once.

    Args:
        files: The door to the log's directory.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self.spills: dict[PartitionWriter, Spill] = {}
        for folder in (TRANSACTIONS, SPILL_FOLDER):
            with suppress(FileExistsError):
                files.make_directory(folder)
        self._sweep()
        self._folder, self._file, self._lock = self._make()
        register_inherited(self)

    def _make(self) -> tuple[str, File, FileLock]:
        """A locked folder; another one if somebody swept it before it was locked."""
        folder = f"{SPILL_FOLDER}/{os.urandom(8).hex()}"
        self._files.make_directory(folder)
        with suppress(FileNotFoundError):
            file = self._files.create(f"{folder}/{_LOCK}")
            lock = FileLock(file.fd, file.path, stamp_position=None)
            if lock.try_acquire() and file.status().st_nlink:
                return folder, file, lock
            lock.close()
            file.close()
        return self._make()

    def _sweep(self) -> None:
        """Remove what transactions of dead processes left."""
        for name in self._files.list_directories(SPILL_FOLDER):
            folder = f"{SPILL_FOLDER}/{name}"
            file: File | None = None
            with suppress(StreamLogError, FileNotFoundError):
                try:
                    file = self._files.open(f"{folder}/{_LOCK}", write=True)
                    lock = FileLock(file.fd, file.path, stamp_position=None)
                    if lock.try_acquire():
                        self._files.remove_directory(folder)
                        lock.release()
                finally:
                    if file is not None:
                        file.close()

    def spill(self, writer: PartitionWriter) -> Spill:
        """The spill of a partition."""
        spill = self.spills.get(writer)
        if spill is None:
            prefix = f"{self._folder}/{len(self.spills)}"
            spill = self.spills[writer] = Spill(self._files, prefix, writer.topic.config.segment_bytes)
        return spill

    def sync(self) -> None:
        """Put everything on disk."""
        for spill in self.spills.values():
            spill.sync()

    def close(self) -> None:
        """Remove what was not made part of the log."""
        for spill in self.spills.values():
            spill.close()
        self._files.remove_directory(self._folder)
        self._lock.close()
        self._file.close()

    def close_inherited(self) -> None:
        """Close the files in a forked child, whose parent goes on with them."""
        for spill in self.spills.values():
            spill.close()
        self._file.close()
