"""The contract of an admin, about topics, their settings, the offsets of their partitions, and the log itself."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from pystreamlog import AlterConfigOp, NewTopic, StreamLog
from pystreamlog.errors import (
    ClosedError,
    ConfigError,
    InvalidTopicError,
    StreamLogError,
    TopicExistsError,
    UnknownPartitionError,
    UnknownTopicError,
)
from pystreamlog.testing.contract import Contract, fill, in_thread, tp

__all__ = ["AdminTopicContract", "failures"]


def failures(caught: pytest.ExceptionInfo[ExceptionGroup[Exception]]) -> list[Any]:
    """The errors of a group, which is flat and holds nothing but the library's own."""
    errors = list(caught.value.exceptions)
    assert all(isinstance(error, StreamLogError) for error in errors)
    return errors


class AdminTopicContract(Contract):
    """Runs against whatever `open_log` opens."""

    # --- topics

    def test_topics_are_created_listed_described_and_deleted(self, log: StreamLog) -> None:
        """What one call says, the others see."""
        made = log.admin.create_topics([NewTopic("a", 3, configs={"segment_ms": 60_000}), NewTopic("__b")])
        assert log.topics() == ["__b", "a"]
        assert (log.topic("a").partitions, log.topic("a").config["segment_ms"]) == (3, 60_000)
        assert list(log.admin.list_topics()) == ["a"]
        listed = log.admin.list_topics(list_internal=True)
        assert list(listed) == ["__b", "a"]
        assert listed["__b"].is_internal
        assert not listed["a"].is_internal
        assert log.admin.describe_topics(["a", "__b"]) == made
        assert [topic.partitions for topic in made.values()] == [3, 1]
        assert made["a"].topic_id == listed["a"].topic_id != made["__b"].topic_id
        assert all(re.fullmatch("[0-9a-f]{32}", topic.topic_id) for topic in made.values())
        log.admin.delete_topics("a")
        assert log.topics() == ["__b"]
        log.admin.delete_topics(["__b"])
        assert log.admin.list_topics(list_internal=True) == {}

    def test_topic_made_again_is_another(self, log: StreamLog) -> None:
        """Its id says so."""
        before = log.admin.create_topics([NewTopic("events")])["events"]
        log.admin.delete_topics("events")
        assert log.admin.create_topics([NewTopic("events")])["events"].topic_id != before.topic_id

    def test_all_topics_are_tried(self, log: StreamLog) -> None:
        """Those that fail come together, and say which they are."""
        log.create_topic("there")
        new = [NewTopic("there"), NewTopic("a b"), NewTopic("good"), NewTopic("bad", configs={"segment_byte": 1})]
        misplaced: Any = {"segment_ms": 60_000}
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.create_topics([*new, NewTopic("none", 0), NewTopic("settings", 1, misplaced)])
        found = [(type(error), error.topic) for error in failures(caught)]
        assert found == [
            (TopicExistsError, "there"),
            (InvalidTopicError, "a b"),
            (ConfigError, "bad"),
            (ConfigError, "none"),
            (ConfigError, "settings"),
        ]
        assert log.topics() == ["good", "there"]
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.delete_topics(["missing", "good", "also-missing"])
        assert [error.topic for error in failures(caught)] == ["missing", "also-missing"]
        assert log.topics() == ["there"]
        for call in (log.admin.describe_topics, log.admin.describe_configs, log.admin.describe_log_dirs):
            with pytest.raises(ExceptionGroup) as caught:
                call(["there", "missing"])
            (error,) = failures(caught)
            assert isinstance(error, UnknownTopicError)
            assert error.topic == "missing"

    def test_validating_makes_nothing(self, log: StreamLog) -> None:
        """But refuses what would be refused."""
        log.create_topic("there")
        log.admin.create_topics([NewTopic("a")], validate_only=True)
        with pytest.raises(ExceptionGroup):
            log.admin.create_topics([NewTopic("there")], validate_only=True)
        log.admin.create_partitions({"there": 4}, validate_only=True)
        with pytest.raises(ExceptionGroup):
            log.admin.create_partitions({"there": 1}, validate_only=True)
        log.admin.incremental_alter_configs({"there": [AlterConfigOp("segment_ms", 5)]}, validate_only=True)
        with pytest.raises(ExceptionGroup):
            log.admin.incremental_alter_configs({"there": [AlterConfigOp("segment_ms", 0)]}, validate_only=True)
        assert log.topics() == ["there"]
        described = log.admin.describe_topics("there")["there"]
        assert described.partitions == 1
        assert all(entry.is_default for entry in log.admin.describe_configs("there")["there"].values())

    def test_partitions_are_added(self, log: StreamLog) -> None:
        """Up to the total; fewer, or as many, is refused."""
        log.create_topic("a")
        log.create_topic("b", partitions=2)
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.create_partitions({"a": 4, "b": 2, "missing": 2})
        assert [(type(e), e.topic) for e in failures(caught)] == [(ConfigError, "b"), (UnknownTopicError, "missing")]
        assert [topic.partitions for topic in log.admin.describe_topics(["a", "b"]).values()] == [4, 2]
        assert log.topic("a").append(b"x", partition=3).offset == 0

    # --- settings

    def test_settings_are_described_and_altered(self, log: StreamLog) -> None:
        """Those that are not named stay, and a deleted one goes back to its default."""
        log.create_topic("events", segment_ms=1000, flush_messages=5)
        entries = log.admin.describe_configs("events")["events"]
        assert set(entries) == set(log.topic("events").config)
        assert entries["segment_ms"][:4] == ("segment_ms", 1000, entries["segment_ms"].default, False)
        assert entries["flush_ms"].is_default
        assert [name for name, entry in entries.items() if entry.is_read_only] == ["key_index"]
        ops = [AlterConfigOp("max_message_bytes", 100), AlterConfigOp("segment_ms", op_type="DELETE")]
        log.admin.incremental_alter_configs({"events": ops})
        altered = {name: entry.value for name, entry in log.admin.describe_configs("events")["events"].items()}
        assert altered == dict(log.topic("events").config)
        changes = {"max_message_bytes": 100, "segment_ms": entries["segment_ms"].default}
        assert altered == {name: entry.value for name, entry in entries.items()} | changes

    @pytest.mark.parametrize(
        "ops",
        [
            [AlterConfigOp("no_such", 1)],
            [AlterConfigOp("segment_ms", -5)],
            [AlterConfigOp("segment_ms", 7), AlterConfigOp("segment_ms", 8)],
            [AlterConfigOp("segment_ms", 7, "APPEND")],
            [AlterConfigOp("segment_ms", 7, "SUBTRACT")],
            [AlterConfigOp("segment_ms", 7, "RAISE")],  # type: ignore[arg-type]
            [AlterConfigOp("key_index", value=True)],
            [("segment_ms", 7)],
        ],
    )
    def test_settings_of_a_topic_are_altered_together_or_not(self, log: StreamLog, ops: Any) -> None:
        """One that cannot be leaves all as they were; other topics are altered."""
        log.create_topic("events")
        log.create_topic("other")
        good = AlterConfigOp("flush_messages", 9)
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.incremental_alter_configs({"events": [good, *ops], "other": [good]})
        (error,) = failures(caught)
        assert isinstance(error, ConfigError)
        assert error.topic == "events"  # type: ignore[attr-defined]
        assert all(entry.is_default for entry in log.admin.describe_configs("events")["events"].values())
        assert log.admin.describe_configs("other")["other"]["flush_messages"][:2] == ("flush_messages", 9)

    # --- offsets

    def test_offsets_are_listed(self, log: StreamLog) -> None:
        """The earliest, the latest, at a time, and of the highest timestamp, each with the record's timestamp."""
        topic = log.create_topic("events", partitions=2)
        for when in (1000, 3000, 3000, 2000):
            topic.append(b"x", partition=0, timestamp_ms=when)
        admin = log.admin
        assert admin.list_offsets({tp(): "earliest", tp(1): "latest"}) == {tp(): (0, -1), tp(1): (0, -1)}
        assert admin.list_offsets({tp(): "latest", tp(1): "max_timestamp"}) == {tp(): (4, -1), tp(1): (-1, -1)}
        assert admin.list_offsets({tp(): "max_timestamp"}) == {tp(): (1, 3000)}
        assert admin.list_offsets({tp(): 1001, tp(1): 0}) == {tp(): (1, 3000), tp(1): (-1, -1)}
        assert admin.list_offsets({tp(): datetime.fromtimestamp(1, UTC)}) == {tp(): (0, 1000)}
        assert admin.list_offsets({tp(): 3001}) == {tp(): (-1, -1)}

    def test_offsets_inside_a_batch_are_listed(self, log: StreamLog) -> None:
        """A record is found wherever in its batch it is, also when the one that had the highest timestamp is gone."""
        log.create_topic("events")
        with log.producer(linger_ms=60_000) as producer:
            for when in (3000, 1000, 2000, 3000, 1500):
                producer.send("events", b"x", partition=0, timestamp_ms=when)
        admin = log.admin
        admin.delete_records({tp(): 1})
        assert admin.list_offsets({tp(): 0}) == {tp(): (1, 1000)}
        assert admin.list_offsets({tp(): 1001}) == {tp(): (2, 2000)}
        assert admin.list_offsets({tp(): "max_timestamp"}) == {tp(): (3, 3000)}

    def test_offsets_of_all_partitions_are_tried(self, log: StreamLog) -> None:
        """Those that fail come together, and say which they are."""
        log.create_topic("events")
        with pytest.raises(ExceptionGroup) as caught:
            log.admin.list_offsets({tp(): "newest", tp(1): "latest", tp(0, "missing"): "latest"})  # type: ignore[dict-item]
        found = [(type(error), error.topic, error.partition) for error in failures(caught)]
        assert found == [
            (ConfigError, "events", 0),
            (UnknownPartitionError, "events", 1),
            (UnknownTopicError, "missing", 0),
        ]

    # --- the log

    def test_log_dirs_tell_what_partitions_take_up(self, log: StreamLog) -> None:
        """Nothing before the first record, and more with more of them."""
        count = 1000
        fill(log, count, partitions=2, partition=0)
        log.create_topic("other")
        (described,) = log.admin.describe_log_dirs().values()
        sizes = {place: info.size for place, info in described.replica_infos.items()}
        assert set(sizes) == {tp(), tp(1), tp(0, "other")}
        assert sizes[tp()] >= count
        assert sizes[tp(1)] == sizes[tp(0, "other")] == 0
        assert 0 <= described.usable_bytes <= described.total_bytes
        (described,) = log.admin.describe_log_dirs("other").values()
        assert list(described.replica_infos) == [tp(0, "other")]

    def test_cluster_is_described(self, log: StreamLog) -> None:
        """It has an id, and something that serves it."""
        cluster = log.admin.describe_cluster()
        assert cluster == log.admin.describe_cluster()
        assert cluster.cluster_id
        assert cluster.controller in cluster.nodes
        with self.open_log() as other:
            assert other.admin.describe_cluster().cluster_id != cluster.cluster_id

    # --- its life

    def test_admin_works_in_any_thread(self, log: StreamLog) -> None:
        """It is the log's."""
        admin = log.admin
        in_thread(lambda: admin.create_topics([NewTopic("events")]))
        assert list(admin.list_topics()) == ["events"]

    def test_admin_of_a_closed_log_is_closed(self) -> None:
        """Whatever is called."""
        log = self.open_log()
        admin = log.admin
        log.close()
        calls: list[Any] = [
            lambda: admin.create_topics([NewTopic("a")]),
            lambda: admin.delete_topics("a"),
            admin.list_topics,
            lambda: admin.describe_topics("a"),
            lambda: admin.create_partitions({"a": 2}),
            lambda: admin.describe_configs("a"),
            lambda: admin.incremental_alter_configs({"a": []}),
            lambda: admin.list_offsets({tp(): "latest"}),
            admin.list_consumer_groups,
            lambda: admin.describe_consumer_groups("g"),
            lambda: admin.delete_consumer_groups("g"),
            lambda: admin.list_consumer_group_offsets("g"),
            lambda: admin.alter_consumer_group_offsets("g", {tp(): 0}),
            lambda: admin.delete_consumer_group_offsets("g", [tp()]),
            lambda: admin.remove_members_from_consumer_group("g"),
            admin.list_transactions,
            lambda: admin.describe_transactions("t"),
            lambda: admin.fence_producers("t"),
            lambda: admin.abort_transaction("t"),
            admin.describe_log_dirs,
            admin.describe_cluster,
            lambda: log.admin,
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()
