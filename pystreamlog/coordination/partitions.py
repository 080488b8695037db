"""The partitions of one log that this process uses: their writers and readers."""

from __future__ import annotations

import threading
from weakref import WeakSet

from pystreamlog.coordination.key_reader import KeyReader
from pystreamlog.coordination.locks import register_inherited
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.syncer import Syncer
from pystreamlog.coordination.topics import TopicState
from pystreamlog.errors import ClosedError, UnknownPartitionError
from pystreamlog.storage.files import Files
from pystreamlog.storage.folder import Folder

__all__ = ["Partitions"]


class Partitions:
    """Finds or makes the handles of partitions. Safe from any thread.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        context: What the partitions have in common.
    """

    def __init__(self, files: Files, log_id: bytes, context: PartitionContext) -> None:
        self._files = files
        self._log_id = log_id
        self._context = context
        self._lock = threading.Lock()
        self._writers: dict[tuple[bytes, int], PartitionWriter] = {}
        self._readers: WeakSet[PartitionReader] = WeakSet()
        self._lookouts: dict[tuple[bytes, int], PartitionReader] = {}
        self._syncer = Syncer()
        self._closed = False
        register_inherited(self)

    def writer(self, topic: TopicState, partition: int) -> PartitionWriter:
        """The writer of a partition, with the topic's latest settings.

        Raises:
            UnknownPartitionError: The topic has no such partition.
        """
        key = topic.id, partition
        writer = self._writers.get(key)
        if writer is None:
            with self._lock:
                self._check_open()
                writer = self._writers.get(key)
                if writer is None:
                    writer = PartitionWriter(topic, self._folder(topic, partition), self._context, self.sync_later)
                    self._writers[key] = writer
        writer.topic = topic
        return writer

    def reader(self, topic: TopicState, partition: int) -> PartitionReader:
        """A new reader of a partition, for one user; close it after use.

        Raises:
            UnknownPartitionError: The topic has no such partition.
        """
        folder = self._folder(topic, partition)
        reader = PartitionReader(folder, self._context, lambda: self.writer(topic, partition).ensure())
        self._keep(reader)
        return reader

    def key_reader(self, topic: TopicState, partition: int) -> KeyReader:
        """A new reader of single keys' records, for one user; close it after use."""

        def ask(key: bytes, anew: bool) -> int:  # noqa: FBT001 - the reader's own
            return self.writer(topic, partition).last_offset(key, anew=anew)

        folder = self._folder(topic, partition)
        reader = KeyReader(folder, self._context, lambda: self.writer(topic, partition).ensure(), ask)
        self._keep(reader)
        return reader

    def _keep(self, reader: PartitionReader) -> None:
        with self._lock:
            self._check_open()
            self._readers.add(reader)

    def lookout(self, topic: TopicState, partition: int) -> PartitionReader:
        """A reader that stays open and is everybody's, for questions about a partition; not to be closed.

        Raises:
            UnknownPartitionError: The topic has no such partition.
        """
        key = topic.id, partition
        found = self._lookouts.get(key)
        if found is None:
            found = self._lookouts.setdefault(key, self.reader(topic, partition))
        return found

    def sync_later(self, writer: PartitionWriter, offset: int, seconds: float) -> None:
        """Have all below `offset` synced that many seconds from now, in the background."""
        self._syncer.schedule(writer, offset, seconds)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the log was closed: open it again")

    def forget(self, topic: TopicState) -> None:
        """Close the writers of a topic that was deleted, as it was then."""
        keys = [(topic.id, number) for number in range(topic.partitions)]
        with self._lock:
            writers = [self._writers.pop(key) for key in keys if key in self._writers]
            readers = [self._lookouts.pop(key) for key in keys if key in self._lookouts]
        for writer in writers:
            writer.close(deleted=True)
        for reader in readers:
            reader.close()

    def _folder(self, topic: TopicState, partition: int) -> Folder:
        if type(partition) is not int or not 0 <= partition < topic.partitions:
            raise UnknownPartitionError(
                f"topic {topic.name!r} has partitions 0 to {topic.partitions - 1}, not {partition!r}",
                topic=topic.name,
                partition=partition,
            )
        lineage = self._context.lineage
        return Folder(self._files, topic.folder(partition), self._log_id, topic.id, partition, lineage)

    def close(self) -> None:
        """Sync what is to be synced, and close every handle, so that nothing is written after it; again is harmless."""
        self._syncer.finish()
        with self._lock:
            self._closed = True
            writers, self._writers = list(self._writers.values()), {}
            readers = list(self._readers)
        for writer in writers:
            writer.close()
        for reader in readers:
            reader.close()

    def close_inherited(self) -> None:
        """Close every inherited file in a forked child."""
        self._lock = threading.Lock()
        self._syncer.start_anew()
        for writer in self._writers.values():
            writer.close_inherited()
        for reader in list(self._readers):
            reader.close_inherited()
        self._readers = WeakSet()
        self._lookouts = {}
        register_inherited(self)
