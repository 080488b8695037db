"""`pystreamlog produce`: lines become records, as in Kafka's console producer.

What was accepted before something went wrong, a bad line, Ctrl-C or a closed pipe, is written and counted.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import groupby
from time import time_ns
from typing import Annotated, Any, BinaryIO

import typer

from pystreamlog.backend.delivery import Deliveries
from pystreamlog.backend.log import StreamLog
from pystreamlog.backend.producer import Producer, ProducerConfig
from pystreamlog.cli.options import LogOption, TopicArgument, complete_topics
from pystreamlog.cli.output import on_terminal, warn
from pystreamlog.cli.running import opened
from pystreamlog.cli.selecting import argument_or_option
from pystreamlog.cli.settings import parse_settings
from pystreamlog.errors import ConfigError, RecordTooLargeError, StreamLogError, UnknownTopicError

__all__ = ["CreateOption", "ProducerProperties", "existing_topic", "produce", "producer_settings"]

_OVERHEAD = 64 << 10
"""Bytes that keys' separators and headers of a line may take beside its record."""
_JSON_FACTOR = 8
"""A byte of a record takes six at most in JSON; the rest is for blanks."""

ProducerProperties = Annotated[
    list[str] | None,
    typer.Option(
        "--command-property",
        "--producer-property",
        metavar="NAME=VALUE",
        help="A producer's setting, as linger_ms=0; may be repeated.",
    ),
]
CreateOption = Annotated[bool, typer.Option("--create", help="Make the topic, of one partition, if it is missing.")]


