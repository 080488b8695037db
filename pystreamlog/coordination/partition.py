"""What the writers and the readers of a log's partitions have in common.

`PartitionWriter` is one per partition, log and process; `PartitionReader` one per consumer and partition. Both are
handles: their files open at first use, and close when `OpenFiles` needs the descriptors. Each has a mutex that keeps
its files open while a call uses them; a reader's is never held while waiting for a writer.

Whoever finds a partition that was last written in another boot, or whose files were copied, or whose end cannot be
read, recovers it under the append lock (`storage.recovery`); with a read-only log the same walk is done in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from pystreamlog.clock import Clock
from pystreamlog.errors import CorruptLogError
from pystreamlog.storage.control import REMEDY, Published
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.recovery import Judgement

__all__ = ["SETTLE_TIMEOUT", "PartitionContext", "TransactionLog", "without_control"]

SETTLE_TIMEOUT = 10.0
"""Seconds to wait until whoever holds a partition's lock is done, where an append takes microseconds."""


class TransactionLog(Protocol):
    """What a partition must know of the log's transactions."""

    def resolved(self, folder: Folder, slot: Published) -> Published:
        """The end that rules where `slot` names a transaction that was being committed; takes no lock."""

    def make_durable(self, folder: Folder, end: Published) -> None:
        """Return when every transaction with records of that partition below `end` is on disk everywhere.

        Raises:
            StorageError: The disk failed.
        """

    def sync_slots(self) -> None:
        """Have it be known on disk, too, which transactions are: recovery looks for no records of these any more.

        Raises:
            StorageError: The disk failed.
        """

    def recover(self) -> None:
        """Finish the transactions of an earlier boot, if there are any; holds none of their locks afterwards."""

    def judgement(self, folder: Folder) -> Judgement:
        """Which transactional records count in a partition of an earlier boot, where nothing can be recovered."""


class PartitionContext(msgspec.Struct, frozen=True):
    """What a log's partitions have in common.

    Attributes:
        clock: Dates segments and records.
        boot_id: This boot's.
        read_only: Nothing is written.
        map_reads: Read through maps.
        recover_always: Recover each partition at its first opening.
        changing: Holds the lock under which partitions come and go.
        recovered: Partitions (topic id, number) that this log has recovered on demand.
        transactions: Returns the log's transactions.
        lineage: Ids of the logs that this one is a snapshot of, newest first.
    """

    clock: Clock
    boot_id: Callable[[], bytes]
    read_only: bool
    map_reads: bool
    recover_always: bool
    changing: Callable[[], object]
    recovered: set[tuple[bytes, int]]
    transactions: Callable[[], TransactionLog]
    lineage: tuple[bytes, ...] = ()


def without_control(folder: Folder) -> CorruptLogError:
    """The error for a partition's folder that has no control file."""
    path = folder.files.path(folder.path)
    return CorruptLogError(f"{path} has no control file: {REMEDY}", path=path)
