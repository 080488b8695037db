"""Producers with an identity: the number of an id, and batches that carry it with the sequences of their records.

A producer's id is text; a batch header has 63 bits for it: those of its BLAKE2b-64. Two of `n` ids share a number with
a probability of n² / 2⁶⁴: 1 in 18 million for a million ids in one partition. Nobody can choose an id that shares the
number of a given one without trying 2⁶² of them, which no checksum would promise.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import compress, count
from operator import ge

from pystreamlog.record import format as layout
from pystreamlog.record.batch import Batch, decode, encode, parse_header
from pystreamlog.record.compression import CODEC_NAMES, parse_codec
from pystreamlog.record.encoded import EncodedBatch

__all__ = ["MAX_SEQUENCE", "falls", "identified", "producer_number", "without_first"]

MAX_SEQUENCE = 2**63 - 1

_IDENTITY = struct.Struct("<iqq")
"""The fields that a header's suffix begins with: producer epoch, producer id, last sequence."""
_FIXED = layout.SUFFIX.size - layout.COLUMN_SIZES.size - 8
"""Bytes of the suffix before the column sizes: the same for any part of a batch that ends with its last record."""


def producer_number(producer_id: str) -> int:
    """The number of an id that batch headers have: the lower 63 bits of the BLAKE2b-64 of its UTF-8, little-endian."""
    from hashlib import blake2b  # noqa: PLC0415 - brings OpenSSL, and few producers have an id of their own

    return int.from_bytes(blake2b(producer_id.encode(), digest_size=8).digest(), "little") & MAX_SEQUENCE


def falls(sequences: Sequence[int]) -> list[int]:
    """The places in a column of sequences that do not rise above the one before; none in a column as it should be."""
    if isinstance(sequences, range) and sequences.step > 0:
        return []
    return list(compress(count(1), map(ge, sequences, sequences[1:])))


def identified(batch: EncodedBatch, number: int, last_sequence: int) -> EncodedBatch:
    """The batch of one record as that of a producer with this number; changes it."""
    batch.suffix = _IDENTITY.pack(layout.NO_PRODUCER, number, last_sequence) + batch.suffix[_IDENTITY.size :]
    return batch


def encoded(batch: EncodedBatch) -> Batch:
    """What an encoded batch holds, read back from its bytes."""
    header, _ = batch.place(0, 0, 0, 0, 0, 0)
    return decode(parse_header(header), b"".join(batch.parts))


def without_first(batch: EncodedBatch, dropped: int) -> EncodedBatch:
    """The batch without its first records: encoded anew, with the codec it had, at that codec's default level.

    Args:
        batch: A batch with sequences.
        dropped: How many records to leave out; fewer than it has.
    """
    whole = encoded(batch)
    header, stop = whole.header, batch.count
    rest = encode(
        whole.values(dropped, stop),
        whole.keys(dropped, stop),
        whole.timestamps_ms(dropped, stop),
        whole.headers(dropped, stop),
        codec=parse_codec(CODEC_NAMES[header.codec]),
        log_append_time=batch.log_append_time,
        producer_id=header.producer_id,
        sequences=whole.sequences(dropped, stop),
    )
    rest.suffix = batch.suffix[:_FIXED] + rest.suffix[_FIXED:]
    return rest
