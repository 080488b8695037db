"""Transactions over any number of partitions and committed offsets: whole or not at all, whoever dies when.

A commit takes the locks of the transactional id, of the groups, of the partitions by (topic id, number), and of the
journal, in that order, and decides under them. It writes the batches behind the partitions' ends, where they are
garbage by definition; has each partition's slot, and each group, name the journal entry that will come; and publishes
that entry: **this is the moment in which everything counts**. Then it publishes the new ends and offsets, and unlocks.

Whoever meets a slot that names an entry looks whether it was published, and takes the new end from it if so: readers in
memory, the next holder of the lock by publishing. So nobody waits for a dead committer, and nobody sees a part.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import msgspec

from pystreamlog.coordination.committed import Committed, Origin
from pystreamlog.coordination.group import Group
from pystreamlog.coordination.group_state import PartitionKey
from pystreamlog.coordination.journal import Journal, OffsetChange, Participant, encoded
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.transactional_ids import TransactionalId
from pystreamlog.errors import StorageError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Published
from pystreamlog.storage.spill import Spill

__all__ = ["CommitResult", "GroupOffsets", "commit", "resolved"]

_log = logging.getLogger("pystreamlog")


class GroupOffsets(NamedTuple):
    """Offsets of one group that a transaction commits.

    Attributes:
        group: The group.
        member_id: Who owns the partitions; None for a consumer that was assigned its partitions.
        offsets: What to commit.
    """

    group: Group
    member_id: str | None
    offsets: Mapping[PartitionKey, Committed]


class _Part:
    """One partition of a commit under way."""

    __slots__ = ("batches", "named", "new", "old", "spill", "writer")

    def __init__(self, writer: PartitionWriter, batches: Sequence[EncodedBatch], spill: Spill | None) -> None:
        self.spill = spill
        self.writer = writer
        self.batches = batches
        self.old = self.new = _NOWHERE
        self.named = False


_NOWHERE = Published(0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0)


class CommitResult:
    """What became of a commit, also when it raises.

    Attributes:
        committed: The transaction counts.
        first_offsets: Of each batch, by partition; -1 for one of which nothing was to be written.
        ends: The offset behind what was written, by partition.
        journal_offset: Of its entry; -1 when it needed none.
    """

    __slots__ = ("committed", "ends", "first_offsets", "journal_offset")

    def __init__(self) -> None:
        self.committed = False
        self.first_offsets: dict[PartitionWriter, list[int]] = {}
        self.ends: dict[PartitionWriter, int] = {}
        self.journal_offset = -1


def commit(
    journal: Journal,
    batches: Mapping[PartitionWriter, Sequence[EncodedBatch]],
    spills: Mapping[PartitionWriter, Spill],
    offsets: Sequence[GroupOffsets],
    identity: TransactionalId | None,
    *,
    timeout: float,
    now_ms: int,
    result: CommitResult,
) -> None:
    """Commit a transaction; visible everywhere when it returns, and as one.

    Args:
        journal: The log's, made.
        batches: What to write, by partition; the partitions are made.
        spills: What of a partition comes before that, and is on disk already, but for the headers.
        offsets: What to commit, by group.
        identity: The producer's transactional id; None for one that nobody else can have.
        timeout: Seconds to wait for each lock.
        now_ms: The time, in ms.
        result: Gets what became of it.

    Raises:
        FencedError: A newer producer has the same transactional id.
        CommitFailedError: A consumer lost a partition whose offset was to be committed.
        VersionConflictError: A batch expected something else.
        LockTimeoutError: Another process held a lock for that long.
        StorageError: The disk is full or failed.
        UnknownTopicError: A topic was deleted.
    """
    nonce = int.from_bytes(os.urandom(8), "little") or 1
    parts = [_Part(writer, batches[writer], spills.get(writer)) for writer in sorted(batches, key=_lock_order)]
    groups = sorted(offsets, key=lambda change: change.group.group_id)
    alone = not groups and len(parts) == 1 and len(parts[0].batches) == 1 and not spills
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if identity is None else identity.held(timeout))
        for change in groups:
            stack.enter_context(change.group.locked(timeout))
            change.group.check_owner(change.member_id, change.offsets)
        for part in parts:
            part.old = stack.enter_context(part.writer.locked(timeout))
        try:
            for part in parts:
                _write(part, 0 if alone else nonce, result)
            if alone:  # one batch is whole or not by itself
                part = parts[0]
                if part.new is not part.old:
                    part.writer.publish_locked(part.new, last=True)
                result.committed = True
                return
            written = [part for part in parts if part.new is not part.old]
            durable = journal.reader.durable_offset() if groups else 0
            _commit_written(journal, stack, written, groups, nonce, timeout=timeout, now_ms=now_ms, result=result)
        except BaseException:
            # An interrupt may have come between the publication and the note of it.
            published = parts[0].writer.is_published(parts[0].new) if alone else _is_published(journal, nonce, result)
            if not result.committed and not published:
                _take_back(parts, groups)
            else:
                result.committed = True
            raise
        _spread(written, groups, nonce, durable, result)


def _is_published(journal: Journal, nonce: int, result: CommitResult) -> bool:
    return result.journal_offset >= 0 and journal.entry(result.journal_offset, nonce) is not None


def _lock_order(writer: PartitionWriter) -> tuple[bytes, int]:
    return writer.folder.topic_id, writer.folder.partition


def _write(part: _Part, nonce: int, result: CommitResult) -> None:
    """Write a partition's batches behind its end."""
    end = part.old
    firsts = result.first_offsets[part.writer] = []
    if part.spill is not None:
        for spilled in part.spill.files:
            for batch, _ in spilled.batches:
                batch.mark(nonce)
        end, linked = part.writer.link_locked(part.spill, end)
        firsts += linked
    for batch in part.batches:
        batch.mark(nonce)
        new = part.writer.write_locked(batch, end)
        firsts.append(end.end_offset if new is not end else -1)
        end = new
    if end is not part.old:
        flags = end.flags | (layout.FLAG_TRANSACTIONAL if nonce else 0)
        end = msgspec.structs.replace(end, sequence=part.old.sequence + 1, flags=flags)
        result.ends[part.writer] = end.end_offset
    part.new = end


