"""`pystreamlog offsets` and `pystreamlog delete-records`: the offsets of partitions looked at, and records cut off."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from pystreamlog.backend.admin import Admin
from pystreamlog.backend.administration import OffsetSpec
from pystreamlog.cli.options import ExecuteOption, JsonOption, LogOption, complete_topics
from pystreamlog.cli.output import print_json, print_line, print_table
from pystreamlog.cli.running import Trials, confirm, opened
from pystreamlog.cli.selecting import (
    check_place,
    matching_topics,
    parse_partitions,
    parse_time_ms,
    partitions_of,
    places_of,
    unknown_partition,
)
from pystreamlog.errors import ConfigError, OffsetOutOfRangeError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = ["delete_records", "offsets"]

_SPECS: dict[str, OffsetSpec] = {
    "-1": "latest",
    "latest": "latest",
    "-2": "earliest",
    "earliest": "earliest",
    "-3": "max_timestamp",
    "max-timestamp": "max_timestamp",
}


def offsets(
    *,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            metavar="TOPIC",
            help="A topic, or a regular expression that names match as a whole; may be repeated. All without.",
            autocompletion=complete_topics,
        ),
    ] = None,
    partitions: Annotated[
        str | None, typer.Option("--partitions", metavar="LIST", help="Only these, as 0,2 or 0-3.")
    ] = None,
    time: Annotated[
        str,
        typer.Option(
            "--time",
            metavar="TIME",
            help="Which: latest (-1), earliest (-2), max-timestamp (-3), or the first record not older than a time: "
            "ms since 1970, or 2026-03-01T12:00:00 (UTC).",
        ),
    ] = "latest",
    exclude_internal: Annotated[
        bool, typer.Option("--exclude-internal-topics", help="Leave out those whose names begin with __.")
    ] = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Tell offsets of partitions, each as TOPIC:PARTITION:OFFSET; without an offset where there is no such record."""
    spec = _SPECS.get(time) or parse_time_ms(time)
    wanted = None if partitions is None else set(parse_partitions(partitions))
    with opened(log, read_only=True) as stream_log, Trials() as trials:
        admin = stream_log.admin
        found: list[dict[str, Any]] = []
        for name in matching_topics(stream_log, topic) if topic else stream_log.topics():
            if exclude_internal and name.startswith("__"):
                continue
            with trials.trying(but=() if topic else UnknownTopicError):
                count = partitions_of(admin, [name])[name]
                numbers = [number for number in range(count) if wanted is None or number in wanted]
                if topic and wanted and max(wanted) >= count:
                    raise unknown_partition(name, max(wanted), count)
                listed = admin.list_offsets(dict.fromkeys([TopicPartition(name, number) for number in numbers], spec))
                for (_, number), (offset, timestamp_ms) in listed.items():
                    if json:
                        known = {"offset": max(offset, -1), "timestamp_ms": timestamp_ms}
                        values = {name_: None if value < 0 else value for name_, value in known.items()}
                        found.append({"topic": name, "partition": number, **values})
                    else:
                        print_line(f"{name}:{number}:{'' if offset < 0 else offset}")
        if json:
            print_json(found)


class _Cut(msgspec.Struct):
    """Where a partition is to start, as Kafka's file has it."""

    topic: str
    partition: int
    offset: int


class _Cuts(msgspec.Struct):
    """What Kafka's file holds."""

    partitions: list[_Cut]
    version: int = 1


