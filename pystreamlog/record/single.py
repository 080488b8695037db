"""One record out of a batch, without decoding the others: what a batch costs to check is then most of it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pystreamlog.record import format as layout
from pystreamlog.record.batch import Batch, BatchError
from pystreamlog.record.record import Headers

__all__ = ["SingleRecord", "key_at", "links_at", "record_at"]

_bounds = struct.Struct("<ii").unpack_from
_number = struct.Struct("<q").unpack_from


class SingleRecord(NamedTuple):
    """A record as it is stored."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def _item(batch: Batch, validity: int, index: int) -> bytes | None:
    """Item `index` of the binary column that starts with column `validity`."""
    if batch.has(validity) and not batch.body[batch.spans[validity][0] + index // 8] >> index % 8 & 1:
        return None
    data_begin, data_end = batch.spans[validity + 2]
    begin, end = _bounds(batch.body, batch.spans[validity + 1][0] + 4 * index)
    if not 0 <= begin <= end <= data_end - data_begin:
        raise BatchError(f"item {index} lies outside of its column")
    return bytes(batch.body[data_begin + begin : data_begin + end])


def key_at(batch: Batch, index: int) -> bytes | None:
    """The key of a record.

    Raises:
        BatchError: Its column does not hold.
    """
    return _item(batch, layout.KEY_VALIDITY, index) if batch.has(layout.KEY_OFFSETS) else None


def links_at(batch: Batch, index: int) -> tuple[int, int]:
    """A record's version and the offset of the record before it with the same key; -1 each where there is none."""
    if not batch.has(layout.KEY_VERSIONS):
        return layout.NO_PREVIOUS, layout.NO_PREVIOUS
    begins = (batch.spans[column][0] for column in (layout.KEY_VERSIONS, layout.PREVIOUS_OFFSETS))
    version, previous = (_number(batch.body, begin + 8 * index)[0] for begin in begins)
    return version, previous


def record_at(batch: Batch, index: int) -> SingleRecord:
    """A record.

    Raises:
        BatchError: A column does not hold.
    """
    return SingleRecord(
        batch.offset(index),
        batch.timestamps_ms(index, index + 1)[0],
        key_at(batch, index),
        _item(batch, layout.VALUE_VALIDITY, index),
        batch.headers(index, index + 1)[0],
    )
