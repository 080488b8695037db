"""`pystreamlog consume`: records become lines, as in Kafka's console consumer.

It ends at the ends that it found, so that pipes end; `--follow` goes on. What was written out and flushed counts as
handled: with `--group`, that is committed, and nothing else, however the command ends.
"""

from __future__ import annotations

import re
import select
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from time import monotonic
from typing import Annotated, Any

import typer

from pystreamlog.backend.consumer import Consumer, ConsumerConfig
from pystreamlog.backend.log import StreamLog
from pystreamlog.backend.records import Records, RecordSlice
from pystreamlog.cli.options import LogOption, TopicsArgument, complete_groups, complete_topics
from pystreamlog.cli.output import warn, written
from pystreamlog.cli.running import opened
from pystreamlog.cli.selecting import argument_or_option
from pystreamlog.cli.settings import parse_settings
from pystreamlog.errors import ConfigError, UnknownPartitionError, UnknownTopicError
from pystreamlog.record.record import TopicPartition

__all__ = ["ConsumerProperties", "consume"]

_FIRST_RECORDS, _MOST_RECORDS = 100, 100_000
_WRITE_BYTES = 8 << 20
"""Bytes that a poll is to bring: as many records as that is, going by those before."""
_POLL_SECONDS = 0.5
_IDLE_SECONDS = 1.0
"""How long nothing comes before an end that is not reached is not waited for: its last records may be gone."""
_NEVER_MS = 2**31 - 1
_TAKEN_SECONDS = 0.1
"""How often to see whether a signal came, while nobody takes what is written."""

ConsumerProperties = Annotated[
    list[str] | None,
    typer.Option(
        "--command-property",
        "--consumer-property",
        metavar="NAME=VALUE",
        help="A consumer's setting, as session_timeout_ms=10000; may be repeated.",
    ),
]


def consume(
    *,
    topics_argument: TopicsArgument = None,
    topic: Annotated[
        list[str] | None, typer.Option(help="What to read; may be repeated.", autocompletion=complete_topics)
    ] = None,
    include: Annotated[
        str | None, typer.Option("--include", "--whitelist", metavar="REGEX", help="Read the topics whose names match.")
    ] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Read this partition only.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Begin with the oldest record; so it is without --follow.")
    ] = False,
    offset: Annotated[
        str | None, typer.Option(help="Begin there: a number, earliest, latest, or -10 for the last ten.")
    ] = None,
    timestamp: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin there: 2026-03-01T12:00 (UTC), or ms since 1970.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on at the end, with what comes; begin there, unless told.")
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(
            help="Share the work with this group, and commit what was written.", autocompletion=complete_groups
        ),
    ] = None,
    max_messages: Annotated[int | None, typer.Option(min=1, help="End after so many records.")] = None,
    timeout_ms: Annotated[
        int | None, typer.Option(min=0, help="Follow, and end when nothing came for so long.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print each record as a line of JSON.")] = False,
    formatter_property: Annotated[
        list[str] | None,
        typer.Option(
            "--formatter-property",
            "--property",
            metavar="NAME=VALUE",
            help="What lines hold: print.key, print.value, print.timestamp, print.partition, print.offset, "
            "print.headers (true or false), key.separator, line.separator, headers.separator, null.literal.",
        ),
    ] = None,
    command_property: ConsumerProperties = None,
    isolation_level: Annotated[
        str | None, typer.Option(help="read_committed or read_uncommitted: here both read what is committed.")
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Write there, not to the standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over the --output that there is.")] = False,
    log: LogOption = None,
) -> None:
    """Print records: those that there are, or with --follow all that come."""
    from pystreamlog.cli.interrupts import Interrupted, interruptible  # noqa: PLC0415 - for `--help` to be quick
    from pystreamlog.cli.starts import parse_start  # noqa: PLC0415 - the same

    topic = argument_or_option(topics_argument, topic, "--topic")
    follow = follow or timeout_ms is not None
    settings = _settings(command_property, group, isolation_level)
    default = "latest" if follow else "earliest"
    start = parse_start(
        offset,
        timestamp,
        from_beginning=from_beginning,
        partition=partition,
        default=settings.get("auto_offset_reset", default),
    )
    settings["auto_offset_reset"] = start.reset or default
    _check(topic, include, partition, group, start_given=offset is not None or timestamp is not None)
    if settings["auto_offset_reset"] == "none" and group is None:
        raise ConfigError("auto_offset_reset=none is for a --group that has committed: say where to begin")
    reading: _Reading | None = None
    try:
        with (
            interruptible() as interrupts,
            opened(log, read_only=group is None, prints=False) as stream_log,
            _target(output, force=force) as (target, is_terminal),
            stream_log.consumer(**settings) as consumer,
        ):
            writer = _writer(stream_log, formatter_property, json=json, escaping=is_terminal)
            name = "the standard output" if output in (None, "-") else str(output)
            reading = _Reading(
                stream_log, consumer, writer, target, name, interrupts, commits=group is not None, quiet=is_terminal
            )
            reading.begin(_topics(stream_log, topic, include), include, partition, start, follow=follow)
            with closing(reading):
                reading.run(max_messages, None if timeout_ms is None else timeout_ms / 1000)
            reading.tell()
    except Interrupted as interrupted:
        warn(f"interrupted: consumed {reading.consumed if reading else 0:,} records")
        raise typer.Exit(interrupted.status) from None
    except BrokenPipeError:
        raise
    except Exception:
        if reading is not None and reading.consumed:
            warn(f"consumed {reading.consumed:,} records before this:")
        raise


