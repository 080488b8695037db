"""The producer of the embedded log.

`send` and `send_many` add columns to the accumulator of a partition and decide whether the calling thread writes them
at once: when the batch is full or due, when the record comes after an idle spell, or when there is no linger. What is
left is written by the background thread (`Sender`). So a lone record is visible some 20 us later, and a stream of them
costs a list append each.

On a running event loop nothing blocks: there a write is tried without waiting for the lock, else the background thread
does it; so it does every fsync.
"""

from __future__ import annotations

import logging
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import accumulate
from operator import itemgetter
from time import monotonic, time_ns
from typing import Any, TypeVar

from pystreamlog.backend.delivery import Deliveries, Delivery, PendingBatch, Span
from pystreamlog.backend.producer import Producer, ProducerConfig
from pystreamlog.backend.topic import Topic
from pystreamlog.clock import to_timestamp_ms
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.accumulator import Accumulator, RecordBatch
from pystreamlog.embedded.exits import closing_at_exit
from pystreamlog.embedded.interception import Interceptors
from pystreamlog.embedded.routes import Route
from pystreamlog.embedded.sender import Sender
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    DeliveryTimeoutError,
    LockTimeoutError,
    UnknownTopicError,
)
from pystreamlog.record.record import Headers
from pystreamlog.record.serde import dumps_column, dumps_with

__all__ = ["EmbeddedProducer"]

_log = logging.getLogger("pystreamlog")

K = TypeVar("K")
V = TypeVar("V")

_IDLE_NS = 500_000
"""A record that comes this long after the last one is written at once: the write costs a twentieth of that."""
_METADATA_NS = 1_000_000_000
_COLUMN_BYTES = 64 << 10
"""From this size on, what one `send_many` brings to a partition is a batch worth writing."""
_SENDER_LOCK_TIMEOUT = 0.02
"""Seconds the background thread waits for one partition's lock before it serves the others."""


def _on_event_loop() -> bool:
    asyncio_events = sys.modules.get("asyncio.events")
    return asyncio_events is not None and asyncio_events._get_running_loop() is not None


