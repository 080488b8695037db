"""Running `Consumer.process` beside a test: in a thread, with handlers that note what they do and wait when told to."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

from pystreamlog import Consumer, Record, StreamLog
from pystreamlog.testing.contract import PATIENCE, tp

__all__ = ["BrokenError", "Handler", "Processing", "committed", "eventually", "noted_interrupts", "processing", "send"]


class BrokenError(Exception):
    """What a test's handler raises."""


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        sleep(0.001)


@contextmanager
def noted_interrupts() -> Iterator[list[bool]]:
    """Note each Ctrl-C when the main thread gets it, which may be some time after it was sent."""
    seen: list[bool] = []

    def note(*_: object) -> None:
        seen.append(True)
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, usual)


class Handler:
    """Notes what it is called with; safe from any thread.

    Attributes:
        begun: The records it was called with, in that order.
        done: Those that it returned from.
        most: How many calls there were at a time at most.
        clashes: Lanes of which two records were handled at a time.
    """

    def __init__(self, lane: Callable[[Record[Any, Any]], object] | None = None) -> None:
        self.begun: list[Record[Any, Any]] = []
        self.done: list[Record[Any, Any]] = []
        self.most = 0
        self.clashes: list[object] = []
        self._lane = lane or (lambda record: (record.partition, record.key) if record.key is not None else record)
        self._lock = threading.Lock()
        self._running: Counter[object] = Counter()
        self._gates: dict[tuple[int, int], threading.Event] = {}

    def block(self, offset: int, partition: int = 0) -> threading.Event:
        """Have the handler wait at this record until the event is set."""
        return self._gates.setdefault((partition, offset), threading.Event())

    def release(self) -> None:
        """Open every gate."""
        for gate in list(self._gates.values()):
            gate.set()

    def __call__(self, record: Record[Any, Any]) -> None:
        """Handle a record."""
        lane = self._lane(record)
        with self._lock:
            self.begun.append(record)
            self._running[lane] += 1
            if self._running[lane] > 1:
                self.clashes.append(lane)
            self.most = max(self.most, self._running.total())
        try:
            gate = self._gates.get((record.partition, record.offset))
            if gate is not None:
                assert gate.wait(PATIENCE), "nobody opened the gate"
            self.handle(record)
            with self._lock:
                self.done.append(record)
        finally:
            with self._lock:
                self._running[lane] -= 1

    def handle(self, record: Record[Any, Any]) -> None:
        """What is done with a record."""

    def offsets(self, partition: int = 0) -> list[int]:
        """The offsets that were done, in that order."""
        with self._lock:
            return [record.offset for record in self.done if record.partition == partition]

    def begun_offsets(self, partition: int = 0) -> list[int]:
        """The offsets that were begun, in that order."""
        with self._lock:
            return [record.offset for record in self.begun if record.partition == partition]


class Processing:
    """A `process` that runs in a thread.

    Args:
        consumer: Whose.
        handler: What it calls.
        options: Of `process`.
    """

    def __init__(self, consumer: Consumer[Any, Any], handler: Callable[[Any], object], **options: Any) -> None:
        self.consumer = consumer
        self.error: BaseException | None = None
        self._arguments = handler, options
        self._thread = threading.Thread(target=self._run, name="test driver")
        self._thread.start()

    def _run(self) -> None:
        handler, options = self._arguments
        try:
            self.consumer.process(handler, **options)
        except BaseException as error:  # noqa: BLE001 - raised in `join`
            self.error = error

    def is_running(self) -> bool:
        """Whether it has not returned."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until it returns or raises."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "process() does not return"
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Call `wakeup`, and wait."""
        self.consumer.wakeup()
        self.join()


@contextmanager
def processing(consumer: Consumer[Any, Any], handler: Callable[[Any], object], **options: Any) -> Iterator[Processing]:
    """A `process` beside the block, which is ended behind it."""
    running = Processing(consumer, handler, **options)
    try:
        yield running
    finally:
        if isinstance(handler, Handler):
            handler.release()
        if running.is_running():
            running.consumer.wakeup()
        running.join()


def send(log: StreamLog, *keys: bytes | None, topic: str = "events", partition: int = 0, partitions: int = 1) -> None:
    """Send a record of each of these keys to a partition; the payloads count up."""
    log.create_topic(topic, partitions=partitions, exist_ok=True)
    with log.producer() as producer:
        producer.send_many(topic, [b"%d" % number for number in range(len(keys))], list(keys), partition=partition)


def committed(log: StreamLog, partition: int = 0, *, group_id: str = "g", topic: str = "events") -> int:
    """The offset that a group has committed in a partition; -1 where none."""
    with log.consumer(group_id=group_id) as consumer:
        found = consumer.committed(tp(partition, topic))[tp(partition, topic)]
    return -1 if found is None else found.offset
