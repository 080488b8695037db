"""The transactions of one log in one process: committing them, and all that partitions must know of them.

An entry of the journal is *durable* when all its participants, the offsets of its groups and the entry itself are on
disk; entries become so in their order (`_JournalSync`). Segments of the journal are dropped once that is said in every
participant's control file, on disk: then nobody will ever ask for their entries.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise

import msgspec

from pystreamlog.coordination import transactions
from pystreamlog.coordination.groups import sync_offsets
from pystreamlog.coordination.journal import Entry, Journal, Participant
from pystreamlog.coordination.locks import register_inherited
from pystreamlog.coordination.partition import SETTLE_TIMEOUT, PartitionContext
from pystreamlog.coordination.partition_sync import PartitionSync
from pystreamlog.coordination.partition_writer import PartitionWriter
from pystreamlog.coordination.spilling import SpillFolder
from pystreamlog.coordination.transaction_recovery import Recovery
from pystreamlog.coordination.transactional_ids import TransactionalId
from pystreamlog.coordination.transactions import CommitResult, GroupOffsets
from pystreamlog.errors import CorruptLogError, StorageError, StreamLogError, UnknownTopicError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Durable, Published
from pystreamlog.storage.files import Files
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.recovery import Judgement

__all__ = ["Transactions"]

_log = logging.getLogger("pystreamlog")

_EVERYTHING = 1 << 62
_OLD_SEGMENTS = 2
"""So many segments of the journal are left before the older ones are dropped: what recovery reads is bounded."""


class Transactions:
    """See the module. Safe from any thread.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        context: What the log's partitions have in common.
        writer_of: Finds the writer of a participant; None when its topic is gone.
        finish_group: Has a group store the offsets of entries below a position, if it has not.
        later: See `PartitionWriter`.
    """

    def __init__(
        self,
        files: Files,
        log_id: bytes,
        context: PartitionContext,
        writer_of: Callable[[Participant], PartitionWriter | None],
        finish_group: Callable[[str, int], None],
        later: Callable[[PartitionWriter, int, float], None],
    ) -> None:
        self._finish_group = finish_group
        self._files = files
        self._log_id = log_id
        self._context = context
        self._writer_of = writer_of
        self._later = later
        self._recovery = Recovery(files, log_id, context)
        self._named: set[str] = set()
        self._start()

    def _start(self) -> None:
        self._mutex = threading.Lock()
        self._ready = False
        self._journal = Journal(self._files, self._log_id, self._context, self._later)
        self._journal.writer.sync = _JournalSync(self._journal, self._context, self)
        register_inherited(self)

    # --- committing

    def identity(self, transactional_id: str) -> TransactionalId:
        """A producer's transactional id, which it must `take` before it commits."""
        return TransactionalId(self._files, self._log_id, transactional_id)

    def spill_folder(self) -> SpillFolder:
        """Where a transaction may put what does not fit into memory; close it after the transaction."""
        return SpillFolder(self._files)

    def prepare(self, writers: Sequence[PartitionWriter], group_ids: Iterable[str] = ()) -> None:
        """Make the journal and these partitions, so that a commit need not, and have the names of all be on disk.

        A power loss that took the folder of a participant, or of a group, could not be told from its deletion.
        """
        self._journal.ensure()
        for writer in writers:
            writer.ensure()
            writer.sync.names()
        for group_id in group_ids:
            if group_id not in self._named:
                with suppress(FileNotFoundError):  # deleted just now
                    sync_offsets(self._files, group_id, anew=False, names=True)
                    self._named.add(group_id)

    def commit(
        self,
        batches: Mapping[PartitionWriter, Sequence[EncodedBatch]],
        spilled: SpillFolder | None,
        offsets: Sequence[GroupOffsets],
        identity: TransactionalId | None,
        *,
        timeout: float,
        durable: bool,
        result: CommitResult,
    ) -> None:
        """See `transactions.commit`; on disk when it returns, if `durable`."""
        self.prepare(list(batches), [each.group.group_id for each in offsets])
        if spilled is not None:
            spilled.sync()
        transactions.commit(
            self._journal,
            batches,
            {} if spilled is None else spilled.spills,
            offsets,
            identity,
            timeout=timeout,
            now_ms=self._context.clock.now_ms(),
            result=result,
        )
        for writer, end in result.ends.items():
            writer.flush(end)
        if durable:
            if result.journal_offset >= 0:
                self._journal.writer.sync(result.journal_offset + 1)
            for writer, group in batches.items():
                firsts = result.first_offsets[writer]
                for batch, first in zip(group, firsts[len(firsts) - len(group) :], strict=True):
                    demands = batch.demands
                    if demands is not None and demands.offsets is not None:
                        # What was appended before may not be on disk, whoever did that.
                        writer.sync(max(demands.end_offset, demands.offsets[-1] + 1))
                    elif result.journal_offset < 0:
                        writer.sync(first + batch.count)

    # --- what partitions and groups ask

    def find_entry(self, offset: int, nonce: int) -> Entry | None:
        """The published entry at an offset of the journal, if it has that nonce."""
        return self._journal.entry(offset, nonce)

    def exists(self) -> bool:
        """Whether there ever was a transaction."""
        return self._journal.exists()

    def end(self) -> int:
        """The offset of the journal's next entry; 0 without a journal."""
        return self._journal.reader.offsets()[1] if self._journal.exists() else 0

    def entries(self, start: int, stop: int) -> Iterable[tuple[int, Entry]]:
        """See `Journal.entries`; raises `OffsetOutOfRangeError` where they were dropped already."""
        return self._journal.entries(start, stop) if start < stop else ()

    def resolved(self, folder: Folder, slot: Published) -> Published:
        """See `TransactionLog.resolved`."""
        return transactions.resolved(self._journal, (folder.topic_id, folder.partition), slot)

    def make_durable(self, folder: Folder, end: Published) -> None:
        """See `TransactionLog.make_durable`."""
        journal, key = self._journal, (folder.topic_id, folder.partition)
        if not journal.exists():
            return
        last = -1
        for offset, entry in journal.entries(max(journal.writer.sync.durable, self.durable()), _EVERYTHING):
            for part in entry.participants:
                if part.key == key and part.old.end_offset < end.end_offset:
                    last = offset
        if last >= 0:
            journal.writer.sync(last + 1)

    def sync_slots(self) -> None:
        """See `TransactionLog.sync_slots`."""
        if self._journal.exists():
            control = self._journal.folder.open_control(write=True)
            try:
                control.file.datasync()
            finally:
                control.close()

    def durable(self) -> int:
        """The end of what is durable in the journal, as all processes know; 0 without a journal."""
        if not self._journal.exists():
            return 0
        start, _ = self._journal.reader.offsets()
        return max(start, self._journal.reader.durable_offset())

    def settled(self, group_id: str) -> int | None:
        """Where the journal is durable, if nothing above that has offsets of a group; under the group's lock."""
        durable = self.durable()
        if not self._journal.exists():
            return durable
        entries = (entry for _, entry in self._journal.entries(durable, _EVERYTHING))
        if any(change.group_id == group_id for entry in entries for change in entry.offsets):
            return None
        return durable

    def settle(self) -> None:
        """Have all that was committed so far be durable; without any group's lock, as healing may need that.

        All at once, so that who settles many groups one after the other waits for the disk once.
        """
        if self._journal.exists():
            end = self._journal.reader.offsets()[1]
            if end > self.durable():
                self._journal.writer.sync(end)

    def recover(self) -> None:
        """See `TransactionLog.recover`."""
        if self._ready or self._context.read_only:
            return
        with self._mutex:
            if not self._ready:
                self._recovery.run(self._journal.folder)
                self._ready = True

    def must_recover(self) -> bool:
        """Whether transactions of an earlier boot, or of a copied log, are yet to be recovered."""
        return self._recovery.is_due(self._journal.folder)

    def judgement(self, folder: Folder) -> Judgement:
        """See `TransactionLog.judgement`."""
        if folder.path == self._journal.folder.path or not self._journal.exists():
            return Judgement()
        return self._recovery.judgement(self._journal.folder, (folder.topic_id, folder.partition))

    # --- what becomes of entries

    def sync_participants(self, last: Durable, end: Published, *, anew: bool = False) -> list[Participant]:
        """Put on disk what the journal's entries between two ends speak of: the newest of each participant's ends.

        With `anew`, after an fsync that failed: offsets are written once more, as the kernel takes them for written.
        Partitions see to that themselves.

        Raises:
            StorageError: The disk failed.
        """
        journal = self._journal
        reader = journal.another_reader() if anew else journal.reader
        try:
            start, _ = reader.offsets()
            newest, groups = _concerned(journal.entries(max(last.offset, start), end.end_offset, reader))
        finally:
            if anew:
                reader.close()
        for part in newest:
            writer = self._writer_of(part)
            if writer is not None:
                with suppress(UnknownTopicError, FileNotFoundError):
                    writer.sync.data(part.new)
        for group_id in groups:
            with suppress(FileNotFoundError):
                sync_offsets(self._files, group_id, anew=anew, names=group_id not in self._named)
                self._named.add(group_id)
        return newest

    def note_durable(self, participants: Sequence[Participant]) -> None:
        """Say that these participants are on disk up to their new ends."""
        for part in participants:
            writer = self._writer_of(part)
            if writer is None:
                continue
            with suppress(UnknownTopicError, FileNotFoundError, CorruptLogError):
                control = writer.folder.open_control(write=True)
                try:
                    writer.sync.note(control, part.new)
                finally:
                    control.close()

    def drop_old(self) -> None:
        """Drop the journal's segments that nobody will ask for, all but the last two; not for a commit to wait for."""
        journal = self._journal
        folder, durable = journal.folder, self.durable()
        bases = folder.segments()
        start = journal.reader.offsets()[0]
        for base, following in pairwise(bases[: 1 - _OLD_SEGMENTS]):
            if following > durable:
                return
            newest, groups = _concerned(journal.entries(max(base, start), following))
            for part in newest:
                self._let_go(part, following)
            for group_id in groups:
                self._finish_group(group_id, following)
                with suppress(FileNotFoundError):
                    sync_offsets(self._files, group_id, anew=False, names=False)
            with journal.writer.locked(SETTLE_TIMEOUT) as end:
                if end.log_start_offset < following:
                    journal.writer.publish_locked(
                        msgspec.structs.replace(end, sequence=end.sequence + 1, log_start_offset=following), last=True
                    )
            folder.files.unlink(f"{folder.path}/{layout.segment_name(base)}")
            folder.files.unlink(f"{folder.path}/{layout.segment_name(base, layout.INDEX_SUFFIX)}")

    def _let_go(self, part: Participant, following: int) -> None:
        """Have a participant's control file say, on disk, what entries below `following` say."""
        writer = self._writer_of(part)
        if writer is None:
            return
        with suppress(UnknownTopicError, FileNotFoundError):
            control = writer.folder.open_control(write=True)
            try:
                slot = control.published()
                if slot is not None and 0 <= slot.pending_position < following:
                    with writer.locked(SETTLE_TIMEOUT):
                        pass  # whoever takes the lock publishes what the entry says
                control.file.datasync()
            finally:
                control.close()

    # --- life

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def close_inherited(self) -> None:
        """Start anew in a forked child."""
        self._journal.close_inherited()
        self._start()


