"""What commands print: tables for people, JSON for programs, and nothing that a terminal would obey.

Whatever comes out of a log may hold anything, escape sequences among it. On a terminal all of it goes through
`escaped`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal, TextIO, TypeVar

import msgspec

from pystreamlog.clock import to_datetime
from pystreamlog.errors import ConfigError

__all__ = [
    "OutputError",
    "bytes_of",
    "check_output",
    "escaped",
    "flush_output",
    "json_line",
    "on_terminal",
    "print_json",
    "print_line",
    "print_table",
    "text_of",
    "time_of",
    "visible_json",
    "warn",
    "written",
]

Result = TypeVar("Result")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024
_NARROWEST = 12
"""Characters that a column of texts keeps on a terminal; where there is no room for that, rows become blocks."""
_GAP = 2


class OutputError(OSError):
    """What a command prints cannot be written: it is the output that is at fault, not the log."""


def on_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is there, and a terminal."""
    return stream is not None and stream.isatty()


def check_output() -> None:
    """See that there is something to print to, before anything is done that has to be told.

    Raises:
        ConfigError: The standard output is closed.
    """
    if sys.stdout is None:
        raise ConfigError("there is no standard output, it was closed: nothing was done; redirect it to a file")


def flush_output() -> None:
    """Have all that was printed written, if there is a standard output.

    Raises:
        OutputError: It cannot be.
    """
    if sys.stdout is not None:
        written(sys.stdout.flush)


def written(write: Callable[..., Result], *data: object, to: str = "the standard output") -> Result:
    """What a writing function returns.

    Args:
        write: Writes.
        *data: What it is given.
        to: What it writes to.

    Raises:
        BrokenPipeError: Who reads it has gone.
        OutputError: It failed otherwise.
    """
    try:
        return write(*data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"{to} cannot be written: {error.strerror}") from error


def escaped(text: str) -> str:
    r"""The text with all that does not print written as escapes, as Python would: `\x1b`, `\u202e`, `\n`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def text_of(data: bytes | None) -> str:
    """A key or a value for people: its text, what is no UTF-8 or does not print as escapes; `null` for none."""
    if data is None:
        return "null"
    return escaped(data.decode("utf-8", "backslashreplace"))


def time_of(timestamp_ms: int | None) -> str:
    """A time in ISO 8601, UTC, to the millisecond; `-` where there is none."""
    if timestamp_ms is None or timestamp_ms < 0:
        return "-"
    return to_datetime(timestamp_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def bytes_of(size: float) -> str:
    """A number of bytes for people."""
    for unit in _UNITS[:-1]:
        if abs(size) < _STEP:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _STEP
    return f"{size:.1f} {_UNITS[-1]}"


def print_line(text: str) -> None:
    """Print one line for people; what the locale's encoding lacks, as escapes.

    Raises:
        ConfigError: The standard output is closed.
        OutputError: It cannot be written.
    """
    check_output()
    encoding = sys.stdout.encoding
    line = text.encode(encoding, "backslashreplace").decode(encoding) if encoding and not text.isascii() else text
    written(sys.stdout.write, line + "\n")


def print_json(value: Any) -> None:
    """Print one line of JSON; structs, named tuples, attrs classes and times become what JSON has for them."""
    check_output()
    line = json_line(value)
    print_line(visible_json(line) if sys.stdout.isatty() else _encodable_json(line, sys.stdout.encoding))


def json_line(value: Any) -> str:
    r"""A value as JSON on one line; what is no text in it, as a path that is no UTF-8, has escapes: `caf\udce9`."""
    try:
        return msgspec.json.encode(value, enc_hook=_plain).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_as_texts(msgspec.to_builtins(value, enc_hook=_plain))).decode()


def _as_texts(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_as_texts(key): _as_texts(each) for key, each in value.items()}
    return list(map(_as_texts, value)) if isinstance(value, (list, tuple)) else value


def visible_json(lines: str) -> str:
    r"""JSON with all that a terminal would obey written as `\u` escapes: the same JSON."""
    if lines.isprintable():
        return lines
    return "".join(each if each.isprintable() or each == "\n" else _json_escape(each) for each in lines)


def _encodable_json(line: str, encoding: str | None) -> str:
    r"""JSON with what an encoding lacks written as `\u` escapes: the same JSON."""
    try:
        line.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(each if each.isascii() else _json_escape(each) for each in line)
    return line


def _json_escape(character: str) -> str:
    code = character.encode("utf-16-be")
    return "".join(f"\\u{code[at]:02x}{code[at + 1]:02x}" for at in range(0, len(code), 2))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON")


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()) -> None:
    """Print a table: in a terminal's width on a terminal, else in columns as wide as need be, for `grep` and `awk`.

    Where a terminal has too little room for all columns, each row becomes a block of lines.

    Args:
        heads: The columns' names.
        rows: Each with one cell per column.
        right: The columns with numbers, which are aligned to the right.
    """
    check_output()
    cells = [[escaped(str(cell)) for cell in row] for row in rows]
    numbers = frozenset(right)
    if sys.stdout.isatty():
        _print_wrapped(heads, cells, numbers)
        return
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for row in [list(heads), *cells]:
        line = "  ".join(
            cell.rjust(width) if head in numbers else cell.ljust(width)
            for head, cell, width in zip(heads, row, widths, strict=True)
        )
        print_line(line.rstrip())


def _print_wrapped(heads: Sequence[str], cells: list[list[str]], numbers: frozenset[str]) -> None:
    from shutil import get_terminal_size  # noqa: PLC0415 - on terminals only

    width = get_terminal_size().columns
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    titles = list(heads)
    if sum(widths) + _GAP * (len(heads) - 1) > width:
        titles = [head.replace("-", "-\n") for head in heads]
    least = []
    for head, title, column in zip(heads, titles, zip(heads, *cells, strict=True), strict=True):
        full = max(map(len, (*title.split("\n"), *column[1:])))
        least.append(full if head in numbers else min(full, max(_NARROWEST, *map(len, title.split("\n")))))
    if sum(least) + _GAP * (len(heads) - 1) > width:
        _print_records(heads, cells, width)
        return
    from rich.console import Console  # noqa: PLC0415 - takes longer to import than most commands run
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for head, title, narrowest in zip(heads, titles, least, strict=True):
        justify: Literal["left", "right"] = "right" if head in numbers else "left"
        table.add_column(title, justify=justify, overflow="fold", min_width=narrowest)
    for row in cells:
        table.add_row(*map(Text, row))  # `Text`: nothing in it is markup
    Console(file=sys.stdout, highlight=False, width=width).print(table)


def _print_records(heads: Sequence[str], cells: list[list[str]], width: int) -> None:
    """Print a table that a narrow terminal has no room for: a line per cell, a block per row."""
    indent = max(map(len, heads)) + _GAP
    room = max(1, width - indent)
    for number, row in enumerate(cells):
        if number:
            print_line("")
        for head, cell in zip(heads, row, strict=True):
            for start in range(0, max(1, len(cell)), room):
                print_line(f"{head if start == 0 else '':<{indent}}{cell[start : start + room]}")


def warn(text: str) -> None:
    """Say something on the standard error stream, if there is one."""
    with suppress(OSError):  # what is wrong with the output is told at its end
        flush_output()
    if sys.stderr is not None:
        sys.stderr.write(f"pystreamlog: {escaped(text)}\n")
        sys.stderr.flush()