def delete_records(
    *,
    offset_json_file: Annotated[
        str | None,
        typer.Option(
            "--offset-json-file",
            metavar="FILE",
            help="Kafka's file: "
            '{"partitions": [{"topic": "orders", "partition": 0, "offset": 17}], "version": 1}; - for standard input.',
        ),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option("--topic", metavar="TOPIC", help="A topic, instead of a file.", autocompletion=complete_topics),
    ] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="LIST", help="Its partitions, as 0 or 0,2 or 0-3; all without.")
    ] = None,
    offset: Annotated[
        int | None,
        typer.Option(
            "--offset",
            metavar="OFFSET",
            min=-1,
            help="What its partitions start with then; -1 for their end, which deletes all.",
        ),
    ] = None,
    execute: ExecuteOption = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Delete the records below an offset of partitions, for good. Segments wholly below it give their space back."""
    by_options = topic is not None or partition is not None or offset is not None
    if by_options == (offset_json_file is not None) or (by_options and (topic is None or offset is None)):
        raise typer.BadParameter("say what goes: --offset-json-file FILE, or --topic, --partition and --offset")
    if partition is not None:
        parse_partitions(partition)
    cuts = None if offset_json_file is None else _read_cuts(offset_json_file)
    with opened(log) as stream_log:
        admin = stream_log.admin
        if cuts is not None:
            assert offset_json_file is not None
            wanted = _checked_cuts(admin, offset_json_file, cuts)
        else:
            assert topic is not None
            assert offset is not None
            text = topic if partition is None else f"{topic}:{partition}"
            wanted = dict.fromkeys(places_of(admin, [text]), offset)
        _check_ends(admin, wanted)
        named = ", ".join(
            f"{place.topic}:{place.partition} {'all' if value < 0 else f'below {value}'}"
            for place, value in wanted.items()
        )
        confirm(f"records will be deleted ({named})", execute=execute)
        rows: list[tuple[str, int, int]] = []
        with Trials() as trials:
            for place, value in wanted.items():
                with trials.trying():
                    starts = admin.delete_records({place: value})
                    rows += [(place.topic, place.partition, start) for start in starts.values()]
            if json:
                keys = ("topic", "partition", "low_watermark")
                print_json([dict(zip(keys, row, strict=True)) for row in rows])
            elif rows:
                print_table(("TOPIC", "PARTITION", "LOW-WATERMARK"), rows, right=("PARTITION", "LOW-WATERMARK"))


def _read_cuts(file: str) -> list[_Cut]:
    """What a file says of where partitions shall start.

    Raises:
        ConfigError: It cannot be read, is no JSON, or says something else.
    """
    import json  # noqa: PLC0415 - tells lines, as msgspec does not

    from pystreamlog.cli.input_files import read_text  # noqa: PLC0415 - few commands read files

    text = read_text(file)
    try:
        cuts = msgspec.convert(json.loads(text), _Cuts)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}, line {error.lineno}: no JSON: {error.msg}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: no JSON of records to delete: nested too deeply") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from error
    if cuts.version != 1:
        raise ConfigError(f"{file} has version {cuts.version}: known is 1")
    if not cuts.partitions:
        raise ConfigError(f"{file} names no partitions")
    return cuts.partitions


def _checked_cuts(admin: Admin, file: str, cuts: list[_Cut]) -> dict[TopicPartition, int]:
    """The offsets by partition, if all of these are there.

    Raises:
        ExceptionGroup: Of `ConfigError`, `UnknownTopicError`, `UnknownPartitionError`; each names its entry.
    """
    from pystreamlog.cli.input_files import about_place  # noqa: PLC0415 - few commands read files

    wanted: dict[TopicPartition, int] = {}
    with Trials() as trials:
        for number, (topic, partition, offset) in enumerate(map(msgspec.structs.astuple, cuts), 1):
            place = TopicPartition(topic, partition)
            with trials.trying(), about_place(f"{file}, entry {number}"):
                if place in wanted:
                    raise ConfigError(f"{topic}:{partition} is named twice")
                if offset < -1:
                    raise ConfigError(f"offset {offset} is neither an offset nor -1, which deletes all")
                check_place(admin, place)
                wanted[place] = offset
    return wanted


def _check_ends(admin: Admin, wanted: dict[TopicPartition, int]) -> None:
    """See that no offset lies beyond its partition's end, before anything is deleted.

    Raises:
        ExceptionGroup: Of `OffsetOutOfRangeError`.
    """
    ends = admin.list_offsets(dict.fromkeys(wanted, "latest"))
    with Trials() as trials:
        for place, offset in wanted.items():
            end = ends[place].offset
            with trials.trying():
                if offset > end:
                    raise OffsetOutOfRangeError(
                        f"{place.topic}:{place.partition} ends at {end}, below {offset}: -1 deletes all that there is",
                        topic=place.topic,
                        partition=place.partition,
                        offset=offset,
                    )
