"""The bytes of a group's `offsets` file: the constants block shared by the store and ``docs/reference/format.md``.

```
0       header, never written again
512     extent table: two slots of 512 bytes
4096    extents, back to back, each a number of pages of 4096 bytes:
          entries    16 a page; an entry is two copies of 128 bytes, in one sector of the disk
          metadata   pairs of blocks of 4096 bytes: one pair for an entry that ever had metadata, one block a copy
```

All integers are little-endian. Every structure ends with the xxh3-64 checksum of the bytes before it in that structure,
so that zeros, and bytes of something else, decode as nothing. Slots and copies have the group's salt as its seed, so
that those of another group decode as nothing either. Extents, pairs and copies are named by their positions in
the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from xxhash import xxh3_64_intdigest

from pystreamlog.errors import ConfigError, CorruptLogError, IncompatibleFormatError

__all__ = [
    "BASE",
    "BLOCKS",
    "COPY_SIZE",
    "ENTRY_COPY",
    "ENTRY_SIZE",
    "EPOCH",
    "EXTENT_LIMIT",
    "EXTENT_METADATA",
    "FLAGS",
    "FLAG_FREE",
    "JOURNAL",
    "KEY",
    "METADATA_CHECKSUM",
    "METADATA_LIMIT",
    "METADATA_PAIR_SIZE",
    "METADATA_SIZE",
    "NONCE",
    "OFFSET",
    "OFFSETS_HEADER",
    "OFFSETS_MAGIC",
    "OFFSETS_VERSION",
    "PAGE_SIZE",
    "REMEDY",
    "SEQUENCE",
    "TABLE_POSITION",
    "TABLE_SLOT",
    "TIMESTAMP",
    "Copy",
    "block",
    "check_header",
    "encoded",
    "extents_end",
    "free_page",
    "image",
    "is_pair",
    "is_valid",
    "newer",
    "pack_checksum",
    "pack_copy",
    "pack_transacted",
    "packed_free",
    "packed_table",
    "pairs",
    "ranges",
    "ruling",
    "salt",
    "table_position",
    "unpack_copy",
    "unpack_transacted",
]

OFFSETS_MAGIC = b"PSLOFF\r\n"
OFFSETS_VERSION = 1
OFFSETS_HEADER = struct.Struct("<8sII16sQQ")
"""magic, version, reserved, log id, xxh3-64 of the group id's UTF-8 bytes, checksum."""

PAGE_SIZE = 4096

TABLE_POSITION = 512
TABLE_SLOT = struct.Struct("<QII488sQ")
"""sequence, count of extents, reserved, extents (u32 each: pages, and `EXTENT_METADATA`), checksum."""
EXTENT_LIMIT = 122
"""An extent is as large as all of its kind before it, so that no file of a real disk comes near."""
EXTENT_METADATA = 1 << 31

ENTRY_SIZE = 256
ENTRY_COPY = struct.Struct("<Q16sIIqqqQQIIQqIIqQQ")
"""sequence, topic id, partition, partition epoch, offset, commit timestamp (ms), position in the journal and nonce of
the transaction that stored it (-1 and 0: none did), position of the entry's metadata blocks (0: none), metadata size,
flags, metadata checksum (0 without), base offset, base epoch, reserved, base timestamp, base sequence, checksum. The
base has a meaning only with a transaction."""
FLAG_FREE = 1
"""The entry belongs to no partition."""

METADATA_LIMIT = 4096
"""Bytes of UTF-8: Kafka's default of `offset.metadata.max.bytes`, and the size of a block."""
METADATA_PAIR_SIZE = 2 * METADATA_LIMIT

REMEDY = "restore it from a copy, or delete the group, with delete_consumer_groups(), and set its offsets anew"
"""What to do about a file that is damaged."""

COPY_SIZE = ENTRY_COPY.size
_CHECKSUM_SIZE = 8

