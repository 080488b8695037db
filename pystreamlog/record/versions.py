"""The columns that a batch gets under the append lock: the version of each record's key, and the record before it."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from functools import lru_cache

from xxhash import xxh3_64, xxh3_64_intdigest

from pystreamlog.record import format as layout
from pystreamlog.record.encoded import EncodedBatch

__all__ = ["with_versions"]

_SIZES = struct.Struct("<16I").size
_COLUMNS_AT = layout.SUFFIX.size - _SIZES - 2 * 4 + 4 * layout.PACKED_COLUMNS
"""Where the sizes of these columns stand in a suffix; the body's follows."""
_pack_sizes = struct.Struct("<III").pack
_body_size = struct.Struct("<I").unpack_from
_PREFIX_HEAD = 8
_count = struct.Struct("<I").unpack_from
_pack_prefix_end = struct.Struct("<IIQ").pack
_pack_one = struct.Struct("<qq").pack


def with_versions(batch: EncodedBatch, versions: Sequence[int], previous: Sequence[int]) -> EncodedBatch:
    """The batch with a version and a previous offset per record; the batch passed stays as it is.

    Costs a hash of the whole body (28 GB/s), as the columns stand in it.
    """
    one = len(versions) == 1
    added = (
        _pack_one(versions[0], previous[0]) if one else array("q", versions).tobytes() + array("q", previous).tobytes()
    )
    parts = batch.parts
    if one and len(parts) == 1:
        parts = [parts[0] + added]
        checksum = xxh3_64_intdigest(parts[0])
    else:
        parts = [*parts, added]
        digest = xxh3_64()
        for part in parts:
            digest.update(part)
        checksum = digest.intdigest()
    prefix, total = batch.prefix, batch.size + len(added)
    return EncodedBatch(
        prefix[:_PREFIX_HEAD] + _pack_prefix_end(total, _count(prefix, 12)[0], checksum),
        _suffix(batch.suffix, len(added) // 2),
        parts,
        total,
        batch.count,
        batch.base_timestamp,
        batch.max_timestamp,
        batch.log_append_time,
        plain_size=batch.plain_size and batch.plain_size + len(added),
    )


@lru_cache(maxsize=256)
def _suffix(suffix: bytes, size: int) -> bytes:
    """A header's suffix with two more columns of a size; batches of one shape come in crowds."""
    end = _COLUMNS_AT + 12
    body_size = _body_size(suffix, end - 4)[0] + 2 * size
    return suffix[:_COLUMNS_AT] + _pack_sizes(size, size, body_size) + suffix[end:]