def _commit_written(
    journal: Journal,
    stack: ExitStack,
    parts: list[_Part],
    groups: list[GroupOffsets],
    nonce: int,
    *,
    timeout: float,
    now_ms: int,
    result: CommitResult,
) -> None:
    """Publish the journal's entry, after everything that changes names it."""
    participants = tuple(
        Participant(part.writer.topic.name, *_lock_order(part.writer), part.old, part.new) for part in parts
    )
    changes = tuple(
        OffsetChange(change.group.group_id, *key, sequence, old, new)
        for change in groups
        for key, sequence, old, new in change.group.changes(change.offsets)
    )
    entry, batch = encoded(nonce, participants, changes, now_ms)
    end = stack.enter_context(journal.writer.locked(timeout))
    offset = end.end_offset
    new = journal.writer.write_locked(batch, end)
    for part in parts:
        old, part.named = part.old, True
        part.writer.publish_locked(
            msgspec.structs.replace(old, sequence=old.sequence + 1, pending_position=offset, pending_nonce=nonce),
            last=False,
        )
    for change in groups:
        change.group.name_transaction(offset, nonce)
    result.journal_offset = offset
    journal.writer.publish_locked(new, last=True)
    result.committed = True
    journal.remember(offset, entry)


def _spread(parts: list[_Part], groups: list[GroupOffsets], nonce: int, durable: int, result: CommitResult) -> None:
    """Publish the new ends and offsets; who cannot be told finds out from the journal."""
    assert result.committed
    for part in parts:
        try:
            part.writer.publish_locked(msgspec.structs.replace(part.new, sequence=part.old.sequence + 2), last=True)
        except StorageError as error:
            _log.warning("a transaction is committed, but its end could not be published: %s", error)
    for change in groups:
        try:
            change.group.store(change.offsets, Origin(result.journal_offset, nonce, durable))
            change.group.name_transaction(-1, 0)
        except StorageError as error:
            _log.warning("a transaction is committed, but its offsets could not be stored: %s", error)


def _take_back(parts: list[_Part], groups: list[GroupOffsets]) -> None:
    """Nothing was committed: have nobody look for it. What cannot be told is found out from the journal."""
    for part in parts:
        try:
            if part.named:
                part.writer.take_back_locked(part.old)
        except StorageError as error:
            _log.warning("a transaction that was not committed could not be taken back: %s", error)
        part.writer.drop_locked()
    for change in groups:
        try:
            change.group.name_transaction(-1, 0)
        except StorageError as error:
            _log.warning("a transaction that was not committed could not be taken back: %s", error)


def resolved(journal: Journal, key: tuple[bytes, int], slot: Published) -> Published:
    """The end that rules for a partition whose slot names a transaction: the new one if that was committed."""
    entry = journal.entry(slot.pending_position, slot.pending_nonce)
    if entry is None:
        return slot
    new = next((part.new for part in entry.participants if part.key == key), None)
    if new is None:
        return slot
    return msgspec.structs.replace(new, sequence=slot.sequence, flags=new.flags | slot.flags)
