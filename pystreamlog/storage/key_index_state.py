"""The state of a key index: up to which place in the log it has come, and where its parts lie in the file."""

from __future__ import annotations

import struct

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.storage import key_index_layout as layout
from pystreamlog.storage.key_index_leaf import BadKeyIndexError

__all__ = ["KeyPlace", "Shape", "directory_pages", "newest_state", "pack_moving", "pack_tail", "state_slot"]

_SIZE = layout.STATE_SLOT.size
_SLOT_SIZE = 4

pack_moving = struct.Struct("<QQIIqqqQ").pack
"""The fields of the state up to the place's last: those that every append changes are among them."""
pack_tail = struct.Struct("<QQQII").pack
"""Those behind them, but for the checksum."""
_pack_checksum = struct.Struct("<Q").pack


class KeyPlace(msgspec.Struct, frozen=True, gc=False):
    """A place between two batches of a partition; the index holds every record before it.

    Attributes:
        epoch: The partition's epoch.
        end_offset: Offset of the next record.
        segment_base: Base offset of the segment.
        end_position: Position in it; 0 at the start of the log.
        last_checksum: Checksum of the header before it.
    """

    epoch: int
    end_offset: int
    segment_base: int
    end_position: int
    last_checksum: int


class Shape(msgspec.Struct, gc=False):
    """What a state slot says of the file itself, but for the sequence; see `layout.STATE_SLOT`."""

    structure: int
    depth: int
    directory: int
    pages: int
    split: int
    split_depth: int


def newest_state(raw: bytes) -> tuple[int, Shape, KeyPlace]:
    """Sequence, shape and place of the ruling one of two slots.

    Raises:
        BadKeyIndexError: Neither is valid, or what it says cannot be.
    """
    newest = None
    for start in (0, layout.SLOT_STRIDE):
        part = raw[start : start + _SIZE]
        if len(part) < _SIZE:
            continue
        *fields, checksum = layout.STATE_SLOT.unpack(part)
        if checksum == xxh3_64_intdigest(part[:-8]) and (newest is None or fields[0] > newest[0]):
            newest = fields
    if newest is None:
        raise BadKeyIndexError("the key index has no valid state")
    sequence, structure, epoch, depth, *place, directory, pages, split, split_depth, _ = newest
    if depth > layout.DEPTH_LIMIT or directory + directory_pages(depth) > pages or split >= pages:
        raise BadKeyIndexError("the state of the key index is out of range")
    return sequence, Shape(structure, depth, directory, pages, split, split_depth), KeyPlace(epoch, *place)


def directory_pages(depth: int) -> int:
    """Pages of a directory of that depth."""
    return max(1, (_SLOT_SIZE << depth) // layout.PAGE_SIZE)


def state_slot(sequence: int, shape: Shape, place: KeyPlace) -> bytes:
    """A state slot."""
    raw = pack_moving(sequence, shape.structure, place.epoch, shape.depth, *msgspec.structs.astuple(place)[1:])
    raw += pack_tail(shape.directory, shape.pages, shape.split, shape.split_depth, 0)
    return raw + _pack_checksum(xxh3_64_intdigest(raw))
