"""The bytes of a partition's key index: the constants block shared by its code and ``docs/reference/format.md``.

The file is a row of pages of 1024 bytes: a header, pages of the directory, and leaves. All integers are little-endian.
"""

from __future__ import annotations

import struct

__all__ = [
    "DEPTH_LIMIT",
    "KEYS_HEADER",
    "KEYS_MAGIC",
    "KEYS_NAME",
    "KEYS_VERSION",
    "KEY_ENTRY",
    "KEY_ID_SIZE",
    "LEAF_CAPACITY",
    "LEAF_HEADER",
    "PAGE_SIZE",
    "SLOT_STRIDE",
    "STATE_POSITION",
    "STATE_SLOT",
]

KEYS_NAME = "keys.index"
KEYS_MAGIC = b"PSLKEY\r\n"
KEYS_VERSION = 1

PAGE_SIZE = 1024
"""Also the largest write: what one large write brought into the page cache lies there in large folios, in which Linux
takes 4 us for a small write instead of 0.4 (ext4, 6.18). Pages of 4096 bytes would cost each append 2 us more, which go
into copying and hashing."""

KEYS_HEADER = struct.Struct("<8sII16s16s16sQ")
"""magic, version, partition, log id, topic id, salt, checksum; at position 0, never written again."""

STATE_POSITION = 256
SLOT_STRIDE = 256
STATE_SLOT = struct.Struct("<QQIIqqqQQQQIIQ")
"""sequence, structure, epoch, depth, end offset, base offset of its segment, position in it, checksum of the header
before it, page of the directory, pages in use, page that is being split, its depth, reserved, checksum."""

KEY_ID_SIZE = 16
LEAF_HEADER = struct.Struct("<QQIHH")
"""mark (the salt's first 8 bytes), page number, prefix, depth, count. Behind it the tags: a byte for each entry there
may be, the last one of its id; then the entries; at the end of the page a checksum."""
KEY_ENTRY = struct.Struct("<16sqq")
"""id of a key, offset of its last record, number of records ever appended with it."""
LEAF_CAPACITY = (PAGE_SIZE - LEAF_HEADER.size - 8) // (1 + KEY_ENTRY.size)

DEPTH_LIMIT = 28
"""Of the directory: four bytes for each of 2^28 slots, which is room for 10^9 keys."""
