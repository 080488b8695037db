"""The contract of callbacks and interceptors: what they are told, when, and that none of them does harm."""
# ruff: noqa: ARG002, PLR2004 - interceptors have the arguments they are called with, and numbers are examples

from __future__ import annotations

import logging
from typing import Any

import pytest

from pystreamlog import Delivery, Record, RecordMetadata, Records, StreamLog, serde
from pystreamlog.testing.contract import PATIENCE, Contract, buffered, fill, tp, values

__all__ = ["InterceptorContract"]


class Noted:
    """An interceptor that notes what it is told."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.acknowledged: list[tuple[RecordMetadata | None, BaseException | None]] = []

    def on_send(self, record: Record[Any, Any]) -> None:
        """See what is sent."""
        self.sent.append((record.topic, record.value, record.key, record.headers))

    def on_acknowledgement(self, metadata: RecordMetadata | None, error: BaseException | None) -> None:
        """See what came of it."""
        self.acknowledged.append((metadata, error))


class Broken:
    """An interceptor that raises at everything."""

    def on_send(self, record: Record[Any, Any]) -> None:
        """Raise."""
        raise ValueError("on_send is broken")

    def on_acknowledgement(self, metadata: RecordMetadata | None, error: BaseException | None) -> None:
        """Raise."""
        raise ValueError("on_acknowledgement is broken")


def stored(log: StreamLog) -> list[bytes | None]:
    """The payloads of the topic."""
    return values(log.topic("events").read())


class InterceptorContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- callbacks of deliveries

    def test_callback_is_called_once_with_the_delivery(self, log: StreamLog) -> None:
        """At the acknowledgement, or at once when that was before."""
        log.create_topic("events")
        called: list[Delivery] = []
        with log.producer(linger_ms=600_000) as producer:
            delivery = buffered(producer)
            delivery.add_done_callback(called.append)
            delivery.add_done_callback(called.append)
            assert called == []
            producer.flush()
            assert called == [delivery, delivery]
            delivery.add_done_callback(called.append)
        assert called == [delivery] * 3
        assert called[0].result().topic == "events"

    def test_callback_that_raises_is_logged(self, log: StreamLog, caplog: pytest.LogCaptureFixture) -> None:
        """The others are called, and the producer goes on."""
        log.create_topic("events")
        called = []

        def broken(_: Delivery) -> None:
            raise ValueError("the callback is broken")

        with log.producer(linger_ms=600_000) as producer, caplog.at_level(logging.ERROR, "pystreamlog"):
            delivery = buffered(producer)
            delivery.add_done_callback(broken)
            delivery.add_done_callback(lambda _: called.append(1))
            producer.flush()
            delivery.add_done_callback(broken)
            producer.send("events", b"2").result()
        assert called == [1]
        assert [record.exc_info is not None for record in caplog.records] == [True, True]

    def test_callback_may_send(self, log: StreamLog) -> None:
        """To the same partition too: it is buffered like any other record."""
        log.create_topic("events")
        with log.producer() as producer:
            producer.send("events", b"first").add_done_callback(lambda _: producer.send("events", b"second"))
        assert stored(log) == [b"first", b"second"]

    # --- interceptors of producers

    @pytest.mark.parametrize("many", [False, True])
    def test_interceptors_see_records_and_outcomes(self, log: StreamLog, many: bool) -> None:  # noqa: FBT001
        """`on_send` before serialisation, `on_acknowledgement` with what came of it."""
        log.create_topic("events")
        noted = Noted()
        with log.producer(interceptors=[noted], value_serde=serde.string) as producer:
            if many:
                producer.send_many("events", ["v"], [b"k"], headers=[[("h", b"1")]], timestamps_ms=5)
            else:
                producer.send("events", "v", b"k", headers=[("h", b"1")], timestamp_ms=5)
        assert noted.sent == [("events", "v", b"k", (("h", b"1"),))]
        assert noted.acknowledged == [(RecordMetadata("events", 0, 0, 5), None)]

    def test_interceptor_changes_the_record(self, log: StreamLog) -> None:
        """By returning another; the next one gets that."""
        log.create_topic("events")

        class Stamps:
            def __init__(self, mark: bytes) -> None:
                self.mark = mark

            def on_send(self, record: Record[bytes, bytes]) -> Record[bytes, bytes]:
                value = (record.value or b"") + self.mark
                return Record(record.topic, -1, -1, -1, self.mark, value, (("m", self.mark),))

        with log.producer(interceptors=[Stamps(b"1"), Stamps(b"2")]) as producer:
            producer.send("events", b"x")
            producer.send_many("events", [b"y"])
        assert [(r.key, r.value, r.headers) for r in log.topic("events").read()] == [
            (b"2", b"x12", (("m", b"2"),)),
            (b"2", b"y12", (("m", b"2"),)),
        ]

    def test_broken_interceptor_is_logged_and_skipped(self, log: StreamLog, caplog: pytest.LogCaptureFixture) -> None:
        """The record and the other interceptors go on."""
        log.create_topic("events")
        noted = Noted()
        broken = [Broken(), noted, object()]
        with caplog.at_level(logging.ERROR, "pystreamlog"), log.producer(interceptors=broken) as producer:
            producer.send("events", b"x")
            producer.send_many("events", [b"y"])
        assert stored(log) == [b"x", b"y"]
        assert len(noted.sent) == len(noted.acknowledged) == 2
        assert "Broken.on_send raised" in caplog.text
        assert "Broken.on_acknowledgement raised" in caplog.text

    def test_interceptor_that_returns_rubbish_is_skipped(
        self, log: StreamLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is no record is logged like an exception."""

        class Rubbish:
            def on_send(self, record: Record[Any, Any]) -> str:
                return "rubbish"

        log.create_topic("events")
        with caplog.at_level(logging.ERROR, "pystreamlog"), log.producer(interceptors=[Rubbish()]) as producer:
            producer.send("events", b"x")
        assert stored(log) == [b"x"]
        assert "Rubbish.on_send" in caplog.text

    # --- interceptors of consumers

    def test_interceptor_changes_what_poll_returns(self, log: StreamLog) -> None:
        """It gets what was found, and returns records or None."""
        fill(log, 6, partitions=2)
        seen = []

        class Only:
            def on_consume(self, records: Records[Any, Any]) -> Records[Any, Any] | None:
                seen.append(len(records))
                return records.by_partition().get(tp(1))

        with log.consumer("events", auto_offset_reset="earliest", interceptors=[object(), Only()]) as consumer:
            records = consumer.poll(PATIENCE)
            assert set(records.partitions) <= {1}
        assert seen == [6]

    def test_interceptor_that_drops_everything_ends_no_wait(self, log: StreamLog) -> None:
        """`poll` looks on at once for what comes behind."""
        fill(log, 10)

        class Late:
            def on_consume(self, records: Records[Any, Any]) -> Records[Any, Any]:
                return records if records[0].offset >= 8 else Records()

        with log.consumer(
            "events", auto_offset_reset="earliest", interceptors=[Late()], max_poll_records=2
        ) as consumer:
            assert consumer.poll(PATIENCE).offsets == [8, 9]

    def test_broken_interceptor_of_a_consumer_is_logged_and_skipped(
        self, log: StreamLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No record is lost by it."""
        fill(log, 3)

        class Broken:
            def on_consume(self, records: Records[Any, Any]) -> None:
                raise ValueError("on_consume is broken")

        caplog.set_level(logging.ERROR, "pystreamlog")
        with log.consumer("events", auto_offset_reset="earliest", interceptors=[Broken()]) as consumer:
            assert values(consumer.poll(PATIENCE)) == [b"0", b"1", b"2"]
        assert "on_consume is broken" in caplog.text
