"""`pystreamlog top`: a live screen of what goes on in a log, most active first."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import attrs
import typer

from pystreamlog.cli.options import JsonOption, LogOption
from pystreamlog.cli.output import (
    bytes_of,
    escaped,
    flush_output,
    on_terminal,
    print_json,
    print_line,
    print_table,
    time_of,
    warn,
)
from pystreamlog.cli.running import opened
from pystreamlog.clock import SYSTEM
from pystreamlog.errors import NotSupportedError

if TYPE_CHECKING:
    from rich.console import Console, Group

    from pystreamlog.cli.activity import Activity

__all__ = ["top"]

_TOPIC_HEADS = ("TOPIC", "PARTITIONS", "RECORDS/S", "BYTES/S", "END")
_GROUP_HEADS = ("GROUP", "STATE", "MEMBERS", "RECORDS/S", "LAG")
_NUMBERS = ("PARTITIONS", "RECORDS/S", "BYTES/S", "END", "MEMBERS", "LAG")
_WIDE = 60
"""Columns of a terminal below which a table leaves its second one out."""
_LEAST_ROWS = 2
_STEP, _UNITS, _FEW = 1000, "kMGTP", 100


def top(
    *,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=3600, help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one plain table after an interval; so it does without a terminal.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="NUMBER", min=1, help="How many topics and groups at most, of the most active ones."
        ),
    ] = None,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Show what goes on: records and bytes that come into topics, and how groups keep up; q or Ctrl-C ends it.

    Most active first. END is the sum of a topic's end offsets, LAG what a group has not committed yet. With --json it
    prints a line per interval. It takes no lock, and reads the ends of those partitions alone that were written.
    """
    from pystreamlog.cli.activity import ActivityWatch  # noqa: PLC0415 - for this command only
    from pystreamlog.cli.extents import opened_extents  # noqa: PLC0415 - the same

    with opened(log, read_only=True) as stream_log, opened_extents(stream_log) as extents:
        if extents is None:
            raise NotSupportedError(f"{stream_log.path} is no directory, and top looks at its files")
        watch = ActivityWatch(stream_log, extents)
        watch.look()
        if not json and not once and _is_screen():
            _show_live(stream_log.path, watch.look, interval, limit)
            return
        while True:
            SYSTEM.sleep(interval)
            seen = watch.look()
            if json:
                line = attrs.asdict(seen)
                print_json({**line, "topics": line["topics"][:limit], "groups": line["groups"][:limit]})
                flush_output()
            else:
                _print_plain(seen, limit)
            if once or not json:
                return


def _is_screen() -> bool:
    return on_terminal(sys.stdout) and os.environ.get("TERM") not in (None, "", "dumb")


def _print_plain(seen: Activity, limit: int | None) -> None:
    print_table(_TOPIC_HEADS, _topic_rows(seen, limit), right=_NUMBERS)
    if seen.groups:
        print_line("")
        print_table(_GROUP_HEADS, _group_rows(seen, limit), right=_NUMBERS)
    for failure in seen.failures:
        warn(failure)


