"""A consistent cut through a log that others write: which records and committed offsets a snapshot of it has.

Takes no lock and keeps nobody waiting, whatever the number of partitions. The journal orders all transactions, and its
entries say where each partition ended before and what was committed after each of them. So the cut is a place in the
journal, the offset J, found in these steps:

1. Read the committed offsets of all groups. Then read where the journal ends: that is J.
2. What a transaction committed below J while the offsets were read is taken from its entry.
3. List the topics, and read the end of each partition. All transactions below J count there by now.
4. Where a transaction at J or above counts there too, the partition ends where the first such entry says it did before.

So every transaction below J is there with all its records and offsets, and none above. A committed offset is not above
its partition's end: the record before it was appended before J was read, and a transaction that an end was taken back
over held the partition's lock from before its records until after J.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from pystreamlog.clock import Clock
from pystreamlog.coordination.committed import Committed
from pystreamlog.coordination.group_reader import GroupReader
from pystreamlog.coordination.group_state import PartitionKey
from pystreamlog.coordination.groups import group_folders, journal_offset, read_group_id
from pystreamlog.coordination.journal import Entry, OffsetChange
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import Topics, TopicState
from pystreamlog.coordination.transaction_log import Transactions
from pystreamlog.errors import (
    CorruptLogError,
    OffsetOutOfRangeError,
    ReadOnlyError,
    StorageError,
    UnknownGroupError,
    UnknownTopicError,
)
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import Files
from pystreamlog.storage.partition_copy import MovedError

__all__ = ["Cut", "SnapshotSource", "take_cut"]

_FOLLOW_EVERY = 64
"""Groups, or partitions, that are read between two looks into the journal."""

_LOOKS = 20
"""How often a topic may be deleted, and made again, while it is looked for."""

Offsets = dict[str, dict[PartitionKey, Committed]]


class SnapshotSource(msgspec.Struct, frozen=True):
    """An open log, as a snapshot reads it.

    Attributes:
        files: The door to the log's directory.
        log_id: The log's id.
        context: What the log's partitions have in common.
        topics: The log's.
        partitions: The log's.
        transactions: The log's.
    """

    files: Files
    log_id: bytes
    context: PartitionContext
    topics: Topics
    partitions: Partitions
    transactions: Transactions

    @property
    def clock(self) -> Clock:
        """Tells the time."""
        return self.context.clock


class Cut(msgspec.Struct, frozen=True):
    """What a snapshot has.

    Attributes:
        topics: The topics.
        ends: Where each partition ends that was made; those of one topic are together.
        offsets: What each group committed in these topics.
    """

    topics: list[TopicState]
    ends: dict[PartitionKey, Published]
    offsets: Offsets


def take_cut(source: SnapshotSource, names: Sequence[str] | None) -> Cut:
    """Find a consistent cut.

    Args:
        source: The log.
        names: The topics; None for all. A group that committed nothing in topics that are named is left out.

    Raises:
        UnknownTopicError: A topic that is named does not exist, or was deleted meanwhile.
        ReadOnlyError: Transactions of an earlier boot must be recovered first, and the log is read-only.
        StorageError: An fsync of a partition failed before.
        CorruptLogError: Something does not verify.
        MovedError: A partition was recovered meanwhile.
    """
    transactions = source.transactions
    transactions.recover()
    if transactions.must_recover():
        raise ReadOnlyError(
            f"{source.files.root}: transactions of before the last start of the machine, or of before the log was "
            "copied, are to be recovered: open the log for writing once"
        )
    try:
        changes: list[tuple[int, OffsetChange]] = []
        journal = _Follower(transactions, lambda at, entry: changes.extend((at, each) for each in entry.offsets))
        offsets = _committed(source, journal)
        journal.follow()
        _go_forward(source, offsets, changes)
        topics, ends = _ends(source, names, journal.place)
    except OffsetOutOfRangeError as error:
        raise MovedError from error  # the journal dropped entries that were still needed
    counts = {state.id: state.partitions for state in topics}
    for group_id, committed in list(offsets.items()):
        offsets[group_id] = {key: each for key, each in committed.items() if key[1] < counts.get(key[0], 0)}
        if names is not None and not offsets[group_id]:
            del offsets[group_id]
    return Cut(topics, ends, offsets)


class _Follower:
    """Reads what comes to the journal from now on, or from a place on.

    It looks again and again, as the oldest entries are dropped one day.

    Args:
        transactions: The log's.
        take: Is given each entry, and its offset.
        place: Where to begin; None for the journal's end.

    Attributes:
        place: What lies below was read.
    """

    def __init__(
        self, transactions: Transactions, take: Callable[[int, Entry], None], *, place: int | None = None
    ) -> None:
        self._transactions = transactions
        self._take = take
        self._looked = 0
        self.place = transactions.end() if place is None else place

    def follow(self) -> None:
        """Read what came since."""
        end = self._transactions.end()
        for at, entry in self._transactions.entries(self.place, end):
            self._take(at, entry)
        self.place = end

    def follow_at_times(self) -> None:
        """As `follow`, at some of the calls."""
        self._looked += 1
        if self._looked % _FOLLOW_EVERY == 0:
            self.follow()


def _committed(source: SnapshotSource, journal: _Follower) -> Offsets:
    """What every group committed, some of it by transactions."""
    found: Offsets = {}
    for folder in group_folders(source.files):
        journal.follow_at_times()
        try:
            group = GroupReader(
                source.files,
                source.log_id,
                read_group_id(source.files, folder),
                clock=source.clock,
                boot=source.context.boot_id(),
                find_entry=source.transactions.find_entry,
            )
        except (FileNotFoundError, UnknownGroupError):
            continue  # deleted meanwhile
        try:
            found[group.group_id] = group.committed()
        finally:
            group.close()
    return found


def _go_forward(source: SnapshotSource, offsets: Offsets, changes: list[tuple[int, OffsetChange]]) -> None:
    """Add what transactions committed while the offsets were read: each change, with the place of its entry.

    What a group committed after that without a transaction is taken back by it: records may be read twice.
    """
    since: dict[str, int] = {}
    for at, change in changes:
        group_id = change.group_id
        if group_id not in since:
            since[group_id] = journal_offset(source.files, group_id)
        if since[group_id] <= at:  # else it concerns a group that was deleted, or offsets that were
            offsets.setdefault(group_id, {})[change.topic_id, change.partition] = change.new


def _ends(
    source: SnapshotSource, names: Sequence[str] | None, place: int
) -> tuple[list[TopicState], dict[PartitionKey, Published]]:
    """The topics, and where their partitions end at a place of the journal."""
    # Where partitions ended before the first transaction from there on that wrote to them.
    earlier: dict[PartitionKey, Published] = {}

    def note(_: int, entry: Entry) -> None:
        for part in entry.participants:
            earlier.setdefault(part.key, part.old)

    journal = _Follower(source.transactions, note, place=place)
    topics: list[TopicState] = []
    ends: dict[PartitionKey, Published] = {}
    for name in source.topics.names() if names is None else names:
        try:
            state = source.topics.find_anew(name) if names is not None else _listed(source, name)
            found = {}
            for number in _made(source.files, state):
                end = _end(source, state, number)
                if end is not None:
                    found[state.id, number] = end
                journal.follow_at_times()
        except UnknownTopicError:
            if names is not None:
                raise
            continue
        topics.append(state)
        ends |= found
    journal.follow()
    for key, end in ends.items():
        before = earlier.get(key, end)
        if before.epoch != end.epoch:
            raise MovedError
        if before.end_offset < end.end_offset:
            ends[key] = before
    return topics, ends


def _listed(source: SnapshotSource, name: str) -> TopicState:
    """A topic that has a folder.

    Raises:
        UnknownTopicError: It was deleted meanwhile, folder and all.
        CorruptLogError: Its `topic.json` is missing, or damaged.
    """
    for attempt in range(_LOOKS):  # it may be deleted, and made again, between two looks
        try:
            return source.topics.find_anew(name)
        except UnknownTopicError as error:
            if not source.files.exists(f"topics/{name}"):
                raise
            if attempt == _LOOKS - 1:
                there = source.files.exists(f"topics/{name}/topic.json")
                raise _lost(source, name, "is another topic's" if there else "is missing") from error
        except CorruptLogError as error:
            raise _lost(source, name, "is damaged") from error
    raise AssertionError(name)


def _lost(source: SnapshotSource, name: str, what: str) -> CorruptLogError:
    path = source.files.path(f"topics/{name}/topic.json")
    return CorruptLogError(
        f"{path} {what}: restore the file from a copy, or name the other topics, with topics= or --topic, to have a "
        "snapshot without this one",
        path=path,
    )


def _made(files: Files, state: TopicState) -> list[int]:
    """The partitions of a topic that were used so far."""
    try:
        entries = files.list_directories(state.folder(0).rpartition("/")[0])
    except FileNotFoundError:
        raise _gone(state) from None
    numbers = sorted(int(entry) for entry in entries if entry.isascii() and entry.isdigit())
    return [number for number in numbers if number < state.partitions]


def _end(source: SnapshotSource, state: TopicState, number: int) -> Published | None:
    """The end of a partition; None if there is none of that number.

    Raises:
        UnknownTopicError: The topic was deleted.
        StorageError: An fsync failed before.
    """
    reader = source.partitions.reader(state, number)
    try:
        end = reader.end()
    finally:
        reader.close()
    if end is None or end.flags & layout.FLAG_DELETED:
        raise _gone(state)
    if end.flags & layout.FLAG_POISONED:
        path = source.files.path(state.folder(number))
        raise StorageError(
            f"{path}: an fsync failed, so records written there may be lost: open the log again for writing, and "
            "append there, which copies what can still be read",
            path=path,
        )
    return end


def _gone(state: TopicState) -> UnknownTopicError:
    return UnknownTopicError(f"topic {state.name!r} was deleted", topic=state.name)
