"""`pystreamlog groups reset-offsets`: new offsets of groups are planned, shown, and committed when told to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import typer

from pystreamlog.backend.admin import Admin
from pystreamlog.backend.log import StreamLog
from pystreamlog.cli.options import AllGroupsOption, GroupOption, GroupsArgument, JsonOption, LogOption, complete_topics
from pystreamlog.cli.output import escaped, on_terminal, print_json, print_line, print_table, warn
from pystreamlog.cli.running import Trials, opened
from pystreamlog.cli.selecting import (
    ago_ms,
    argument_or_option,
    check_place,
    chosen_groups,
    parse_duration_ms,
    parse_time_ms,
    places_of,
)
from pystreamlog.errors import ConfigError, GroupNotEmptyError, NoOffsetError, UnknownGroupError
from pystreamlog.record.record import TopicPartition

__all__ = ["reset_offsets"]

_HEADS = ("GROUP", "TOPIC", "PARTITION", "CURRENT-OFFSET", "NEW-OFFSET")
_NUMBERS = _HEADS[2:]

Offsets = Mapping[TopicPartition, int]


class _Way(NamedTuple):
    """How new offsets are found.

    Attributes:
        name: "earliest", "latest", "current", "offset", "time", "shift" or "file".
        number: The offset, the time in ms, or how many records to shift by.
    """

    name: str
    number: int = 0


class _Reset(NamedTuple):
    """What a group is to have committed in a partition.

    Attributes:
        group_id: The group.
        place: The partition.
        current: What it has committed now; None for nothing.
        new: What it shall have committed.
    """

    group_id: str
    place: TopicPartition
    current: int | None
    new: int


def reset_offsets(
    *,
    groups_argument: GroupsArgument = None,
    group: GroupOption = None,
    all_groups: AllGroupsOption = False,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            metavar="TOPIC[:LIST]",
            help="A topic, or some of its partitions, as orders:0,2; may be repeated.",
            autocompletion=complete_topics,
        ),
    ] = None,
    all_topics: Annotated[
        bool, typer.Option("--all-topics", help="All topics in which a group committed something.")
    ] = False,
    to_earliest: Annotated[bool, typer.Option("--to-earliest", help="To the first record there is.")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest", help="To the end.")] = False,
    to_current: Annotated[
        bool, typer.Option("--to-current", help="To what is committed now; to the end where nothing is.")
    ] = False,
    to_offset: Annotated[int | None, typer.Option("--to-offset", metavar="OFFSET", help="To this offset.")] = None,
    to_datetime: Annotated[
        str | None,
        typer.Option(
            "--to-datetime",
            metavar="TIME",
            help="To the first record not older than that: 2026-03-01T12:00:00.000 (UTC), with a zone if you like.",
        ),
    ] = None,
    by_duration: Annotated[
        str | None,
        typer.Option(
            "--by-duration", metavar="LENGTH", help="To the first record not older than so long ago: PnDTnHnMnS."
        ),
    ] = None,
    shift_by: Annotated[
        int | None,
        typer.Option(
            "--shift-by", metavar="NUMBER", help="By so many offsets from what is committed, back if below 0."
        ),
    ] = None,
    from_file: Annotated[
        str | None,
        typer.Option(
            "--from-file",
            metavar="FILE",
            help="To what a file of lines TOPIC,PARTITION,OFFSET says (with GROUP, in front for several groups), as "
            "--export prints them; - for standard input.",
        ),
    ] = None,
    export: Annotated[bool, typer.Option("--export", help="Print lines for --from-file.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done, which is what it does anyway.")
    ] = False,
    execute: Annotated[bool, typer.Option("--execute", help="Do it.")] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Reset what groups without members have committed: to a place, a time, or by a number of records.

    Nothing is changed without --execute. Offsets before a partition's start or beyond its end become these. A group
    with members is refused: end them first.
    """
    example = "" if all_groups else "pystreamlog groups reset-offsets billing --to-earliest --all-topics"
    group = argument_or_option(groups_argument, group, "--group", example=example)
    if execute and dry_run:
        raise typer.BadParameter("choose one of --dry-run and --execute")
    if export and json:
        raise typer.BadParameter("choose one of --export and --json")
    way = _way(
        {
            "--to-earliest": _Way("earliest") if to_earliest else None,
            "--to-latest": _Way("latest") if to_latest else None,
            "--to-current": _Way("current") if to_current else None,
            "--to-offset": None if to_offset is None else _Way("offset", to_offset),
            "--to-datetime": None if to_datetime is None else _Way("time", parse_time_ms(to_datetime)),
            "--by-duration": None if by_duration is None else _Way("time", ago_ms(parse_duration_ms(by_duration))),
            "--shift-by": None if shift_by is None else _Way("shift", shift_by),
            "--from-file": None if from_file is None else _Way("file"),
        }
    )
    if from_file is not None and (topic or all_topics):
        raise typer.BadParameter("--from-file names the topics: leave out --topic and --all-topics")
    if from_file is None and bool(topic) == all_topics:
        raise typer.BadParameter("say which topics: --topic TOPIC, or --all-topics")
    with opened(log, read_only=not execute) as stream_log, Trials() as trials:
        admin = stream_log.admin
        groups = chosen_groups(stream_log, trials, group, all_groups=all_groups)
        several = all_groups or len(groups) > 1
        asked = None if from_file is None else _read_file(admin, from_file, groups, several=several)
        places = places_of(admin, topic) if topic else None
        done: list[_Reset] = []
        for name in groups:
            with trials.trying():
                _check_empty(admin, name)
                plan = list(_plan(stream_log, name, way, places, None if asked is None else asked[name]))
                if execute and plan:
                    admin.alter_consumer_group_offsets(name, {reset.place: reset.new for reset in plan})
                done += plan
        _show(done, export=export, json=json, several=several)
        if done and not execute and not export:
            warn("nothing was changed: add --execute to do it")


