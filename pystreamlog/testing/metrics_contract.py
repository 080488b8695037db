"""What producers, consumers and logs measure, under Kafka's names. Times and rates are only looked at for sense."""

# ruff: noqa: PLR2004 - a test's numbers are its examples

from __future__ import annotations

import threading

import pytest

from pystreamlog import ClosedError, ConfigError, GroupPartition, StreamLog
from pystreamlog.testing.contract import PATIENCE, Contract, fill, in_thread, take, tp

__all__ = ["MetricsContract"]

PRODUCER = """
    batch-size-avg batch-size-max buffer-available-bytes buffer-total-bytes bufferpool-wait-ratio
    bufferpool-wait-time-ns-total byte-rate byte-total compression-rate-avg flush-time-ns-total record-error-rate
    record-error-total record-queue-time-avg record-queue-time-max record-send-rate record-send-total record-size-avg
    records-per-request-avg request-latency-avg request-latency-max request-rate request-total txn-abort-time-ns-total
    txn-begin-time-ns-total txn-commit-time-ns-total txn-init-time-ns-total txn-send-offsets-time-ns-total
    waiting-threads
"""
CONSUMER = """
    assigned-partitions bytes-consumed-rate bytes-consumed-total commit-latency-avg commit-latency-max commit-rate
    commit-total failed-rebalance-rate-per-hour failed-rebalance-total fetch-latency-avg fetch-latency-max fetch-rate
    fetch-size-avg fetch-size-max fetch-total last-poll-seconds-ago poll-idle-ratio-avg poll-total rebalance-latency-avg
    rebalance-latency-max rebalance-latency-total rebalance-rate-per-hour rebalance-total records-consumed-rate
    records-consumed-total records-lag-max records-lead-min records-per-request-avg time-between-poll-avg
    time-between-poll-max
"""


