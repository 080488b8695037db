"""The sending part of a producer: takes records, finds their partitions, and decides when they are written.

The calling thread writes at once when a batch is full or due, when a record comes after an idle spell, or when there is
no linger; else the background thread writes when the linger is over. So a lone record is visible some 10 us later, and
a stream of them costs a list append each (`Buffer`).

On a running event loop nothing blocks: there a write is tried without waiting for the lock, else the background thread
does it; so it does every fsync.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from time import monotonic, time_ns
from typing import Any, TypeVar

from pystreamlog.backend.delivery import Deliveries, Delivery, Span
from pystreamlog.backend.producer import ProducerConfig
from pystreamlog.backend.topic import Topic
from pystreamlog.clock import to_timestamp_ms
from pystreamlog.coordination.partitions import Partitions
from pystreamlog.coordination.topics import TopicState
from pystreamlog.embedded.accumulator import Accumulator, RecordBatch
from pystreamlog.embedded.buffer import Buffer
from pystreamlog.embedded.columns import (
    checked_headers,
    checked_sequence,
    checked_sequences,
    cuts,
    grouped,
    record_sizes,
    timestamps,
    total_size,
)
from pystreamlog.embedded.expectations import check_expectations
from pystreamlog.embedded.interception import Interceptors
from pystreamlog.embedded.producer_metrics import ProducerMetrics
from pystreamlog.embedded.routes import COLUMN_BYTES, Route
from pystreamlog.embedded.settlement import Settlement
from pystreamlog.embedded.transaction_buffer import TransactionBuffer
from pystreamlog.embedded.transactional import TransactionalProducer, TransactionContext
from pystreamlog.errors import ConfigError, IllegalStateError
from pystreamlog.record.encoded import EncodedBatch
from pystreamlog.record.identity import falls
from pystreamlog.record.record import Headers
from pystreamlog.record.serde import dumps_column, dumps_with

__all__ = ["SendingProducer"]

K = TypeVar("K")
V = TypeVar("V")

_IDLE_NS = 500_000
"""A record that comes this long after the last one is written at once: the write costs a fiftieth of that."""
_NEVER_NS = 1 << 62
_METADATA_NS = 1_000_000_000
_GATHERED_BYTES = 256 << 10
"""Records sent one by one are written from this size on, whatever `batch_size` allows: the memory of a larger batch is
new each time, and touching it first costs more (150 ns a record) than a larger batch saves."""
_SMALL_COLUMN_BYTES = 4 << 10
"""Up to this size, what one `send_many` brings to a partition counts as a lone record; more gathers for the linger."""


class SendingProducer(TransactionalProducer[K, V]):
    """Sends records to the topics of a directory.

    Args:
        find_topic: Finds, or makes, a topic by name.
        partitions: The log's partitions.
        config: The producer's settings.
        lent: What the log lends it for transactions.
        metrics: What it counts.
    """

    __slots__ = (
        "_batch_size",
        "_buffer",
        "_delivery_timeout",
        "_find_topic",
        "_has_id",
        "_idle_ns",
        "_intercept",
        "_linger_ns",
        "_may_write_alone",
        "_partitions",
        "_plain_buffer",
        "_plain_routes",
        "_routes",
        "_syncs",
        "_writes_alone",
    )

    def __init__(
        self,
        find_topic: Callable[[str], TopicState],
        partitions: Partitions,
        config: ProducerConfig,
        lent: TransactionContext,
        metrics: ProducerMetrics,
    ) -> None:
        super().__init__(config, lent, metrics)
        self._find_topic = find_topic
        self._partitions = partitions
        self._batch_size = min(config.batch_size, _GATHERED_BYTES)
        self._linger_ns = config.linger_ms * 1_000_000
        self._idle_ns = _IDLE_NS
        self._has_id = config.producer_id is not None
        self._syncs = config.durability == "fsync"
        self._may_write_alone = config.codec is None
        self._writes_alone = self._may_write_alone
        self._delivery_timeout = config.delivery_timeout_ms / 1000
        self._routes: dict[str | Topic[Any, Any], Route] = {}
        self._plain_routes = self._routes
        self._intercept = Interceptors(config.interceptors)
        settlement = Settlement(self._intercept, config.on_error, metrics, self._delivery_timeout)
        self._buffer = self._plain_buffer = Buffer(config, settlement, self._topic_gone)

    # --- sending

    def send(
        self,
        topic: str | Topic[Any, Any],
        value: Any,
        key: Any = None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
        timestamp_ms: int | datetime | None = None,
        sequence: int | None = None,
        expected_end: int | None = None,
        expected_version: int | None = None,
    ) -> Delivery:
        """See `Producer.send`."""
        now_ns = time_ns()
        route = self._routes.get(topic)
        if route is None or now_ns > route.expires_ns:
            route = self._route(topic, now_ns)
        if (
            not route.quick
            or type(value) is not bytes
            or (key is not None and type(key) is not bytes)
            or headers
            or partition is not None
            or timestamp_ms is not None
            or sequence is not None
            or expected_end is not None
            or expected_version is not None
        ):
            expected = expected_end, expected_version
            return self._send_prepared(
                route, now_ns, value, key, headers, partition, timestamp_ms, sequence=sequence, expected=expected
            )
        size = len(value) if key is None else len(value) + len(key)
        if size > route.limit or (key is None and route.wants_keys):
            raise route.refused(size)
        accumulator = route.only or route.place(key, value)
        # What follows is `_add` for a record without headers, written out: it is half of the call's time.
        buffer = route.buffer
        with buffer.lock:
            batch = accumulator.open
            if batch is not None and batch.headers is None:
                rows = batch.rows
                index = len(rows) // 3
                rows += (value, key, now_ns // 1_000_000)
                batch.size = filled = batch.size + size
                if filled < self._batch_size and now_ns < batch.due_ns:
                    return Delivery(batch, index)
        if batch is None or batch.headers is not None:
            stamp = now_ns // 1_000_000
            delivery = None
            if batch is None and self._writes_alone and (self._syncs or accumulator.is_lone(now_ns, self._idle_ns)):
                delivery = buffer.write_alone(accumulator, value, key, stamp, route.log_append_time)
            return delivery or self._add(route, accumulator, now_ns, (value, key, stamp, ()), size)
        self._close(route, accumulator, now_ns)
        return Delivery(batch, index)

    def _send_prepared(
        self,
        route: Route,
        now_ns: int,
        value: Any,
        key: Any,
        headers: Sequence[tuple[str, bytes]],
        partition: int | None,
        timestamp_ms: int | datetime | None,
        *,
        sequence: int | None,
        expected: tuple[int | None, int | None],
    ) -> Delivery:
        """Send a record that needs serdes or interceptors, or has more than a value and a key."""
        if sequence is not None or self._has_id:
            checked_sequence(sequence, has_id=self._has_id)
        pairs = () if headers == () else checked_headers(headers)
        if not route.plain or type(value) is not bytes or (key is not None and type(key) is not bytes):
            value, key, pairs = self._prepare(route, value, key, pairs)
        size = (len(value) if value is not None else 0) + (len(key) if key is not None else 0)
        if pairs:
            size += sum(len(name.encode()) + len(content) for name, content in pairs)
        if size > route.limit or (key is None and route.wants_keys):
            raise route.refused(size)
        stamp = now_ns // 1_000_000 if timestamp_ms is None else to_timestamp_ms(timestamp_ms)
        accumulator = route.place(key, value, sequence) if partition is None else route.named(partition)
        if expected != (None, None):
            return self._send_expecting(
                route, accumulator, now_ns, (value, key, stamp, pairs), size, expected, partition
            )
        if sequence is not None and not pairs:
            # What `_add` does for most records, written out as in `send`: it is half of the call's time.
            buffer = route.buffer
            with buffer.lock:
                batch = accumulator.open
                if batch is not None and batch.headers is None and sequence > batch.sequences[-1]:
                    rows = batch.rows
                    index = len(rows) // 3
                    rows += (value, key, stamp)
                    batch.sequences.append(sequence)
                    batch.size = filled = batch.size + size
                    if filled < self._batch_size and now_ns < batch.due_ns:
                        return Delivery(batch, index)
                else:
                    batch = None
            if batch is not None:
                self._close(route, accumulator, now_ns)
                return Delivery(batch, index)
        return self._add(route, accumulator, now_ns, (value, key, stamp, pairs), size, sequence)

    def _send_expecting(
        self,
        route: Route,
        accumulator: Accumulator,
        now_ns: int,
        record: tuple[bytes | None, bytes | None, int, Headers],
        size: int,
        expected: tuple[int | None, int | None],
        partition: int | None,
    ) -> Delivery:
        """Send a record that the commit of the transaction may refuse."""
        buffer = route.buffer
        if not isinstance(buffer, TransactionBuffer) or self._has_id:
            raise ConfigError(
                "expected_end and expected_version are for transactions, of a producer without a producer_id: for a "
                "single record use Topic.append, which answers at once"
            )
        check_expectations(
            route.state.name,
            route.count,
            key_index=route.key_index,
            key=record[1],
            partition=partition,
            expected_end=expected[0],
            expected_version=expected[1],
        )
        return buffer.expect(accumulator, now_ns, record, size, expected)

    def _add(
        self,
        route: Route,
        accumulator: Accumulator,
        now_ns: int,
        record: tuple[bytes | None, bytes | None, int, Headers],
        size: int,
        sequence: int | None = None,
    ) -> Delivery:
        """Add one record to a partition's open batch, or a new one, and write it if it is full, due or alone.

        Args:
            route: The topic.
            accumulator: The partition.
            now_ns: The time.
            record: Value, key, timestamp in ms, headers.
            size: Bytes of it.
            sequence: Its sequence, if the producer has an id.
        """
        value, key, stamp, pairs = record
        buffer = route.buffer
        if buffer.buffered >= self._config.buffer_memory:
            buffer.make_room()
        with buffer.lock:
            buffer.check_open()
            if sequence is not None:
                buffer.in_order(accumulator, sequence, now_ns)
            batch = buffer.batch(accumulator, now_ns)
            if sequence is not None:
                batch.sequences.append(sequence)
            headers = (pairs,) if pairs or batch.headers is not None else None
            index = batch.extend((value,), (key,), stamp, headers, size)
            alone = not index and accumulator.is_lone(now_ns, self._idle_ns)
            if not alone and batch.size < self._batch_size and now_ns < batch.due_ns:
                buffer.schedule(accumulator, batch.due_ns)
                return Delivery(batch, index)
        self._close(route, accumulator, now_ns)
        return Delivery(batch, index)

    def _close(self, route: Route, accumulator: Accumulator, now_ns: int) -> None:
        """Close a partition's open batch and write it."""
        buffer = route.buffer
        with buffer.lock:
            buffer.close_batch(accumulator, now_ns)
            route.turn()
        buffer.write_now(accumulator)
        accumulator.last_send_ns = time_ns()
        if buffer.buffered >= self._config.buffer_memory:
            buffer.make_room()

    def send_many(
        self,
        topic: str | Topic[Any, Any],
        values: Sequence[Any],
        keys: Sequence[Any] | None = None,
        *,
        headers: Sequence[Sequence[tuple[str, bytes]]] | None = None,
        partition: int | None = None,
        timestamps_ms: Sequence[int] | int | datetime | None = None,
        sequences: Sequence[int] | None = None,
    ) -> Deliveries:
        """See `Producer.send_many`."""
        now_ns = time_ns()
        route = self._routes.get(topic)
        if route is None or now_ns > route.expires_ns:
            route = self._route(topic, now_ns)
        count = len(values)
        for name, column in (("keys", keys), ("headers", headers), ("sequences", sequences)):
            if column is not None and len(column) != count:
                raise ConfigError(f"{len(column)} {name} for {count} values: columns have equal lengths")
        checked_sequences(sequences, count, has_id=self._has_id)
        if not count:
            return Deliveries(route.state.name, ())
        stamps = timestamps(timestamps_ms, count, now_ns)
        buffer = route.buffer
        if buffer.buffered >= self._config.buffer_memory:
            buffer.make_room()
        accumulator = route.only if partition is None else route.named(partition)
        if accumulator is not None and route.plain and headers is None:
            encoded = route.encoded(values, keys, stamps, sequences)
            if encoded is not None:
                return self._send_encoded(route, accumulator, encoded, stamps, now_ns)
        pairs = None if headers is None else [checked_headers(entry) for entry in headers]
        raw_values, raw_keys, pairs = self._prepare_columns(route, values, keys, pairs)
        route.check_sizes(raw_values, raw_keys, pairs)
        groups: list[tuple[Accumulator, Sequence[int], Sequence[Any]]]
        if accumulator is not None:
            groups = [(accumulator, range(count), (raw_values, raw_keys, stamps, pairs, sequences))]
        else:
            placed = route.places(raw_values, raw_keys, sequences)
            # Every partition is looked up before a record is accepted, so that a wrong one leaves nothing half sent.
            groups = [
                (route.accumulator(number), indices, columns)
                for number, indices, columns in grouped(placed, (raw_values, raw_keys, stamps, pairs, sequences))
            ]
        if sequences is not None:
            for target, _, columns in groups:
                target.check_order(columns[4][0])
        spans: list[Span] = []
        for target, indices, columns in groups:
            spans += self._add_columns(route, target, indices, columns, now_ns)
        return Deliveries(route.state.name, spans)

    def _send_encoded(
        self, route: Route, accumulator: Accumulator, encoded: EncodedBatch, stamps: Sequence[int] | int, now_ns: int
    ) -> Deliveries:
        buffer = route.buffer
        batch = RecordBatch(accumulator, buffer, due_ns=now_ns, deadline=monotonic() + self._delivery_timeout)
        batch.encoded, batch.count, batch.size, batch.timestamps_ms = encoded, encoded.count, encoded.size, stamps
        with buffer.lock:
            buffer.check_open()
            if encoded.demands is not None and encoded.demands.sequences:
                batch.sequences = [encoded.demands.sequences[0]]
                buffer.in_order(accumulator, batch.sequences[0], now_ns)
            buffer.queue(accumulator, batch, now_ns)
            route.turn()
        buffer.write_now(accumulator)
        return Deliveries(route.state.name, (Span(batch, 0, range(encoded.count)),))

    def _add_columns(
        self, route: Route, accumulator: Accumulator, indices: Sequence[int], columns: Sequence[Any], now_ns: int
    ) -> list[Span]:
        """Add columns to one partition's batches, as many as their size needs, and write those that are full or due."""
        values, keys, stamps, pairs, sequences = columns
        buffer, batch_size = route.buffer, self._config.batch_size
        bounds, sizes = [0, len(values)], []
        total = total_size(values) + total_size(keys) if pairs is None else batch_size + 1
        breaks = falls(sequences) if sequences is not None else []
        if total > batch_size or breaks:
            sizes = record_sizes(values, keys, pairs)
            total = sum(sizes)
            bounds = sorted({*cuts(list(accumulate(sizes)), batch_size), *breaks})
        whole = len(bounds) == 2  # noqa: PLR2004 - one part
        spans = []
        with buffer.lock:
            buffer.check_open()
            for start, stop in pairwise(bounds):
                size = total if whole else sum(sizes[start:stop])
                if accumulator.open is not None and accumulator.open.size + size > batch_size:
                    buffer.close_batch(accumulator, now_ns)
                if sequences is not None:
                    buffer.in_order(accumulator, sequences[start], now_ns)
                batch = buffer.batch(accumulator, now_ns)
                if sequences is not None:
                    batch.sequences += sequences[start:stop]
                first = batch.extend(
                    values if whole else values[start:stop],
                    keys if whole or keys is None else keys[start:stop],
                    stamps if whole or isinstance(stamps, int) else stamps[start:stop],
                    pairs if whole or pairs is None else pairs[start:stop],
                    size,
                )
                spans.append(Span(batch, first, indices if whole else indices[start:stop]))
                idle_ns = self._idle_ns if size < _SMALL_COLUMN_BYTES else max(self._linger_ns, self._idle_ns)
                alone = not first and accumulator.is_lone(now_ns, idle_ns)
                if alone or size >= COLUMN_BYTES or batch.size >= batch_size or now_ns >= batch.due_ns:
                    buffer.close_batch(accumulator, now_ns)
                    route.turn()
            waiting = bool(accumulator.closed)
            if not waiting and accumulator.open is not None:
                buffer.schedule(accumulator, accumulator.open.due_ns)
        if waiting:
            buffer.write_now(accumulator)
        return spans

    # --- preparing records

    def _route(self, topic: str | Topic[Any, Any], now_ns: int) -> Route:
        """The route of a topic, from the directory at most a second ago."""
        buffer = self._buffer
        buffer.check_open()
        if self._config.transactional_id is not None and self._transaction is None:
            raise IllegalStateError(
                "a producer with a transactional_id sends in transactions only: `with producer.transaction():`"
            )
        state = self._find_topic(topic.name if isinstance(topic, Topic) else topic)
        config = self._config
        key_serde, value_serde = config.key_serde, config.value_serde
        if isinstance(topic, Topic):
            key_serde, value_serde = topic.key_serde or key_serde, topic.value_serde or value_serde
        expires_ns = now_ns + _METADATA_NS
        last = self._routes.get(topic)
        sticky = last.sticky if last is not None else 0
        route = Route(state, self._partitions, config, (key_serde, value_serde), buffer, expires_ns, sticky)
        self._routes[topic] = route
        return route

    def _topic_gone(self, name: str) -> None:
        """A topic turned out to be deleted: look it up anew at the next send."""
        for topic, route in list(self._routes.items()):
            if route.state.name == name:
                self._routes.pop(topic, None)
                route.buffer.forget(route.state)

    def _prepare(self, route: Route, value: Any, key: Any, headers: Headers) -> tuple[Any, Any, Headers]:
        """Bytes of a value and a key, after the interceptors had their look."""
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

    # --- transactions

    def _begin_buffer(self) -> TransactionBuffer:
        self._plain_buffer.check_open()
        buffer = TransactionBuffer(
            self._config,
            Settlement(self._intercept, self._config.on_error, self._metrics, self._delivery_timeout),
            self._topic_gone,
            self._lent.transactions.spill_folder,
        )
        self._routes, self._buffer, self._writes_alone, self._idle_ns = {}, buffer, False, _NEVER_NS
        return buffer

    def _end_buffer(self) -> None:
        self._routes, self._buffer = self._plain_routes, self._plain_buffer
        self._writes_alone, self._idle_ns = self._may_write_alone, _IDLE_NS

    def _check_open(self) -> None:
        self._plain_buffer.check_open()
