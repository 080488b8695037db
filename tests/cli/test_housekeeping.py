"""`pystreamlog verify`, `repair`, `expire`, `transactions` and `top --once`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import pystreamlog


def damage(path):
    """Damage the records of a partition."""
    file = Path(path) / "topics" / "orders" / "0" / "00000000000000000000.log"
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)


def test_whole_log_is_verified(run, on, filled):
    """By `--log`, or by the directory itself, which goes before it."""
    assert "whole; 21 records" in on("verify").out
    assert run("verify", filled).status == 0
    assert run("--log", "missing", "verify", filled, "--json").json["ok"] is True


def test_damaged_log_is_verified_and_repaired(on, filled):
    """1 while it is damaged, and 0 once what is damaged was cut off."""
    damage(filled)
    found = on("verify", "--json")
    assert (found.status, found.json["ok"]) == (1, False)
    assert on("verify").status == on("repair").status == 1
    assert on("repair", "--force").status == 2
    assert on("repair", "--cut-tail", "--force").status == 0
    assert on("verify").status == 0


def test_expired_records_are_deleted(run, path):
    """What retention lets go goes at once, and is told."""
    with pystreamlog.open(path) as log:
        topic = log.create_topic("old", retention_bytes=1, segment_bytes=4096)
        for _ in range(100):
            topic.append(bytes(100))
    done = run("--log", path, "expire", "--json")
    gone = done.json["deleted"]["old/0"]
    assert gone["segments"] > 1
    assert done.json["waits_ms"] == 0
    with pystreamlog.open(path) as log:
        assert log.topic("old").beginning_offsets()[0] == gone["log_start_offset"] > 0
    assert "deleted 0 segments" in run("--log", path, "expire").out


def test_topics_are_compacted(run, path):
    """Those that are named, even if little has gathered; of each key the last record stays."""
    with pystreamlog.open(path) as log:
        for name in ("names", "others"):
            topic = log.create_topic(name, cleanup_policy="compact", segment_bytes=4096)
            for number in range(100):
                topic.append(bytes(100), b"%d" % (number % 3))
    done = run("--log", path, "compact", "--topic", "names", "--force", "--json")
    assert list(done.json["compacted"]) == ["names/0"]
    assert done.json["compacted"]["names/0"]["records_after"] < 10
    (partition,) = run("--log", path, "topics", "describe", "names", "--json").json[0]["partitions"]
    assert partition["records"] == 100
    assert "names/0" not in run("--log", path, "compact").out
    assert run("--log", path, "compact", "--topic", "missing").status == 1


def test_snapshot_is_a_log_of_its_own(on, run, tmp_path):
    """Of all topics or some, and never over what is there."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert "2 topics, 1 groups" in on("snapshot", whole).out
    assert run("--log", whole, "offsets").lines == ["idle:0:1", "orders:0:10", "orders:1:10"]
    done = on("snapshot", part, "--topic", "orders", "--json")
    assert done.json["end_offsets"] == {"orders": [10, 10]}
    assert run("--log", part, "topics", "list").lines == ["orders"]
    refused = on("snapshot", whole)
    assert (refused.status, refused.out) == (2, "")
    assert on("snapshot", tmp_path / "third", "--topic", "missing").status == 1
    assert not (tmp_path / "third").exists()


def test_transactional_ids_are_told(on):
    """Those that were used, and how they stand."""
    assert on("transactions", "list").rows == [["invoices", "Empty"]]
    assert on("transactions", "describe", "invoices").rows == [["invoices", "Empty", "1", "-"]]
    missing = on("transactions", "describe", "missing", "invoices", "--json")
    assert missing.status == 2
    assert [each["producer_epoch"] for each in missing.json] == [1]


