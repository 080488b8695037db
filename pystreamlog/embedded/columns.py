"""What users pass as columns, checked and cut to the partitions and batches they go to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from operator import add, itemgetter
from typing import Any

from pystreamlog.clock import to_timestamp_ms
from pystreamlog.errors import ConfigError
from pystreamlog.record.identity import MAX_SEQUENCE
from pystreamlog.record.record import Headers

__all__ = [
    "checked_headers",
    "checked_sequence",
    "checked_sequences",
    "cuts",
    "grouped",
    "record_sizes",
    "timestamps",
    "total_size",
]


def checked_headers(headers: Sequence[tuple[str, bytes]]) -> Headers:
    """Headers as a tuple of pairs of str and bytes.

    Raises:
        ConfigError: They are something else.
    """
    try:
        pairs = tuple(map(tuple, headers))
    except TypeError as error:
        raise ConfigError(f"headers are pairs of str and bytes, not {headers!r}") from error
    for pair in pairs:
        if len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not bytes:  # noqa: PLR2004 - a pair
            raise ConfigError(f"headers are pairs of str and bytes, not {pair!r}")
        try:
            pair[0].encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"the header name {pair[0]!a} cannot be encoded as UTF-8") from error
    return pairs  # type: ignore[return-value]


def checked_sequence(sequence: int | None, *, has_id: bool) -> None:
    """Refuse what is no sequence of a producer with an id, or any of one without.

    Raises:
        ConfigError: It is that.
    """
    if has_id != (sequence is not None):
        raise _mismatch(has_id=has_id)
    if sequence is not None and (type(sequence) is not int or not 0 <= sequence <= MAX_SEQUENCE):
        raise ConfigError(f"a sequence is a whole number from 0 to 2**63 - 1, not {sequence!r}")


def checked_sequences(sequences: Sequence[int] | None, count: int, *, has_id: bool) -> None:
    """As `checked_sequence`, for a column.

    Raises:
        ConfigError: There are not `count`, or one is none.
    """
    if has_id != (sequences is not None):
        raise _mismatch(has_id=has_id)
    if sequences is None or not count:
        return
    ends: tuple[int, int] = sequences[0], sequences[-1]
    if not isinstance(sequences, range):
        if set(map(type, sequences)) != {int}:
            raise ConfigError("sequences are whole numbers: pass a list of int, or a range")
        ends = min(sequences), max(sequences)
    checked_sequence(ends[0], has_id=True)
    checked_sequence(ends[1], has_id=True)


def _mismatch(*, has_id: bool) -> ConfigError:
    if has_id:
        return ConfigError(
            "a producer with producer_id needs the sequence of each record, to tell whether it was sent before: pass "
            "sequence= (for send_many sequences=), such as a line's number, or make a producer without producer_id"
        )
    return ConfigError("a sequence belongs to a producer's id: make the producer with producer_id=")


def timestamps(stamps: Sequence[int] | int | datetime | None, count: int, now_ns: int) -> Sequence[int] | int:
    """Timestamps in ms: one for all, or one per record.

    Raises:
        ConfigError: There are not `count`, or one is no time from 1970 to 9999.
    """
    if stamps is None:
        return now_ns // 1_000_000
    if isinstance(stamps, int | datetime) or not hasattr(stamps, "__len__"):
        return to_timestamp_ms(stamps)  # type: ignore[arg-type]  # which refuses what is neither
    if len(stamps) != count:
        raise ConfigError(f"{len(stamps)} timestamps for {count} values: columns have equal lengths")
    if set(map(type, stamps)) != {int}:
        return list(map(to_timestamp_ms, stamps))
    to_timestamp_ms(min(stamps))
    to_timestamp_ms(max(stamps))
    return stamps


def grouped(
    placed: Sequence[int], columns: Sequence[Sequence[Any] | int | None]
) -> list[tuple[int, Sequence[int], Sequence[Any]]]:
    """Columns cut by partition: its number, which records it gets, and its part of each column.

    One stable sort of the record numbers, then slices. A column that is a number or None stays what it is.
    """
    count = len(placed)
    if count == 1:
        return [(placed[0], (0,), columns)]
    order = sorted(range(count), key=placed.__getitem__)
    pick = itemgetter(*order)
    numbers = pick(placed)
    picked = [column if column is None or isinstance(column, int) else pick(column) for column in columns]
    groups: list[tuple[int, Sequence[int], Sequence[Any]]] = []
    start = 0
    while start < count:
        number = numbers[start]
        stop = bisect_left(numbers, number + 1, start)
        parts = [part if part is None or isinstance(part, int) else part[start:stop] for part in picked]
        groups.append((number, order[start:stop], parts))
        start = stop
    return groups


def cuts(ends: Sequence[int], limit: int) -> list[int]:
    """Where to cut columns whose sizes add up to `ends`, so that each part has at most `limit` bytes, or one record."""
    cuts = [0]
    while cuts[-1] < len(ends):
        start = cuts[-1]
        before = ends[start - 1] if start else 0
        cuts.append(max(start + 1, bisect_left(ends, before + limit + 1, start)))
    return cuts


def total_size(column: Sequence[bytes | None] | None) -> int:
    """Bytes of a column; None counts nothing."""
    if column is None:
        return 0
    try:
        return sum(map(len, column))  # type: ignore[arg-type]
    except TypeError:
        return sum(map(len, filter(None, column)))


def record_sizes(
    values: Sequence[bytes | None], keys: Sequence[bytes | None] | None, headers: Sequence[Headers] | None
) -> list[int]:
    """Bytes of each record: key, value and headers."""
    columns = [column for column in (values, keys) if column is not None]
    sizes: list[int] = [0] * len(values)
    for column in columns:
        try:
            sizes = list(map(add, sizes, map(len, column)))  # type: ignore[arg-type]
        except TypeError:
            sizes = [size + len(item or b"") for size, item in zip(sizes, column, strict=True)]
    if headers is not None:
        rows = (sum(len(name.encode()) + len(content) for name, content in pairs) for pairs in headers)
        sizes = list(map(add, sizes, rows))
    return sizes