def _exact(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else f"{number:.1f}"


def _short(number: float) -> str:
    """A number in at most six characters."""
    if abs(number) < _STEP:
        return _exact(number) if abs(number) < _FEW else f"{number:.0f}"
    power = 0
    while abs(number) >= _STEP and power < len(_UNITS):
        number, power = number / _STEP, power + 1
    return f"{number:.1f}{_UNITS[power - 1]}"


def _topic_rows(seen: Activity, limit: int | None, count: Callable[[float], str] = _exact) -> list[Sequence[str]]:
    return [
        (
            each.topic,
            str(each.partitions),
            "-" if each.records_per_second is None else count(each.records_per_second),
            "-" if each.bytes_per_second is None else bytes_of(each.bytes_per_second),
            count(each.end_offset),
        )
        for each in seen.topics[:limit]
    ]


def _group_rows(seen: Activity, limit: int | None, count: Callable[[float], str] = _exact) -> list[Sequence[str]]:
    return [
        (
            each.group_id,
            each.state,
            str(each.members),
            "-" if each.records_per_second is None else count(each.records_per_second),
            count(each.lag),
        )
        for each in seen.groups[:limit]
    ]


# --- the screen


def _show_live(path: str, look: Callable[[], Activity], interval: float, limit: int | None) -> None:
    """Draw a look after each interval, until q or Ctrl-C."""
    from rich.console import Console  # noqa: PLC0415 - takes longer to import than most commands run
    from rich.live import Live  # noqa: PLC0415 - the same

    console = Console(file=sys.stdout, highlight=False)
    with _keys() as waited, Live(console=console, screen=True, auto_refresh=False) as live:
        seen = look()
        while True:
            live.update(_screen(path, seen, interval, limit, console), refresh=True)
            if waited(interval):
                return
            seen = look()


def _screen(path: str, seen: Activity, interval: float, limit: int | None, console: Console) -> Group:
    """What the screen shows: a line, the topics, and the groups, in as many rows as it has."""
    from rich.console import Group  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    width, height = console.size
    records = sum(each.records_per_second or 0 for each in seen.topics)
    size = sum(each.bytes_per_second or 0 for each in seen.topics)
    said = f"{escaped(path)}  {time_of(seen.time_ms)[11:19]} every {interval:g} s  q quits"
    totals = f"{len(seen.topics)} topics  {_short(records)} records/s  {bytes_of(size)}/s"
    lines: list[Any] = [Text(line, no_wrap=True, overflow="ellipsis") for line in (said, totals)]
    if seen.failures:
        lines.append(Text(f"! {escaped(seen.failures[0])}", no_wrap=True, overflow="ellipsis", style="red"))
    room = height - len(lines) - 1
    most_groups = min(len(seen.groups), limit or len(seen.groups))
    group_room = min(most_groups + 1, max(_LEAST_ROWS, room // 3)) if most_groups and room > 2 * _LEAST_ROWS else 0
    topic_room = max(1, room - group_room)
    topics = _topic_rows(seen, min(limit or topic_room, topic_room - 1), _short)
    lines.append(_drawn(_TOPIC_HEADS, topics, width))
    if group_room:
        lines.append(_drawn(_GROUP_HEADS, _group_rows(seen, min(limit or group_room, group_room - 1), _short), width))
    return Group(*lines)


def _drawn(heads: Sequence[str], rows: list[Sequence[str]], width: int) -> Any:
    """A table without lines, one row each, whose first column gives way."""
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    shown = [number for number in range(len(heads)) if number != 1 or width >= _WIDE]
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold", padding=(0, 1, 0, 0))
    for number in shown:
        is_name = number == 0
        table.add_column(
            heads[number],
            justify="right" if heads[number] in _NUMBERS else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if is_name else None,
        )
    for row in rows:
        table.add_row(*(Text(escaped(row[number])) for number in shown))
    return table


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Reads single keys, and puts the terminal back; yields what waits, and tells whether to end."""
    before = signal.signal(signal.SIGTERM, _end)  # else the terminal would stay as it is
    try:
        if not on_terminal(sys.stdin):
            yield _sleep
            return
        import termios  # noqa: PLC0415 - not on every platform that can import the library
        import tty  # noqa: PLC0415 - the same

        descriptor = sys.stdin.fileno()
        mode = termios.tcgetattr(descriptor)
        try:
            tty.setcbreak(descriptor)
            yield lambda seconds: _wait_for_q(descriptor, seconds)
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
    finally:
        signal.signal(signal.SIGTERM, before)


def _sleep(seconds: float) -> bool:
    SYSTEM.sleep(seconds)
    return False


def _wait_for_q(descriptor: int, seconds: float) -> bool:
    """Wait for the key q, for that long at most; whether it came."""
    deadline = SYSTEM.monotonic() + seconds
    while (left := deadline - SYSTEM.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            pressed = os.read(descriptor, 64)
            if not pressed or b"q" in pressed.lower():
                return True
    return False


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)
