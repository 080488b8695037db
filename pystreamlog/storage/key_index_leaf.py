"""A leaf of the key index: a page of entries, each with the id of a key.

Functions over the bytes of one page. A tag per entry, the last byte of its id, is searched by `memchr`; a search for
the whole id would take five times as long.
"""

from __future__ import annotations

import struct

from xxhash import xxh3_64_intdigest

from pystreamlog.storage import key_index_layout as layout

__all__ = [
    "BadKeyIndexError",
    "entry_numbers",
    "leaf_bytes",
    "leaf_depth",
    "leaf_records",
    "parse_leaf",
    "put_entry",
    "raise_entries",
    "sealed",
    "search_leaf",
    "split_entries",
    "with_entry",
]

_PAGE = layout.PAGE_SIZE
_HEAD = layout.LEAF_HEADER.size
_CAPACITY = layout.LEAF_CAPACITY
_ENTRIES = _HEAD + layout.LEAF_CAPACITY
_ENTRY = layout.KEY_ENTRY.size
_ID = layout.KEY_ID_SIZE
_TAG = _ID - 1
_BODY = _PAGE - 8
_HASH_BITS = 32

_pack_entry = layout.KEY_ENTRY.pack
_pack_head = layout.LEAF_HEADER.pack
_unpack_head = layout.LEAF_HEADER.unpack_from
_pack_checksum = struct.Struct("<Q").pack
_hash = xxh3_64_intdigest

entry_numbers = struct.Struct("<qq").unpack_from
"""Offset and count of the entry whose id ends at a position of a page."""


class BadKeyIndexError(Exception):
    """The index is damaged, another partition's, or of another history of the log: drop it."""


def leaf_bytes(mark: int, number: int, prefix: int, depth: int, entries: list[bytes]) -> bytes:
    """A page of these entries."""
    head = _pack_head(mark, number, prefix, depth, len(entries))
    tags = bytes([entry[_TAG] for entry in entries])
    body = (head + tags.ljust(layout.LEAF_CAPACITY, b"\0") + b"".join(entries)).ljust(_BODY, b"\0")
    return body + _pack_checksum(_hash(body))


def parse_leaf(page: bytes, mark: int, number: int) -> tuple[int, int, int]:
    """Prefix, depth and count of a leaf.

    Raises:
        BadKeyIndexError: It does not verify, or is not the page of that number in the index with that mark.
    """
    if len(page) != _PAGE or page[_BODY:] != _pack_checksum(_hash(page[:_BODY])):
        raise BadKeyIndexError(f"page {number} of the key index does not verify")
    its_mark, its_number, prefix, depth, count = _unpack_head(page)
    if its_mark != mark or its_number != number or depth > layout.DEPTH_LIMIT or count > layout.LEAF_CAPACITY:
        raise BadKeyIndexError(f"page {number} of the key index is another page")
    return prefix, depth, count


def leaf_depth(page: bytes) -> int:
    """The depth of a leaf that was parsed."""
    depth: int = _unpack_head(page)[3]
    return depth


def leaf_records(page: bytes, count: int) -> int:
    """How many records the entries of a leaf count."""
    return sum(entry_numbers(page, _ENTRIES + number * _ENTRY + _ID)[1] for number in range(count))


def search_leaf(page: bytes | bytearray, key_id: bytes, count: int) -> int:
    """Where in a leaf the entry of an id lies; -1 where there is none."""
    tag, end = key_id[_TAG], _HEAD + count
    place = page.find(tag, _HEAD, end)
    while place >= 0:
        at = _ENTRIES + (place - _HEAD) * _ENTRY
        if page[at : at + _ID] == key_id:
            return at
        place = page.find(tag, place + 1, end)
    return -1


def with_entry(page: bytes, at: int, key_id: bytes, offset: int, records: int) -> bytes:
    """The page with another entry for an id that it has at a position."""
    body = page[:at] + _pack_entry(key_id, offset, records) + page[at + _ENTRY : _BODY]
    return body + _pack_checksum(_hash(body))


def put_entry(page: bytearray, at: int, key_id: bytes, offset: int, records: int) -> None:
    """Put another entry for an id that a page has at a position; the page must be `sealed` afterwards."""
    page[at : at + _ENTRY] = _pack_entry(key_id, offset, records)


def sealed(page: bytearray) -> bytes:
    """The page with its checksum."""
    body = bytes(page[:_BODY])
    return body + _pack_checksum(_hash(body))


def raise_entries(page: bytes, at: int, rest: list[tuple[bytes, tuple[int, int]]]) -> tuple[bytes | None, bool]:
    """The page with the last of `rest`, and with those before it that belong to it too; takes them off the list.

    Args:
        page: A leaf.
        at: Where the entry of the last one lies; -1 where it has none.
        rest: Ids, each with the offset of its last record and the number of its records, falling.

    Returns:
        The page, None if nothing changed; and False if there is no room for what is the last one now.
    """
    mark, number, prefix, depth, count = _unpack_head(page)
    body, changed = bytearray(page[:_BODY]), False
    room, shift = True, _HASH_BITS - depth
    while True:
        key_id, (offset, records) = rest[-1]
        if at < 0:
            if count == _CAPACITY:
                room = False
                break
            at = _ENTRIES + count * _ENTRY
            body[_HEAD + count] = key_id[_TAG]
            body[at : at + _ENTRY] = _pack_entry(key_id, offset, records)
            count += 1
            changed = True
        elif entry_numbers(body, at + _ID)[1] < records:
            body[at : at + _ENTRY] = _pack_entry(key_id, offset, records)
            changed = True
        rest.pop()
        if not rest:
            break
        key_id = rest[-1][0]
        if (int.from_bytes(key_id[:4], "big") ^ prefix) >> shift:
            break
        at = search_leaf(body, key_id, count)
    if not changed:
        return None, room
    body[:_HEAD] = _pack_head(mark, number, prefix, depth, count)
    return bytes(body) + _pack_checksum(_hash(body)), room


def split_entries(page: bytes, count: int, bit: int) -> tuple[list[bytes], list[bytes]]:
    """The entries whose ids have a zero at `bit` of their first 32, and those that have a one."""
    halves: tuple[list[bytes], list[bytes]] = ([], [])
    for at in range(_ENTRIES, _ENTRIES + count * _ENTRY, _ENTRY):
        entry = page[at : at + _ENTRY]
        halves[int.from_bytes(entry[:4], "big") >> bit & 1].append(entry)
    return halves
