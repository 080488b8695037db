"""Batches of a transaction that does not fit into memory, in files that the commit makes segments of the log.

A spill file has room for a segment header, then for a header and the body of each batch. At the commit only the headers
are written, as only then it is known where the batches lie, and the file is renamed into the partition's folder: the
records themselves are never copied, and nothing of their size happens under a lock.
"""

from __future__ import annotations

from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.record.format import HEADER_SIZE
from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File, Files

__all__ = ["Spill", "SpillFile"]


class SpillFile:
    """One file of a spill.

    Attributes:
        name: Its path, relative to the log's directory.
        file: It, open.
        size: Bytes of it that are used.
        batches: What it holds, without the bodies, and where each header belongs.
    """

    __slots__ = ("batches", "file", "name", "size")

    def __init__(self, name: str, file: File) -> None:
        self.name = name
        self.file = file
        self.size = layout.SEGMENT_HEADER.size
        self.batches: list[tuple[EncodedBatch, int]] = []


class Spill:
    """The spilled batches of one partition, in order. Not for two threads at once.

    Args:
        files: The door to the log's directory.
        prefix: What the names of its files begin with.
        segment_bytes: The size that a file should not pass.
    """

    __slots__ = ("_files", "_prefix", "_segment_bytes", "count", "files")

    def __init__(self, files: Files, prefix: str, segment_bytes: int) -> None:
        self._files = files
        self._prefix = prefix
        self._segment_bytes = segment_bytes
        self.files: list[SpillFile] = []
        self.count = 0

    def add(self, batch: EncodedBatch) -> None:
        """Write a batch's body, and let go of it.

        Raises:
            StorageError: The disk is full or failed; the batch is as it was.
        """
        if not self.files or self.files[-1].size + batch.size > self._segment_bytes:
            name = f"{self._prefix}-{len(self.files)}"
            self.files.append(SpillFile(name, self._files.create(name)))
        spilled = self.files[-1]
        position = spilled.size
        spilled.file.pwritev(batch.parts, batch.size - HEADER_SIZE, position + HEADER_SIZE)
        batch.parts = []
        spilled.batches.append((batch, position))
        spilled.size += batch.size
        self.count += 1

    def sync(self) -> None:
        """Put everything on disk, before locks are taken."""
        for spilled in self.files:
            spilled.file.datasync()

    def close(self) -> None:
        """Close the files; whoever made their folder removes it."""
        for spilled in self.files:
            spilled.file.close()
