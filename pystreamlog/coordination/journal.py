"""The journal of transactions: an internal partition, `transactions/journal`, in which each batch is one commit.

An entry holds all that a commit changes, as it was and as it is then: so its publication is the moment in which the
transaction counts, everywhere at once, whether or not its committer lives to say so anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec

from pystreamlog.coordination.names import is_topic_name
from pystreamlog.coordination.offset_store import Committed
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.partition_reader import PartitionReader
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.topic_config import TopicConfig
from pystreamlog.coordination.topics import TopicState
from pystreamlog.errors import CorruptLogError, OffsetOutOfRangeError
from pystreamlog.record.batch import encode_one
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import Files
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.reader import Cursor

__all__ = [
    "JOURNAL_FOLDER",
    "TRANSACTIONS",
    "Entry",
    "Journal",
    "OffsetChange",
    "Participant",
    "decoded",
    "encoded",
    "journal_folder",
]

TRANSACTIONS = "transactions"
JOURNAL_FOLDER = f"{TRANSACTIONS}/journal"
_TOPIC_ID = b"pystreamlog:txns"
_SEGMENT_BYTES = 4 << 20
_VERSION = 1
_FETCHED = 1000
_REMEMBERED = 256


class Participant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A partition that a transaction writes to.

    Attributes:
        topic: Its topic's name.
        topic_id: Its topic's id, 16 bytes.
        partition: Its number.
        old: Its end before.
        new: Its end with the transaction's records.
    """

    topic: str
    topic_id: bytes
    partition: int
    old: Published
    new: Published

    @property
    def key(self) -> tuple[bytes, int]:
        """Topic id and number."""
        return self.topic_id, self.partition

    @property
    def path(self) -> str:
        """The partition's folder."""
        return f"topics/{self.topic}/{self.partition}"


class OffsetChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A committed offset that a transaction changes.

    Attributes:
        group_id: The group's.
        topic_id: 16 bytes.
        partition: The partition.
        sequence: Of the copy of the group's entry that the commit writes: who comes later has a higher one.
        old: What was committed before; None for nothing.
        new: What is committed then.
    """

    group_id: str
    topic_id: bytes
    partition: int
    sequence: int
    old: Committed | None
    new: Committed


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One commit.

    Attributes:
        version: Of this layout.
        nonce: Random; in every batch of the transaction, and in the slots that name this entry.
        participants: The partitions, in the order in which they are locked.
        offsets: The committed offsets.
    """

    version: int
    nonce: int
    participants: tuple[Participant, ...]
    offsets: tuple[OffsetChange, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encoded(
    nonce: int, participants: tuple[Participant, ...], offsets: tuple[OffsetChange, ...], now_ms: int
) -> tuple[Entry, EncodedBatch]:
    """An entry and the batch that holds it."""
    entry = Entry(_VERSION, nonce, participants, offsets)
    return entry, encode_one(_encoder.encode(entry), None, now_ms)


def decoded(value: bytes | None, path: str) -> Entry:
    """The entry in a record of the journal.

    Raises:
        CorruptLogError: It does not decode.
    """
    try:
        entry = _decoder.decode(value or b"")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptLogError(f"{path} holds an entry that does not decode: {error}", path=path) from error
    if entry.version != _VERSION:
        raise CorruptLogError(f"{path} holds an entry of version {entry.version}", path=path, found=entry.version)
    for part in entry.participants:
        if not is_topic_name(part.topic) or part.partition < 0:
            raise CorruptLogError(f"{path} holds an entry about {part.topic!r}, which is no topic", path=path)
    return entry


def journal_folder(files: Files, log_id: bytes) -> Folder:
    """Where the journal lies."""
    return Folder(files, JOURNAL_FOLDER, log_id, _TOPIC_ID, 0)


class Journal:
    """The journal of one log in one process. Safe from any thread.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        context: What the log's partitions have in common.
        later: See `PartitionWriter`.

    Attributes:
        folder: Where it lies.
        writer: Appends to it.
        reader: Reads it.
    """

    def __init__(
        self,
        files: Files,
        log_id: bytes,
        context: PartitionContext,
        later: Callable[[PartitionWriter, int, float], None],
    ) -> None:
        self._files = files
        self._context = context
        self._exists = False
        self._remembered: dict[int, Entry] = {}
        topic = TopicState(TRANSACTIONS, _TOPIC_ID, 1, TopicConfig(segment_bytes=_SEGMENT_BYTES), 0)
        self.folder = journal_folder(files, log_id)
        self.writer = PartitionWriter(topic, self.folder, context, later)
        self.reader = PartitionReader(self.folder, context, self.writer.ensure)

    def exists(self) -> bool:
        """Whether it was ever made."""
        if not self._exists:
            self._exists = self.folder.exists()
        return self._exists

    def ensure(self) -> None:
        """Make it, unless it is there, and recover it if need be."""
        if not self.exists():
            with suppress(FileExistsError):
                self._files.make_directory(TRANSACTIONS)
                self._files.sync_directory("")
        self.writer.ensure()
        self._exists = True

    def remember(self, offset: int, entry: Entry) -> None:
        """Keep an entry that this process has published, for those that ask for it soon."""
        self._remembered[offset] = entry
        if len(self._remembered) > _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def entry(self, offset: int, nonce: int) -> Entry | None:
        """The published entry at an offset, if it has that nonce.

        Raises:
            CorruptLogError: The journal does not verify.
        """
        found = self._remembered.get(offset)
        if found is None:
            if not self.exists() or offset >= self.reader.offsets()[1]:
                return None
            try:
                found = next(self.entries(offset, offset + 1), (0, None))[1]
            except OffsetOutOfRangeError:
                return None
        return found if found is not None and found.nonce == nonce else None

    def another_reader(self) -> PartitionReader:
        """A reader for who holds the journal's writer, or its reader, already; close it after use."""
        return PartitionReader(self.folder, self._context, lambda: None)

    def entries(self, start: int, stop: int, reader: PartitionReader | None = None) -> Iterator[tuple[int, Entry]]:
        """The published entries from one offset to another, with their offsets.

        Args:
            start: The first offset.
            stop: The one behind the last.
            reader: Reads them; the journal's own one if None.

        Raises:
            CorruptLogError: The journal does not verify.
        """
        cursor = Cursor(start)
        while cursor.offset < stop:
            offset = cursor.offset
            remembered = self._remembered.get(offset)
            if remembered is not None:
                cursor.move(offset + 1)
                yield offset, remembered
                continue
            batches = (reader or self.reader).fetch(cursor, max_records=min(_FETCHED, stop - offset))
            if not batches:
                return
            for batch, first in batches:
                numbers, values = batch.offsets(first, batch.count), batch.values(first, batch.count)
                for number, value in zip(numbers, values, strict=True):
                    if number < stop:
                        yield number, decoded(value, self.folder.path)

    def close(self) -> None:
        """Close its files."""
        self.reader.close()
        self.writer.close()

    def close_inherited(self) -> None:
        """Close inherited files in a forked child; the reader closes itself for good, so there is a new one."""
        self.writer.close_inherited()
