"""The slot in a group's control file that names a transaction whose offsets may not be stored yet."""

from __future__ import annotations

import struct

from xxhash import xxh3_64_intdigest

from pystreamlog.storage.files import File

__all__ = ["DELETING", "NO_TRANSACTION", "name_transaction", "named_transaction"]

NO_TRANSACTION = -1
"""Instead of a position: no transaction is named."""
DELETING = -2
"""Instead of a position: somebody set about deleting the group. It is deleted if its folder has its name no more; else
whoever did that died before, and the next holder of the group's lock writes `NO_TRANSACTION`."""

_TRANSACTION_POSITION = 256
_TRANSACTION = struct.Struct("<qQQ")
"""Journal position and nonce of a transaction whose offsets may not be stored yet, checksum. One slot is enough: nobody
needs it after a crash of the machine."""
_CHECKSUM = struct.Struct("<Q")


def name_transaction(control: File, position: int, nonce: int) -> None:
    """Write into a group's control file which journal entry holds offsets that are not stored; or one of the above."""
    raw = _TRANSACTION.pack(position, nonce, 0)[:-8]
    control.pwrite(raw + _CHECKSUM.pack(xxh3_64_intdigest(raw)), _TRANSACTION_POSITION)


def named_transaction(control: File) -> tuple[int, int]:
    """Position and nonce of that entry; a negative position for none."""
    raw = control.pread(_TRANSACTION.size, _TRANSACTION_POSITION)
    if len(raw) < _TRANSACTION.size:
        return -1, 0
    position, nonce, checksum = _TRANSACTION.unpack(raw)
    return (position, nonce) if checksum == xxh3_64_intdigest(raw[:-8]) else (-1, 0)