def _way(ways: Mapping[str, _Way | None]) -> _Way:
    """The one way that was chosen."""
    chosen = [way for way in ways.values() if way is not None]
    if len(chosen) != 1:
        raise typer.BadParameter(f"choose one of {', '.join(ways)}")
    return chosen[0]


def _check_empty(admin: Admin, group_id: str) -> None:
    """See that a group has no members; one that there is not has none.

    Raises:
        GroupNotEmptyError: It has.
        ExceptionGroup: Of `CorruptLogError`.
    """
    try:
        found = admin.describe_consumer_groups(group_id)[group_id]
    except ExceptionGroup as group:
        if group.split(UnknownGroupError)[1] is not None:
            raise
        return
    if found.members:
        raise GroupNotEmptyError(
            f"group {group_id!r} has {len(found.members)} members and is {found.state}: offsets are reset in a group "
            "without members only; end them first",
            group_id=group_id,
        )


def _plan(
    log: StreamLog, group_id: str, way: _Way, places: list[TopicPartition] | None, asked: Offsets | None
) -> Iterator[_Reset]:
    """What a group is to have committed.

    Args:
        log: The open log.
        group_id: The group.
        way: How new offsets are found.
        places: The partitions; None for those in which it committed something.
        asked: What a file says.

    Raises:
        ExceptionGroup: Of `UnknownTopicError`, `NoOffsetError` and the like.
    """
    admin = log.admin
    wanted = list(asked) if asked is not None else places
    committed = admin.list_consumer_group_offsets(group_id, partitions=wanted)[group_id]
    current = {place: found.offset for place, found in committed.items()}
    wanted = list(current) if wanted is None else wanted
    starts = {place: found.offset for place, found in admin.list_offsets(dict.fromkeys(wanted, "earliest")).items()}
    ends = {place: found.offset for place, found in admin.list_offsets(dict.fromkeys(wanted, "latest")).items()}
    match way.name:
        case "earliest":
            new: Offsets = starts
        case "latest":
            new = ends
        case "current":
            new = {place: current.get(place, ends[place]) for place in wanted}
        case "offset":
            new = dict.fromkeys(wanted, way.number)
        case "time":
            found = admin.list_offsets(dict.fromkeys(wanted, way.number))
            new = {place: ends[place] if found[place].offset < 0 else found[place].offset for place in wanted}
        case "shift":
            new = dict(_shifted(group_id, wanted, current, way.number))
        case _:
            assert asked is not None
            new = asked
    for place in wanted:
        offset = _clamped(place, new[place], starts[place], ends[place])
        yield _Reset(group_id, place, current.get(place), offset)


