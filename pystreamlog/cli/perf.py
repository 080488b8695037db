"""`pystreamlog perf`: measures a log from the command line, and prints the lines of Kafka's performance tools."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from random import Random
from typing import Annotated, Any

import typer

from pystreamlog.backend.consumer import ConsumerConfig
from pystreamlog.backend.delivery import Delivery
from pystreamlog.backend.producer import Producer
from pystreamlog.cli.consume import ConsumerProperties
from pystreamlog.cli.options import JsonOption, LogOption, complete_groups, complete_topics
from pystreamlog.cli.output import flush_output, print_json, print_line, warn
from pystreamlog.cli.produce import CreateOption, ProducerProperties, existing_topic, producer_settings
from pystreamlog.cli.running import Commands, opened
from pystreamlog.cli.settings import parse_settings
from pystreamlog.errors import ConfigError, StreamLogError
from pystreamlog.record.record import TopicPartition

__all__ = ["app"]

app = typer.Typer(
    name="perf",
    cls=Commands,
    help="Measure producing, consuming, and the way from one to the other.",
    no_args_is_help=True,
)

_PAYLOADS = 1000
"""Different payloads that are made before the clock starts, and sent in turn."""
_FETCH_RECORDS = 10_000
_LARGE_BYTES = 64 << 10
_LARGEST_BYTES = 1 << 30  # what `max_request_size` allows at most
_LETTERS = bytes(ord("A") + number % 26 for number in range(256))
_SLEEP_SECONDS = 0.1
_E2E_SECONDS = 60.0
_E2E_REPORTS = 1000

TopicOption = Annotated[str, typer.Option(help="The topic.", autocompletion=complete_topics)]
CountOption = Annotated[int, typer.Option("--num-records", "--messages", min=1, help="How many records.")]
MetricsOption = Annotated[bool, typer.Option("--print-metrics", help="Print the client's metrics at the end.")]
IntervalOption = Annotated[
    int, typer.Option("--reporting-interval", min=1, metavar="MS", help="From one report to the next.")
]


@app.command()
def produce(
    *,
    topic: TopicOption,
    num_records: CountOption,
    record_size: Annotated[
        int | None, typer.Option(min=1, max=_LARGEST_BYTES, metavar="BYTES", help="Send values of so many.")
    ] = None,
    payload_file: Annotated[str | None, typer.Option(metavar="FILE", help="Send the values in this file.")] = None,
    payload_delimiter: Annotated[str, typer.Option(help="Stands between the values in it; \\n is a new line.")] = "\\n",
    throughput: Annotated[float, typer.Option(help="So many records a second at most; -1 for no limit.")] = -1,
    command_property: ProducerProperties = None,
    print_metrics: MetricsOption = False,
    reporting_interval: IntervalOption = 5000,
    create: CreateOption = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Send records one by one; latencies are from the call to the acknowledgement."""
    from pystreamlog.cli.interrupts import Interrupted, interruptible  # noqa: PLC0415 - for `--help` to be quick
    from pystreamlog.cli.perf_figures import total_line  # noqa: PLC0415 - the same

    payloads = _payloads(record_size, payload_file, payload_delimiter)
    settings = producer_settings(command_property, {})
    sending: _Sending | None = None
    try:
        with ExitStack() as stack:
            interrupts = stack.enter_context(interruptible())
            stream_log = stack.enter_context(opened(log, create=create))
            existing_topic(stream_log, topic, create=create)
            producer = stack.enter_context(stream_log.producer(**settings))
            sending = _Sending(producer, topic, reporting_interval / 1000, as_json=json)
            with interrupts.held():  # so that each record that was accepted is counted
                try:
                    sending.run(islice(cycle(payloads), num_records), throughput, interrupts.check)
                finally:
                    producer.flush()
                    figures = sending.latencies.total()
            if json:
                print_json({**figures, **({"metrics": producer.metrics()} if print_metrics else {})})
            else:
                print_line(total_line(figures))
                _print_metrics(producer.metrics() if print_metrics else {})
            if sending.failures:
                raise sending.failures[0]
    except Interrupted as interrupted:
        warn(f"interrupted: produced {len(sending.latencies) if sending else 0:,} records")
        raise typer.Exit(interrupted.status) from None


