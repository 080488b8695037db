"""The contract of `Consumer.process` when something fails: retries, dead letters, records that do not deserialise."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from functools import partial
from time import monotonic, sleep
from typing import Any

import pytest

from pystreamlog import Record, StreamLog, serde
from pystreamlog.errors import SerdeError, UnknownTopicError
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp
from pystreamlog.testing.processing_contract import reader
from pystreamlog.testing.processing_driving import (
    BrokenError,
    Handler,
    Processing,
    committed,
    eventually,
    processing,
    send,
)

__all__ = ["ProcessingFailureContract"]

POISON = b"not json"


class Failing(Handler):
    """Raises at the records of these offsets, so many times each."""

    def __init__(self, *offsets: int, times: int = sys.maxsize) -> None:
        super().__init__()
        self.left = Counter(dict.fromkeys(offsets, times))

    def handle(self, record: Record[Any, Any]) -> None:
        """Handle a record, or not."""
        if self.left[record.offset] > 0:
            self.left[record.offset] -= 1
            raise BrokenError(f"cannot handle {record.offset}")


def poisoned(log: StreamLog) -> None:
    """Ten records of one key, the fifth of which is no JSON."""
    log.create_topic("events")
    with log.producer() as producer:
        for number in range(10):
            producer.send("events", POISON if number == 4 else b"%d" % number, b"k", headers=[("a", b"1")])


class ProcessingFailureContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- retries

    def test_wakeup_does_not_wait_for_another_try(self, log: StreamLog) -> None:
        """Which may be minutes away; the record is not finished."""
        send(log, b"a", b"a")
        handler = Failing(1)
        with reader(log) as consumer:
            with processing(consumer, handler, retries=5, retry_backoff_ms=3_600_000):
                eventually(lambda: len(handler.begun) == 2)
                consumer.wakeup()
            assert [record.offset for record in take(consumer, 1)] == [1]

    def test_error_says_which_record_it_was(self, log: StreamLog) -> None:
        """In a note, as it is the handler's own error that is raised."""
        send(log, b"a", b"a")
        with reader(log) as consumer:
            with pytest.raises(BrokenError) as caught:
                consumer.process(Failing(1), retries=0)
            assert caught.value.__notes__ == ["while handling the record at offset 1 of partition 0 of topic 'events'"]

    def test_failed_record_is_tried_again(self, log: StreamLog) -> None:
        """After a wait that doubles; what follows it waits."""
        send(log, b"a", b"a")
        times: list[float] = []

        class Timed(Failing):
            def handle(self, record: Record[Any, Any]) -> None:
                times.append(monotonic())
                super().handle(record)

        handler = Timed(0, times=3)
        with reader(log) as consumer, processing(consumer, handler, workers=2, retry_backoff_ms=20):
            eventually(lambda: committed(log) == 2)
        assert handler.begun_offsets() == [0, 0, 0, 0, 1]
        for number, seconds in enumerate((0.02, 0.04, 0.08)):
            assert times[number + 1] - times[number] >= seconds

    def test_others_go_on_while_one_is_tried_again(self, log: StreamLog) -> None:
        """Nothing behind it is committed."""
        send(log, b"a", b"b", b"b")
        handler = Failing(0, times=1)
        with reader(log) as consumer, processing(consumer, handler, workers=2, retry_backoff_ms=300):
            eventually(lambda: handler.offsets() == [1, 2])
            assert committed(log) <= 0
            eventually(lambda: committed(log) == 3)
        assert handler.begun_offsets() in ([0, 1, 2, 0], [1, 0, 2, 0])

    def test_retries_run_out(self, log: StreamLog) -> None:
        """After the first attempt so many more, none at 0."""
        fill(log, 1)
        for retries in (0, 2):
            handler = Failing(0)
            with log.consumer("events", auto_offset_reset="earliest") as consumer, pytest.raises(BrokenError):
                consumer.process(handler, retries=retries, retry_backoff_ms=0)
            assert len(handler.begun) == retries + 1

    def test_end_is_not_held_up_by_a_retry(self, log: StreamLog) -> None:
        """One that fails for good stops it; the other, which waits to be tried again, comes again later."""
        send(log, b"a", b"b")
        handler = Failing(0, times=1)
        handler.left[1] = sys.maxsize
        gate = handler.block(1)

        class FatalError(BaseException):
            """Not to be tried again."""

        def handle(record: Record[Any, Any]) -> None:
            if record.offset == 1:
                gate.wait(PATIENCE)
                raise FatalError
            handler(record)

        with reader(log) as consumer:
            running = Processing(consumer, handle, workers=2, retry_backoff_ms=600_000)
            eventually(lambda: handler.begun_offsets() == [0])
            gate.set()
            with pytest.raises(FatalError):
                running.join()
            assert committed(log) <= 0
            assert consumer.position(tp()) == 0

    # --- on_failure

    def test_stop_raises_what_the_handler_raised(self, log: StreamLog) -> None:
        """Nothing new begins, the prefix is committed, and the record comes again."""
        fill(log, 5)
        handler = Failing(2)
        with reader(log) as consumer:
            for _ in range(2):
                with pytest.raises(BrokenError, match="cannot handle 2"):
                    consumer.process(handler, retries=0)
                assert handler.offsets() == [0, 1]
                assert committed(log) == consumer.position(tp()) == 2
            assert handler.begun_offsets() == [0, 1, 2, 2]
            handler.left.clear()
            with processing(consumer, handler):
                eventually(lambda: committed(log) == 5)
        assert handler.offsets() == [0, 1, 2, 3, 4]

    def test_stop_waits_for_running_handlers(self, log: StreamLog) -> None:
        """They count; of the failed record's key nothing begins."""
        send(log, b"a", b"b", b"c", b"b", b"b")
        handler = Failing(1)
        gates = [handler.block(offset) for offset in (1, 2)]
        with reader(log) as consumer:
            running = Processing(consumer, handler, workers=2, retries=0)
            eventually(lambda: handler.begun_offsets() == [0, 1, 2] and committed(log) == 1)
            gates[0].set()
            sleep(0.02)  # long enough to return too early
            assert running.is_running()
            gates[1].set()
            with pytest.raises(BrokenError, match="cannot handle 1"):
                running.join()
            assert handler.offsets() == [0, 2]
            assert committed(log) == consumer.position(tp()) == 1
            handler.left.clear()
            with processing(consumer, handler, workers=2):
                eventually(lambda: committed(log) == 5)
        assert sorted(handler.offsets()) == [0, 1, 2, 2, 3, 4]

    def test_skipped_record_is_logged(self, log: StreamLog, caplog: pytest.LogCaptureFixture) -> None:
        """With the exception; the others are handled, and all is committed."""
        fill(log, 5)
        handler = Failing(2)
        with (
            caplog.at_level(logging.ERROR, "pystreamlog"),
            reader(log) as consumer,
            processing(consumer, handler, retries=1, retry_backoff_ms=1, on_failure="skip"),
        ):
            eventually(lambda: committed(log) == 5)
        assert handler.offsets() == [0, 1, 3, 4]
        (entry,) = caplog.records
        assert "offset 2 of partition 0 of topic 'events'" in entry.getMessage()
        assert entry.exc_info is not None
        assert isinstance(entry.exc_info[1], BrokenError)

    def test_dead_letter_is_the_record_as_it_was(self, log: StreamLog) -> None:
        """Raw key, value, headers and timestamp, and why, under the names of Kafka Streams."""
        topic = log.create_topic("events", key_serde=serde.string, value_serde=serde.json)
        log.create_topic("dead")
        topic.append({"a": 1}, "key", headers=[("own", b"1")], timestamp_ms=1_700_000_000_000)
        topic.append(None, "key")
        topic.append({"a": 3})

        def fail(record: Record[str, Any]) -> None:
            raise BrokenError(f"offset {record.offset} ☃")

        with (
            log.consumer(topic, group_id="g", auto_offset_reset="earliest", auto_commit_interval_ms=0) as consumer,
            processing(consumer, fail, retries=0, on_failure="dead_letter", dead_letter_topic="dead"),
        ):
            eventually(lambda: committed(log) == 3)
        first, second, third = log.topic("dead").read()
        assert (first.key, first.value, first.timestamp_ms) == (b"key", b'{"a":1}', 1_700_000_000_000)
        assert (second.key, second.value) == (b"key", None)
        assert (third.key, third.value) == (None, b'{"a":3}')
        assert first.headers[0] == ("own", b"1")
        why = dict(first.headers[1:])
        assert why.pop("__streams.errors.stacktrace").endswith("BrokenError: offset 0 ☃\n".encode())
        assert why == {
            "__streams.errors.exception": f"{BrokenError.__module__}.BrokenError".encode(),
            "__streams.errors.message": "offset 0 ☃".encode(),
            "__streams.errors.topic": b"events",
            "__streams.errors.partition": b"0",
            "__streams.errors.offset": b"0",
        }
        assert dict(third.headers)["__streams.errors.offset"] == b"2"

    def test_large_record_still_fits(self, log: StreamLog) -> None:
        """What is said about a dead letter is cut; it goes wherever a topic takes it."""
        log.create_topic("events")
        log.create_topic("dead", max_message_bytes=2 << 20)
        with log.producer() as producer:
            producer.send("events", b"x" * (1 << 20)).result()

        def fail(_: object) -> None:
            raise BrokenError("why" * 1_000_000)

        with (
            reader(log) as consumer,
            processing(consumer, fail, retries=0, on_failure="dead_letter", dead_letter_topic="dead"),
        ):
            eventually(lambda: committed(log) == 1)
        (letter,) = log.topic("dead").read()
        assert letter.value == b"x" * (1 << 20)
        assert sum(len(content) for _, content in letter.headers) < 20_000

    def test_dead_letter_that_cannot_be_written_stops(self, log: StreamLog) -> None:
        """Nothing counts as finished before it is acknowledged."""
        fill(log, 3)
        log.create_topic("dead")

        def fail(_: object) -> None:
            if "dead" in log.topics():
                log.delete_topic("dead")
            raise BrokenError

        with reader(log) as consumer:
            with pytest.raises(UnknownTopicError) as caught:
                consumer.process(fail, retries=0, on_failure="dead_letter", dead_letter_topic="dead")
            assert isinstance(caught.value.__cause__, BrokenError)
            assert committed(log) <= 0
            assert take(consumer, 3)[0].offset == 0

    @pytest.mark.parametrize("way", ["threads", "tasks"])
    def test_dead_letter_that_fails_late_stops(self, log: StreamLog, way: str) -> None:
        """Sending it is not enough: the topic was there for the last one."""
        fill(log, 3)
        log.create_topic("dead")

        def fail(record: Record[Any, Any]) -> None:
            if record.offset == 1:
                log.delete_topic("dead")
            raise BrokenError

        options: dict[str, Any] = {"retries": 0, "on_failure": "dead_letter", "dead_letter_topic": "dead"}
        with reader(log) as consumer:
            call = partial(consumer.process, fail, **options)
            if way == "tasks":
                call = partial(asyncio.run, consumer.process_async(fail, **options))
            with pytest.raises(UnknownTopicError):
                call()
            assert committed(log) == consumer.position(tp()) == 1

    # --- records that do not deserialise

    def test_poison_stops(self, log: StreamLog) -> None:
        """Once what comes before it in its key is done; it is not tried again, and comes again."""
        poisoned(log)
        handler = Handler()
        with reader(log, value_serde=serde.json) as consumer:
            for _ in range(10):
                with pytest.raises(SerdeError) as caught:
                    consumer.process(handler, workers=3)
                assert (caught.value.offset, caught.value.value) == (4, POISON)
                assert handler.offsets() == [0, 1, 2, 3]
                assert committed(log) == consumer.position(tp()) == 4

    @pytest.mark.parametrize("order", ["key", "partition"])
    def test_poison_becomes_a_dead_letter(self, log: StreamLog, order: Any) -> None:
        """In its turn, with its raw bytes and headers; its key keeps its order."""
        poisoned(log)
        log.create_topic("dead")
        handler = Handler(lambda record: record.key)
        gate = handler.block(3)
        options: dict[str, Any] = {"on_failure": "dead_letter", "dead_letter_topic": "dead", "order": order}
        with reader(log, value_serde=serde.json) as consumer, processing(consumer, handler, workers=3, **options):
            eventually(lambda: committed(log) == 3)
            assert not list(log.topic("dead").read())
            gate.set()
            eventually(lambda: committed(log) == 10)
        assert handler.offsets() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert handler.clashes == []
        (letter,) = log.topic("dead").read()
        assert (letter.key, letter.value, letter.headers[0]) == (b"k", POISON, ("a", b"1"))
        assert dict(letter.headers)["__streams.errors.exception"] == b"pystreamlog.errors.SerdeError"
        assert dict(letter.headers)["__streams.errors.offset"] == b"4"

    def test_poison_is_skipped(self, log: StreamLog, caplog: pytest.LogCaptureFixture) -> None:
        """And logged; also the first record, the last, and one after the other."""
        log.create_topic("events")
        with log.producer() as producer:
            for number in range(9):
                producer.send("events", b"%d" % number if number % 3 == 1 else POISON)
        handler = Handler()
        with (
            caplog.at_level(logging.ERROR, "pystreamlog"),
            reader(log, value_serde=serde.json) as consumer,
            processing(consumer, handler, workers=2, on_failure="skip"),
        ):
            eventually(lambda: committed(log) == 9)
        assert sorted(handler.offsets()) == [1, 4, 7]
        assert len(caplog.records) == 6
