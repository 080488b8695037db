"""Looking through a log's transactions for damage: the journal with its entries, and the transactional ids.

Takes no lock and changes nothing: what the journal says is read here, and not through `Transactions`, which recovers.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from xxhash import xxh3_64_intdigest

from pystreamlog.coordination.journal import JOURNAL_FOLDER, TRANSACTIONS, Entry, decoded, journal_folder
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.transaction_recovery import RECOVERY_LOCK, UNDONE_FILE, Recovery, read_undone
from pystreamlog.coordination.transactional_ids import IDS_FOLDER, check_image
from pystreamlog.errors import NotSupportedError, StreamLogError
from pystreamlog.record.batch import BatchError
from pystreamlog.storage.control import Published
from pystreamlog.storage.files import Files
from pystreamlog.storage.findings import Findings
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.reader import Cursor, LogReader
from pystreamlog.storage.recovery import Judgement
from pystreamlog.storage.verify import PartitionLook, verify_partition

__all__ = ["TransactionsLook"]

_ENTRIES = {"journal", "ids", "spill", *(name.rpartition("/")[2] for name in (RECOVERY_LOCK, UNDONE_FILE))}
_ID_LIMIT = 64 << 10
_HASHED = "%%"
"""In the file name of an id that is too long to be told by it."""


class TransactionsLook:
    """What there is of transactions in a log.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        context: What the log's partitions have in common.
        findings: Gets what is found.

    Attributes:
        folder: The journal's.
        journal: What was found in it; None when there is none.
        entries: Its published entries, by their offsets, as far as it verifies.
    """

    def __init__(self, files: Files, log_id: bytes, context: PartitionContext, findings: Findings) -> None:
        self._files = files
        self._log_id = log_id
        self._boot_id = context.boot_id()
        self._findings = findings
        self._recovery = Recovery(files, log_id, context)
        self.folder: Folder = journal_folder(files, log_id)
        self.journal: PartitionLook | None = None
        self.entries: dict[int, Entry] = {}

    def look(self) -> None:
        """Look through all that is there."""
        files, findings = self._files, self._findings
        try:
            entries = sorted(files.list(TRANSACTIONS))
        except StreamLogError as error:
            findings.error(error, TRANSACTIONS, "file")
            return
        for entry in entries:
            if entry not in _ENTRIES:
                kind = "temporary" if "~" in entry else "foreign"
                findings.note(f"{TRANSACTIONS}/{entry}", kind, "nothing that the log uses: it may be removed")
        if "spill" in entries and files.list(f"{TRANSACTIONS}/spill"):
            message = "of a transaction that is larger than memory, or was when its process was killed"
            findings.note(f"{TRANSACTIONS}/spill", "temporary", message)
        for entry in sorted(files.list(IDS_FOLDER)):
            self._transactional_id(entry)
        try:
            read_undone(files)
        except StreamLogError as error:
            findings.error(error, UNDONE_FILE, "transaction")
        if "journal" in entries:
            self._journal()

    # --- transactional ids

    def _transactional_id(self, entry: str) -> None:
        name, findings = f"{IDS_FOLDER}/{entry}", self._findings
        if "~" in entry:
            findings.note(name, "temporary", "left by a process that was killed: it may be removed")
            return
        known = None if _HASHED in entry else xxh3_64_intdigest(unquote_to_bytes(entry))
        try:
            raw = self._files.read(name, limit=_ID_LIMIT)
            damaged = check_image(raw, self._files.path(name), self._log_id, known)
        except FileNotFoundError:
            return
        except StreamLogError as error:
            findings.error(error, name, "transaction")
            return
        if damaged:
            message = "one of the two slots is damaged: the other one rules, and the next producer with the id mends it"
            findings.note(name, "slot", message, position=damaged)

    # --- the journal

    def _journal(self) -> None:
        findings = self._findings
        try:
            self.journal = look = verify_partition(self.folder, self._boot_id, findings)
        except StreamLogError as error:
            findings.error(error, JOURNAL_FOLDER, "unreadable")
            return
        if look is None or look.end is None:
            return
        try:
            control = self.folder.open_control(write=False)
        except (FileNotFoundError, StreamLogError):
            return  # reported
        reader = LogReader(self.folder, control, map_reads=False)
        try:
            self._read(reader, look.end)
        except (StreamLogError, BatchError):
            return  # reported
        finally:
            reader.close()
            control.close()

    def _read(self, reader: LogReader, end: Published) -> None:
        cursor = Cursor(end.log_start_offset)
        while found := reader.fetch(cursor, end, max_records=1000, max_bytes=8 << 20):
            for batch, first in found:
                values = batch.values(first, batch.count)
                for offset, value in zip(batch.offsets(first, batch.count), values, strict=True):
                    try:
                        self.entries[offset] = decoded(value, self._files.path(JOURNAL_FOLDER))
                    except StreamLogError as error:
                        self._findings.error(error, JOURNAL_FOLDER, "transaction")

    # --- what partitions ask

    def resolved(self, folder: Folder, slot: Published) -> Published:
        """The end that rules where a slot names a transaction: the new one if that was committed."""
        entry = self.entries.get(slot.pending_position)
        if slot.pending_position < 0 or entry is None or entry.nonce != slot.pending_nonce:
            return slot
        return next((part.new for part in entry.participants if part.key == (folder.topic_id, folder.partition)), slot)

    def judgement(self, folder: Folder) -> Judgement:
        """Which transactions count in a partition that must be recovered."""
        if self.journal is None or folder.path == self.folder.path:
            return Judgement()
        try:
            return self._recovery.judgement(self.folder, (folder.topic_id, folder.partition))
        except (StreamLogError, FileNotFoundError, NotSupportedError):
            return Judgement(frozenset(entry.nonce for entry in self.entries.values()))  # its damage is reported

    # --- what the entries say of partitions

    def check(self, looks: dict[tuple[bytes, int], PartitionLook | None]) -> None:
        """Hold the entries against the ends of their partitions, which were looked at later."""
        if self.journal is None or self.journal.recovers:
            return
        for offset, entry in self.entries.items():
            for part in entry.participants:
                look = looks.get(part.key)
                if part.key not in looks or (look is not None and (look.end is None or look.recovers)):
                    continue  # the topic is gone; or what is wrong was reported
                end, epoch = (look.end.end_offset, look.end.epoch) if look is not None and look.end else (0, 0)
                if end < part.new.end_offset and epoch <= part.new.epoch:
                    self._findings.damage(
                        part.path,
                        "transaction",
                        f"a transaction was committed (entry {offset} of the journal) whose records here are lost",
                        expected=f"an end of {part.new.end_offset} or above",
                        found=end,
                    )
