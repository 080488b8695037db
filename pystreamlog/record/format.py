"""The bytes of a batch: the constants block that the encoder, the decoder and ``docs/reference/format.md`` share.

A batch is a header of 192 bytes and a body of columns. All integers are little-endian; the header and every column
start on a multiple of 8 bytes, and padding is zero. Layout of the header, with the position of each field::

      0 u32 magic            4 u8 version       5 u8 codec        6 u16 flags
      8 u32 size            12 u32 count       16 u64 body checksum
     24 u64 segment id      32 i64 base offset 40 i64 last offset
     48 i64 base timestamp  56 i64 max timestamp
     64 i64 durable offset  72 u64 previous checksum
     80 u32 epoch           84 i32 producer epoch
     88 i64 producer id     96 i64 last sequence    104 u64 transaction nonce
    112 16 x u32 column sizes
    176 u32 body size      180 u32 reserved (0)     184 u64 header checksum

The last sequence, and not the first, so that headers alone tell how far a producer came, whatever gaps its sequences
have. Without column 13 they are consecutive, and the first is the last less the count, plus 1.

The three structs below cut it where the work is cut: `PREFIX` and `SUFFIX` are known when the batch is encoded,
`PLACE` only under the append lock.

Two columns are known under the append lock only, so they come last and are never compressed: in a topic with a key
index each record with a key says how many records with that key its partition got before it (`KEY_VERSIONS`), and the
offset of the last of these (`PREVIOUS_OFFSETS`).
"""

from __future__ import annotations

import struct

__all__ = [
    "ALIGNMENT",
    "COLUMN_COUNT",
    "COLUMN_SIZES",
    "COMPRESSED_BODY_LIMIT",
    "FLAG_LOG_APPEND_TIME",
    "FLAG_MASK",
    "HEADER",
    "HEADER_CHECKSUM",
    "HEADER_KEY_DATA",
    "HEADER_KEY_OFFSETS",
    "HEADER_OFFSETS",
    "HEADER_SIZE",
    "HEADER_VALUE_DATA",
    "HEADER_VALUE_OFFSETS",
    "KEY_DATA",
    "KEY_OFFSETS",
    "KEY_VALIDITY",
    "KEY_VERSIONS",
    "MAGIC",
    "NO_PREVIOUS",
    "NO_PRODUCER",
    "OFFSET_DELTAS",
    "PACKED_COLUMNS",
    "PLACE",
    "PREFIX",
    "PREVIOUS_OFFSETS",
    "SEQUENCES",
    "SUFFIX",
    "TIMESTAMPS",
    "VALUE_DATA",
    "VALUE_OFFSETS",
    "VALUE_VALIDITY",
    "VERSION",
    "padded",
]

MAGIC = int.from_bytes(b"PSLB", "little")
VERSION = 1
ALIGNMENT = 8

PREFIX = struct.Struct("<IBBHIIQ")
PLACE = struct.Struct("<QqqqqqQI")
SUFFIX = struct.Struct("<iqqQ16III")
HEADER_CHECKSUM = struct.Struct("<Q")
HEADER = struct.Struct("<IBBHIIQ QqqqqqQI iqqQ64sII Q")
HEADER_SIZE = 192

FLAG_LOG_APPEND_TIME = 1
"""The timestamps are the log's (the moment of the append), not the producer's."""
FLAG_MASK = FLAG_LOG_APPEND_TIME

NO_PRODUCER = -1
"""Producer id, producer epoch and last sequence of a batch whose producer has no identity."""

COLUMN_SIZES = struct.Struct("<16I")
COLUMN_COUNT = 16
"""Columns lie in this order; a column of size 0 is absent."""
TIMESTAMPS = 0
OFFSET_DELTAS = 1
KEY_VALIDITY = 2
KEY_OFFSETS = 3
KEY_DATA = 4
VALUE_VALIDITY = 5
VALUE_OFFSETS = 6
VALUE_DATA = 7
HEADER_OFFSETS = 8
HEADER_KEY_OFFSETS = 9
HEADER_KEY_DATA = 10
HEADER_VALUE_OFFSETS = 11
HEADER_VALUE_DATA = 12
SEQUENCES = 13
KEY_VERSIONS = 14
PREVIOUS_OFFSETS = 15
PACKED_COLUMNS = 14
"""The codec packs the columns below this number; those from it on follow uncompressed."""
NO_PREVIOUS = -1
"""Previous offset of a key's first record, and version and previous offset of a record without a key."""

COMPRESSED_BODY_LIMIT = 8 << 20
"""Bytes a compressed body may unpack to: eight times the largest record of a topic that says nothing else. Larger ones
are stored as they are, so a small file cannot eat the memory: 2 kB may stand for 2 million records, and take 50 MiB."""


def padded(size: int) -> int:
    """`size` rounded up to the alignment of columns and batches."""
    return (size + 7) & -8
