"""How much a partition holds: its segments and their bytes, from the names and sizes of its files and one slot.

Takes no lock and reads no record. Only of a log that is a directory; of others nothing is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pystreamlog.backend.log import StreamLog
from pystreamlog.clock import SYSTEM
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import Files
from pystreamlog.storage.folder import CONTROL, Folder
from pystreamlog.storage.format import segment_name

__all__ = ["Extent", "Extents", "opened_extents"]


class Extent(NamedTuple):
    """What a partition takes up, without its indexes.

    Attributes:
        segments: How many segment files.
        bytes: Of them, of the last one as far as it is published.
    """

    segments: int
    bytes: int


class Extents:
    """Looks at the files of a log's partitions. For one thread.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
    """

    def __init__(self, files: Files, log_id: bytes) -> None:
        self._files = files
        self._log_id = log_id
        self._topics = Topics(files, SYSTEM, read_only=True)

    def topic(self, name: str) -> TopicState:
        """The topic of that name as it is now.

        Raises:
            UnknownTopicError: There is none.
            CorruptLogError: Its `topic.json` is damaged.
        """
        return self._topics.find_anew(name)

    def extent(self, topic: TopicState, partition: int) -> Extent:
        """What a partition takes up; nothing while it was not made.

        Raises:
            CorruptLogError: Its `control` is damaged.
        """
        folder = self._folder(topic, partition)
        slot = self.published(topic, partition)
        if slot is None:
            return Extent(0, 0)
        bases = [base for base in folder.segments_from(slot.log_start_offset) if base < slot.segment_base]
        size = slot.end_position
        for base in bases:
            try:
                size += self._files.status(f"{folder.path}/{segment_name(base)}").st_size
            except FileNotFoundError:
                continue  # deleted meanwhile
        return Extent(len(bases) + 1, size)

    def published(self, topic: TopicState, partition: int) -> Published | None:
        """What a partition's writers published last; None while it was not made, or when no slot verifies.

        Raises:
            CorruptLogError: Its `control` is damaged.
        """
        try:
            control = self._folder(topic, partition).open_control(write=False)
        except FileNotFoundError:
            return None
        try:
            return control.published()
        finally:
            control.close()

    def changed_ns(self, topic: TopicState, partition: int) -> int:
        """When something was published in a partition for the last time, by the file system's clock; 0 for never."""
        try:
            return self._files.status(f"{topic.folder(partition)}/{CONTROL}").st_mtime_ns
        except FileNotFoundError:
            return 0

    def _folder(self, topic: TopicState, partition: int) -> Folder:
        return Folder(self._files, topic.folder(partition), self._log_id, topic.id, partition)


@contextmanager
def opened_extents(log: StreamLog) -> Iterator[Extents | None]:
    """Looks at the files of an open log; None where it is no directory."""
    if not os.path.isdir(log.path):
        yield None
        return
    files = Files(log.path)
    try:
        yield Extents(files, bytes.fromhex(log.admin.describe_cluster().cluster_id))
    finally:
        files.close()
