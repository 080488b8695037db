"""Records become lines: values with their ends, what Kafka's console consumer prints around them, or JSON.

A part of a batch becomes bytes at once, column by column, so that a line costs what joining costs. On a terminal every
key, value and header is escaped; elsewhere it is written as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pystreamlog.backend.records import RecordSlice
from pystreamlog.cli.output import text_of, visible_json
from pystreamlog.cli.properties import FormatterProperties
from pystreamlog.cli.record_json import encode_lines
from pystreamlog.record.record import Headers

__all__ = ["Formatter", "json_formatter", "text_formatter"]

Formatter = Callable[[RecordSlice, int], bytes]
"""Makes lines of the first so many records of a part."""


def json_formatter(*, escaping: bool) -> Formatter:
    """What makes a line of JSON of each record.

    Args:
        escaping: It goes to a terminal.
    """

    def write(part: RecordSlice, count: int) -> bytes:
        topic, partition = part.tp
        columns = (part.offsets(), part.timestamps_ms(), part.keys(), part.values(), part.headers())
        if count < len(part):
            columns = tuple(column[:count] for column in columns)  # type: ignore[assignment]
        lines = encode_lines(topic, partition, *columns)
        return visible_json(lines.decode()).encode() if escaping else lines

    return write


def text_formatter(
    properties: FormatterProperties, *, escaping: bool, timestamp_type: Callable[[str], str]
) -> Formatter:
    """What makes a line of text of each record.

    Args:
        properties: What is printed.
        escaping: It goes to a terminal.
        timestamp_type: Tells of a topic whose time its records have, `CreateTime` or `LogAppendTime`.
    """
    null = properties.null_literal.encode()
    between, end = properties.key_separator.encode(), properties.line_separator.encode()

    def filled(column: Sequence[bytes | None]) -> Sequence[bytes]:
        if escaping:
            return [null if each is None else text_of(each).encode() for each in column]
        if None in column:
            return [null if each is None else each for each in column]
        return column  # type: ignore[return-value] # there is no None in it

    def write_values(part: RecordSlice, count: int) -> bytes:
        values = part.values()
        return end.join([*filled(values if count == len(part) else values[:count]), b""])

    def write(part: RecordSlice, count: int) -> bytes:
        columns: list[Iterable[bytes]] = []
        if properties.print_timestamp:
            label = timestamp_type(part.tp.topic).encode()
            columns.append(map((label + b":%d").__mod__, part.timestamps_ms()[:count]))
        if properties.print_partition:
            columns.append([b"Partition:%d" % part.tp.partition] * count)
        if properties.print_offset:
            columns.append(map(b"Offset:%d".__mod__, part.offsets()[:count]))
        if properties.print_headers:
            columns.append(_headers(part.headers()[:count], properties.headers_separator.encode(), filled))
        if properties.print_key:
            columns.append(filled(part.keys()[:count]))
        if properties.print_value:
            columns.append(filled(part.values()[:count]))
        if not columns:
            return end * count
        return end.join([*map(between.join, zip(*columns, strict=True)), b""])

    return write_values if properties.values_only else write


def _headers(
    column: Sequence[Headers], separator: bytes, filled: Callable[[Sequence[bytes | None]], Sequence[bytes]]
) -> list[bytes]:
    if not any(column):
        return [b"NO_HEADERS"] * len(column)
    lines = []
    for headers in column:
        names, contents = filled([name.encode() for name, _ in headers]), filled([each for _, each in headers])
        pairs = [b"%b:%b" % pair for pair in zip(names, contents, strict=True)]
        lines.append(separator.join(pairs) if pairs else b"NO_HEADERS")
    return lines
