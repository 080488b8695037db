"""The contract of an open log: it hands out clients and topics, from any thread, until it is closed."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest

from pystreamlog import Consumer, Producer, StreamLog, Topic, serde
from pystreamlog.errors import ClosedError, ConfigError
from pystreamlog.testing.contract import PATIENCE, Contract

__all__ = ["LogContract"]


class LogContract(Contract):
    """Runs against whatever `open_log` opens."""

    def test_log_hands_out_what_the_contract_names(self, log: StreamLog) -> None:
        """Topics, producers and consumers; and says where it lies."""
        assert isinstance(log, StreamLog)
        assert isinstance(log.path, str)
        assert isinstance(log.create_topic("events"), Topic)
        with log.producer() as producer, log.consumer() as consumer:
            assert isinstance(producer, Producer)
            assert isinstance(consumer, Consumer)

    def test_closed_log_is_closed(self) -> None:
        """Closing again is harmless, everything else raises `ClosedError`."""
        log = self.open_log()
        log.create_topic("events")
        log.close()
        log.close()
        for call in (
            lambda: log.create_topic("more"),
            lambda: log.topic("events"),
            log.topics,
            log.maintain,
            lambda: log.delete_topic("events"),
            log.producer,
            lambda: log.consumer("events"),
            log.consumer,
        ):
            with pytest.raises(ClosedError):
                call()
        assert isinstance(log.path, str)

    def test_leaving_with_closes(self) -> None:
        """Also by an exception, which passes."""
        with pytest.raises(KeyError), self.open_log() as log:
            raise KeyError
        with pytest.raises(ClosedError):
            log.topics()

    def test_leaving_async_with_closes(self) -> None:
        """What was sent is written."""

        async def main() -> StreamLog:
            async with self.open_log() as log:
                log.create_topic("events")
                async with log.producer() as producer, log.consumer("events") as consumer:
                    producer.send("events", b"x")
                    assert (await consumer.poll_async(PATIENCE)).values == [b"x"]
            return log

        log = asyncio.run(asyncio.wait_for(main(), PATIENCE))
        with pytest.raises(ClosedError):
            log.topics()

    def test_threads_share_a_log(self, log: StreamLog) -> None:
        """Each with clients and topics of its own."""
        count = 6
        start = threading.Barrier(count)
        done: list[int] = []

        def work(number: int) -> None:
            start.wait(PATIENCE)
            log.create_topic("shared", partitions=2, exist_ok=True)
            mine = log.create_topic(f"mine-{number}")
            with log.consumer(mine) as consumer, log.producer() as producer:
                for index in range(20):
                    mine.append(b"%d" % index)
                    producer.send("shared", b"%d" % number)
                    assert consumer.poll(PATIENCE).values == [b"%d" % index]
            done.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(done) == list(range(count))
        shared = Counter(record.value for record in log.topic("shared").read())
        assert shared == {b"%d" % number: 20 for number in range(count)}

    def test_threads_make_the_same_topic(self, log: StreamLog) -> None:
        """All get the same one."""
        made: list[Topic[bytes, bytes]] = []
        start = threading.Barrier(8)

        def work() -> None:
            start.wait(PATIENCE)
            made.append(log.create_topic("events", partitions=3, exist_ok=True))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert [topic.partitions for topic in made] == [3] * 8
        for number, topic in enumerate(made):
            assert topic.append(b"x", partition=0).offset == number

    @pytest.mark.parametrize("bad", [5, "json", dict, serde])
    def test_what_is_no_serde_is_refused(self, log: StreamLog, bad: Any) -> None:
        """At once, and no topic is made."""
        for name in ("key_serde", "value_serde"):
            with pytest.raises(ConfigError, match=name):
                log.create_topic("events", **{name: bad})
            assert log.topics() == []
        log.create_topic("events")
        for name in ("key_serde", "value_serde"):
            with pytest.raises(ConfigError, match=name):
                log.topic("events", **{name: bad})

    def test_clients_that_nobody_closed_end_with_the_log(self) -> None:
        """However many."""
        log = self.open_log()
        log.create_topic("events")
        producers = [log.producer(), log.producer()]
        consumers = [log.consumer("events"), log.consumer()]
        log.close()
        for producer in producers:
            with pytest.raises(ClosedError):
                producer.flush()
        for consumer in consumers:
            with pytest.raises(ClosedError):
                consumer.assignment()
        for client in (*producers, *consumers):
            client.close()