Copy = tuple[Any, ...]
_WITHOUT_BASE = ENTRY_COPY.format.replace("qIIqQQ", "32x")
unpack_copy = struct.Struct(_WITHOUT_BASE + "Q").unpack_from
pack_copy = struct.Struct(_WITHOUT_BASE).pack
unpack_transacted = struct.Struct(ENTRY_COPY.format.replace("qIIqQQ", "qI4xqQQ")).unpack_from
pack_transacted = struct.Struct(ENTRY_COPY.format.replace("qIIqQQ", "qI4xqQ")).pack
_unpack_checksum = struct.Struct("<Q").unpack_from
pack_checksum = struct.Struct("<Q").pack
# By the size of a slot or copy: both sequences of a pair.
_unpack_sequences = {size: struct.Struct(f"<Q{size - 8}xQ{size - 8}x").unpack for size in (COPY_SIZE, TABLE_SLOT.size)}

# Fields of an unpacked copy.
SEQUENCE = 0
KEY = slice(1, 3)  # topic id and partition
EPOCH, OFFSET, TIMESTAMP, JOURNAL, NONCE = range(3, 8)
BLOCKS, METADATA_SIZE, FLAGS, METADATA_CHECKSUM = range(8, 12)
BASE = slice(12, 16)  # offset, epoch, timestamp and sequence; of `unpack_transacted` only

_NO_TOPIC = bytes(16)


def salt(group_id: str) -> int:
    """The seed of a group's checksums, which is in the header."""
    return xxh3_64_intdigest(group_id.encode())


def image(log_id: bytes, group_id: str) -> bytes:
    """The bytes of a new file: the first page, and one page of free entries."""
    group = salt(group_id)
    page = bytearray(PAGE_SIZE)
    head = OFFSETS_HEADER.pack(OFFSETS_MAGIC, OFFSETS_VERSION, 0, log_id, group, 0)
    page[: len(head)] = _checked(head[:-_CHECKSUM_SIZE], 0)
    for sequence in (1, 2):
        position = table_position(sequence)
        page[position : position + TABLE_SLOT.size] = packed_table(sequence, (1,), group)
    return bytes(page) + free_page(group)


def check_header(raw: bytes, path: str, log_id: bytes, group_id: str | None) -> int:
    """Check whose file starts with `raw`, `OFFSETS_HEADER.size` bytes or what there is of them; None is any group.

    Returns:
        The group's salt.

    Raises:
        CorruptLogError: It is damaged, or another log's or group's.
        IncompatibleFormatError: A newer version made it.
    """
    if len(raw) < OFFSETS_HEADER.size:
        raise CorruptLogError(
            f"{path} has {len(raw)} bytes: it lacks its header: {REMEDY}",
            path=path,
            position=len(raw),
            expected=OFFSETS_HEADER.size,
            found=len(raw),
        )
    magic, version, _, found_log_id, group, checksum = OFFSETS_HEADER.unpack(raw)
    if magic != OFFSETS_MAGIC or checksum != xxh3_64_intdigest(raw[:-_CHECKSUM_SIZE]):
        raise CorruptLogError(
            f"{path} does not start with a valid offsets header: {REMEDY}",
            path=path,
            expected=OFFSETS_MAGIC,
            found=magic,
        )
    if version != OFFSETS_VERSION:
        raise IncompatibleFormatError(
            f"{path} has format version {version}, this release reads {OFFSETS_VERSION}: upgrade",
            path=path,
        )
    expected: int = group if group_id is None else salt(group_id)
    if (found_log_id, group) != (log_id, expected):
        raise CorruptLogError(
            f"{path} belongs to another log or group: files were swapped: {REMEDY}",
            path=path,
            expected=(log_id.hex(), expected),
            found=(found_log_id.hex(), group),
        )
    return expected


def encoded(metadata: str) -> bytes:
    """The bytes of a commit's metadata.

    Raises:
        ConfigError: They are more than 4096, or it has a lone surrogate.
    """
    try:
        raw = metadata.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"commit metadata must be text that UTF-8 can encode: {error.reason}") from error
    if len(raw) > METADATA_LIMIT:
        raise ConfigError(f"commit metadata has {len(raw)} bytes of UTF-8, the limit is {METADATA_LIMIT}")
    return raw


