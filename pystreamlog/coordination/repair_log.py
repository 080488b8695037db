"""Repairing the partitions of a log, each under its locks."""

from __future__ import annotations

from collections.abc import Iterable

from pystreamlog.coordination.locks import FileLock
from pystreamlog.errors import CorruptLogError, IncompatibleFormatError
from pystreamlog.storage import format as layout
from pystreamlog.storage.control_header import mend_header, renew_header
from pystreamlog.storage.files import File
from pystreamlog.storage.findings import Findings
from pystreamlog.storage.folder import CONTROL, Folder
from pystreamlog.storage.repair import repair_partition
from pystreamlog.storage.verify import Ruling, verify_partition

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
            file = folder.files.open(f"{folder.path}/{CONTROL}", write=True)
        except (FileNotFoundError, CorruptLogError):
            continue  # where it ended can only be told by a copy
        try:
            append = FileLock(
                file.fd, file.path, byte=layout.APPEND_LOCK_BYTE, stamp_position=layout.APPEND_STAMP_POSITION
            )
            sync = FileLock(file.fd, file.path, byte=layout.SYNC_LOCK_BYTE, stamp_position=layout.SYNC_STAMP_POSITION)
            with append.held(_LOCK_TIMEOUT), sync.held(_LOCK_TIMEOUT):
                if mend_header(folder, file):
                    done.append(f"{file.path}: its header was written anew")
                elif force:
                    done += _renewed(folder, file, boot_id, ruling)
                control = folder.open_control(write=True)
                try:
                    append.stamp()
                    done += repair_partition(folder, control, boot_id, ruling, cut_tail=cut_tail, force=force)
                finally:
                    control.close()
            sync.close()
            append.close()
        except (CorruptLogError, IncompatibleFormatError):
            continue  # still there in the report
        finally:
            file.close()
    return done


def _renewed(folder: Folder, file: File, boot_id: bytes, ruling: Ruling) -> list[str]:
    """Have a control file of which nothing is left be one again, whose end is yet to be found; what was done."""
    look = verify_partition(folder, boot_id, Findings(folder.files), ruling)
    if look is None or not renew_header(folder, file, look):
        return []
    what = "records that were deleted from the first segment may be there again; whether a sync had failed is not known"
    return [f"{file.path}: made anew; {what}"]
