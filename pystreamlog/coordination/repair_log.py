"""Repairing the partitions of a log, each under its locks."""

from __future__ import annotations

from collections.abc import Iterable

from pystreamlog.coordination.locks import FileLock
from pystreamlog.errors import CorruptLogError, IncompatibleFormatError
from pystreamlog.storage import format as layout
from pystreamlog.storage.folder import Folder
from pystreamlog.storage.repair import repair_partition
from pystreamlog.storage.verify import Ruling

__all__ = ["repair_log"]

_LOCK_TIMEOUT = 60.0


def repair_log(folders: Iterable[Folder], boot_id: bytes, ruling: Ruling, *, cut_tail: bool, force: bool) -> list[str]:
    """Repair partitions; what was done, in words.

    Args:
        folders: The partitions.
        boot_id: This boot's.
        ruling: Tells of transactions.
        cut_tail: Cut damaged ends off.
        force: Also below what is known to be on disk.

    Raises:
        LockTimeoutError: Somebody else held a lock for a minute.
        NotSupportedError: A control file has other hard links.
        StorageError: The disk refused.
    """
    done: list[str] = []
    for folder in folders:
        try:
            control = folder.open_control(write=True)
        except (FileNotFoundError, CorruptLogError, IncompatibleFormatError):
            continue  # whose partition it is can only be told by a copy
        try:
            append = FileLock(
                control.file.fd,
                control.file.path,
                byte=layout.APPEND_LOCK_BYTE,
                stamp_position=layout.APPEND_STAMP_POSITION,
            )
            sync = FileLock(
                control.file.fd,
                control.file.path,
                byte=layout.SYNC_LOCK_BYTE,
                stamp_position=layout.SYNC_STAMP_POSITION,
            )
            with append.held(_LOCK_TIMEOUT, stamp=True), sync.held(_LOCK_TIMEOUT):
                done += repair_partition(folder, control, boot_id, ruling, cut_tail=cut_tail, force=force)
            sync.close()
            append.close()
        except CorruptLogError:
            continue  # still there in the report
        finally:
            control.close()
    return done
