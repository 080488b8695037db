"""Records encoded as a batch that has no place in a log yet, and what the log must look at before it takes them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from xxhash import xxh3_64_intdigest

from pystreamlog.record import format as layout

__all__ = ["Demands", "EncodedBatch", "demanding"]

_pack_place = layout.PLACE.pack
_pack_checksum = layout.HEADER_CHECKSUM.pack
_NONCE_POSITION = layout.SUFFIX.size - 16 * 4 - 2 * 4 - 8
"""Of the transaction nonce in the suffix."""


class Demands(msgspec.Struct):
    """What the log must look at, under the append lock, before it takes a batch.

    Attributes:
        producer_id: Who sends; `NO_PRODUCER` for nobody in particular.
        sequences: The producer's sequence number of each record, rising; empty without.
        keys: The key of each record, for a topic with a key index; None without.
        expected_end: The offset that the first record must get; None for any.
        expected_versions: How many records with its key must have been appended before each record, None for any
            number; None when no record expects anything.
        offsets: The answer: the offset of each record, when it is not the one after the record's before it.
        end_offset: Where the log ended when it was given: what the answer tells of lies below.
    """

    producer_id: int = layout.NO_PRODUCER
    sequences: Sequence[int] = ()
    keys: Sequence[bytes | None] | None = None
    expected_end: int | None = None
    expected_versions: Sequence[int | None] | None = None
    offsets: Sequence[int] | None = None
    end_offset: int = -1


def demanding(
    keys: Sequence[bytes | None] | None, sequences: Sequence[int] = (), producer_id: int = layout.NO_PRODUCER
) -> Demands:
    """What the log must look at before it takes records.

    Args:
        keys: Of records for a topic with a key index; else None.
        sequences: Of the producer with that id; empty without.
        producer_id: The number of the producer's id.
    """
    if keys is not None:
        kinds = set(map(type, keys))
        if kinds == {type(None)}:
            keys = None
        elif not kinds <= {bytes, type(None)}:  # what is bytes-like may be written, but not looked up
            keys = [None if key is None else bytes(key) for key in keys]
    if not isinstance(sequences, range):
        sequences = tuple(sequences)  # a list may be another by the time it is looked at
    return Demands(producer_id if sequences else layout.NO_PRODUCER, sequences, None if keys is None else tuple(keys))


class EncodedBatch(msgspec.Struct, gc=False):
    """Records encoded, not yet placed in a log.

    Attributes:
        prefix: The header's bytes before the place.
        suffix: Its bytes behind the place, but for the checksum.
        parts: The body's buffers, padding included, to be written behind the header.
        size: Bytes in the log: header, body and padding.
        count: Records.
        base_timestamp: Timestamp of the first record in ms.
        max_timestamp: The highest timestamp in ms; both are 0 until the log sets them, if it does.
        log_append_time: The log sets the timestamps when it places the batch.
        demands: What the log must look at before it takes the batch; None for nothing.
        plain_size: What `size` would be without compression; 0 where it is the same.
    """

    prefix: bytes
    suffix: bytes
    parts: list[bytes]
    size: int
    count: int
    base_timestamp: int
    max_timestamp: int
    log_append_time: bool
    demands: Demands | None = None
    plain_size: int = 0

    @property
    def transaction_nonce(self) -> int:
        """Of the transaction that the header names; 0 for none."""
        return int.from_bytes(self.suffix[_NONCE_POSITION : _NONCE_POSITION + 8], "little")

    def mark(self, transaction_nonce: int) -> None:
        """Have the header say that the batch belongs to a transaction."""
        start = _NONCE_POSITION
        self.suffix = self.suffix[:start] + _pack_checksum(transaction_nonce) + self.suffix[start + 8 :]

    def place(
        self,
        base_offset: int,
        segment_id: int,
        previous_checksum: int,
        durable_offset: int,
        epoch: int,
        now_ms: int,
    ) -> tuple[bytes, int]:
        """The header for this place in a log, and its checksum, which the next batch's header carries.

        Args:
            base_offset: Offset of the first record.
            segment_id: Random id of the segment it goes to.
            previous_checksum: Checksum of the header before it: of the previous batch, or of the segment.
            durable_offset: The end of what is known to be on disk in this partition.
            epoch: The partition epoch.
            now_ms: Timestamp of all records if the log sets it.
        """
        if self.log_append_time:
            self.base_timestamp = self.max_timestamp = now_ms
        place = _pack_place(
            segment_id,
            base_offset,
            base_offset + self.count - 1,
            self.base_timestamp,
            self.max_timestamp,
            durable_offset,
            previous_checksum,
            epoch,
        )
        header = self.prefix + place + self.suffix
        checksum = xxh3_64_intdigest(header)
        return header + _pack_checksum(checksum), checksum