def _checked(raw: bytes, seed: int) -> bytes:
    return raw + pack_checksum(xxh3_64_intdigest(raw, seed))


def is_valid(raw: bytes, start: int, size: int, seed: int) -> bool:
    """Whether the slot or copy of `size` bytes at `start` of `raw` has its checksum."""
    end = start + size - _CHECKSUM_SIZE
    return bool(_unpack_checksum(raw, end)[0] == xxh3_64_intdigest(raw[start:end], seed))


def newer(raw: bytes, size: int, seed: int) -> int:
    """Where the newer one of two slots or copies of `size` bytes starts; -1 when something may be wrong with it.

    In a file at rest the sequences are neighbours: if they are not, one may be torn, and which is newer is not known.
    """
    first, second = _unpack_sequences[size](raw)
    if first == second + 1:
        start = 0
    elif second == first + 1:
        start = size
    else:
        return -1
    end = start + size - _CHECKSUM_SIZE
    return start if _unpack_checksum(raw, end)[0] == xxh3_64_intdigest(raw[start:end], seed) else -1


def ruling(raw: bytes, size: int, seed: int) -> int:
    """Where the valid slot or copy with the higher sequence starts, -1 if neither is valid."""
    first, second = _unpack_sequences[size](raw)
    order = (0, size) if first > second else (size, 0)
    return next((start for start in order if is_valid(raw, start, size, seed)), -1)


def table_position(sequence: int) -> int:
    """Where the table slot of a sequence lies."""
    return TABLE_POSITION + (sequence & 1) * TABLE_SLOT.size


def packed_table(sequence: int, extents: tuple[int, ...], seed: int) -> bytes:
    """A table slot."""
    packed = struct.pack(f"<{len(extents)}I", *extents)
    return _checked(TABLE_SLOT.pack(sequence, len(extents), 0, packed, 0)[:-_CHECKSUM_SIZE], seed)


def packed_free(sequence: int, blocks: int, seed: int) -> bytes:
    """A copy of an entry that belongs to nobody but keeps its metadata blocks."""
    return _checked(pack_copy(sequence, _NO_TOPIC, 0, 0, -1, -1, -1, 0, blocks, 0, FLAG_FREE, 0), seed)


def free_page(seed: int) -> bytes:
    """A page of free entries."""
    return (packed_free(2, 0, seed) + packed_free(1, 0, seed)) * (PAGE_SIZE // ENTRY_SIZE)


def block(blocks: int, position: int) -> int:
    """Position of the metadata block of the copy at `position`, of the pair at `blocks`."""
    return blocks + (METADATA_LIMIT if position % ENTRY_SIZE else 0)


def extents_end(extents: tuple[int, ...]) -> int:
    """Where the last extent ends."""
    return PAGE_SIZE * (1 + sum(extent & ~EXTENT_METADATA for extent in extents))


def ranges(extents: tuple[int, ...], *, metadata: bool) -> list[tuple[int, int]]:
    """Start and end of each extent of one kind."""
    found, position = [], PAGE_SIZE
    for extent in extents:
        end = position + PAGE_SIZE * (extent & ~EXTENT_METADATA)
        if bool(extent & EXTENT_METADATA) == metadata:
            found.append((position, end))
        position = end
    return found


def pairs(extents: tuple[int, ...]) -> Iterator[int]:
    """Position of every pair of metadata blocks."""
    for first, end in ranges(extents, metadata=True):
        yield from range(first, end - METADATA_PAIR_SIZE + 1, METADATA_PAIR_SIZE)


def is_pair(blocks: int, extents: tuple[int, ...]) -> bool:
    """Whether a pair of metadata blocks lies at `blocks`."""
    return any(
        first <= blocks <= end - METADATA_PAIR_SIZE and (blocks - first) % METADATA_PAIR_SIZE == 0
        for first, end in ranges(extents, metadata=True)
    )
