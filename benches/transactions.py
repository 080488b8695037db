"""What a transaction costs: the same records and committed offsets, as a transaction and without one."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import pystreamlog
from benches import payload
from benches.child import Gate, run
from benches.measuring import Line, Settings, best_seconds, fresh_directory
from pystreamlog import TopicPartition

SOURCE, TARGET, GROUP = "source", "target", "copiers"
PARTITIONS = 4
BATCH = 1_000


def _ready(log: pystreamlog.StreamLog, *, per_partition: int) -> None:
    """Make the topics, and records to read."""
    log.create_topic(TARGET, partitions=PARTITIONS)
    log.create_topic(SOURCE, partitions=PARTITIONS)
    with log.producer() as producer:
        for partition in range(PARTITIONS):
            producer.send_many(SOURCE, [b"source"] * per_partition, partition=partition)
            producer.send(TARGET, b"first", partition=partition)


@contextmanager
def stream_sends(directory: Path, *, count: int, transactional: bool) -> Iterator[Callable[[], None]]:
    """Send keyed batches over four partitions and commit an offset of each, by transactions of a batch or without."""
    batches = payload.make_batches(count, shuffled=True)
    with pystreamlog.open(directory / "log") as log:
        _ready(log, per_partition=len(batches) + 1)
        sources = [TopicPartition(SOURCE, number) for number in range(PARTITIONS)]
        with (
            log.producer(transactional_id="copier" if transactional else None) as producer,
            log.consumer(SOURCE, group_id=GROUP, enable_auto_commit=False, auto_offset_reset="earliest") as consumer,
        ):
            while len(consumer.assignment()) < PARTITIONS:
                consumer.poll(0.1)
            consumer.commit(dict.fromkeys(sources, 0))

            def work() -> None:
                for number, (keys, values) in enumerate(batches):
                    producer.send_many(TARGET, values, keys)
                    producer.flush()
                    consumer.commit(dict.fromkeys(sources, number + 1))

            def work_transactions() -> None:
                for number, (keys, values) in enumerate(batches):
                    with producer.transaction():
                        producer.send_many(TARGET, values, keys)
                        producer.send_offsets_to_transaction(
                            dict.fromkeys(sources, number + 1), consumer.group_metadata()
                        )

            if transactional:
                producer.init_transactions()
            yield work_transactions if transactional else work
            assert sum(log.topic(TARGET).end_offsets().values()) == count + PARTITIONS
            committed = {tp: found and found.offset for tp, found in consumer.committed(*sources).items()}
            assert committed == dict.fromkeys(sources, len(batches))


@contextmanager
def stream_copies(directory: Path, *, count: int, transactional: bool) -> Iterator[Callable[[], None]]:
    """Copy a topic, a thousand records at a time, with the consumer's offsets."""
    batches = payload.make_batches(count, shuffled=True)
    with pystreamlog.open(directory / "log") as log:
        log.create_topic(TARGET, partitions=PARTITIONS)
        log.create_topic(SOURCE, partitions=PARTITIONS)
        with log.producer() as filler:
            for keys, values in batches:
                filler.send_many(SOURCE, values, keys)
            for partition in range(PARTITIONS):
                filler.send(TARGET, b"first", partition=partition)
        with (
            log.producer(transactional_id="copier" if transactional else None) as producer,
            log.consumer(SOURCE, group_id=GROUP, enable_auto_commit=False, auto_offset_reset="earliest") as consumer,
        ):

            def copy() -> int:
                records = consumer.poll(1.0, max_records=BATCH)
                if records:
                    producer.send_many(TARGET, records.values, records.keys)
                return len(records)

            def work() -> None:
                copied = 0
                while copied < count:
                    copied += copy()
                    producer.flush()
                    consumer.commit()

            def work_transactions() -> None:
                copied = 0
                while copied < count:
                    with producer.transaction(consumer=consumer):
                        copied += copy()

            if transactional:
                producer.init_transactions()
            yield work_transactions if transactional else work
            assert sum(log.topic(TARGET).end_offsets().values()) == count + PARTITIONS


def commit_latencies(gate: Gate, *, path: str, count: int, durability: Literal["os", "fsync"]) -> dict[str, float]:
    """Return p50 and p99 of a transaction of a record in each of two partitions, in microseconds."""
    gate()
    value = payload.make_values(1)[0]
    figures = []
    clock = time.perf_counter_ns
    with pystreamlog.open(path) as log, log.producer(transactional_id="small", durability=durability) as producer:
        log.create_topic(TARGET, partitions=2)
        producer.init_transactions()
        for _ in range(count):
            start = clock()
            with producer.transaction():
                producer.send(TARGET, value, partition=0)
                producer.send(TARGET, value, partition=1)
            figures.append((clock() - start) / 1e3)
    return {"p50": statistics.median(figures), "p99": statistics.quantiles(figures, n=100)[98]}


def compare_transactions(settings: Settings) -> list[Line]:
    """Transactions of 1,000 records and four offsets beside the same without transactions."""
    count = settings.count(500_000, least=10_000)
    copied = settings.count(500_000, least=10_000)
    best = best_seconds(
        {
            "ours": partial(stream_sends, count=count, transactional=True),
            "peer": partial(stream_sends, count=count, transactional=False),
            "copies": partial(stream_copies, count=copied, transactional=True),
            "plain copies": partial(stream_copies, count=copied, transactional=False),
        },
        settings,
    )
    return [
        Line(
            "transactions of 1,000, 4 partitions, offsets",
            count / best["ours"],
            count / best["peer"],
            "records/s",
            0.7,
            note="send_many, flush, consumer.commit",
        ),
        Line(
            "transactions that copy 1,000 polled",
            copied / best["copies"],
            copied / best["plain copies"],
            "records/s",
            note="poll, send_many, flush, commit()",
        ),
    ]


def compare_commit_latency(settings: Settings) -> list[Line]:
    """How long a small transaction takes; no bound."""
    lines = []
    for durability, count in (("os", settings.count(5_000)), ("fsync", settings.count(1_000, least=200))):
        rounds = []
        for _ in range(settings.rounds):
            with fresh_directory(settings) as directory:
                rounds.append(
                    run(
                        "benches.transactions:commit_latencies",
                        path=str(directory),
                        count=count,
                        durability=durability,
                    )
                )
        best = min(rounds, key=lambda figures: figures["p50"])
        lines.append(
            Line(
                f"commit of two records in two partitions, {durability}",
                best["p50"],
                None,
                "us",
                note=f"median; p99 {best['p99']:,.0f} us",
            )
        )
    return lines


LINES = {"transactions": compare_transactions, "commit_latency": compare_commit_latency}