def test_top_prints_a_plain_table(on, filled, monkeypatch):
    """Without a terminal: what came in meanwhile, exact ends and lags, most active first."""

    def meanwhile(_):
        with pystreamlog.open(filled) as log:
            log.topic("orders").append(b"x" * 1000, partition=1)
            log.create_topic("born").append(b"x")

    monkeypatch.setattr("pystreamlog.cli.top.SYSTEM", type("Clock", (), {"sleep": staticmethod(meanwhile)}))
    done = on("top", "--json", "--once").json
    assert [(each["topic"], each["end_offset"]) for each in done["topics"]] == [
        ("orders", 21),
        ("born", 1),
        ("idle", 1),
    ]
    orders, born, idle = done["topics"]
    assert orders["records_per_second"] == pytest.approx(1 / done["seconds"])
    assert 1000 < orders["bytes_per_second"] * done["seconds"] < 2000
    assert (idle["records_per_second"], born["records_per_second"]) == (0, None)
    assert [(each["group_id"], each["lag"], each["members"]) for each in done["groups"]] == [("billing", 13, 0)]
    monkeypatch.setattr("pystreamlog.cli.top.SYSTEM", type("Clock", (), {"sleep": staticmethod(lambda _: None)}))
    heads, first, blank, *groups = on("top", "--limit", "1").lines
    assert heads.split() == ["TOPIC", "PARTITIONS", "RECORDS/S", "BYTES/S", "END"]
    assert first.split() == ["orders", "2", "0", "0", "B", "21"]
    assert blank == ""
    assert [line.split() for line in groups] == [
        ["GROUP", "STATE", "MEMBERS", "RECORDS/S", "LAG"],
        ["billing", "Empty", "0", "0", "13"],
    ]


def test_top_sees_what_groups_consume(on, filled, monkeypatch):
    """A group's rate is that of its committed offsets, and its lag what is left."""

    def meanwhile(_):
        with pystreamlog.open(filled) as log:
            place = pystreamlog.TopicPartition("orders", 0)
            log.admin.alter_consumer_group_offsets("billing", {place: 9})

    monkeypatch.setattr("pystreamlog.cli.top.SYSTEM", type("Clock", (), {"sleep": staticmethod(meanwhile)}))
    done = on("top", "--json", "--once").json
    (group,) = done["groups"]
    assert group["lag"] == 7
    assert group["records_per_second"] == pytest.approx(5 / done["seconds"])


def test_top_reads_only_what_was_written(filled):
    """Partitions that nobody wrote for a while cost a `stat`, and are not opened."""
    from pystreamlog.cli.activity import ActivityWatch  # noqa: PLC0415 - of this test
    from pystreamlog.cli.extents import opened_extents  # noqa: PLC0415 - the same
    from pystreamlog.clock import Clock  # noqa: PLC0415 - the same

    class Later(Clock):
        """Everything was written a minute ago."""

        now_ns = staticmethod(lambda: time.time_ns() + 60_000_000_000)

    with pystreamlog.open(filled) as log, opened_extents(log) as extents:
        watch = ActivityWatch(log, extents, Later())
        read = []
        published = extents.published
        extents.published = lambda topic, partition: read.append((topic.name, partition)) or published(topic, partition)
        watch.look()
        assert sorted(read) == [("idle", 0), ("orders", 0), ("orders", 1)]
        read.clear()
        watch.look()
        assert read == []
        log.topic("orders").append(b"x", partition=1)
        log.delete_topic("idle")
        log.topic("orders").add_partitions(3)
        looks = [watch.look() for _ in range(10)]
        assert read == [("orders", 1), ("orders", 2)]
        assert [(each.topic, each.partitions, each.end_offset) for each in looks[-1].topics] == [("orders", 3, 21)]
        assert looks[-1].failures == []


def test_top_counts_bytes_over_segments(path):
    """Bytes that came into several segments are all counted, within what is allocated ahead."""
    from pystreamlog.cli.activity import ActivityWatch  # noqa: PLC0415 - of this test
    from pystreamlog.cli.extents import opened_extents  # noqa: PLC0415 - the same

    with pystreamlog.open(path) as log, opened_extents(log) as extents:
        topic = log.create_topic("events", segment_bytes=4096)
        watch = ActivityWatch(log, extents)
        topic.append(bytes(1000))
        watch.look()
        for _ in range(20):
            topic.append(bytes(1000))
        look = watch.look()
        assert 20_000 < look.topics[0].bytes_per_second * look.seconds < 40_000
        assert look.topics[0].records_per_second * look.seconds == pytest.approx(20)


def test_top_goes_on_over_damage(filled):
    """What cannot be read is named, and everything else is shown."""
    from pystreamlog.cli.activity import ActivityWatch  # noqa: PLC0415 - of this test
    from pystreamlog.cli.extents import opened_extents  # noqa: PLC0415 - the same

    (Path(filled) / "topics" / "orders" / "0" / "control").write_bytes(b"\xff" * 4096)
    (Path(filled) / "topics" / "idle" / "topic.json").write_bytes(b"{")
    with pystreamlog.open(filled, read_only=True) as log, opened_extents(log) as extents:
        look = ActivityWatch(log, extents).look()
    assert [(each.topic, each.end_offset) for each in look.topics] == [("orders", 10)]
    assert any("orders/0" in failure for failure in look.failures)
    assert any("idle" in failure for failure in look.failures)
