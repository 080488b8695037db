"""The contract of `Consumer.process` in a group whose partitions change hands."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from time import monotonic
from typing import Any

import pytest

from pystreamlog import Consumer, Record, StreamLog, TopicPartition
from pystreamlog.testing.contract import PATIENCE, Contract, fill, tp
from pystreamlog.testing.processing_contract import reader
from pystreamlog.testing.processing_driving import Handler, committed, eventually, processing

__all__ = ["ProcessingGroupContract"]


class ProcessingGroupContract(Contract):
    """Runs against whatever `open_log` opens."""

    def test_revoked_partition_is_drained(self, log: StreamLog) -> None:
        """Its running handler ends before the next owner begins; what was not begun is the next owner's."""
        fill(log, 20, partitions=2)
        handler = Handler(lambda record: record.partition)
        for part in range(2):
            handler.block(2, part)
        revoked: list[tuple[list[TopicPartition], list[int]]] = []

        def on_revoke(consumer: Consumer[Any, Any], tps: list[TopicPartition]) -> None:
            offsets = consumer.committed(*tps).values()
            revoked.append((tps, [-1 if found is None else found.offset for found in offsets]))

        options: dict[str, Any] = {"workers": 2, "order": "partition"}
        with (
            reader(log, on_revoke=on_revoke, auto_commit_interval_ms=600_000) as first,
            reader(log) as second,
            processing(first, handler, **options),
        ):
            eventually(lambda: handler.begun_offsets(0) == handler.begun_offsets(1) == [0, 1, 2])
            own = set()
            deadline = monotonic() + 0.3
            while monotonic() < deadline:  # it joins, and asks for its share in vain
                assert not second.poll(0.01)
                assert second.assignment() == set()
            assert second.group_metadata().member_id
            assert not revoked
            fill(log, 2, partitions=2, first=20)
            handler.release()
            seen: list[Record[bytes, bytes]] = []
            deadline = monotonic() + PATIENCE
            while len(seen) < 8 and monotonic() < deadline:
                seen += second.poll(0.01)
                own = second.assignment()
            assert len(own) == 1
            (moved,) = own
            assert revoked == [([moved], [3])]
            assert [record.offset for record in seen] == [3, 4, 5, 6, 7, 8, 9, 10]
            assert handler.offsets(moved.partition) == [0, 1, 2]
            eventually(lambda: handler.offsets(1 - moved.partition) == list(range(11)))

    def test_other_partitions_go_on_while_one_is_drained(self, log: StreamLog) -> None:
        """Also records that come meanwhile are handled."""
        fill(log, 10, partitions=2)
        names: list[str] = []

        def assignor(members: Any, _: object) -> dict[str, list[TopicPartition]]:
            ids = sorted((member.member_id for member in members), key=lambda name: name not in names)
            return {ids[0]: [tp(0)], ids[1]: [tp(1)]} if len(ids) == 2 else {ids[0]: [tp(0), tp(1)]}

        handler = Handler()
        for part in range(2):
            handler.block(2, part)
        with (
            reader(log, assignor=assignor) as first,
            reader(log, assignor=assignor) as second,
            processing(first, handler, workers=4, max_in_flight=8, order="partition"),
        ):
            eventually(lambda: len(handler.begun) == 6)
            names.append(first.group_metadata().member_id)
            while not second.group_metadata().member_id:
                second.poll(0)
            fill(log, 40, partitions=2, first=10)
            handler.block(2, 0).set()
            eventually(lambda: handler.offsets(0) == list(range(25)))
            assert handler.begun_offsets(1) == [0, 1, 2]
            assert not second.poll(0)
            handler.block(2, 1).set()
            records = second.poll(PATIENCE)
            while not records:
                records = second.poll(PATIENCE)
            assert records[0].offset == 3

    def test_gaps_are_filled_before_a_partition_goes(self, log: StreamLog) -> None:
        """What lies before something finished is handled here; nothing is handled twice in a calm handover."""
        log.create_topic("events", partitions=2)
        with log.producer() as producer:
            for part in range(2):
                for number in range(30):
                    producer.send("events", b"%d" % number, b"k%d" % (number % 3), partition=part)
        counts: Counter[tuple[int, int]] = Counter()
        lock = threading.Lock()

        class Counting(Handler):
            def handle(self, record: Record[Any, Any]) -> None:
                with lock:
                    counts[record.partition, record.offset] += 1

        handlers = Counting(), Counting()
        for part in range(2):
            handlers[0].block(0, part)  # the key of every third record
        with reader(log) as first, reader(log) as second, processing(first, handlers[0], workers=4):
            eventually(lambda: len(handlers[0].done) == 40)
            with processing(second, handlers[1], workers=4):
                eventually(lambda: second.group_metadata().member_id)
                handlers[0].release()
                eventually(lambda: committed(log, 0) == committed(log, 1) == 30)
        assert set(counts.values()) == {1}
        assert len(counts) == 60

    def test_slow_handler_is_not_fenced(self, log: StreamLog) -> None:
        """It takes longer than `max_poll_interval_ms`, and so does what is drained."""
        fill(log, 2, partitions=2)
        handler = Handler()
        handler.block(0, 0)
        handler.block(0, 1)
        lost: list[object] = []
        options: dict[str, Any] = {"max_poll_interval_ms": 150, "on_lost": lambda _, tps: lost.append(tps)}
        with (
            reader(log, **options) as first,
            reader(log, **options) as second,
            processing(first, handler, workers=2),
        ):
            eventually(lambda: len(handler.begun) == 2)
            deadline = monotonic() + 0.6
            while monotonic() < deadline:
                assert not second.poll(0.01)
                assert not second.assignment()
            handler.release()
            while len(second.assignment()) != 1:
                assert not second.poll(0.01)
        assert lost == []
        assert [committed(log, part) for part in range(2)] == [1, 1]

    def test_slow_handler_is_not_fenced_while_it_is_stopped(self, log: StreamLog) -> None:
        """It is waited for, and counts."""
        fill(log, 1)
        handler = Handler()
        handler.block(0)
        with reader(log, max_poll_interval_ms=150) as first, reader(log, max_poll_interval_ms=150) as second:
            with processing(first, handler):
                eventually(lambda: handler.begun)
                first.wakeup()
                deadline = monotonic() + 0.6
                while monotonic() < deadline:
                    assert not second.poll(0.01)
                    assert not second.assignment()
                handler.release()
            assert committed(log) == 1

    def test_slow_handler_is_not_fenced_after_an_interrupt(self, log: StreamLog) -> None:
        """The polling thread, which got Ctrl-C, polls on until it has ended."""
        fill(log, 1)
        handler = Handler()
        handler.block(0)
        stolen: list[object] = []
        with reader(log, max_poll_interval_ms=150) as first, reader(log, max_poll_interval_ms=150) as second:

            def interrupt() -> None:
                eventually(lambda: handler.begun)
                os.kill(os.getpid(), signal.SIGINT)
                deadline = monotonic() + 0.6
                while monotonic() < deadline:
                    stolen.extend(second.poll(0.01))
                handler.release()

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                first.process(handler)
            thread.join(PATIENCE)
            assert committed(log) == 1
        assert stolen == []

    @pytest.mark.parametrize("order", ["key", "partition"])
    def test_lost_partition_is_forgotten(self, log: StreamLog, order: Any) -> None:
        """When it comes back, its key waits for the handler that runs since before; nothing of that is committed."""
        fill(log, 4, key=b"a")
        handler = Handler(lambda record: record.key)
        handler.block(1)
        blocked, free = threading.Event(), threading.Event()
        lost: list[object] = []

        class Blocking:
            def on_consume(self, records: Any) -> None:
                if records.offsets[0] == 4:
                    blocked.set()
                    free.wait(PATIENCE)

        with (
            reader(
                log, interceptors=[Blocking()], max_poll_interval_ms=100, on_lost=lambda _, tps: lost.append(tps)
            ) as first,
            processing(first, handler, workers=3, order=order),
        ):
            eventually(lambda: handler.begun_offsets() == [0, 1] and committed(log) == 1)
            fill(log, 1, key=b"b")
            assert blocked.wait(PATIENCE)  # the driver does not poll any more
            with reader(log, max_poll_records=1) as second:
                deadline = monotonic() + PATIENCE
                while second.assignment() != {tp()}:
                    assert monotonic() < deadline
                    second.poll(0.01, max_records=1)
                second.seek(tp(), 1)
                free.set()
                eventually(lambda: lost == [[tp()]])
            # It left, and committed nothing: all but the first record come back.
            eventually(lambda: first.metrics()["records-consumed-total"] == 9)
            eventually(lambda: order == "partition" or handler.offsets()[:2] == [0, 4])
            assert handler.begun_offsets()[:2] == [0, 1]
            assert set(handler.begun_offsets()[2:]) == ({4} if order == "key" else set())
            assert committed(log) == 1
            handler.release()
            eventually(lambda: committed(log) == 5)
        assert handler.clashes == []
        assert [offset for offset in handler.offsets() if offset != 4] == [0, 1, 1, 2, 3]
