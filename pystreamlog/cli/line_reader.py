"""Lines become columns of records: plain lines, lines with keys and headers, and lines of JSON.

Lines are read in big blocks and split by one call, so that nothing is done per line that C can do per block. A line
that was read whole is handed on at once: who types, or writes a line now and then, waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from typing import Any, BinaryIO

import attrs
import msgspec

from pystreamlog.cli.properties import ReaderProperties
from pystreamlog.cli.record_json import bytes_in, line_decoder
from pystreamlog.errors import RecordTooLargeError
from pystreamlog.record.record import Headers

__all__ = ["BadLineError", "Columns", "Parser", "json_columns", "line_blocks", "text_parser"]

_BLOCK = 1 << 20


class BadLineError(ValueError):
    """A line that is no record.

    Attributes:
        index: Which one of the lines.
    """

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


@attrs.frozen
class Columns:
    """Records as columns of equal length; a column that all records lack is None.

    Attributes:
        indices: Which of the lines the records are; None when each line is one.
    """

    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None = None
    headers: Sequence[Headers] | None = None
    timestamps_ms: Sequence[int | None] | None = None
    partitions: Sequence[int | None] | None = None
    indices: Sequence[int] | None = None

    def part(self, start: int, stop: int) -> Columns:
        """Some of the records."""
        cut: list[Any] = [None if each is None else each[start:stop] for each in attrs.astuple(self, recurse=False)]
        return Columns(*cut)

    def line(self, index: int) -> int:
        """Which of the lines a record is."""
        return index if self.indices is None else self.indices[index]


Parser = Callable[[list[bytes]], Columns]
"""Makes columns of lines; `BadLineError` says which of them is no record."""


def line_blocks(file: BinaryIO, limit: int) -> Iterator[list[bytes]]:
    """The lines of a file, as many at a time as there are, without their ends: LF or CR LF, and none at the last one.

    Args:
        file: Read to its end.
        limit: The longest line that is kept in memory, in bytes.

    Raises:
        RecordTooLargeError: A line is longer; all those before it were handed out.
    """
    read = getattr(file, "read1", file.read)
    parts: list[bytes] = []
    size = 0
    while block := read(_BLOCK):
        if b"\n" not in block:
            parts.append(block)
            size += len(block)
            if size > limit:
                raise RecordTooLargeError(f"it is longer than {limit} bytes", size=size, limit=limit)
            continue
        data = b"".join((*parts, block)) if parts else block
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        lines = data.split(b"\n")
        rest = lines.pop()
        parts, size = [rest] if rest else [], len(rest)
        yield lines
    if parts:
        yield [b"".join(parts).removesuffix(b"\r")]


def text_parser(properties: ReaderProperties) -> Parser:
    """What makes columns of lines of text."""
    if not (properties.parse_key or properties.parse_headers or properties.null_marker):
        return Columns
    marker = properties.null_marker.encode()

    def parse(lines: list[bytes]) -> Columns:
        values: Sequence[bytes] = lines
        headers: list[Headers] | None = None
        keys: Sequence[bytes | None] | None = None
        if properties.parse_headers:
            found, values = _split(values, properties.headers_delimiter, "headers.delimiter", properties)
            headers = [_headers(index, text or b"", properties) for index, text in enumerate(found)]
        if properties.parse_key:
            keys, values = _split(values, properties.key_separator, "key.separator", properties)
        return Columns(_marked(values, marker), None if keys is None else _marked(keys, marker), headers)

    return parse


def _split(
    lines: Sequence[bytes], separator: str, name: str, properties: ReaderProperties
) -> tuple[Sequence[bytes | None], Sequence[bytes]]:
    """What stands before the first separator of each line, and what behind it; None and all of it without one."""
    if not lines:
        return (), ()
    heads, separators, tails = zip(*map(methodcaller("partition", separator.encode()), lines), strict=True)
    if b"" not in separators:
        return heads, tails
    if not properties.ignore_error:
        raise BadLineError(
            separators.index(b""), f"it has no {separator!r}, the {name}: set that, or ignore.error=true to take it"
        )
    return (
        [head if each else None for head, each in zip(heads, separators, strict=True)],
        [tail if each else head for head, each, tail in zip(heads, separators, tails, strict=True)],
    )


def _headers(index: int, text: bytes, properties: ReaderProperties) -> Headers:
    """The headers that a line begins with."""
    if not text:
        return ()
    pairs = []
    for pair in text.split(properties.headers_separator.encode()):
        name, separator, content = pair.partition(properties.headers_key_separator.encode())
        if not separator:
            raise BadLineError(index, f"the header {pair!r} has no {properties.headers_key_separator!r}")
        try:
            pairs.append((name.decode(), content))
        except UnicodeDecodeError:
            raise BadLineError(index, f"the name of the header {pair!r} is no UTF-8") from None
    return tuple(pairs)


def _marked(column: Sequence[bytes | None], marker: bytes) -> Sequence[bytes | None]:
    """The column with None where it reads like the marker."""
    if not marker or marker not in column:
        return column
    return [None if each == marker else each for each in column]


def json_columns(lines: list[bytes]) -> Columns:
    """Columns of lines of JSON; empty lines are skipped.

    Raises:
        BadLineError: A line is no JSON, or no record.
    """
    indices = [index for index, line in enumerate(lines) if line.strip()]
    filled = lines if len(indices) == len(lines) else [lines[index] for index in indices]
    try:
        rows = list(map(line_decoder.decode, filled))
        keys, values = [bytes_in(row.key) for row in rows], [bytes_in(row.value) for row in rows]
        headers = [_json_headers(row.headers) for row in rows] if any(row.headers for row in rows) else None
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors too
        for index in indices:
            _check_json(index, lines[index])
        raise
    timestamps, partitions = [row.timestamp for row in rows], [row.partition for row in rows]
    return Columns(values, keys, headers, timestamps, partitions, indices)


def _json_headers(pairs: tuple[tuple[str, msgspec.Raw], ...]) -> Headers:
    found = []
    for name, raw in pairs:
        content = bytes_in(raw)
        if content is None:
            raise ValueError(f"the header {name!r} is null, and a header has a value")
        found.append((name, content))
    return tuple(found)


def _check_json(index: int, line: bytes) -> None:
    """Raise what is wrong with a line."""
    try:
        row = line_decoder.decode(line)
        bytes_in(row.key)
        bytes_in(row.value)
        _json_headers(row.headers)
    except msgspec.ValidationError as error:
        raise BadLineError(index, f"it is no record: {error}") from error
    except msgspec.DecodeError as error:
        raise BadLineError(index, f"it is no JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise BadLineError(index, "it is no JSON: a string in it is no UTF-8") from error
    except RecursionError as error:
        raise BadLineError(index, "it is nested too deeply") from error
    except ValueError as error:
        raise BadLineError(index, str(error)) from error
