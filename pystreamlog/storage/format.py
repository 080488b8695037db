"""The bytes of a partition's files: the constants block shared by writers, readers and ``docs/reference/format.md``.

All integers are little-endian. Every structure ends with the xxh3-64 checksum of the bytes before it in that structure,
so that zeros, and bytes of something else, decode as nothing.
"""

from __future__ import annotations

import struct

__all__ = [
    "APPEND_LOCK_BYTE",
    "APPEND_STAMP_POSITION",
    "CHECKSUM",
    "CLEANED_SUFFIX",
    "CONTROL_HEADER",
    "CONTROL_MAGIC",
    "CONTROL_SIZE",
    "CONTROL_VERSION",
    "DURABLE_POSITION",
    "DURABLE_SLOT",
    "FIRST_EPOCH",
    "FLAG_COMPACTED",
    "FLAG_DELETED",
    "FLAG_POISONED",
    "FLAG_PRODUCERS",
    "FLAG_TRANSACTIONAL",
    "IDENTITY_POSITION",
    "IDENTITY_SLOT",
    "INDEX_ENTRY",
    "INDEX_HEADER",
    "INDEX_INTERVAL",
    "INDEX_MAGIC",
    "INDEX_SUFFIX",
    "MAINTENANCE_MAGIC",
    "MAINTENANCE_POSITION",
    "MAINTENANCE_RUN",
    "NOT_REWRITTEN",
    "NO_HORIZON",
    "PRODUCER",
    "PRODUCERS_HEADER",
    "PRODUCERS_MAGIC",
    "PRODUCERS_SUFFIX",
    "PRODUCER_BATCH",
    "PUBLISHED_POSITION",
    "PUBLISHED_SLOT",
    "SEAL",
    "SEAL_MAGIC",
    "SEGMENT_HEADER",
    "SEGMENT_MAGIC",
    "SEGMENT_SUFFIX",
    "SEGMENT_VERSION",
    "SLOT_STRIDE",
    "SYNC_LOCK_BYTE",
    "SYNC_STAMP_POSITION",
    "segment_name",
]

CHECKSUM = struct.Struct("<Q")

# --- segment: header, batches back to back, and, once it is rolled, a seal --------------------------------------------

SEGMENT_MAGIC = b"PSLSEG\r\n"
SEGMENT_VERSION = 1
SEGMENT_HEADER = struct.Struct("<8sII16s16sIIqQqqqqQQ")
"""magic, version, generation, log id, topic id, partition, flags, base offset, segment id, created (ms), highest
timestamp (ms) of all records before this segment, end offset, delete horizon (ms), checksum of the batch header before
this segment, checksum."""
NOT_REWRITTEN = -1
"""End offset of a segment that is, or was, appended to: its seal says where it ends."""
NO_HORIZON = -1
"""Delete horizon of a segment without tombstones that a compaction kept."""
FLAG_COMPACTED = 1
"""In a segment header: no key has more than one record in it and all segments before it."""

SEAL_MAGIC = b"PSLSEAL\n"
SEAL = struct.Struct("<8sQqqQqQ")
"""magic, segment id, end offset, position of the seal, checksum of the last batch header, highest timestamp (ms) of all
records up to here, checksum."""

SEGMENT_SUFFIX = ".log"
INDEX_SUFFIX = ".index"
CLEANED_SUFFIX = ".cleaned"
"""Of a segment that is being rewritten, until it takes its place. Not with a `~`: what has one, appenders remove."""


def segment_name(base_offset: int, suffix: str = SEGMENT_SUFFIX) -> str:
    """The file name of a segment or, with another suffix, of its index."""
    return f"{base_offset:020d}{suffix}"


# --- index: sparse, derived -------------------------------------------------------------------------------------------

INDEX_MAGIC = b"PSLIDX\r\n"
INDEX_HEADER = struct.Struct("<8sQqQ")
"""magic, segment id, base offset, checksum."""
INDEX_ENTRY = struct.Struct("<qqqQ")
"""Base offset of the batch at a position, that position, highest timestamp (ms) of all records before it, checksum."""
INDEX_INTERVAL = 32 << 10
"""Bytes of log between two entries: a look-up walks at most that far, and a segment of 64 MiB has 2,048 entries."""

# --- producers: snapshots of what the producers with an id appended last, derived ------------------------------------

PRODUCERS_SUFFIX = ".producers"
PRODUCERS_MAGIC = b"PSLPID\r\n"
PRODUCERS_HEADER = struct.Struct("<8sQqqqQq")
"""magic, segment id, base offset, position, offset, checksum of the header before, producers; those follow, and then
the checksum of it all."""
PRODUCER = struct.Struct("<qqqq")
"""Producer id, last sequence, last append (ms), batches; those follow."""
PRODUCER_BATCH = struct.Struct("<qqq")
"""Last sequence, base offset, count; negative if the batch must be looked into."""

# --- control: where the partition ends, what is durable, where it was written -----------------------------------------

CONTROL_MAGIC = b"PSLCTL\r\n"
CONTROL_VERSION = 1
CONTROL_SIZE = 4096
CONTROL_HEADER = struct.Struct("<8sII16s16sQQ")
"""magic, version, partition, log id, topic id, reserved, checksum; at position 0, never written again."""

FIRST_EPOCH = 1
"""The epoch that a new partition begins with."""
SLOT_STRIDE = 256
"""Distance of the two slots of a pair: the older one is overwritten, the valid one with the higher sequence rules."""

PUBLISHED_POSITION = 256
PUBLISHED_SLOT = struct.Struct("<QqQqqQqqqIIqQQ")
"""sequence, base offset and id of the active segment, end position in it, end offset (of the next record), checksum of
the last header, highest timestamp (ms), position of the last index entry, log start offset, epoch, flags, pending
transaction's journal position and nonce, checksum."""

DURABLE_POSITION = 768
DURABLE_SLOT = struct.Struct("<QqqqIIQ")
"""sequence, durable offset, base offset of its segment, position in it, flags, reserved, checksum."""

IDENTITY_POSITION = 1280
IDENTITY_SLOT = struct.Struct("<Q16sQQ")
"""sequence, boot id, inode of the control file, checksum."""

APPEND_STAMP_POSITION = 2048
SYNC_STAMP_POSITION = 2304
"""Who took the lock last, in up to 256 bytes, for error messages only."""
APPEND_LOCK_BYTE = 0
SYNC_LOCK_BYTE = 1

MAINTENANCE_POSITION = 256
MAINTENANCE_MAGIC = b"PSLMNT\r\n"
MAINTENANCE_RUN = struct.Struct("<8s16sqqqqQ")
"""In `maintenance.lock`: magic, boot id, wall clock (ms) and monotonic clock (ms) of the last run, the monotonic clock
(ms) before which nothing is to be deleted by age or size and when one went through all topics, checksum."""

FLAG_DELETED = 1
"""In a published slot: the topic is deleted, nothing more is accepted."""
FLAG_POISONED = 2
"""In a published slot: an fsync failed; nothing more is accepted until what may not be on disk was copied."""
FLAG_TRANSACTIONAL = 4
"""In a published slot: there are batches of transactions, so the journal may tell more."""
FLAG_PRODUCERS = 8
"""In a published slot: there are batches with a producer id."""
