"""What a partition's `control` file holds, slot by slot: for those who want to know about the one that does not rule.

`Control` reads the slot that rules. Here both of a pair are looked at, as a damaged one may be the newer: then the
partition seems to end where it ended before.
"""

from __future__ import annotations

import struct

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.storage import format as layout
from pystreamlog.storage.files import File

__all__ = ["PAIRS", "Pair", "read_pairs"]

_LOOKS = 1000
"""How often a writer may be met at its slot: each time it must have published between two of our reads."""
_SEQUENCE = struct.Struct("<Q")

PAIRS = {
    "published": (layout.PUBLISHED_POSITION, layout.PUBLISHED_SLOT),
    "durable": (layout.DURABLE_POSITION, layout.DURABLE_SLOT),
    "identity": (layout.IDENTITY_POSITION, layout.IDENTITY_SLOT),
}
"""Position and layout of each pair of slots, by its name."""


class Pair(msgspec.Struct, frozen=True):
    """Two slots of a control file.

    Attributes:
        ruling: Position of the slot that rules; -1 when neither is valid.
        damaged: Positions of those that are damaged, and not only unused as in a new partition.
    """

    ruling: int
    damaged: tuple[int, ...]


def read_pairs(file: File) -> dict[str, Pair]:
    """Every pair of the control file, by its name.

    A slot that is being written may look damaged for a moment, so a damage is believed when two looks found the same.
    """
    previous = b""
    pairs: dict[str, Pair] = {}
    for _ in range(_LOOKS):
        raw = file.pread(layout.CONTROL_SIZE, 0)
        pairs = {name: _pair(raw, position, slot) for name, (position, slot) in PAIRS.items()}
        if raw == previous or not any(pair.damaged for pair in pairs.values()):
            break
        previous = raw
    return pairs


def _pair(raw: bytes, position: int, slot: struct.Struct) -> Pair:
    valid: dict[int, int] = {}
    damaged = []
    empty = 0
    for start in (position, position + layout.SLOT_STRIDE):
        found = raw[start : start + slot.size]
        if len(found) == slot.size and _checksum(found) == xxh3_64_intdigest(found[:-8]):
            valid[_SEQUENCE.unpack_from(found)[0]] = start
        elif any(found) or len(found) < slot.size:
            damaged.append(start)
        else:
            empty += 1
            damaged.append(start)
    # The first slot of a pair is written with sequence 1, the other one with the second: until then it is empty. Before
    # anything is synced, both slots of the durable pair are.
    if empty and (list(valid) == [1] or (empty == len(damaged) and not valid)):
        damaged = []
    return Pair(valid[max(valid)] if valid else -1, tuple(damaged))


def _checksum(found: bytes) -> int:
    checksum: int = layout.CHECKSUM.unpack_from(found, len(found) - 8)[0]
    return checksum