def _concerned(entries: Iterable[tuple[int, Entry]]) -> tuple[list[Participant], set[str]]:
    """The newest participant of each partition that entries speak of, and the groups whose offsets they have."""
    newest: dict[tuple[bytes, int], Participant] = {}
    groups: set[str] = set()
    for _, entry in entries:
        newest |= {part.key: part for part in entry.participants}
        groups |= {change.group_id for change in entry.offsets}
    return list(newest.values()), groups


class _JournalSync(PartitionSync):
    """Makes entries of the journal durable: their participants first, then they, then it is said."""

    __slots__ = ("_participants", "_transactions")

    def __init__(self, journal: Journal, context: PartitionContext, owner: Transactions) -> None:
        super().__init__(journal.writer, context)
        self._transactions = owner
        self._participants: list[Participant] = []

    def _before(self, last: Durable, end: Published) -> None:
        try:
            self._participants = self._transactions.sync_participants(last, end)
        except StorageError as error:
            self.fail(error)

    def before_healing(self, last: Durable, end: Published) -> None:
        """See `PartitionSync.before_healing`."""
        self._transactions.sync_participants(last, end, anew=True)

    def _after(self, end: Published) -> None:
        """Entries are of no transaction."""

    def _finished(self, *, moved: bool) -> None:
        participants, self._participants = self._participants, []
        self._transactions.note_durable(participants)
        if moved:
            try:
                self._transactions.drop_old()
            except (StreamLogError, OSError) as error:
                _log.warning("%s: could not drop old entries: %s", self._writer.folder.path, error)
