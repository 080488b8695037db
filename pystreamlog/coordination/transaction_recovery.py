"""What a power loss leaves of transactions: each is whole, with its offsets, or gone, with all that built on it.

The journal goes first. Its entries that were not known to be durable are judged in their order: one whose participants
are not all there up to its end does not count, and all of its participants, and committed offsets, go back to where
they were before it. That may take away from a later one, which then does not count either. Batches of transactions that
no entry knows end their partition, as torn ones do.

A recovery that is interrupted is begun anew: partitions that were recovered before tell by their epochs where they were
cut, whatever was appended since.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from math import inf

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.coordination.committed import Committed, what_is_left
from pystreamlog.coordination.group_transaction import name_transaction
from pystreamlog.coordination.groups import group_folder, group_folders, journal_offset
from pystreamlog.coordination.journal import TRANSACTIONS, Entry, OffsetChange, Participant, decoded
from pystreamlog.coordination.locks import FileLock
from pystreamlog.coordination.offset_store import OffsetStore
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.topics import is_current
from pystreamlog.errors import CorruptLogError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control import Control, Published
from pystreamlog.storage.epochs import read_epochs
from pystreamlog.storage.files import File, Files
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.healing import heal
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.recovery import Judgement, needs_recovery, recover, walk

__all__ = ["RECOVERY_LOCK", "UNDONE_FILE", "Recovery", "Verdict", "judge", "read_undone"]

_log = logging.getLogger("pystreamlog")

RECOVERY_LOCK = f"{TRANSACTIONS}/recovery.lock"
UNDONE_FILE = f"{TRANSACTIONS}/undone"
"""Which entries of the journal a recovery found not to count: what tells so may be deleted later, with its topic."""
_UNDONE_MAGIC = b"PSLUND\r\n"
_UNDONE_LIMIT = 256 << 20
_TIMEOUT = 600.0

Key = tuple[bytes, int]


class Verdict(msgspec.Struct):
    """What counts.

    Attributes:
        cuts: Where partitions end that lost transactions.
        undone: The entries that do not count.
        offsets: What committed offsets must be, by group and partition: the change, and whether it counts.
    """

    cuts: dict[Key, Published]
    undone: list[Entry]
    offsets: dict[tuple[str, Key], tuple[OffsetChange, bool]]


def read_undone(files: Files) -> frozenset[int]:
    """The nonces of the journal's entries that a recovery found not to count.

    Raises:
        CorruptLogError: The file that tells is damaged.
    """
    try:
        raw = files.read(UNDONE_FILE, limit=_UNDONE_LIMIT)
    except FileNotFoundError:
        return frozenset()
    nonces, checksum = raw[len(_UNDONE_MAGIC) : -layout.CHECKSUM.size], raw[-layout.CHECKSUM.size :]
    if raw != _UNDONE_MAGIC + nonces + checksum or checksum != layout.CHECKSUM.pack(xxh3_64_intdigest(raw[:-8])):
        path = files.path(UNDONE_FILE)
        raise CorruptLogError(f"{path} is damaged: restore it from a copy", path=path)
    return frozenset(struct.unpack(f"<{len(nonces) // 8}Q", nonces))


def _write_undone(files: Files, nonces: frozenset[int]) -> None:
    """Have every later recovery know them; on disk when it returns."""
    raw = _UNDONE_MAGIC + struct.pack(f"<{len(nonces)}Q", *sorted(nonces))
    files.write(UNDONE_FILE, raw + layout.CHECKSUM.pack(xxh3_64_intdigest(raw)))


def judge(
    entries: Iterable[Entry], ends: dict[tuple[Key, int], float], undone: frozenset[int] = frozenset()
) -> Verdict:
    """Which of these entries count.

    Args:
        entries: In the journal's order, all that were not known to be durable.
        ends: For each participant and partition epoch, the offset up to which what was written in it is there.
        undone: Nonces of those that do not count, as an earlier recovery found.
    """
    verdict = Verdict({}, [], {})
    for entry in entries:
        whole = entry.nonce not in undone and all(
            part.new.end_offset <= ends[part.key, part.new.epoch]
            and (part.key not in verdict.cuts or part.new.end_offset <= verdict.cuts[part.key].end_offset)
            for part in entry.participants
        )
        keys = {(change.group_id, (change.topic_id, change.partition)): change for change in entry.offsets}
        if whole and all(verdict.offsets.get(key, (None, True))[1] for key in keys):
            verdict.offsets |= {key: (change, True) for key, change in keys.items()}
            continue
        verdict.undone.append(entry)
        for part in entry.participants:
            cut = verdict.cuts.get(part.key)
            if cut is None or part.old.end_offset < cut.end_offset:
                verdict.cuts[part.key] = part.old
        for key, change in keys.items():
            if verdict.offsets.get(key, (None, True))[1]:  # later ones go back to where the first one found them
                verdict.offsets[key] = change, False
    return verdict


class Recovery:
    """Recovers the transactions of a log. Not for two threads at once.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        context: What the log's partitions have in common.
    """

    def __init__(self, files: Files, log_id: bytes, context: PartitionContext) -> None:
        self._files = files
        self._log_id = log_id
        self._context = context
        self._judged: tuple[tuple[bool, int], frozenset[int], Verdict, bool] | None = None

    def run(self, journal: Folder) -> None:
        """Recover the journal, the participants of its entries and the offsets, if the journal is of another boot.

        Raises:
            CorruptLogError: The journal does not verify.
            StorageError: The disk failed.
            LockTimeoutError: Another process recovered for ten minutes.
        """
        if not self.is_due(journal):
            return
        file = self._lock_file()
        try:
            with FileLock(file.fd, file.path, stamp_position=None).held(_TIMEOUT):
                if self.is_due(journal):
                    self._run(journal)
        finally:
            file.close()

    def judgement(self, journal: Folder, key: Key) -> Judgement:
        """Which transactions count in a partition; reads the journal only, unless that is of another boot."""
        control = journal.open_control(write=False)
        try:
            due = needs_recovery(control, self._context.boot_id())
            published = control.published()
            state = due, published.sequence if published is not None else -1
            if self._judged is None or self._judged[0] != state:
                start, durable, entries, _ = self._entries(journal, control)
                nonces = frozenset(entry.nonce for _, entry in entries)
                verdict = Verdict({}, [], {})
                if due:
                    doubtful = [entry for offset, entry in entries if offset >= durable]
                    verdict = judge(doubtful, self._ends(doubtful, nonces))
                self._judged = state, nonces, verdict, start > 0
        finally:
            control.close()
        _, nonces, verdict, forgets = self._judged
        return Judgement(nonces, verdict.cuts.get(key), forgets)

    def is_due(self, journal: Folder) -> bool:
        """Whether the journal is of another boot, or was copied."""
        try:
            control = journal.open_control(write=False)
        except FileNotFoundError:
            return False
        try:
            return needs_recovery(control, self._context.boot_id())
        finally:
            control.close()

    def _lock_file(self) -> File:
        try:
            return self._files.open(RECOVERY_LOCK, write=True)
        except FileNotFoundError:
            self._files.write(RECOVERY_LOCK, b"", replace=False)
            return self._files.open(RECOVERY_LOCK, write=True)

    def _run(self, journal: Folder) -> None:
        control = journal.open_control(write=True)
        try:
            start, durable, found, cut = self._entries(journal, control)
            entries = self._concerning(found)
            nonces = frozenset(entry.nonce for _, entry in entries)
            doubtful = [entry for offset, entry in entries if offset >= durable]
            undone = read_undone(self._files)
            verdict = judge(doubtful, self._ends(doubtful, nonces), undone)
            if verdict.undone:
                undone |= {entry.nonce for entry in verdict.undone}
                _write_undone(self._files, undone & nonces)
            everybody = {part.key: part for _, entry in entries for part in entry.participants}
            for part in everybody.values():
                self._recover(part, Judgement(nonces, verdict.cuts.get(part.key), start > 0))
            # What is durable counts, though whoever committed it may have died before a group stored it; but not what
            # an earlier recovery cut off.
            known = [entry for offset, entry in entries if offset < durable and entry.nonce not in undone]
            ends = self._ends(known, nonces)
            counting = {
                (change.group_id, (change.topic_id, change.partition)): (change, True)
                for entry in known
                if all(part.new.end_offset <= ends[part.key, part.new.epoch] for part in entry.participants)
                for change in entry.offsets
            }
            self._restore(counting | verdict.offsets, lambda position, nonce: position >= start and nonce not in nonces)
            for group_id in {change.group_id for _, entry in entries for change in entry.offsets}:
                self._unname(group_id)
            lock = FileLock(control.file.fd, control.file.path, byte=layout.APPEND_LOCK_BYTE, stamp_position=None)
            with lock.held(_TIMEOUT):
                judged = Judgement(cut=cut)
                recover(journal, control, self._context.boot_id(), trust_published=False, judgement=judged)
        finally:
            control.close()
        level = logging.WARNING if verdict.undone else logging.INFO
        _log.log(
            level,
            "recovered %d transactions over %d partitions; %d were not on disk as a whole, and are gone",
            len(entries),
            len(everybody),
            len(verdict.undone),
        )

    def _entries(self, journal: Folder, control: Control) -> tuple[int, int, list[tuple[int, Entry]], Published | None]:
        """Where the journal begins, where it is durable, its entries with their offsets, and where it is to be cut.

        A committer that died just before its entry counted may have left it whole behind the journal's end.
        """
        end = control.published() if not needs_recovery(control, self._context.boot_id()) else None
        end = end or walk(journal, control).end
        reader = LogReader(journal, control, map_reads=False)
        entries = []
        try:
            cursor = Cursor(end.log_start_offset)
            while found := reader.fetch(cursor, end, max_records=1 << 20, max_bytes=8 << 20):
                for batch, first in found:
                    values = batch.values(first, batch.count)
                    offsets = batch.offsets(first, batch.count)
                    entries += [(at, decoded(value, journal.path)) for at, value in zip(offsets, values, strict=True)]
        finally:
            reader.close()
        durable, cut = control.durable().offset, None
        if entries and entries[-1][0] >= durable and self._was_given_up([entry for _, entry in entries]):
            cut = msgspec.structs.replace(end, end_offset=entries.pop()[0])
        return end.log_start_offset, durable, entries, cut

    def _concerning(self, entries: list[tuple[int, Entry]]) -> list[tuple[int, Entry]]:
        """The entries without what they say of groups that were deleted since, or of offsets that groups deleted."""
        group_ids = {change.group_id for _, entry in entries for change in entry.offsets}
        since = {group_id: journal_offset(self._files, group_id) for group_id in group_ids}
        concerning = []
        for at, entry in entries:
            offsets = tuple(change for change in entry.offsets if since[change.group_id] <= at)
            concerning.append((at, msgspec.structs.replace(entry, offsets=offsets)))
        return concerning

    def _was_given_up(self, entries: list[Entry]) -> bool:
        """Whether anything else was written where the last transaction would begin: then it never counted."""
        nonces = frozenset(entry.nonce for entry in entries)
        last = entries[-1]
        return any(self._nonce_at_start(part, nonces) not in (None, last.nonce) for part in last.participants)

    def _nonce_at_start(self, part: Participant, nonces: frozenset[int]) -> int | None:
        """Of the batch that lies where a transaction begins in a partition; None where none does."""
        folder = self._folder(part)
        try:
            if not is_current(folder):
                return None
            control = folder.open_control(write=False)
        except (FileNotFoundError, CorruptLogError):
            return None
        reader = LogReader(folder, control, map_reads=False)
        try:
            end = control.published() if not needs_recovery(control, self._context.boot_id()) else None
            end = end or walk(folder, control, judgement=Judgement(nonces)).end
            if not end.log_start_offset <= part.old.end_offset < end.end_offset:
                return None  # what was deleted was on disk everywhere
            found = reader.fetch(Cursor(part.old.end_offset), end, max_records=1, max_bytes=1)
            return found[0][0].header.transaction_nonce
        except CorruptLogError as error:
            _log.warning("%s", error)
            return None
        finally:
            reader.close()
            control.close()

    def _folder(self, part: Participant) -> Folder:
        return Folder(self._files, part.path, self._log_id, *part.key, self._context.lineage)

    def _ends(self, entries: list[Entry], nonces: frozenset[int]) -> dict[tuple[Key, int], float]:
        """See `judge`; a partition that is gone, or damaged for itself, stands in nobody's way."""
        ends: dict[tuple[Key, int], float] = {}
        walked: dict[Key, tuple[float, list[tuple[int, int]]]] = {}
        for part in (part for entry in entries for part in entry.participants):
            if part.key not in walked:
                walked[part.key] = self._end(part, nonces)
            end, epochs = walked[part.key]
            later = [start for epoch, start in epochs if epoch > part.new.epoch]
            ends[part.key, part.new.epoch] = min([end, *later])
        return ends

    def _end(self, part: Participant, nonces: frozenset[int]) -> tuple[float, list[tuple[int, int]]]:
        folder = self._folder(part)
        try:
            if not is_current(folder):
                return inf, []
            if not self._files.exists(folder.path):
                return 0, []  # the power loss took it
            control = folder.open_control(write=False)
        except (FileNotFoundError, CorruptLogError):
            return inf, []
        try:
            epochs = [(known.epoch, known.start_offset) for known in read_epochs(folder)]
            if not needs_recovery(control, self._context.boot_id()):
                published = control.published()
                return (inf if published is None else published.end_offset), epochs
            return walk(folder, control, judgement=Judgement(nonces)).end.end_offset, epochs
        except CorruptLogError as error:
            _log.warning("%s", error)
            return inf, []
        finally:
            control.close()

    def _recover(self, part: Participant, judgement: Judgement) -> None:
        """Recover one participant, unless that is done."""
        folder = self._folder(part)
        boot_id = self._context.boot_id()
        try:
            if not is_current(folder):
                return
            control = folder.open_control(write=True)
        except (FileNotFoundError, CorruptLogError):
            return
        try:
            locks = [
                FileLock(control.file.fd, control.file.path, byte=byte, stamp_position=None)
                for byte in (layout.APPEND_LOCK_BYTE, layout.SYNC_LOCK_BYTE)
            ]
            with locks[0].held(_TIMEOUT), locks[1].held(_TIMEOUT):
                if needs_recovery(control, boot_id):
                    report = recover(folder, control, boot_id, trust_published=False, judgement=judgement)
                    _log.info(
                        "recovered %s: ends at offset %d (published %s), dropped %d bytes (%s)",
                        report.path,
                        report.end_offset,
                        report.published_offset,
                        report.dropped,
                        report.reason,
                    )
                    published = control.published()
                    if published is not None and published.flags & layout.FLAG_POISONED:
                        heal(folder, control)
        except CorruptLogError as error:
            _log.warning("%s", error)  # who uses the partition is told
        finally:
            control.close()

    def _restore(
        self, offsets: Mapping[tuple[str, Key], tuple[OffsetChange, bool]], is_lost: Callable[[int, int], bool]
    ) -> None:
        """Have each group's committed offsets be what the transactions that count say; see `Verdict`.

        Also those of transactions that the journal has lost: nobody knows which groups these had.
        """
        by_folder: dict[str, dict[Key, tuple[OffsetChange, bool]]] = {}
        for (group_id, key), (change, counts) in offsets.items():
            by_folder.setdefault(group_folder(group_id), {})[key] = change, counts
        for folder in group_folders(self._files):
            try:
                store = OffsetStore.open(
                    self._files, f"{folder}/offsets", log_id=self._log_id, group_id=None, write=True
                )
            except (FileNotFoundError, CorruptLogError):
                continue  # its users are told
            try:
                changes, lost = by_folder.get(folder, {}), {}
                for key, raw, at in store.entries():
                    left = what_is_left(raw, at, store.salt, is_lost)
                    if left is not None:
                        lost[key] = left
                for key in sorted(changes.keys() | lost.keys()):
                    self._restore_one(store, key, changes.get(key), lost.get(key))
                if changes or lost:
                    store.file.datasync()
            except CorruptLogError as error:
                _log.warning("%s", error)
            finally:
                store.close()

    def _unname(self, group_id: str) -> None:
        """A group has its offsets now: it names no transaction any more."""
        with suppress(FileNotFoundError, CorruptLogError):
            control = self._files.open(f"{group_folder(group_id)}/control", write=True)
            try:
                name_transaction(control, -1, 0)
                control.datasync()
            finally:
                control.close()

    @staticmethod
    def _restore_one(
        store: OffsetStore,
        key: Key,
        judged: tuple[OffsetChange, bool] | None,
        lost: tuple[Committed | None, int] | None,
    ) -> None:
        """Have one committed offset be what it must be.

        Args:
            store: The group's.
            key: The partition.
            judged: What the journal says of it last, and whether that counts.
            lost: Where the file has it from a transaction that the journal has not: what holds without, and its
                sequence.
        """
        change, counts = judged or (None, True)
        if change is not None and not counts:
            wanted = change.old
        elif lost is not None:
            wanted, sequence = lost
            if change is not None and sequence < change.sequence:
                wanted = change.new
        elif change is not None and store.next_sequence(*key) <= change.sequence:
            wanted = change.new
        else:
            return  # it is there, or what was committed after it
        if wanted is None:
            store.forget(*key)
        else:
            store.put(*key, wanted)