def produce(
    *,
    topic_argument: TopicArgument = None,
    topic: Annotated[str | None, typer.Option(help="Where the records go.", autocompletion=complete_topics)] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="FILE", help="Read this file, or - ; may be repeated.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Each line is a record in JSON, as `consume --json` prints it.")
    ] = False,
    partition: Annotated[int | None, typer.Option(min=0, help="The partition, instead of the keys'.")] = None,
    keep_partitions: Annotated[
        bool, typer.Option("--keep-partitions", help="With --json: each record goes to the partition its line names.")
    ] = False,
    reader_property: Annotated[
        list[str] | None,
        typer.Option(
            "--reader-property",
            "--property",
            metavar="NAME=VALUE",
            help="How lines are read: parse.key, key.separator, parse.headers, headers.delimiter, headers.separator, "
            "headers.key.separator, null.marker, ignore.error.",
        ),
    ] = None,
    command_property: ProducerProperties = None,
    compression_codec: Annotated[
        str | None, typer.Option(metavar="CODEC", help="none, gzip, lz4 or zstd, with a level as in zstd:3.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="BYTES", help="How much gathers in a batch.")] = None,
    timeout: Annotated[int | None, typer.Option(metavar="MS", help="How long records gather: linger_ms.")] = None,
    max_block_ms: Annotated[
        int | None,
        typer.Option(
            metavar="MS", help="How long to wait for room in the buffer; delivery_timeout_ms says how long for a lock."
        ),
    ] = None,
    sync: Annotated[
        bool, typer.Option("--sync", help="Wait for what was read to be acknowledged before more is read.")
    ] = False,
    create: CreateOption = False,
    log: LogOption = None,
) -> None:
    """Send lines of the standard input, or of files, as records."""
    from pystreamlog.cli.interrupts import Interrupted, interruptible  # noqa: PLC0415 - for `--help` to be quick
    from pystreamlog.cli.line_reader import json_columns, text_parser  # noqa: PLC0415 - the same
    from pystreamlog.cli.properties import reader_properties  # noqa: PLC0415 - the same

    name = argument_or_option(topic_argument, topic, "--topic", example="pystreamlog produce orders")
    assert name is not None
    options = {
        "compression_type": compression_codec,
        "batch_size": batch_size,
        "linger_ms": timeout,
        "max_block_ms": max_block_ms,
    }
    settings = producer_settings(command_property, options)
    if json and reader_property:
        raise ConfigError("--json and --reader-property exclude each other: JSON says by itself what is a key")
    if keep_partitions and (partition is not None or not json):
        raise ConfigError("--keep-partitions takes the partitions from lines of JSON: use it with --json alone")
    parse = json_columns if json else text_parser(reader_properties(reader_property or []))
    names = inputs or ["-"]
    size = _total_size(names)
    count = 0
    try:
        with ExitStack() as stack:
            interrupts = stack.enter_context(interruptible())
            stream_log = stack.enter_context(opened(log, create=create, prints=False))
            existing_topic(stream_log, name, create=create)
            producer = stack.enter_context(stream_log.producer(**settings))
            sending = Sending(producer, name, partition, keep_partitions=keep_partitions, sync=sync)
            limit = ProducerConfig(**settings).max_request_size * (_JSON_FACTOR if json else 2) + _OVERHEAD
            progress = stack.enter_context(closing(_Progress(size, prompting=names == ["-"])))
            try:
                for file, first, lines in _numbered_lines(names, limit, progress):
                    with interrupts.held():
                        sending.lines(file, first, lines, parse)
                    progress.sent(sending)
            finally:
                with interrupts.held():
                    try:
                        sending.finish()
                    finally:
                        count = sending.produced
                        progress.close()
            progress.tell(f"produced {count:,} records")
    except Interrupted as interrupted:
        warn(f"interrupted: produced {count:,} records")
        raise typer.Exit(interrupted.status) from None
    except (StreamLogError, OSError, ExceptionGroup):
        if count:
            warn(f"produced {count:,} records before this:")
        raise


def producer_settings(pairs: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """What properties and options say of a producer; an option wins over a property.

    Raises:
        ConfigError: A name is unknown, or a value none of its kind or out of range.
    """
    settings = parse_settings(pairs or [], ProducerConfig, "producer")
    settings.update({name: value for name, value in options.items() if value is not None})
    if "transactional_id" in settings or "producer_id" in settings:
        raise ConfigError("transactions and producer ids need a program: lines have no sequences")
    ProducerConfig(**settings)
    return settings


def existing_topic(log: StreamLog, name: str, *, create: bool) -> None:
    """Make sure that there is such a topic.

    Raises:
        UnknownTopicError: There is none, and it is not to be made.
    """
    if create:
        if name not in log.topics():
            log.create_topic(name, exist_ok=True)
        return
    try:
        log.topic(name)
    except UnknownTopicError as error:
        message = f"topic {name!r} does not exist: `pystreamlog topics create {name}` makes it, or add --create"
        raise UnknownTopicError(message, topic=name) from error


class Sending:
    """Sends lines, and counts what was acknowledged.

    Args:
        producer: Sends.
        topic: Where to.
        partition: Which partition; None leaves it to the keys.
        keep_partitions: Each record names its partition.
        sync: Wait for each block of lines.

    Attributes:
        produced: Records that were acknowledged.
        size: Bytes of the lines that were accepted.
    """

    def __init__(
        self, producer: Producer[bytes, bytes], topic: str, partition: int | None, *, keep_partitions: bool, sync: bool
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._partition = partition
        self._keep_partitions = keep_partitions
        self._sync = sync
        self._waiting: deque[Deliveries] = deque()
        self.produced = 0
        self.size = 0

    def lines(self, name: str, first: int, lines: list[bytes], parse: Any) -> None:
        """Send lines, or those before the first that cannot be.

        Args:
            name: Where they come from, for messages.
            first: Number of the first line there.
            lines: The lines.
            parse: Makes columns of them.

        Raises:
            StreamLogError: A line is no record, or cannot be accepted; its number is told.
        """
        from pystreamlog.cli.line_reader import BadLineError  # noqa: PLC0415 - loaded by the command

        bad: BadLineError | None = None
        try:
            columns = parse(lines)
        except BadLineError as error:
            bad = error
            while True:  # what is wrong first may be found last: headers come before keys
                try:
                    columns = parse(lines[: bad.index])
                except BadLineError as earlier:
                    bad = earlier
                    continue
                break
        self._send(name, first, columns)
        if bad is not None:
            raise StreamLogError(f"line {first + bad.index} of {name}: {bad}") from bad
        self.size += sum(map(len, lines))

    def _send(self, name: str, first: int, columns: Any) -> None:
        count, index = len(columns.values), 0
        partitions = columns.partitions if self._keep_partitions else None
        runs: Iterator[tuple[int | None, int]] = iter([(self._partition, count)] if count else [])
        if partitions is not None:
            runs = ((key, sum(1 for _ in group)) for key, group in groupby(partitions))
        for partition, length in runs:
            part = columns.part(index, index + length) if length < count else columns
            try:
                self._send_part(part, partition)
            except StreamLogError as error:
                index += getattr(error, "index", 0)
                raise type(error)(f"line {first + columns.line(index)} of {name}: {error}", **vars(error)) from error
            index += length

    def _send_part(self, part: Any, partition: int | None) -> None:
        """Send records to one partition, or to those of their keys; as many as are accepted before one is not."""
        try:
            deliveries = self._producer.send_many(
                self._topic,
                part.values,
                part.keys,
                headers=part.headers,
                partition=partition,
                timestamps_ms=_stamps(part.timestamps_ms),
            )
        except RecordTooLargeError as error:
            index = getattr(error, "index", 0)
            if index:
                self._send_part(part.part(0, index), partition)
            raise
        self._waiting.append(deliveries)
        if self._sync:
            self.finish()
        while self._waiting and self._waiting[0].done():
            self._settle()

    def _settle(self) -> None:
        """Count the oldest that were sent, once they are written."""
        deliveries = self._waiting.popleft()
        try:
            deliveries.result()
        except ExceptionGroup as group:
            self.produced += len(deliveries) - sum(len(getattr(error, "indices", ())) for error in group.exceptions)
            raise
        self.produced += len(deliveries)  # what was not written in time may be written later, and is not counted

    def finish(self) -> None:
        """Wait for all that was sent.

        Raises:
            ExceptionGroup: Some records were not written.
        """
        failures: list[Exception] = []
        while self._waiting:
            try:
                self._settle()
            except ExceptionGroup as group:
                failures += group.exceptions
            except StreamLogError as error:
                failures.append(error)
        if failures:
            unique = list({str(error): error for error in failures}.values())
            raise ExceptionGroup("records were not written", unique)


def _stamps(column: Any) -> Any:
    """Timestamps for `send_many`: the present where a line has none."""
    if column is None or column.count(None) == len(column):
        return None
    if None not in column:
        return column
    now_ms = time_ns() // 1_000_000
    return [now_ms if each is None else each for each in column]


def _total_size(names: list[str]) -> int | None:
    """Bytes of all files; None when that cannot be known.

    Raises:
        ConfigError: One cannot be read.
    """
    total, known = 0, True
    for name in names:
        if name == "-":
            known = False
            continue
        try:
            status = os.stat(name)
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode) or not os.access(name, os.R_OK):
            why = "it is a directory" if stat.S_ISDIR(status.st_mode) else "permission denied"
            raise ConfigError(f"{name} cannot be read: {why}")
        total += status.st_size
        known = known and stat.S_ISREG(status.st_mode)
    return total if known else None


def _numbered_lines(names: list[str], limit: int, progress: _Progress) -> Iterator[tuple[str, int, list[bytes]]]:
    """The lines of all files, with the file's name and the first one's number.

    Raises:
        StreamLogError: A line is too long.
    """
    from pystreamlog.cli.line_reader import line_blocks  # noqa: PLC0415 - loaded by the command

    for name in names:
        shown = "the standard input" if name == "-" else name
        number = 1
        with ExitStack() as stack:
            file = _standard_input() if name == "-" else stack.enter_context(open(name, "rb"))
            try:
                progress.prompt()
                for lines in line_blocks(file, limit):
                    yield shown, number, lines
                    number += len(lines)
                    progress.prompt()
            except RecordTooLargeError as error:
                if not str(error).startswith("line "):
                    raise RecordTooLargeError(f"line {number} of {shown}: {error}", **vars(error)) from error
                raise


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise ConfigError("there is no standard input: it was closed; name files by --input")
    return sys.stdin.buffer


class _Progress:
    """Tells a terminal how far it came; prompts whoever types the records.

    Args:
        total: Bytes there are.
        prompting: The standard input is read.
    """

    def __init__(self, total: int | None, *, prompting: bool) -> None:
        from pystreamlog.cli.progress import Progress, is_terminal  # noqa: PLC0415 - for `--help` to be quick

        typed = prompting and on_terminal(sys.stdin)
        self._prompts = typed and is_terminal()
        self._is_told = is_terminal()
        self._line = Progress("records", total=total, shown=not typed)

    def prompt(self) -> None:
        """Ask for a line."""
        if self._prompts:
            sys.stderr.write("> ")
            sys.stderr.flush()

    def sent(self, sending: Sending) -> None:
        """Some more were sent."""
        self._line.advance(sending.produced, sending.size, sending.size)

    def close(self) -> None:
        """Take the line away."""
        self._line.end()

    def tell(self, what: str) -> None:
        """Say to a terminal what was done; a pipeline knows by the exit status."""
        if self._is_told:
            warn(what)
