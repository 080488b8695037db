"""What the files of a log tell without being read: how much partitions hold, and what was written when.

Takes no lock and reads no record. Only of a log that is a directory; of others nothing is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from pystreamlog.backend.log import StreamLog
from pystreamlog.clock import SYSTEM
from pystreamlog.coordination.groups import group_folders, read_group_id
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.errors import CorruptLogError, IncompatibleFormatError
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import Files
from pystreamlog.storage.folder import CONTROL, Folder
from pystreamlog.storage.format import segment_name

__all__ = ["Extent", "Extents", "opened_extents"]

_GROUP_FILES = ("control", "members", "offsets")


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
        self._group_ids: dict[str, str] = {}

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
        slot = self.published(topic, partition)
        if slot is None:
            return Extent(0, 0)
        sizes = self.segment_sizes(topic, partition, slot.log_start_offset, slot.segment_base)
        return Extent(len(sizes) + 1, sum(sizes) + slot.end_position)

    def segment_sizes(self, topic: TopicState, partition: int, start: int, stop: int) -> list[int]:
        """The sizes in bytes of a partition's segment files from that with the offset `start` to before `stop`'s."""
        folder = self._folder(topic, partition)
        sizes = []
        for base in folder.segments_from(start):
            if base < stop:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    sizes.append(self._files.status(f"{folder.path}/{segment_name(base)}").st_size)
        return sizes

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
        return self._changed_ns(f"{topic.folder(partition)}/{CONTROL}")

    def group_folders(self) -> dict[str, str]:
        """The ids of all groups, by their folders; without those whose `group.json` is damaged."""
        found = {}
        for folder in group_folders(self._files):
            with suppress(FileNotFoundError, CorruptLogError, IncompatibleFormatError):
                if folder not in self._group_ids:
                    self._group_ids[folder] = read_group_id(self._files, folder)
                found[folder] = self._group_ids[folder]
        return found

    def group_changed_ns(self, folder: str) -> tuple[int, ...]:
        """When the files of a group were written for the last time, by the file system's clock; 0 for never."""
        return tuple(self._changed_ns(f"{folder}/{name}") for name in _GROUP_FILES)

    def _changed_ns(self, name: str) -> int:
        try:
            return self._files.status(name).st_mtime_ns
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