class MetricsContract(Contract):
    """What is measured."""

    def test_every_client_has_kafkas_metrics(self, log: StreamLog) -> None:
        """From the beginning, and all are numbers."""
        with log.producer() as producer, log.consumer() as consumer:
            for client, names in ((producer, PRODUCER), (consumer, CONSUMER)):
                metrics = client.metrics()
                assert set(names.split()) <= set(metrics)
                assert {type(value) for value in metrics.values()} <= {int, float}
            assert consumer.metrics()["last-poll-seconds-ago"] == -1

    def test_what_was_sent_is_told_by_topic_and_partition(self, log: StreamLog) -> None:
        """And adds up to the client's."""
        log.create_topic("events", partitions=2)
        log.create_topic("others")
        with log.producer() as producer:
            producer.send_many("events", [b"x"] * 7, partition=0)
            producer.send_many("events", [b"x"] * 5, partition=1)
            producer.send("others", b"x")
            producer.flush()
            whole, topics, partitions = (producer.metrics(), producer.metrics("topic"), producer.metrics("partition"))
            assert whole["record-send-total"] == 13
            assert {topic: each["record-send-total"] for topic, each in topics.items()} == {"events": 12, "others": 1}
            sent = {place: each["record-send-total"] for place, each in partitions.items()}
            assert sent == {tp(0): 7, tp(1): 5, tp(0, "others"): 1}
            for by in (topics, partitions):
                assert sum(each["byte-total"] for each in by.values()) == whole["byte-total"]
            assert whole["byte-total"] >= 13
            assert whole["request-total"] <= 13
            assert whole["batch-size-max"] >= whole["batch-size-avg"] > 0
            assert whole["request-latency-max"] >= whole["request-latency-avg"] > 0
            assert whole["flush-time-ns-total"] > 0
            assert 0 < whole["record-send-rate"] <= 13 / 30

    def test_what_was_written_is_what_is_read(self, log: StreamLog) -> None:
        """Bytes are those of the batches in the log, however they were sent and are taken."""
        log.create_topic("events")
        with log.producer() as producer, log.consumer("events", auto_offset_reset="earliest") as consumer:
            producer.send("events", b"alone").result()
            producer.send_many("events", [b"x" * 100] * 1000)
            for _ in range(10):
                producer.send("events", b"gathered", headers=[("name", b"value")])
            producer.flush()
            count = 0
            while count < 1011:
                count += len(consumer.poll(PATIENCE, max_records=7))
            assert consumer.metrics()["bytes-consumed-total"] == producer.metrics()["byte-total"]
            assert producer.metrics()["compression-rate-avg"] == 1
            read = consumer.metrics("topic")["events"]
            assert (read["records-consumed-total"], read["bytes-consumed-total"]) == (
                1011,
                producer.metrics("topic")["events"]["byte-total"],
            )

    def test_compression_is_measured(self, log: StreamLog) -> None:
        """As what is left of the bytes."""
        log.create_topic("events")
        with log.producer(compression_type="gzip") as packed, log.producer() as plain:
            for producer in (packed, plain):
                producer.send_many("events", [b"x" * 100] * 1000).result()
            measured, expected = packed.metrics(), plain.metrics()
            assert measured["record-size-avg"] == expected["record-size-avg"] >= 100
            assert measured["compression-rate-avg"] == measured["byte-total"] / expected["byte-total"] < 0.5
            assert packed.metrics("topic")["events"]["compression-rate"] == measured["compression-rate-avg"]

    def test_failures_are_counted_where_they_belong(self, log: StreamLog) -> None:
        """And not as sent."""
        log.create_topic("events")
        with log.producer(linger_ms=60_000) as producer:
            producer.begin_transaction()
            producer.send("events", b"x")
            producer.abort_transaction()
            assert producer.metrics()["record-error-total"] == 1
            assert producer.metrics()["record-send-total"] == 0
            assert producer.metrics("partition")[tp()]["record-error-total"] == 1
            assert producer.metrics()["txn-abort-time-ns-total"] > 0

    def test_transactions_are_counted_when_they_are_committed(self, log: StreamLog) -> None:
        """With the time that it took."""
        log.create_topic("events")
        with log.producer(transactional_id="t") as producer:
            with producer.transaction():
                producer.send("events", b"x")
                assert producer.metrics()["record-send-total"] == 0
            metrics = producer.metrics()
            assert metrics["record-send-total"] == 1
            assert metrics["txn-commit-time-ns-total"] > 0
            assert metrics["request-latency-avg"] > 0

    def test_threads_lose_no_count(self, log: StreamLog) -> None:
        """Though they send to the same partitions."""
        log.create_topic("events", partitions=3)
        with log.producer(linger_ms=0) as producer:

            def send() -> None:
                for number in range(400):
                    producer.send("events", b"x", partition=number % 3)

            threads = [threading.Thread(target=send) for _ in range(4)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                producer.metrics()
            producer.flush()
            assert producer.metrics()["record-send-total"] == 1600
            assert sum(each["record-send-total"] for each in producer.metrics("partition").values()) == 1600

    def test_lag_and_lead_are_told_by_partition(self, log: StreamLog) -> None:
        """From any thread; the lag also grows while nobody polls."""
        fill(log, 10, partitions=2)
        with log.consumer("events", auto_offset_reset="earliest") as consumer:
            for _ in range(2):  # a position is not known before its first poll
                assert len(consumer.poll(PATIENCE, max_records=3)) == 3
            partitions = in_thread(lambda: consumer.metrics("partition"))
            assert sum(each["records-lag"] for each in partitions.values()) == 4
            assert sum(each["records-lead"] for each in partitions.values()) == 6
            take(consumer, 4)
            assert consumer.metrics()["records-lag-max"] == 0
            fill(log, 4, partitions=2, partition=1)
            assert consumer.metrics()["records-lag-max"] == 4
            assert consumer.metrics("partition")[tp(1)]["records-lag"] == 4
            assert consumer.metrics()["records-lead-min"] == 5

    def test_lag_of_groups_is_told_without_joining(self, log: StreamLog) -> None:
        """From what was committed, with and without members."""
        fill(log, 10)
        assert log.metrics("group") == {}
        with log.consumer("events", group_id="g", auto_offset_reset="earliest", enable_auto_commit=False) as consumer:
            take(consumer, 10)
            consumer.commit({tp(): 4})
            key = GroupPartition("g", "events", 0)
            assert log.metrics("group") == {key: {"records-lag": 6, "committed-offset": 4}}
            assert consumer.metrics()["commit-total"] >= 1
            assert consumer.metrics()["commit-latency-max"] > 0
        fill(log, 5)
        assert log.metrics("group")[key]["records-lag"] == 11

    def test_rebalances_are_measured(self, log: StreamLog) -> None:
        """Once each, from the first step on."""
        fill(log, 4, partitions=2)
        with log.consumer("events", group_id="g", auto_offset_reset="earliest") as consumer:
            take(consumer, 4)
            metrics = consumer.metrics()
            assert (metrics["rebalance-total"], metrics["failed-rebalance-total"]) == (1, 0)
            assert metrics["rebalance-latency-avg"] == metrics["rebalance-latency-total"] > 0
            assert metrics["assigned-partitions"] == 2

    def test_polls_are_measured(self, log: StreamLog) -> None:
        """How many there were, and what of the time was theirs."""
        fill(log, 4)
        with log.consumer("events", auto_offset_reset="earliest", max_poll_records=1) as consumer:
            take(consumer, 4)
            metrics = consumer.metrics()
            assert metrics["poll-total"] >= 4
            assert 0 < metrics["poll-idle-ratio-avg"] <= 1
            assert metrics["time-between-poll-max"] >= metrics["time-between-poll-avg"] > 0
            assert 0 <= metrics["last-poll-seconds-ago"] < PATIENCE
            assert metrics["fetch-latency-max"] >= metrics["fetch-latency-avg"] > 0

    def test_log_tells_sizes_and_offsets(self, log: StreamLog) -> None:
        """Whoever wrote them, `Topic.append` too."""
        topic = log.create_topic("events", partitions=2)
        topic.append(b"x", partition=1)
        partitions = log.metrics("partition")
        assert (partitions[tp(0)]["LogEndOffset"], partitions[tp(1)]["LogEndOffset"]) == (0, 1)
        assert partitions[tp(1)]["LogStartOffset"] == 0
        assert partitions[tp(1)]["NumLogSegments"] == 1
        topics = log.metrics("topic")
        assert topics["events"]["Size"] == sum(each["Size"] for each in partitions.values()) > 0

    def test_counters_of_a_log_never_fall(self, log: StreamLog) -> None:
        """Though clients come and go."""
        fill(log, 3)
        assert log.metrics()["record-send-total"] == 3
        consumer = log.consumer("events", auto_offset_reset="earliest")
        take(consumer, 3)
        fill(log, 2)
        del consumer
        assert log.metrics()["record-send-total"] == 5
        assert log.metrics()["records-consumed-total"] == 3

    def test_clients_have_ids_of_their_own(self, log: StreamLog) -> None:
        """Kafka's, or the ones they are given; a second one gets a number."""
        with (
            log.producer() as first,
            log.producer(client_id="mine") as second,
            log.producer(client_id="mine") as third,
            log.producer(transactional_id="t") as fourth,
            log.consumer() as fifth,
            log.consumer(group_id="g") as sixth,
            log.consumer(client_id="other") as seventh,
        ):
            clients = first, second, third, fourth, fifth, sixth, seventh
            ids = [client.client_id for client in clients]
            assert ids == ["producer-1", "mine", "mine-2", "producer-t", "consumer-1", "consumer-g-1", "other"]
            metrics = log.collect_metrics(logs=False, groups=False)
            assert {metric.tags["client-id"] for metric in metrics} == set(ids)
        with log.producer(client_id="mine") as again:
            assert again.client_id == "mine"

    def test_all_is_collected_once(self, log: StreamLog) -> None:
        """Each name with the same tags once; without partitions there are none."""
        fill(log, 4, partitions=2)
        with log.consumer("events", group_id="g", auto_offset_reset="earliest") as consumer, log.producer() as producer:
            take(consumer, 4)
            producer.send("events", b"x").result()
            metrics = log.collect_metrics()
            keys = [(metric.group, metric.name, tuple(sorted(metric.tags.items()))) for metric in metrics]
            assert len(keys) == len(set(keys))
            assert {metric.group for metric in metrics} == {"producer", "consumer", "log", "group"}
            narrow = log.collect_metrics(groups=False, partitions=False)
            assert not any("partition" in metric.tags for metric in narrow)

    def test_metrics_outlive_their_client(self, log: StreamLog) -> None:
        """Its last values are told; what needs the directory is not."""
        fill(log, 3)
        consumer = log.consumer("events", auto_offset_reset="earliest")
        take(consumer, 3)
        consumer.close()
        assert consumer.metrics()["records-consumed-total"] == 3
        assert consumer.metrics()["assigned-partitions"] == 0
        log.close()
        assert log.metrics()["record-send-total"] == 3
        assert log.collect_metrics() == []
        with pytest.raises(ClosedError):
            log.metrics("group")

    def test_unknown_way_to_tell_is_refused(self, log: StreamLog) -> None:
        """And what there is, is named."""
        with log.producer() as producer, log.consumer() as consumer:
            for call in (producer.metrics, consumer.metrics, log.metrics):
                with pytest.raises(ConfigError, match="'topic', 'partition'"):
                    call("broker")  # type: ignore[call-overload]