class _Sending:
    """Sends payloads, and notes when each was acknowledged.

    Args:
        producer: Sends.
        topic: Where to.
        interval: Seconds from one report to the next.
        as_json: Reports are JSON.

    Attributes:
        latencies: Of what was acknowledged.
        failures: What other records failed with.
    """

    def __init__(self, producer: Producer[bytes, bytes], topic: str, interval: float, *, as_json: bool) -> None:
        from pystreamlog.cli.perf_figures import Latencies  # noqa: PLC0415 - for `--help` to be quick

        self._producer = producer
        self._topic = topic
        self._interval = interval
        self._as_json = as_json
        self.latencies = Latencies()
        self.failures: list[BaseException] = []

    def run(self, payloads: Iterable[bytes], throughput: float, check: Callable[[], None]) -> None:
        """Send them all.

        Args:
            payloads: The values.
            throughput: Records a second at most; no limit unless it is above 0.
            check: Called before each record, and while there is none to send.
        """
        send, topic, clock = self._producer.send, self._topic, time.perf_counter
        started = now = clock()
        report = started + self._interval
        for number, payload in enumerate(payloads):
            check()
            while throughput > 0 and (ahead := started + number / throughput - now) > 0:
                time.sleep(min(ahead, _SLEEP_SECONDS))
                check()
                now = clock()
            delivery = send(topic, payload)
            delivery.add_done_callback(partial(self._acknowledge, now, len(payload)))
            now = clock()
            if now >= report:
                report = now + self._interval
                self._report()
            if self.failures:
                return

    def _acknowledge(self, sent: float, size: int, delivery: Delivery) -> None:
        error = delivery.exception(0)
        if error is None:
            self.latencies.add((time.perf_counter() - sent) * 1e3, size)
        else:
            self.failures.append(error)

    def _report(self) -> None:
        from pystreamlog.cli.perf_figures import window_line  # noqa: PLC0415 - for `--help` to be quick

        figures = self.latencies.window()
        if self._as_json:
            print_json(figures)
        else:
            print_line(window_line(figures))
        flush_output()


def _payloads(record_size: int | None, payload_file: str | None, delimiter: str) -> Sequence[bytes]:
    """The values to send, in turn.

    Raises:
        ConfigError: Neither or both of size and file were given, or the file cannot be read or is empty.
    """
    if (record_size is None) == (payload_file is None):
        raise ConfigError("say what to send: either --record-size or --payload-file")
    if record_size is not None:
        random = Random(0)  # noqa: S311 - not a secret, and the same each time
        count = _PAYLOADS if record_size < _LARGE_BYTES else 1
        return [random.randbytes(record_size).translate(_LETTERS) for _ in range(count)]
    assert payload_file is not None
    try:
        with open(payload_file, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"{payload_file} cannot be read: {error.strerror}") from error
    separator = delimiter.replace("\\n", "\n").replace("\\t", "\t").encode()
    if not separator:
        raise ConfigError("--payload-delimiter is empty: it must be there to be found")
    payloads = data.removesuffix(separator).split(separator) if data else []
    if not payloads:
        raise ConfigError(f"{payload_file} is empty: it must hold what is to be sent")
    return payloads


def _print_metrics(metrics: dict[str, float]) -> None:
    """Print metrics by their names."""
    if metrics:
        width = max(map(len, metrics))
        print_line("")
        for name, value in sorted(metrics.items()):
            print_line(f"{name:<{width}} : {value:.3f}")