def _check(
    topic: list[str] | None, include: str | None, partition: int | None, group: str | None, *, start_given: bool
) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: Some do not.
    """
    if bool(topic) == (include is not None):
        raise ConfigError(
            "say what to read: either topics, as `pystreamlog consume orders`, or with --topic or --include"
        )
    if group is not None and (partition is not None or start_given):
        raise ConfigError(
            "--group takes the partitions that its members share, and goes on where it committed: it goes with neither "
            "--partition, --offset nor --timestamp"
        )
    if partition is not None and (include is not None or len(topic or []) > 1):
        raise ConfigError("--partition goes with one --topic, or one topic without that")


def _settings(pairs: list[str] | None, group: str | None, isolation_level: str | None) -> dict[str, Any]:
    """What properties and options say of the consumer.

    Raises:
        ConfigError: A name is unknown, or a value none of its kind or out of range.
    """
    settings = parse_settings(pairs or [], ConsumerConfig, "consumer")
    given = {"group_id": group, "isolation_level": isolation_level}
    settings.update({name: value for name, value in given.items() if value is not None})
    if settings.get("group_id") != group:
        raise ConfigError("group_id: name the group by --group")
    # What is read is written by this command at its own pace: a pager may hold it up for long.
    settings = {"max_poll_interval_ms": _NEVER_MS, **settings, "enable_auto_commit": False}
    ConsumerConfig(**settings)
    return settings


def _topics(log: StreamLog, names: list[str] | None, include: str | None) -> list[str]:
    """The topics to read, as far as they are there.

    Raises:
        UnknownTopicError: One is not there.
        ConfigError: The pattern is no regular expression.
    """
    if include is None:
        for name in names or []:
            _check_topic(log, name, "does not exist")
        return list(dict.fromkeys(names or []))
    try:
        pattern = re.compile(include)
    except re.error as error:
        raise ConfigError(f"--include {include!r} is no regular expression: {error}") from error
    return [name for name in log.topics() if not name.startswith("__") and pattern.fullmatch(name)]


def _check_topic(log: StreamLog, name: str, otherwise: str) -> None:
    try:
        log.topic(name)
    except UnknownTopicError as error:
        message = f"topic {name!r} {otherwise}: `pystreamlog topics list` shows what there is"
        raise UnknownTopicError(message, topic=name) from error


@contextmanager
def _target(output: str | None, *, force: bool) -> Iterator[tuple[Any, bool]]:
    """Where lines go, and whether that is a terminal.

    Raises:
        ConfigError: The file is there already, or cannot be made; or the standard output is closed.
    """
    if output is None or output == "-":
        if sys.stdout is None:
            raise ConfigError("there is no standard output: it was closed; name a file by --output")
        sys.stdout.flush()
        buffer = sys.stdout.buffer
        yield getattr(buffer, "raw", buffer), sys.stdout.isatty()
        return
    try:
        file = open(output, "wb" if force else "xb", buffering=0)  # noqa: SIM115 - closed below
    except FileExistsError:
        raise ConfigError(f"{output} is there already: add --force to write over it") from None
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from error
    try:
        yield file, False
    finally:
        file.close()


def _writer(
    log: StreamLog, pairs: list[str] | None, *, json: bool, escaping: bool
) -> Callable[[RecordSlice, int], bytes]:
    from pystreamlog.cli.formatter import json_formatter, text_formatter  # noqa: PLC0415 - for `--help` to be quick
    from pystreamlog.cli.properties import formatter_properties  # noqa: PLC0415 - the same

    if json:
        if pairs:
            raise ConfigError("--json and --formatter-property exclude each other: JSON has everything")
        return json_formatter(escaping=escaping)

    def timestamp_type(topic: str) -> str:
        return str(log.topic(topic).config["message_timestamp_type"])

    return text_formatter(formatter_properties(pairs or []), escaping=escaping, timestamp_type=timestamp_type)


class _Reading:
    """Reads from the start to the ends, or for ever.

    Args:
        log: Where the topics are.
        consumer: Reads.
        write: Makes bytes of records.
        target: Where they go.
        name: What that is called.
        interrupts: Lets what was written be committed.
        commits: Commit what was written.
        quiet: Show no progress: the target is a terminal.

    Attributes:
        consumed: Records that were written out.
    """

    def __init__(
        self,
        log: StreamLog,
        consumer: Consumer[bytes, bytes],
        write: Callable[[RecordSlice, int], bytes],
        target: Any,
        name: str,
        interrupts: Any,
        *,
        commits: bool,
        quiet: bool,
    ) -> None:
        from pystreamlog.cli.progress import Progress, is_terminal  # noqa: PLC0415 - for `--help` to be quick

        self._log = log
        self._consumer = consumer
        self._write = write
        self._target = target
        self._interrupts = interrupts
        self._commits = commits
        self._descriptor = _descriptor(target)
        self._name = name
        self._shown = not quiet and is_terminal()
        self._progress = Progress("records", shown=self._shown)
        self._topics: list[str] = []
        self._ends: dict[TopicPartition, int] | None = None
        self._positions: dict[TopicPartition, int] = {}
        self._size = 0
        self.consumed = 0

    def begin(self, topics: list[str], include: str | None, partition: int | None, start: Any, *, follow: bool) -> None:
        """Go to the start.

        Args:
            topics: What to read.
            include: What the names of topics match, also of those to come; None when they were named.
            partition: Only this one.
            start: Where to begin.
            follow: Go on at the ends.

        Raises:
            UnknownPartitionError: There is no such partition.
            UnknownTopicError: No topic matches.
        """
        from pystreamlog.cli.progress import Progress  # noqa: PLC0415 - for `--help` to be quick

        consumer = self._consumer
        if not topics and not follow:
            raise UnknownTopicError(f"no topic matches {include!r}: `pystreamlog topics list` shows what there is")
        self._topics = topics if include is None else []
        counts = {name: self._log.topic(name).partitions for name in topics}
        tps = [TopicPartition(name, number) for name, count in counts.items() for number in range(count)]
        if partition is not None:
            tps = [tp for tp in tps if tp.partition == partition]
            if not tps:
                message = f"topic {topics[0]!r} has no partition {partition}: it has {counts[topics[0]]}, from 0 on"
                raise UnknownPartitionError(message, topic=topics[0], partition=partition)
        total = None
        ends = consumer.end_offsets(tps)
        if self._commits or (follow and start.reset and partition is None):
            if include is not None and follow:
                consumer.subscribe(pattern=include)
            else:
                consumer.subscribe(topics)
        else:
            offsets = start.offsets(consumer, tps)
            consumer.assign(tps)
            for tp, offset in offsets.items():
                consumer.seek(tp, offset)
            total = sum(max(0, ends[tp] - offset) for tp, offset in offsets.items())
        if not follow:
            self._ends = ends
            self._progress = Progress("records", total=total, shown=self._shown)

    def run(self, most: int | None, timeout: float | None) -> None:
        """Read and write.

        Args:
            most: End after so many records; None for no such end.
            timeout: End when nothing came for so many seconds; None waits for ever.

        Raises:
            UnknownTopicError: What is followed was deleted.
            CorruptLogError: A partition does not verify; what is before the damage was written.
        """
        limit, patience = _FIRST_RECORDS, _POLL_SECONDS if timeout is None else min(_POLL_SECONDS, timeout)
        last = monotonic()
        while (most is None or self.consumed < most) and not self._is_at_ends():
            wanted = limit if most is None else min(limit, most - self.consumed)
            records = self._consumer.poll(patience, max_records=wanted)
            if records:
                size = self._write_out(records)
                limit = min(_MOST_RECORDS, max(1, _WRITE_BYTES * len(records) // max(1, size)))
                last = monotonic()
                continue
            waited = monotonic() - last
            if timeout is not None and waited >= timeout:
                return
            if self._ends is None:
                self._check_there()
            elif waited >= _IDLE_SECONDS:
                return

    def _is_at_ends(self) -> bool:
        """Whether every partition was read to the end that it had; in a group also those of other members."""
        ends = self._ends
        if ends is None:
            return False
        assigned = self._consumer.assignment()
        if self._commits and not assigned:
            return False
        if any(self._position(tp) < ends.get(tp, 0) for tp in assigned):
            return False
        # A partition may be on its way from one member to another: neither must be gone when it comes.
        others = ends.keys() - assigned if self._commits else ()
        committed = self._consumer.committed(*others) if others else {}
        return all(what is not None and what.offset >= ends[tp] for tp, what in committed.items())

    def _position(self, tp: TopicPartition) -> int:
        """The next offset of a partition; -1 when the group does not know it yet."""
        if not self._commits:
            return self._consumer.position(tp)
        if tp not in self._positions:
            committed = self._consumer.committed(tp)[tp]
            if committed is None:
                return -1
            self._positions[tp] = committed.offset
        return self._positions[tp]

    def _check_there(self) -> None:
        """Raise when what is followed is gone."""
        if not self._topics:
            self._log.topics()
        for name in self._topics:
            _check_topic(self._log, name, "was deleted")

    def _write_out(self, records: Records[bytes, bytes]) -> int:
        """Write records out, as far as they lie before the ends, and commit them; how many bytes they made."""
        parts: list[bytes] = []
        written: dict[TopicPartition, int] = {}
        count = 0
        for part in records.slices:
            length = len(part)
            end = None if self._ends is None else self._ends.get(part.tp, 0)
            if end is not None and part.last_offset >= end:
                length = bisect_left(part.offsets(), end)
                self._consumer.pause(part.tp)
            if length:
                parts.append(self._write(part, length))
                written[part.tp] = part.offsets()[length - 1] + 1
                count += length
        size = sum(map(len, parts))
        with self._interrupts.held():  # what is written is counted and committed, whatever comes
            self._write_all(b"".join(parts))
            self.consumed += count
            if self._commits and written:
                self._consumer.commit(written)
                self._positions.update(written)
        self._size += size
        self._progress.advance(self.consumed, self._size)
        return size

    def _write_all(self, data: bytes) -> None:
        """Write all of it, past any buffer: what is written is what others have.

        Raises:
            Interrupted: A signal came while nobody took it.
            OutputError: It cannot be written.
        """
        left = memoryview(data)
        while left:
            # A write that waits begins again after a signal, unless it has written something: so it begins where it
            # can write something.
            while self._descriptor >= 0 and not select.select([], [self._descriptor], [], _TAKEN_SECONDS)[1]:
                self._interrupts.check()
            left = left[written(self._target.write, left, to=self._name) :]
            if left:
                self._interrupts.check()

    def close(self) -> None:
        """Take the line of progress away."""
        self._progress.end()

    def tell(self) -> None:
        """Say to a terminal what was done; a pipeline knows by the exit status."""
        if self._shown:
            warn(f"consumed {self.consumed:,} records")


def _descriptor(target: Any) -> int:
    """The file descriptor that is written to; -1 where there is none that could hold a write up."""
    try:
        return int(target.fileno())
    except (AttributeError, OSError):  # a buffer in memory
        return -1
