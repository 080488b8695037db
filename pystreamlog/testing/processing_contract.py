"""The contract of `Consumer.process`: order, concurrency, what is committed, and how it ends."""
# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic, sleep
from typing import Any

import pytest

from pystreamlog import Consumer, Record, StreamLog
from pystreamlog.errors import ClosedError, ConfigError, IllegalStateError, UnknownTopicError
from pystreamlog.testing.contract import PATIENCE, Contract, fill, take, tp
from pystreamlog.testing.processing_driving import (
    BrokenError,
    Handler,
    Processing,
    committed,
    eventually,
    noted_interrupts,
    processing,
    send,
)

__all__ = ["ProcessingContract"]


def reader(log: StreamLog, **options: Any) -> Consumer[Any, Any]:
    """A consumer of group "g" that commits at once."""
    options = {"group_id": "g", "auto_offset_reset": "earliest", "auto_commit_interval_ms": 0, **options}
    return log.consumer("events", **options)


def ignore(_: object) -> None:
    """Handle a record."""


async def ignore_async(_: object) -> None:
    """The same, as a coroutine function."""


class ProcessingContract(Contract):
    """Runs against whatever `open_log` opens."""

    @pytest.fixture(autouse=True)
    def leaves_no_thread(self) -> Iterator[None]:
        """Whatever happens, `process` leaves no thread behind."""
        before = set(threading.enumerate())
        yield
        left = [one for one in threading.enumerate() if one not in before and not one.daemon]
        assert left == []

    # --- what it is called with

    @pytest.mark.parametrize(
        "options",
        [
            {"workers": 0},
            {"workers": "4"},
            {"workers": True},
            {"order": "offset"},
            {"max_in_flight": 0},
            {"max_in_flight": 1.5},
            {"retries": -1},
            {"retries": None},
            {"retry_backoff_ms": -1},
            {"retry_backoff_ms": 0.5},
            {"on_failure": "ignore"},
            {"dead_letter_topic": "dead"},
            {"dead_letter_topic": 5, "on_failure": "dead_letter"},
            {"on_failure": "dead_letter"},
        ],
        ids=str,
    )
    def test_bad_setting_is_refused(self, log: StreamLog, options: dict[str, Any]) -> None:
        """Before anything is read; the message says which."""
        log.create_topic("events")
        log.create_topic("dead")
        with reader(log) as consumer, pytest.raises(ConfigError, match=next(iter(options))):
            consumer.process(ignore, **options)

    @pytest.mark.parametrize("handler", [None, "x", 5])
    def test_handler_is_callable(self, log: StreamLog, handler: Any) -> None:
        """What cannot be called handles nothing."""
        log.create_topic("events")
        with reader(log) as consumer, pytest.raises(ConfigError, match="callable"):
            consumer.process(handler)

    def test_coroutine_function_is_refused(self, log: StreamLog) -> None:
        """Nobody would await it; `process_async` does."""

        class Awaited:
            async def __call__(self, record: object) -> None:
                """Handle a record."""

        log.create_topic("events")
        with reader(log) as consumer:
            for handler in (ignore_async, partial(ignore_async), Awaited()):
                with pytest.raises(ConfigError, match="process_async"):
                    consumer.process(handler)

    def test_awaitable_is_refused(self, log: StreamLog) -> None:
        """Also where it shows only in what the handler returns; whatever becomes of failures, this ends it."""
        fill(log, 1)
        with reader(log) as consumer:
            with pytest.raises(ConfigError, match="process_async"):
                consumer.process(lambda record: ignore_async([record]), on_failure="skip")
            assert take(consumer, 1)[0].offset == 0

    def test_needs_something_to_read(self, log: StreamLog) -> None:
        """Without a subscription it would wait for ever."""
        with log.consumer() as consumer, pytest.raises(IllegalStateError):
            consumer.process(ignore)

    def test_dead_letters_go_elsewhere(self, log: StreamLog) -> None:
        """Not to a topic that is missing, nor to one that is read by the same consumer."""
        for topic in ("events", "other"):
            log.create_topic(topic)
        with reader(log) as consumer:
            with pytest.raises(UnknownTopicError):
                consumer.process(ignore, on_failure="dead_letter", dead_letter_topic="missing")
            with pytest.raises(ConfigError, match="dead_letter_topic"):
                consumer.process(ignore, on_failure="dead_letter", dead_letter_topic=log.topic("events"))
        with log.consumer() as consumer:
            consumer.subscribe(pattern="oth.*")
            with pytest.raises(ConfigError, match="dead_letter_topic"):
                consumer.process(ignore, on_failure="dead_letter", dead_letter_topic="other")
            consumer.unsubscribe()
            consumer.assign([tp(0, "other")])
            with pytest.raises(ConfigError, match="dead_letter_topic"):
                consumer.process(ignore, on_failure="dead_letter", dead_letter_topic="other")

    def test_one_user_at_a_time(self, log: StreamLog) -> None:
        """Neither handlers nor other threads use the consumer meanwhile, nor do callbacks process."""
        fill(log, 1)
        errors: list[BaseException] = []

        def attempt(_: object) -> None:
            for call in (consumer.assignment, consumer.close, lambda: consumer.seek(tp(), 0), consumer.commit):
                with pytest.raises(IllegalStateError) as caught:
                    call()
                errors.append(caught.value)
            consumer.wakeup()

        def nest(other: Consumer[Any, Any], _: object) -> None:
            other.process(ignore)

        with reader(log) as consumer:
            consumer.process(attempt)
            assert len(errors) == 4
        with reader(log, on_assign=nest) as consumer, pytest.raises(IllegalStateError, match="callback"):
            consumer.process(ignore)

    # --- order

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("order", ["key", "partition"])
    def test_order_is_kept(self, log: StreamLog, order: str, seed: int) -> None:
        """Of each key, or partition, under eight workers that take their time; each record is handled once."""
        rng = random.Random(seed)  # noqa: S311 - no secret
        log.create_topic("events", partitions=3)
        for part in range(3):
            send(log, *(b"%d" % rng.randrange(9) for _ in range(150)), partition=part, partitions=3)
        naps = [rng.random() * 0.001 for _ in range(450)]

        class Slow(Handler):
            def handle(self, record: Record[Any, Any]) -> None:
                sleep(naps[record.offset + 150 * record.partition])

        lanes: dict[str, Callable[[Record[Any, Any]], Any]] = {
            "key": lambda record: (record.partition, record.key),
            "partition": lambda record: record.partition,
        }
        handler = Slow(lanes[order])
        with reader(log, max_poll_records=40) as consumer:
            running = Processing(consumer, handler, workers=8, order=order, max_in_flight=60)
            eventually(lambda: len(handler.done) == 450 or not running.is_running())
            running.end()
        assert handler.clashes == []
        assert handler.most <= 8
        assert len({(record.partition, record.offset) for record in handler.done}) == len(handler.begun) == 450
        for lane in {lanes[order](record) for record in handler.begun}:
            mine = [record.offset for record in handler.begun if lanes[order](record) == lane]
            assert mine == sorted(mine)
        assert [committed(log, part) for part in range(3)] == [150] * 3

    def test_keys_are_compared_raw(self, log: StreamLog) -> None:
        """Also where what they deserialise to cannot be hashed."""

        class Listing:
            def dumps(self, value: list[str]) -> bytes:
                return "".join(value).encode()

            def loads(self, data: bytes) -> list[str]:
                return list(data.decode())

        send(log, b"ab", b"ab", b"c")
        handler = Handler(lambda record: str(record.key))
        gate = handler.block(0)
        with (
            reader(log, key_serde=Listing(), value_serde=Listing()) as consumer,
            processing(consumer, handler, workers=3) as running,
        ):
            eventually(lambda: handler.offsets() == [2])
            assert handler.begun_offsets() == [0, 2]
            gate.set()
            eventually(lambda: len(handler.done) == 3)
            running.end()
        assert handler.done[1].key == ["a", "b"]

    @pytest.mark.parametrize(("keys", "order"), [([None] * 4, "key"), ([b"a", b"b", b"c", b"d"], "key")])
    def test_others_run_at_the_same_time(self, log: StreamLog, keys: list[bytes | None], order: Any) -> None:
        """As many as there are workers: records of different keys, and those without one."""
        send(log, *keys)
        together = threading.Barrier(4)
        with reader(log) as consumer:
            done: list[object] = []

            def meet(record: Record[Any, Any]) -> None:
                together.wait(PATIENCE)
                done.append(record)
                if len(done) == 4:
                    consumer.wakeup()

            consumer.process(meet, workers=4, order=order)
        assert committed(log) == 4

    def test_partitions_run_at_the_same_time(self, log: StreamLog) -> None:
        """Keyless records of one partition come one after the other if that is the order; other partitions go on."""
        fill(log, 6, partitions=2)
        handler = Handler(lambda record: record.partition)
        handler.block(0)
        with reader(log) as consumer, processing(consumer, handler, workers=4, order="partition"):
            eventually(lambda: handler.offsets(1) == [0, 1, 2])
            assert handler.begun_offsets(0) == [0]
            handler.release()
            eventually(lambda: handler.offsets(0) == [0, 1, 2])
        assert handler.clashes == []

    def test_so_many_are_in_flight(self, log: StreamLog) -> None:
        """Never more than `max_in_flight` are taken and not finished."""
        fill(log, 100)
        taken: list[int] = []

        class Taking:
            def on_consume(self, records: Any) -> None:
                taken.append(len(records))
                over.append(sum(taken) - len(handler.done))

        over: list[int] = []
        handler = Handler()
        gate = handler.block(0)
        with (
            reader(log, interceptors=[Taking()]) as consumer,
            processing(consumer, handler, workers=2, max_in_flight=7),
        ):
            eventually(lambda: len(handler.done) > 50)
            gate.set()
            eventually(lambda: len(handler.done) == 100)
        assert sum(taken) == 100
        assert max(over) <= 7 + 1  # the handler has noted a record a moment before it returns
        assert taken[0] == 7

    # --- what is committed

    @pytest.mark.parametrize("automatic", [True, False])
    def test_finished_prefix_is_committed(self, log: StreamLog, automatic: bool) -> None:  # noqa: FBT001 - a parameter
        """And nothing behind the first record that is not finished, though all after it are."""
        fill(log, 10)
        handler = Handler()
        gate = handler.block(4)
        with (
            reader(log, enable_auto_commit=automatic) as consumer,
            processing(consumer, handler, workers=2) as running,
        ):
            eventually(lambda: len(handler.done) == 9 and committed(log) == 4)
            gate.set()
            eventually(lambda: committed(log) == 10)
            running.end()
        assert handler.begun_offsets() == list(range(10))

    def test_commits_go_on_while_nothing_comes(self, log: StreamLog) -> None:
        """Every `auto_commit_interval_ms`, though the driver waits; at the end the rest."""
        fill(log, 10)
        handler = Handler()
        handler.block(9)
        with reader(log, auto_commit_interval_ms=50) as consumer, processing(consumer, handler):
            eventually(lambda: committed(log) == 9)
        assert committed(log) == 10

    def test_without_a_group_nothing_is_committed(self, log: StreamLog) -> None:
        """It processes all the same, and ends where it was."""
        fill(log, 10)
        handler = Handler()
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            with processing(consumer, handler):
                eventually(lambda: len(handler.done) == 10)
            assert consumer.position(tp()) == 10

    def test_it_goes_on_where_a_poll_was(self, log: StreamLog) -> None:
        """And a poll where it was; what a loop got ahead is handled."""
        fill(log, 10)
        handler = Handler()
        with reader(log) as consumer:
            assert next(iter(consumer)).offset == 0
            with processing(consumer, handler):
                eventually(lambda: len(handler.done) == 9)
            fill(log, 1)
            assert take(consumer, 1)[0].offset == 10
        assert handler.offsets() == list(range(1, 10))

    # --- the end

    def test_wakeup_drains(self, log: StreamLog) -> None:
        """What runs is finished, and what lies before something that is finished; the rest is read later."""
        send(log, b"a", b"a", b"b", b"a", b"b")
        handler = Handler()
        gates = handler.block(0), handler.block(4)
        with reader(log) as consumer:
            running = Processing(consumer, handler, workers=2)
            eventually(lambda: handler.begun_offsets() == [0, 2, 4] and handler.offsets() == [2])
            consumer.wakeup()
            send(log, b"c")
            sleep(0.02)  # a worker is free, but the new record is not begun
            gates[1].set()
            eventually(lambda: handler.offsets() == [2, 4])
            assert handler.begun_offsets() == [0, 2, 4]
            gates[0].set()
            running.join()
            assert handler.offsets() == [2, 4, 0, 1, 3]
            assert committed(log) == 5
            assert take(consumer, 1)[0].offset == 5

    def test_wakeup_puts_back_what_was_not_begun(self, log: StreamLog) -> None:
        """Position and commit stand behind the last record that was."""
        send(log, *[b"a"] * 10)
        handler = Handler()
        handler.block(3)
        with reader(log) as consumer:
            running = Processing(consumer, handler, workers=4)
            eventually(lambda: handler.begun_offsets() == [0, 1, 2, 3])
            consumer.wakeup()
            eventually(lambda: committed(log) == 3)
            sleep(0.02)  # the driver has seen the wakeup by now, or does so later: both must end alike
            handler.release()
            consumer.wakeup()  # is meant for this call, too
            running.join()
            assert consumer.position(tp()) == committed(log) == len(handler.done)
            assert handler.offsets() == list(range(consumer.position(tp())))
            consumer.poll(0)

    def test_wakeup_before_it_begins(self, log: StreamLog) -> None:
        """Ends it at once, once."""
        fill(log, 1)
        handler = Handler()
        with reader(log) as consumer:
            consumer.wakeup()
            consumer.process(handler)
            assert handler.begun == []
            with processing(consumer, handler):
                eventually(lambda: len(handler.done) == 1)

    def test_interrupt_waits_for_running_handlers(self, log: StreamLog) -> None:
        """Ctrl-C: nothing new begins, prefixes are committed, and it passes through."""
        fill(log, 10)
        handler = Handler()
        gate = handler.block(3)

        def interrupt() -> None:
            eventually(lambda: handler.begun_offsets() == [0, 1, 2, 3])
            os.kill(os.getpid(), signal.SIGINT)
            eventually(lambda: bool(seen))
            sleep(0.05)  # long enough to return too early
            gate.set()

        thread = threading.Thread(target=interrupt)
        with noted_interrupts() as seen, reader(log) as consumer:
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                consumer.process(handler)
            thread.join(PATIENCE)
            assert handler.offsets() == [0, 1, 2, 3]
            assert committed(log) == consumer.position(tp()) == 4

    def test_second_interrupt_does_not_wait(self, log: StreamLog) -> None:
        """For a handler that hangs; what was finished is committed."""
        fill(log, 10)
        handler = Handler()
        handler.block(3)
        left: list[threading.Thread] = []

        def interrupt() -> None:
            eventually(lambda: handler.begun_offsets() == [0, 1, 2, 3])
            before = set(threading.enumerate())
            left.extend(one for one in before if not one.daemon)
            os.kill(os.getpid(), signal.SIGINT)
            eventually(lambda: bool(seen))  # two at once would be one
            sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        with noted_interrupts() as seen, reader(log) as consumer:
            thread.start()
            start = monotonic()
            with pytest.raises(KeyboardInterrupt):
                consumer.process(handler)
            thread.join(PATIENCE)
            assert monotonic() - start < PATIENCE / 2
            assert committed(log) == consumer.position(tp()) == 3
            handler.release()
            eventually(lambda: sum(one.is_alive() for one in left) == 1)  # the main thread
            assert committed(log) == 3

    def test_closed_log_ends_it(self, log: StreamLog) -> None:
        """Once the running handlers have ended."""
        fill(log, 1)
        handler = Handler()
        handler.block(0)
        running = Processing(reader(log), handler)
        eventually(lambda: handler.begun)
        log.close()
        sleep(0.02)  # long enough to return too early
        assert running.is_running()
        handler.release()
        with pytest.raises(ClosedError):
            running.join()
        assert handler.offsets() == [0]

    def test_failing_callback_ends_it(self, log: StreamLog) -> None:
        """What it raises leaves `process`, as it leaves `poll`."""

        def fail(_: object, __: object) -> None:
            raise BrokenError

        fill(log, 1)
        with reader(log, on_assign=fail) as consumer:
            with pytest.raises(BrokenError):
                consumer.process(ignore)
            assert take(consumer, 1)