def _shifted(
    group_id: str, wanted: Iterable[TopicPartition], current: Offsets, number: int
) -> Iterator[tuple[TopicPartition, int]]:
    for place in wanted:
        if place not in current:
            raise NoOffsetError(
                f"group {group_id!r} has committed nothing in {place.topic}:{place.partition} that could be shifted: "
                "leave the partition out, or use another way",
                topic=place.topic,
                partition=place.partition,
            )
        yield place, current[place] + number


def _clamped(place: TopicPartition, offset: int, start: int, end: int) -> int:
    """An offset, or the bound that it lies beyond, which is told."""
    if offset > end:
        warn(f"new offset {offset} lies beyond the end of {place.topic}:{place.partition}; it becomes the end, {end}")
    elif offset < start:
        warn(f"new offset {offset} lies before the start of {place.topic}:{place.partition}; it becomes that, {start}")
    return min(max(offset, start), end)


def _read_file(admin: Admin, file: str, groups: list[str], *, several: bool) -> dict[str, dict[TopicPartition, int]]:
    """What a file says, by group.

    Args:
        admin: The log's.
        file: Its path.
        groups: The groups that were chosen.
        several: Its lines begin with the group.

    Raises:
        ConfigError: It cannot be read, or is no such file.
        ExceptionGroup: Each line that is wrong, with its number.
    """
    import csv  # noqa: PLC0415 - for files only

    from pystreamlog.cli.input_files import about_place, read_text  # noqa: PLC0415 - the same

    found: dict[str, dict[TopicPartition, int]] = {name: {} for name in groups}
    lines = csv.reader(read_text(file).splitlines(keepends=True), strict=True)
    with Trials() as trials:
        try:
            for cells in lines:
                if not cells:
                    continue
                with trials.trying(), about_place(f"{file}, line {lines.line_num}"):
                    name, place, offset = _parse_line(cells, None if several else groups[0])
                    if name not in found:
                        raise ConfigError(f"group {name!r} was not chosen: name it with --group")
                    if place in found[name]:
                        raise ConfigError(f"{place.topic}:{place.partition} is named twice")
                    check_place(admin, place)
                    found[name][place] = offset
        except csv.Error as error:
            raise ConfigError(f"{file}, line {lines.line_num}: no CSV: {error}") from error
    if not any(found.values()):
        raise ConfigError(f"{file} names no partitions")
    return found


def _parse_line(cells: list[str], group_id: str | None) -> tuple[str, TopicPartition, int]:
    """What a line says: a group, a partition and an offset."""
    if group_id is not None and len(cells) == len(_HEADS) - 1 and cells[0] == group_id:
        cells = cells[1:]
    first, *rest = cells if group_id is None else [group_id, *cells]
    try:
        topic, partition, offset = rest
        return first, TopicPartition(topic, int(partition)), int(offset)
    except ValueError:
        expected = "TOPIC,PARTITION,OFFSET" if group_id is not None else "GROUP,TOPIC,PARTITION,OFFSET"
        raise ConfigError(f"{','.join(cells)!r} is no {expected}") from None


def _show(resets: list[_Reset], *, export: bool, json: bool, several: bool) -> None:
    if export:
        _export(resets, several=several)
    elif json:
        print_json([_row(reset) for reset in resets])
    elif resets:
        rows = [
            (reset.group_id, *reset.place, "-" if reset.current is None else reset.current, reset.new)
            for reset in resets
        ]
        print_table(_HEADS, rows, right=_NUMBERS)


def _row(reset: _Reset) -> dict[str, Any]:
    return {
        "group_id": reset.group_id,
        "topic": reset.place.topic,
        "partition": reset.place.partition,
        "current_offset": reset.current,
        "new_offset": reset.new,
    }


def _export(resets: list[_Reset], *, several: bool) -> None:
    """Print what `--from-file` reads."""
    import csv  # noqa: PLC0415 - for files only
    import io  # noqa: PLC0415 - the same
    import sys  # noqa: PLC0415 - the same

    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    for reset in resets:
        writer.writerow([*([reset.group_id] if several else []), *reset.place, reset.new])
    text = lines.getvalue()
    if on_terminal(sys.stdout):
        text = "\n".join(map(escaped, text.splitlines())) + "\n" * bool(text)
    if text:
        print_line(text.removesuffix("\n"))