@app.command()
def consume(
    *,
    topic: TopicOption,
    num_records: CountOption,
    group: Annotated[str | None, typer.Option(help="Read as this group.", autocompletion=complete_groups)] = None,
    from_latest: Annotated[
        bool, typer.Option("--from-latest", help="Begin at the end, if nothing is committed.")
    ] = False,
    timeout: Annotated[int, typer.Option(min=0, metavar="MS", help="Give up when nothing came for so long.")] = 10_000,
    show_detailed_stats: Annotated[
        bool, typer.Option("--show-detailed-stats", help="A line every --reporting-interval.")
    ] = False,
    hide_header: Annotated[bool, typer.Option("--hide-header", help="Leave out the head of the table.")] = False,
    command_property: ConsumerProperties = None,
    print_metrics: MetricsOption = False,
    reporting_interval: IntervalOption = 5000,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Read records as fast as they come."""
    from pystreamlog.cli.interrupts import Interrupted, interruptible  # noqa: PLC0415 - for `--help` to be quick
    from pystreamlog.cli.perf_figures import (  # noqa: PLC0415 - the same
        ConsumerFigures,
        consumer_head,
        consumer_line,
    )

    settings = {
        "auto_offset_reset": "latest" if from_latest else "earliest",
        "max_poll_records": _FETCH_RECORDS,
        **parse_settings(command_property or [], ConsumerConfig, "consumer"),
        **({"group_id": group} if group is not None else {}),
    }
    ConsumerConfig(**settings)
    if not (hide_header or json):
        print_line(consumer_head(detailed=show_detailed_stats))
    figures: ConsumerFigures | None = None
    try:
        with ExitStack() as stack:
            stack.enter_context(interruptible())
            stream_log = stack.enter_context(opened(log, read_only=settings.get("group_id") is None))
            stream_log.topic(topic)
            consumer = stack.enter_context(stream_log.consumer(**settings))
            figures = ConsumerFigures(time.time())

            def assigned(_: Any, __: list[TopicPartition]) -> None:
                if "group_id" in settings and not figures.rebalance_seconds:
                    figures.rebalance_seconds = time.time() - figures.start

            consumer.subscribe([topic], on_assign=assigned)
            last = reported = figures.start
            since = (reported, 0, 0)
            while figures.count < num_records:
                records = consumer.poll(min(0.1, timeout / 1000))
                now = time.time()
                if records:
                    last = now
                    figures.count += len(records)
                    figures.size += sum(map(len, filter(None, records.values)))
                    figures.size += sum(map(len, filter(None, records.keys)))
                elif (now - last) * 1000 >= timeout:
                    warn(f"ended after {figures.count:,} of {num_records:,} records: nothing came for {timeout} ms")
                    break
                if show_detailed_stats and (now - reported) * 1000 >= reporting_interval and not json:
                    print_line(consumer_line(figures.to_dict(now, since), detailed=True))
                    flush_output()
                    reported, since = now, (now, figures.count, figures.size)
            if show_detailed_stats and figures.count > since[1] and not json:
                print_line(consumer_line(figures.to_dict(last, since), detailed=True))
            found = figures.to_dict(last if figures.count else time.time())
            metrics = consumer.metrics() if print_metrics else {}
            if json:
                print_json({**found, **({"metrics": metrics} if print_metrics else {})})
            else:
                if not show_detailed_stats:
                    print_line(consumer_line(found, detailed=False))
                _print_metrics(metrics)
    except Interrupted as interrupted:
        warn(f"interrupted: consumed {figures.count if figures else 0:,} records")
        raise typer.Exit(interrupted.status) from None


@app.command()
def e2e(
    *,
    topic: TopicOption,
    num_records: CountOption,
    record_size: Annotated[
        int, typer.Option(min=1, max=_LARGEST_BYTES, metavar="BYTES", help="The size of each value.")
    ] = 100,
    record_key_size: Annotated[int, typer.Option(min=0, metavar="BYTES", help="The size of each key; 0 for none.")] = 0,
    command_property: ProducerProperties = None,
    create: CreateOption = False,
    log: LogOption = None,
    json: JsonOption = False,
) -> None:
    """Send a record, wait for its acknowledgement and read it, one after the other."""
    from pystreamlog.cli.interrupts import Interrupted, interruptible  # noqa: PLC0415 - for `--help` to be quick
    from pystreamlog.cli.perf_figures import percentile  # noqa: PLC0415 - the same

    payloads = _payloads(record_size, None, "\n")
    keys = _payloads(record_key_size, None, "\n") if record_key_size else [None]
    settings = producer_settings(command_property, {})
    latencies: list[float] = []
    try:
        with ExitStack() as stack:
            stack.enter_context(interruptible())
            stream_log = stack.enter_context(opened(log, create=create))
            existing_topic(stream_log, topic, create=create)
            consumer = stack.enter_context(stream_log.consumer())
            consumer.assign([TopicPartition(topic, each) for each in range(stream_log.topic(topic).partitions)])
            consumer.seek_to_end()
            producer = stack.enter_context(stream_log.producer(**settings))
            rows = zip(range(num_records), cycle(payloads), cycle(keys), strict=False)
            for number, payload, key in rows:
                begun = time.perf_counter()
                producer.send(topic, payload, key).result()
                found = consumer.poll(_E2E_SECONDS).values
                latencies.append((time.perf_counter() - begun) * 1e3)
                if found != [payload]:
                    raise StreamLogError(
                        f"record {number} did not come back alone: {len(found)} records came; does anybody else use "
                        f"topic {topic!r}? Take one of its own"
                    )
                if number % _E2E_REPORTS == 0 and not json:
                    print_line(f"{number}\t{latencies[-1]:.4f}")
                    flush_output()
    except Interrupted as interrupted:
        warn(f"interrupted: {len(latencies):,} records went all the way")
        raise typer.Exit(interrupted.status) from None
    ascending = sorted(latencies)
    average = sum(latencies) / len(latencies)
    named = {name: percentile(ascending, part) for name, part in (("50th", 0.5), ("99th", 0.99), ("99.9th", 0.999))}
    if json:
        print_json(
            {"records": len(latencies), "latency_ms_avg": average} | {f"latency_ms_{n}": v for n, v in named.items()}
        )
    else:
        print_line(f"Avg latency: {average:.4f} ms")
        print_line(f"Percentiles: {', '.join(f'{name} = {value:.4f}' for name, value in named.items())}")
