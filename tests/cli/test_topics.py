"""`pystreamlog topics`: several at once, what failed and what was done, and what describing tells."""

from __future__ import annotations

import pytest

import pystreamlog


def test_topics_are_made_but_for_those_that_fail(run, path):
    """One that cannot be made keeps none of the others from it, and what was made is told."""
    done = run("--log", path, "topics", "create", "orders", "bad name", "clicks", "--partitions", 3)
    assert done.status == 1
    assert done.lines == ["made topic orders with 3 partitions", "made topic clicks with 3 partitions"]
    assert "'bad name' is no topic name" in done.err
    assert run("--log", path, "topics", "list").lines == ["clicks", "orders"]


def test_topic_that_exists(on):
    """It is an error, unless it may exist, and stays as it is."""
    assert "topic 'orders' exists" in on("topics", "create", "orders").err
    done = on("topics", "create", "orders", "new", "--if-not-exists", "--partitions", 5, "--json")
    assert done.status == 0
    assert [each["name"] for each in done.json] == ["new"]
    assert [row[0] for row in on("topics", "describe", "orders").rows[1:-1]] == ["0", "1"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("retention_mss=1", "did you mean 'retention_ms'?"),
        ("retention.ms=soon", "whole number"),
        ("segment_bytes=1", "out of range"),
        ("retention_ms", "write retention_ms=value"),
    ],
)
def test_setting_is_wrong(run, tmp_path, setting, words):
    """It is said before anything is made, the log itself too."""
    done = run("--log", tmp_path / "new", "topics", "create", "a", "b", "--config", setting)
    assert done.status == 2
    assert words in done.err
    assert not (tmp_path / "new").exists()


def test_topic_is_altered_as_a_whole(on):
    """Settings under Kafka's names or ours, defaults again, and partitions; all of it or nothing."""
    changed = ["--add-config", "retention.ms=7", "--config", "segment_ms=9", "--partitions", 3]
    assert on("topics", "alter", "orders", *changed).lines == ["altered topic orders"]
    (topic,) = on("topics", "describe", "orders", "--json").json
    assert topic["configs"] == {"retention_ms": 7, "segment_ms": 9}
    assert len(topic["partitions"]) == 3
    refused = on("topics", "alter", "orders", "--delete-config", "segment_ms", "--partitions", 2)
    assert (refused.status, refused.out) == (2, "")
    assert on("topics", "alter", "orders", "--delete-config", "retention.ms").status == 0
    assert on("topics", "describe", "orders", "--json").json[0]["configs"] == {"segment_ms": 9}


def test_alter_must_be_told_what(on):
    """Without a change the command line makes no sense."""
    assert on("topics", "alter", "orders").status == 2


def test_topics_are_deleted_when_told_twice(on):
    """Without a terminal `--execute` is needed; one that fails keeps no other from it."""
    asked = on("topics", "delete", "orders", "idle")
    assert asked.status == 2
    assert "orders, idle with all records will be deleted" in asked.err
    assert "--execute" in asked.err
    done = on("topics", "delete", "orders", "missing", "idle", "--execute")
    assert (done.status, done.lines) == (1, ["deleted topic orders", "deleted topic idle"])
    assert "'missing'" in done.err
    assert on("topics", "delete", "missing", "--if-exists").status == 0
    assert on("topics", "list").out == ""


def test_description_counts_records_segments_and_time(run, path):
    """Offsets, sizes, times and rates are those of the records that there are."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic("events", segment_bytes=4096)
        for second in range(101):
            topic.append(bytes(100), timestamp_ms=1_000_000 + 1000 * second)
        log.admin.delete_records({pystreamlog.TopicPartition("events", 0): 1})
    (described,) = run("--log", path, "topics", "describe", "--json").json
    (partition,) = described["partitions"]
    assert (partition["start_offset"], partition["end_offset"], partition["records"]) == (1, 101, 100)
    assert (partition["first_timestamp_ms"], partition["last_timestamp_ms"]) == (1_001_000, 1_100_000)
    assert partition["records_per_second"] == pytest.approx(100 / 99)
    assert partition["segments"] > 2
    assert 100 * 100 < partition["bytes"] <= 4096 * partition["segments"]
    assert partition["bytes_per_second"] == pytest.approx(partition["bytes"] / 99)
    assert partition["disk_bytes"] > 0
    (row,) = run("--log", path, "topics", "describe").rows[2:-1]
    assert row[:4] == ["0", "1", "101", "100"]
    assert row[-4:-3] == ["1970-01-01T00:18:20.000Z"]


def test_description_of_others_goes_on(on, filled):
    """A topic that is damaged or missing is told, and the others are described."""
    done = on("topics", "describe", "missing", "orders")
    assert done.status == 1
    assert "'missing'" in done.err
    assert done.lines[0].startswith("orders: 2 partitions")
    empty = on("topics", "describe", "--exclude-internal", "--json").json
    assert [topic["name"] for topic in empty] == ["idle", "orders"]


def test_setting_that_is_a_fraction(on, filled):
    """It is a number in a shell, too; what is none, or out of range, is refused."""
    assert on("topics", "alter", "orders", "--config", "min.cleanable.dirty.ratio=0.3").status == 0
    with pystreamlog.open(filled) as log:
        assert log.topic("orders").config["min_cleanable_dirty_ratio"] == 0.3
    for text in ("many", "2", "nan"):
        done = on("topics", "alter", "orders", "--config", f"min_cleanable_dirty_ratio={text}")
        assert done.status == 2
        assert "min_cleanable_dirty_ratio" in done.err
