"""A committed offset, and what is kept beside one that a transaction stored.

The file of offsets may reach the disk before the journal of transactions does. Were the machine to lose power in
between, an offset would be there of a transaction that never was, and what it was before would be overwritten. So each
copy that a transaction stores says by which transaction, and what was committed before the oldest one that may not be
on disk: its **base**. Recovery goes back to that, and forward again over the entries that the journal still has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from pystreamlog.coordination import offset_layout as layout

__all__ = ["Base", "Committed", "Origin", "base_of", "what_is_left"]


class Committed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a group came in one partition.

    Attributes:
        offset: Of the next record to be read, at least 0.
        epoch: The partition's epoch at the commit.
        timestamp_ms: Time of the commit, in ms since 1970.
        metadata: A note of whoever committed, at most 4096 bytes of UTF-8.
    """

    offset: int
    epoch: int
    timestamp_ms: int
    metadata: str = ""


class Origin(NamedTuple):
    """The transaction that stores an offset.

    Attributes:
        position: Of its entry in the journal.
        nonce: Its nonce.
        durable: Entries below that are on disk.
    """

    position: int
    nonce: int
    durable: int


class Base(NamedTuple):
    """What was committed before, in the order of a copy's fields; metadata is not kept."""

    offset: int
    epoch: int
    timestamp_ms: int
    sequence: int


_NOTHING = Base(-1, 0, -1, 0)


def _other(raw: bytes, start: int, salt: int) -> layout.Copy | None:
    """The copy that does not rule, if it is the same partition's."""
    at = layout.COPY_SIZE - start
    if not layout.is_valid(raw, at, layout.COPY_SIZE, salt):
        return None
    ruling, other = layout.unpack_transacted(raw, start), layout.unpack_transacted(raw, at)
    return other if other[layout.KEY] == ruling[layout.KEY] and not other[layout.FLAGS] else None


def _own(copy: layout.Copy) -> Base:
    return Base(copy[layout.OFFSET], copy[layout.EPOCH], copy[layout.TIMESTAMP], copy[layout.SEQUENCE])


def base_of(raw: bytes, start: int, salt: int, durable: int) -> Base:
    """The base of what a transaction stores next.

    Args:
        raw: The entry.
        start: Where its ruling copy starts.
        salt: The group's.
        durable: Entries of the journal below that are on disk.
    """
    ruling = layout.unpack_transacted(raw, start)
    if ruling[layout.FLAGS]:
        return _NOTHING
    if ruling[layout.JOURNAL] < durable:  # also what no transaction stored: -1
        return _own(ruling)
    base, other = Base(*ruling[layout.BASE]), _other(raw, start, salt)
    if other is not None and other[layout.JOURNAL] < durable and other[layout.SEQUENCE] > base.sequence:
        return _own(other)
    return base


def what_is_left(
    raw: bytes, start: int, salt: int, is_lost: Callable[[int, int], bool]
) -> tuple[Committed | None, int] | None:
    """What holds in an entry whose ruling copy was stored by a transaction that was lost; None if that was not lost.

    Args:
        raw: The entry.
        start: Where its ruling copy starts.
        salt: The group's.
        is_lost: Tells by position and nonce whether the journal has lost a transaction.

    Returns:
        It, without metadata, and its sequence.
    """
    ruling = layout.unpack_transacted(raw, start)
    if ruling[layout.JOURNAL] < 0 or not is_lost(ruling[layout.JOURNAL], ruling[layout.NONCE]):
        return None
    other = _other(raw, start, salt)
    if other is not None and (other[layout.JOURNAL] < 0 or not is_lost(other[layout.JOURNAL], other[layout.NONCE])):
        left = _own(other)
    else:
        left = Base(*ruling[layout.BASE])
    return (Committed(left.offset, left.epoch, left.timestamp_ms) if left.offset >= 0 else None), left.sequence