class EmbeddedProducer(Producer[K, V]):
    """Sends records to the topics of a directory.

    Args:
        find_topic: Finds, or makes, a topic by name.
        partitions: The log's partitions.
        config: The producer's settings.
        forget: Called when it is closed.
    """

    __slots__ = (
        "__weakref__",
        "_accumulators",
        "_buffered",
        "_closed",
        "_config",
        "_counters",
        "_delivery_timeout",
        "_failures",
        "_find_topic",
        "_forget",
        "_intercept",
        "_linger_ns",
        "_lock",
        "_partitions",
        "_routes",
        "_sender",
    )

    def __init__(
        self,
        find_topic: Callable[[str], TopicState],
        partitions: Partitions,
        config: ProducerConfig,
        forget: Callable[[EmbeddedProducer[Any, Any]], None],
    ) -> None:
        self._find_topic = find_topic
        self._partitions = partitions
        self._config = config
        self._forget = forget
        self._lock = threading.Lock()
        self._routes: dict[str | Topic[Any, Any], Route] = {}
        self._accumulators: dict[bytes, dict[int, Accumulator]] = {}
        self._buffered = 0
        self._failures: list[RecordBatch] = []
        self._linger_ns = config.linger_ms * 1_000_000
        self._delivery_timeout = config.delivery_timeout_ms / 1000
        self._intercept = Interceptors(config.interceptors)
        self._sender = Sender(self._write_due, self._linger_ns)
        self._counters = dict.fromkeys(("record-send-total", "record-error-total", "batch-total", "byte-total"), 0)
        self._closed = ""
        closing_at_exit(self)

    # --- sending

    def send(
        self,
        topic: str | Topic[Any, Any],
        value: V | None,
        key: K | None = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | datetime | None = None,
    ) -> Delivery:
        """See `Producer.send`."""
        now_ns = time_ns()
        route = self._routes.get(topic)
        if route is None or now_ns > route.expires_ns or self._closed:
            route = self._route(topic, now_ns)
        raw_value: Any = value
        raw_key: Any = key
        pairs: Headers = () if not headers else checked_headers(headers)
        if not route.raw or type(raw_value) is not bytes or (raw_key is not None and type(raw_key) is not bytes):
            raw_value, raw_key, pairs = self._prepare(route, raw_value, raw_key, pairs)
        size = (len(raw_value) if raw_value is not None else 0) + (len(raw_key) if raw_key is not None else 0)
        if pairs:
            size += sum(len(name.encode()) + len(content) for name, content in pairs)
        if size > route.limit:
            raise route.too_large(size)
        if partition is None:
            if route.count == 1:
                partition = 0
            else:
                name = route.state.name
                partition = self._config.placing.partition(name, raw_key, raw_value, route.count, route.sticky)
        accumulator = route.accumulator(partition)
        stamp = now_ns // 1_000_000 if timestamp_ms is None else to_timestamp_ms(timestamp_ms)
        if self._buffered >= self._config.buffer_memory:
            self._make_room()
        with self._lock:
            batch = accumulator.open
            if batch is None:
                batch = accumulator.batch(self, now_ns, self._linger_ns, self._delivery_timeout)
            index = batch.count
            if pairs or batch.headers is not None or type(batch.timestamps_ms) is int:
                accumulator.extend(batch, (raw_value,), (raw_key,), (stamp,), (pairs,), size)
            else:
                batch.values.append(raw_value)
                batch.keys.append(raw_key)
                batch.timestamps_ms.append(stamp)  # type: ignore[union-attr]
                batch.count = index + 1
                batch.size += size
            self._buffered += size
            idle = now_ns - accumulator.last_send_ns > _IDLE_NS
            accumulator.last_send_ns = now_ns
            if batch.size >= self._config.batch_size:
                accumulator.close()
                route.sticky += 1
            elif not (idle and not index) and now_ns < batch.due_ns:
                if not accumulator.scheduled:
                    accumulator.scheduled = True
                    self._sender.schedule(accumulator, batch.due_ns)
                return Delivery(batch, index)
        self._write_now(accumulator)
        return Delivery(batch, index)

    def send_many(
        self,
        topic: str | Topic[Any, Any],
        values: Sequence[V | None],
        keys: Sequence[K | None] | None = None,
        *,
        headers: Sequence[Sequence[tuple[str, bytes]]] | None = None,
        partition: int | None = None,
        timestamps_ms: Sequence[int] | int | datetime | None = None,
    ) -> Deliveries:
        """See `Producer.send_many`."""
        now_ns = time_ns()
        route = self._routes.get(topic)
        if route is None or now_ns > route.expires_ns or self._closed:
            route = self._route(topic, now_ns)
        count = len(values)
        for name, column in (("keys", keys), ("headers", headers)):
            if column is not None and len(column) != count:
                raise ConfigError(f"{len(column)} {name} for {count} values: columns have equal lengths")
        if not count:
            return Deliveries(route.state.name, ())
        pairs = None if headers is None else [checked_headers(entry) for entry in headers]
        raw_values, raw_keys, pairs = self._prepare_columns(route, values, keys, pairs)
        stamps = _timestamps(timestamps_ms, count, now_ns)
        self._check_sizes(route, raw_values, raw_keys, pairs)
        if self._buffered >= self._config.buffer_memory:
            self._make_room()
        if partition is not None or route.count == 1:
            number = 0 if partition is None else partition
            indices: Sequence[int] = range(count)
            groups = [(number, indices, raw_values, raw_keys, stamps, pairs)]
        else:
            placed = self._config.placing.partitions(
                route.state.name, raw_keys or [None] * count, raw_values, route.count, route.sticky
            )
            groups = _grouped(placed, raw_values, raw_keys, stamps, pairs)
        # Every partition is looked up before a record is accepted, so that a wrong one leaves nothing half sent.
        accumulators = [route.accumulator(group[0]) for group in groups]
        spans: list[Span] = []
        for accumulator, (_, indices, *columns) in zip(accumulators, groups, strict=True):
            spans += self._add_columns(route, accumulator, indices, columns, now_ns)
        return Deliveries(route.state.name, spans)

    def _add_columns(
        self, route: Route, accumulator: Accumulator, indices: Sequence[int], columns: Sequence[Any], now_ns: int
    ) -> list[Span]:
        """Add columns to one partition's batches, as many as their size needs, and write those that are due."""
        values, keys, stamps, pairs = columns
        batch_size = self._config.batch_size
        sizes = list(map(len, values)) if None not in values else [len(value or b"") for value in values]
        if keys is not None:
            sizes = [size + len(key or b"") for size, key in zip(sizes, keys, strict=True)] if None in keys else list(
                map(int.__add__, sizes, map(len, keys))
            )
        total = sum(sizes)
        bounds = [0, len(values)]
        if total > batch_size:
            ends = list(accumulate(sizes))
            bounds = _cuts(ends, batch_size)
        spans = []
        write = False
        with self._lock:
            for start, stop in zip(bounds, bounds[1:], strict=False):
                whole = stop - start == len(values)
                size = total if whole else sum(sizes[start:stop])
                batch = accumulator.open
                if batch is not None and batch.size + size > batch_size:
                    accumulator.close()
                    write = True
                batch = accumulator.batch(self, now_ns, self._linger_ns, self._delivery_timeout)
                first = accumulator.extend(
                    batch,
                    values if whole else values[start:stop],
                    keys if whole or keys is None else keys[start:stop],
                    stamps if whole or isinstance(stamps, int) else stamps[start:stop],
                    pairs if whole or pairs is None else pairs[start:stop],
                    size,
                )
                spans.append(Span(batch, first, indices if whole else indices[start:stop]))
                self._buffered += size
                if size >= _COLUMN_BYTES or batch.size >= batch_size:
                    accumulator.close()
                    route.sticky += 1
                    write = True
            idle = now_ns - accumulator.last_send_ns > _IDLE_NS
            accumulator.last_send_ns = now_ns
            left = accumulator.open
            if left is not None and not write:
                write = idle or now_ns >= left.due_ns
            if left is not None and not write and not accumulator.scheduled:
                accumulator.scheduled = True
                self._sender.schedule(accumulator, left.due_ns)
        if write:
            self._write_now(accumulator)
        return spans

    # --- preparing records

    def _route(self, topic: str | Topic[Any, Any], now_ns: int) -> Route:
        """The route of a topic, from the directory at most a second ago."""
        if self._closed:
            raise ClosedError(self._closed)
        name = topic.name if isinstance(topic, Topic) else topic
        state = self._find_topic(name)
        config = self._config
        key_serde, value_serde = config.key_serde, config.value_serde
        if isinstance(topic, Topic):
            key_serde, value_serde = topic.key_serde or key_serde, topic.value_serde or value_serde
        with self._lock:
            accumulators = self._accumulators.setdefault(state.id, {})
        expires_ns = now_ns + _METADATA_NS
        route = Route(state, self._partitions, config, key_serde, value_serde, accumulators, expires_ns)
        self._routes[topic] = route
        for partition in accumulators:
            self._partitions.writer(state, partition)  # tells it the topic's latest settings
        return route

    def _prepare(self, route: Route, value: Any, key: Any, headers: Headers) -> tuple[Any, Any, Headers]:
        """Bytes of a value and a key that are not, after the interceptors had their look."""
        name = route.state.name
        if self._intercept:
            value, key, headers = self._intercept.on_send(name, value, key, headers)
            headers = checked_headers(headers)
        if value is not None:
            value = dumps_with(route.value_serde, name, headers, value, "value")
        if key is not None:
            key = dumps_with(route.key_serde, name, headers, key, "key")
        return value, key, headers

    def _prepare_columns(
        self, route: Route, values: Any, keys: Any, headers: list[Headers] | None
    ) -> tuple[Sequence[Any], Sequence[Any] | None, list[Headers] | None]:
        name = route.state.name
        if self._intercept:
            count = len(values)
            triples = [
                self._intercept.on_send(name, value, key, pairs)
                for value, key, pairs in zip(values, keys or [None] * count, headers or [()] * count, strict=True)
            ]
            values, keys, headers = [t[0] for t in triples], [t[1] for t in triples], [t[2] for t in triples]
        return (
            dumps_column(route.value_serde, name, headers, values, "value"),
            None if keys is None else dumps_column(route.key_serde, name, headers, keys, "key"),
            headers,
        )

    def _check_sizes(
        self, route: Route, values: Sequence[Any], keys: Sequence[Any] | None, headers: Sequence[Headers] | None
    ) -> None:
        """Refuse a record over the limit; cheap when all together are below it."""
        total = sum(map(len, filter(None, values))) + (sum(map(len, filter(None, keys))) if keys else 0)
        if total <= route.limit and headers is None:
            return
        for index, value in enumerate(values):
            size = len(value or b"") + (len(keys[index] or b"") if keys else 0)
            if headers is not None:
                size += sum(len(name.encode()) + len(content) for name, content in headers[index])
            if size > route.limit:
                raise route.too_large(size, index)

    # --- writing

    def _write_now(self, accumulator: Accumulator) -> None:
        """Write from the sending thread if that can be done now, else leave it to the background thread."""
        on_loop = _on_event_loop()
        if self._config.durability != "fsync" and self._write(accumulator, 0):
            return
        if not on_loop and self._buffered >= self._config.buffer_memory:
            self._make_room()
        with self._lock:
            self._sender.schedule(accumulator, 0)

    def _make_room(self) -> None:
        """Block until the buffer has room; not on an event loop, where `drain` is for that.

        Raises:
            LockTimeoutError: Not within `max_block_ms`.
        """
        deadline = monotonic() + (0 if _on_event_loop() else self._config.max_block_ms / 1000)
        while self._buffered >= self._config.buffer_memory:
            with self._lock:
                waiting = [
                    accumulator
                    for accumulators in self._accumulators.values()
                    for accumulator in accumulators.values()
                    if accumulator.closed or accumulator.open is not None
                ]
            for accumulator in waiting:
                try:
                    self._write(accumulator, max(0.0, min(deadline - monotonic(), 1.0)), raising=True)
                except LockTimeoutError as error:
                    if monotonic() >= deadline:
                        raise LockTimeoutError(
                            f"the buffer of {self._config.buffer_memory} bytes stayed full for "
                            f"{self._config.max_block_ms} ms: {error}",
                            path=error.path,
                            holder=error.holder,
                        ) from error
            if not waiting:
                break

    def _write_due(self, accumulator: Accumulator) -> bool:
        """What the background thread does: write everything of a partition; whether nothing is left."""
        with self._lock:
            accumulator.scheduled = False
            accumulator.close()
        return self._write(accumulator, _SENDER_LOCK_TIMEOUT)

    def _write(self, accumulator: Accumulator, timeout: float, *, raising: bool = False) -> bool:
        """Write the batches of a partition in order; whether nothing was left when it stopped.

        With a time-out of 0 nothing is waited for.
        """
        if not accumulator.writing.acquire(timeout=timeout):
            return False
        written: list[RecordBatch] = []
        try:
            while True:
                with self._lock:
                    if not accumulator.closed:
                        accumulator.close()
                        if not accumulator.closed:
                            break
                    batch = accumulator.closed[0]
                if not self._append(accumulator, batch, timeout, raising=raising):
                    return False
                with self._lock:
                    accumulator.closed.popleft()
                    self._buffered -= batch.size
                written.append(batch)
                if self._config.durability != "fsync":
                    self._settle(batch)
        finally:
            accumulator.writing.release()
            if self._config.durability == "fsync":
                for batch in written:
                    self._sync(accumulator, batch)
        return True

    def _append(self, accumulator: Accumulator, batch: RecordBatch, timeout: float, *, raising: bool) -> bool:
        """Append one batch, or note why it failed; False when the lock was not free and the batch may still wait."""
        writer = accumulator.writer
        try:
            log_append_time = writer.topic.config.message_timestamp_type == "LogAppendTime"
            encoded = batch.encode(self._config.codec, log_append_time=log_append_time)
            appended = writer.append(encoded, timeout)
        except LockTimeoutError as error:
            if monotonic() < batch.deadline:
                if raising:
                    raise
                return False
            batch.error = DeliveryTimeoutError(
                f"{batch.count} records for partition {batch.partition} of topic {batch.topic!r} were not written "
                f"within {self._config.delivery_timeout_ms} ms: {error}"
            )
        except Exception as error:  # whatever it is, it belongs to the deliveries
            batch.error = error
            if isinstance(error, UnknownTopicError):
                self._drop_routes(batch.topic)
        else:
            batch.base_offset = appended.base_offset
            batch.end_offset = appended.base_offset + batch.count
            if appended.timestamp_ms >= 0:
                batch.timestamps_ms = appended.timestamp_ms
            if appended.rolled:
                self._partitions.sync_later(writer, appended.base_offset)
        return True

    def _sync(self, accumulator: Accumulator, batch: RecordBatch) -> None:
        """Make a written batch durable, then settle it."""
        if batch.error is None:
            try:
                accumulator.writer.sync(batch.end_offset)
            except Exception as error:  # as in _append
                batch.error = error
        self._settle(batch)

    def _settle(self, batch: RecordBatch) -> None:
        """Acknowledge or fail a batch, and tell whoever asked to be told."""
        error = batch.error
        counters = self._counters
        if error is None:
            counters["record-send-total"] += batch.count
            counters["byte-total"] += batch.size
            counters["batch-total"] += 1
        else:
            counters["record-error-total"] += batch.count
            with self._lock:
                self._failures.append(batch)
        if self._intercept:
            self._intercept.on_acknowledgement(batch)
        batch.release()
        batch.settle(base_offset=batch.base_offset, error=error)
        if error is not None and self._config.on_error is not None:
            try:
                self._config.on_error(error)
            except Exception:  # the writing thread must go on
                _log.exception("on_error raised")

    def _drop_routes(self, name: str) -> None:
        for topic, route in list(self._routes.items()):
            if route.state.name == name:
                self._routes.pop(topic, None)
                self._accumulators.pop(route.state.id, None)

    # --- waiting

    def complete(self, pending: PendingBatch, timeout: float | None) -> None:
        """See `Writer.complete`."""
        if self._closed and not pending.settled:
            raise ClosedError(self._closed)
        assert isinstance(pending, RecordBatch)
        accumulator = pending.accumulator
        limit = self._delivery_timeout if timeout is None else timeout
        deadline = monotonic() + limit
        while not pending.settled:
            left = max(0.0, deadline - monotonic())
            if self._write(accumulator, left) and not pending.settled:
                self._wait_settled(pending, left)  # another thread has written it and is syncing it
            if not pending.settled and monotonic() >= deadline:
                raise DeliveryTimeoutError(
                    f"partition {pending.partition} of topic {pending.topic!r}: not written within {limit} s; it "
                    f"stays buffered: {accumulator.writer.busy(limit)}"
                )

    @staticmethod
    def _wait_settled(pending: PendingBatch, timeout: float) -> None:
        """Wait for another thread that is about to settle the batch."""
        done = threading.Event()
        if pending.when_settled(done.set):
            done.wait(timeout)

    def complete_soon(self, pending: PendingBatch) -> None:
        """See `Writer.complete_soon`."""
        import asyncio  # noqa: PLC0415 - who awaits has it

        assert isinstance(pending, RecordBatch)
        accumulator = pending.accumulator
        asyncio.get_running_loop().call_soon(lambda: pending.settled or self._write_now(accumulator))

    def flush(self, timeout: float | None = None) -> None:
        """See `Producer.flush`."""
        if self._closed:
            raise ClosedError(self._closed)
        self._flush(timeout)

    def _flush(self, timeout: float | None) -> None:
        deadline = None if timeout is None else monotonic() + timeout
        with self._lock:
            batches = [
                batch
                for accumulators in self._accumulators.values()
                for accumulator in accumulators.values()
                for batch in (*accumulator.closed, accumulator.open)
                if batch is not None
            ]
        for batch in batches:
            self.complete(batch, None if deadline is None else max(0.0, deadline - monotonic()))
        self._raise_failures()

    def _raise_failures(self) -> None:
        with self._lock:
            failures, self._failures = self._failures, []
        errors: list[Exception] = []
        for batch in failures:
            overlooked = batch.overlooked()
            if overlooked and isinstance(batch.error, Exception):
                batch.error.add_note(
                    f"{overlooked} records for partition {batch.partition} of topic {batch.topic!r} were not written"
                )
                errors.append(batch.error)
        if errors:
            raise ExceptionGroup("records were not written, and nobody looked at their deliveries", errors)

    async def flush_async(self, timeout: float | None = None) -> None:
        """See `Producer.flush_async`."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        await asyncio.get_running_loop().run_in_executor(None, self.flush, timeout)

    async def drain(self) -> None:
        """See `Producer.drain`."""
        import asyncio  # noqa: PLC0415 - only for those who use it

        while self._buffered > self._config.buffer_memory // 2:
            await asyncio.get_running_loop().run_in_executor(None, self._flush_quietly)

    def _flush_quietly(self) -> None:
        with self._lock:
            waiting = [a for group in self._accumulators.values() for a in group.values() if a.closed or a.open]
        for accumulator in waiting:
            self._write(accumulator, _SENDER_LOCK_TIMEOUT)

    def metrics(self) -> dict[str, float]:
        """See `Producer.metrics`."""
        return {**self._counters, "buffer-available-bytes": self._config.buffer_memory - self._buffered}

    # --- life

    def close(self) -> None:
        """Write everything that was sent, and end; again is harmless.

        Raises:
            ExceptionGroup: Records failed, and nobody looked at their deliveries.
        """
        if self._closed:
            return
        try:
            self._flush(None)
        finally:
            self._closed = "the producer was closed: make another"
            self._routes.clear()
            self._sender.stop()
            self._forget(self)

    def close_at_exit(self) -> None:
        """See `Owned.close_at_exit`."""
        try:
            self.close()
        except Exception:  # nobody is left to raise to
            _log.exception("records were lost at exit")

    def disown(self) -> None:
        """See `Owned.disown`."""
        self._closed = "the producer belongs to the process that this one was forked from: make another"
        self._lock = threading.Lock()
        self._routes = {}
        self._sender = Sender(self._write_due, self._linger_ns)


def checked_headers(headers: Sequence[tuple[str, bytes]]) -> Headers:
    """Headers as a tuple of pairs of str and bytes.

    Raises:
        ConfigError: They are something else.
    """
    pairs = tuple(map(tuple, headers))
    for pair in pairs:
        if len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not bytes:  # noqa: PLR2004 - a pair
            raise ConfigError(f"headers are pairs of str and bytes, not {pair!r}")
        try:
            pair[0].encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"the header name {pair[0]!a} cannot be encoded as UTF-8") from error
    return pairs  # type: ignore[return-value]


def _timestamps(stamps: Sequence[int] | int | datetime | None, count: int, now_ns: int) -> Sequence[int] | int:
    if stamps is None:
        return now_ns // 1_000_000
    if isinstance(stamps, int | datetime):
        return to_timestamp_ms(stamps)
    if len(stamps) != count:
        raise ConfigError(f"{len(stamps)} timestamps for {count} values: columns have equal lengths")
    if set(map(type, stamps)) != {int}:
        return list(map(to_timestamp_ms, stamps))
    to_timestamp_ms(min(stamps))
    to_timestamp_ms(max(stamps))
    return stamps


def _grouped(
    placed: Sequence[int],
    values: Sequence[Any],
    keys: Sequence[Any] | None,
    stamps: Sequence[int] | int,
    headers: Sequence[Headers] | None,
) -> list[tuple[int, Sequence[int], Sequence[Any], Sequence[Any] | None, Sequence[int] | int, Sequence[Any] | None]]:
    """The columns by partition: one stable sort of the record numbers, then slices."""
    count = len(placed)
    if count == 1:
        return [(placed[0], (0,), values, keys, stamps, headers)]
    order = sorted(range(count), key=placed.__getitem__)
    pick = itemgetter(*order)
    numbers = pick(placed)
    values = pick(values)
    keys = None if keys is None else pick(keys)
    stamps = stamps if isinstance(stamps, int) else pick(stamps)
    headers = None if headers is None else pick(headers)
    groups = []
    start = 0
    while start < count:
        number = numbers[start]
        stop = bisect_left(numbers, number + 1, start)
        groups.append(
            (
                number,
                order[start:stop],
                values[start:stop],
                None if keys is None else keys[start:stop],
                stamps if isinstance(stamps, int) else stamps[start:stop],
                None if headers is None else headers[start:stop],
            )
        )
        start = stop
    return groups


def _cuts(ends: Sequence[int], limit: int) -> list[int]:
    """Where to cut columns whose sizes add up to `ends`, so that each part has at most `limit` bytes, or one record."""
    cuts = [0]
    while cuts[-1] < len(ends):
        start = cuts[-1]
        before = ends[start - 1] if start else 0
        cuts.append(max(start + 1, bisect_left(ends, before + limit + 1, start)))
    return cuts
