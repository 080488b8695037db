"""Records of batches that lie in a log, gathered into one batch: their offsets, and all they carry, stay.

`Gathering` takes batches whole or in part, as long as they have in common what only a batch says: codec, whose the
timestamps are, producer and epoch. `encode` makes one batch of them, whose offsets may have gaps; `place_rewritten`
gives a batch that stays as it is its place in another segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, repeat
from operator import sub

from xxhash import xxh3_64_intdigest

from pystreamlog.record import format as layout
from pystreamlog.record.batch import Batch, encode
from pystreamlog.record.compression import CODEC_NAMES, parse_codec
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.record.record import Headers
from pystreamlog.record.versions import with_versions

__all__ = ["Gathering", "place_gathered", "place_rewritten"]

_LAST_DELTA = (1 << 31) - 1
_SIZE_LIMIT = layout.COMPRESSED_BODY_LIMIT // 2
_TOO_SMALL_TO_SHRINK = 1024
_FLAGS_AT = 6
_PLACE_AT = layout.PREFIX.size
_NONCE_AT = _PLACE_AT + layout.PLACE.size + 4 + 8 + 8
_PREVIOUS_AT = _PLACE_AT + 6 * 8
_pack_number = layout.HEADER_CHECKSUM.pack


class Gathering:
    """Records that will be one batch.

    Attributes:
        size: Bytes of keys, values and headers so far, roughly.
    """

    __slots__ = (
        "_codec",
        "_headers",
        "_keys",
        "_kind",
        "_offsets",
        "_previous",
        "_sequences",
        "_timestamps",
        "_values",
        "_versions",
        "size",
    )

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._kind: tuple[int, int, int, bool] | None = None
        self._codec = 0
        self._offsets: list[int] = []
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._timestamps: list[int] = []
        self._headers: list[Headers] = []
        self._sequences: list[int] = []
        self._versions: list[int] = []
        self._previous: list[int] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._offsets)

    def takes(self, batch: Batch) -> bool:
        """Whether records of a batch may join those that are there."""
        header = batch.header
        if self._kind is None or not self._offsets:
            return True
        if _kind(batch) != self._kind or header.last_offset - self._offsets[0] > _LAST_DELTA:
            return False
        if self.size + len(batch.body) > _SIZE_LIMIT:
            return False
        if header.codec != self._codec:
            # What is too small to shrink is stored as it is, whatever the producer's codec.
            smaller = self.size if self._codec == 0 else len(batch.body)
            if min(header.codec, self._codec) or smaller > _TOO_SMALL_TO_SHRINK:
                return False
        return not self._sequences or batch.sequences(0, 1)[0] > self._sequences[-1]

    def add(self, batch: Batch, kept: bytes | None) -> None:
        """Take records of a batch.

        Args:
            batch: The batch.
            kept: A byte per record: not 0 for those to take; None for all.

        Raises:
            BatchError: A column does not hold.
        """
        header, count = batch.header, batch.count
        has_versions = batch.has(layout.KEY_VERSIONS)
        self._kind = _kind(batch)
        self._codec = max(self._codec, header.codec)
        parts: list[tuple[list, Sequence]] = [  # type: ignore[type-arg]  # of columns of several types
            (self._offsets, batch.offsets(0, count)),
            (self._keys, batch.keys(0, count)),
            (self._values, batch.values(0, count)),
            (self._timestamps, batch.timestamps_ms(0, count)),
        ]
        if batch.has(layout.HEADER_OFFSETS):
            self._headers.extend(repeat((), len(self._offsets) - len(self._headers)))
            parts.append((self._headers, batch.headers(0, count)))
        if header.producer_id >= 0:
            parts.append((self._sequences, batch.sequences(0, count)))
        if has_versions:
            parts.append((self._versions, batch.numbers(layout.KEY_VERSIONS, "q", 0, count)))
            parts.append((self._previous, batch.numbers(layout.PREVIOUS_OFFSETS, "q", 0, count)))
        for column, items in parts:
            column.extend(items if kept is None else compress(items, kept))
        taken = count if kept is None else count - kept.count(0)
        self.size += len(batch.body) * taken // count

    def encode(self) -> tuple[EncodedBatch, int, int, int]:
        """The batch, the offsets of its first and last record, and its epoch; nothing is gathered then.

        Raises:
            NotSupportedError: The codec's library is not installed.
        """
        assert self._kind is not None
        flags, producer_id, epoch, has_versions = self._kind
        offsets, headers = self._offsets, self._headers
        if headers:
            headers.extend(repeat((), len(offsets) - len(headers)))
        first, last = offsets[0], offsets[-1]
        dense = last - first == len(offsets) - 1
        batch = encode(
            self._values,
            self._keys,
            self._timestamps,
            headers or None,
            codec=parse_codec(CODEC_NAMES[self._codec]),
            producer_id=producer_id,
            sequences=self._sequences if producer_id >= 0 else None,
            offset_deltas=None if dense else list(map(sub, offsets, repeat(first))),
        )
        if has_versions:
            batch = with_versions(batch, self._versions, self._previous)
        batch.prefix = batch.prefix[:_FLAGS_AT] + flags.to_bytes(2, "little") + batch.prefix[_FLAGS_AT + 2 :]
        self._clear()
        return batch, first, last, epoch


def _kind(batch: Batch) -> tuple[int, int, int, bool]:
    """What only a batch says of its records: flags, producer, epoch, and whether they have versions."""
    header = batch.header
    return header.flags, header.producer_id, header.epoch, batch.has(layout.KEY_VERSIONS)


def place_gathered(
    batch: EncodedBatch,
    first_offset: int,
    last_offset: int,
    *,
    segment_id: int,
    previous_checksum: int,
    durable_offset: int,
    epoch: int,
) -> tuple[bytes, int]:
    """The header of a gathered batch for its place, and its checksum; see `EncodedBatch.place`."""
    place = layout.PLACE.pack(
        segment_id,
        first_offset,
        last_offset,
        batch.base_timestamp,
        batch.max_timestamp,
        durable_offset,
        previous_checksum,
        epoch,
    )
    header = batch.prefix + place + batch.suffix
    checksum = xxh3_64_intdigest(header)
    return header + _pack_number(checksum), checksum


def place_rewritten(raw: bytes, *, segment_id: int, previous_checksum: int) -> tuple[bytes, int]:
    """The header of a batch that stays as it is, for another segment and chain, and its checksum.

    Its transaction, if it has one, is on disk everywhere: it stands alone from now on.

    Args:
        raw: Its header.
        segment_id: The other segment's id.
        previous_checksum: Checksum of the header before it there.
    """
    head = b"".join(
        (
            raw[:_PLACE_AT],
            _pack_number(segment_id),
            raw[_PLACE_AT + 8 : _PREVIOUS_AT],
            _pack_number(previous_checksum),
            raw[_PREVIOUS_AT + 8 : _NONCE_AT],
            bytes(8),
            raw[_NONCE_AT + 8 : layout.HEADER_SIZE - 8],
        )
    )
    checksum = xxh3_64_intdigest(head)
    return head + _pack_number(checksum), checksum
