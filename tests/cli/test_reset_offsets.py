"""`pystreamlog groups reset-offsets`: each way, what is clamped and refused, and files that go round."""

from __future__ import annotations

import pytest

import pystreamlog
from pystreamlog import TopicPartition


@pytest.fixture
def reset(on):
    """Runs `groups reset-offsets` on the filled log."""
    return lambda *arguments: on("groups", "reset-offsets", *arguments)


def committed(path, group_id="billing"):
    """What a group has committed, by partition."""
    with pystreamlog.open(path) as log:
        found = log.admin.list_consumer_group_offsets(group_id)[group_id]
    return {place.partition: each.offset for place, each in found.items()}


@pytest.mark.parametrize(
    ("way", "offset"),
    [
        (["--to-earliest"], 2),
        (["--to-latest"], 10),
        (["--to-current"], 4),
        (["--to-offset", "7"], 7),
        (["--to-offset", "0"], 2),
        (["--to-offset", "11"], 10),
        (["--to-datetime", "1970-01-01T00:00:05.500"], 5),
        (["--to-datetime", "1970-01-01T01:00:05+01:00"], 4),
        (["--to-datetime", "2020-01-01"], 10),
        (["--by-duration", "P100000D"], 2),
        (["--by-duration", "PT0S"], 10),
        (["--shift-by", "2"], 6),
        (["--shift-by", "-1"], 3),
        (["--shift-by", "-100"], 2),
        (["--shift-by", "100"], 10),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_each_way(reset, filled, way, offset):
    """It is a plan until it is executed; what lies outside becomes the start or the end, with a warning."""
    with pystreamlog.open(filled) as log:
        log.admin.delete_records({TopicPartition("orders", n): 2 for n in range(2)})
    planned = reset("--group", "billing", "--topic", "orders", *way)
    assert planned.rows == [["billing", "orders", str(n), "4", str(offset)] for n in range(2)]
    assert "--execute" in planned.err
    assert committed(filled) == {0: 4, 1: 4}
    done = reset("--group", "billing", "--all-topics", *way, "--execute", "--json")
    assert done.json[1] == {
        "group_id": "billing",
        "topic": "orders",
        "partition": 1,
        "current_offset": 4,
        "new_offset": offset,
    }
    assert committed(filled) == {0: offset, 1: offset}
    assert ("it becomes" in done.err) == (way[1:] in (["0"], ["11"], ["100"], ["-100"]))


def test_partitions_and_groups_are_chosen(reset, filled):
    """Of several groups and topics, only what is named; a group that there is not is made."""
    assert reset("--group", "new", "--topic", "orders:1", "--to-current", "--execute").rows[0][3:] == ["-", "10"]
    assert committed(filled, "new") == {1: 10}
    done = reset("--all-groups", "--all-topics", "--to-offset", 5, "--execute")
    assert [row[:3] for row in done.rows] == [
        ["billing", "orders", "0"],
        ["billing", "orders", "1"],
        ["new", "orders", "1"],
    ]


def test_nothing_is_shifted_that_was_never_committed(reset, filled):
    """It is an error that says where, and the group keeps what it had."""
    done = reset("--group", "billing", "--topic", "orders", "--topic", "idle", "--shift-by", 1, "--execute")
    assert (done.status, done.out) == (1, "")
    assert "idle:0" in done.err
    assert committed(filled) == {0: 4, 1: 4}


@pytest.mark.parametrize("groups", [["--group", "billing"], ["--all-groups"]], ids=["one group", "all groups"])
def test_export_is_read_again(reset, filled, tmp_path, groups):
    """What one call exports, another one commits; with the groups in it when there may be several."""
    exported = reset(*groups, "--all-topics", "--shift-by", -3, "--export")
    front = "billing," if "--all-groups" in groups else ""
    assert exported.lines == [f"{front}orders,0,1", f"{front}orders,1,1"]
    assert exported.err == ""
    file = tmp_path / "offsets.csv"
    file.write_text(exported.out, "utf-8")
    assert reset(*groups, "--from-file", file, "--execute").status == 0
    assert committed(filled) == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        (b"", "names no partitions"),
        (b"orders,0,1\norders,9,1\n", "line 2: topic 'orders' has partitions 0 to 1, not 9"),
        (b"orders,0,1\n\nmissing,0,1\n", "line 3: topic 'missing' does not exist"),
        (b"orders,0,1\norders,0,2\n", "line 2: orders:0 is named twice"),
        (b"orders,zero,1\n", "line 1: 'orders,zero,1' is no TOPIC,PARTITION,OFFSET"),
        (b"orders,0\n", "line 1: 'orders,0' is no"),
        (b'orders,"0,1\n', "no CSV"),
        (b"orders,0,1\n\xff", "line 2: no UTF-8"),
        (b"orders,0,99999999999999999999999\n", "it becomes the end"),
    ],
)
def test_file_is_wrong(reset, filled, tmp_path, text, words):
    """The line is named, and nothing is committed."""
    file = tmp_path / "offsets.csv"
    if text is not None:
        file.write_bytes(text)
    done = reset("--group", "billing", "--from-file", file, *([] if "becomes" in words else ["--execute"]))
    assert words in done.err
    assert done.status in ((0,) if "becomes" in words else (1, 2))
    assert "Traceback" not in done.err
    assert committed(filled) == {0: 4, 1: 4}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--group", "billing", "--all-topics"],
        ["--group", "billing", "--all-topics", "--to-latest", "--to-earliest"],
        ["--group", "billing", "--to-latest"],
        ["--group", "billing", "--topic", "orders", "--all-topics", "--to-latest"],
        ["--all-topics", "--to-latest"],
        ["--group", "billing", "--all-groups", "--all-topics", "--to-latest"],
        ["--group", "billing", "--all-topics", "--to-latest", "--dry-run", "--execute"],
        ["--group", "billing", "--all-topics", "--to-latest", "--export", "--json"],
        ["--group", "billing", "--all-topics", "--from-file", "-"],
        ["--group", "billing", "--all-topics", "--to-datetime", "yesterday"],
        ["--group", "billing", "--all-topics", "--to-datetime", "99999-01-01T00:00:00"],
        ["--group", "billing", "--all-topics", "--by-duration", "1h"],
        ["--group", "billing", "--all-topics", "--by-duration", "PT"],
        ["--group", "billing", "--all-topics", "--by-duration", "P99999999999999999999D"],
        ["--group", "billing", "--all-topics", "--to-offset", "many"],
        ["--group", "billing", "--topic", "orders:x", "--to-latest"],
        ["--group", "billing", "--topic", "orders:3-1", "--to-latest"],
    ],
    ids=" ".join,
)
def test_command_line_makes_no_sense(reset, filled, arguments):
    """It is told, with the exit status for that."""
    done = reset(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("topic", ["missing", "orders:2"])
def test_topic_or_partition_is_missing(reset, topic):
    """It is named."""
    done = reset("--group", "billing", "--topic", topic, "--to-latest", "--execute")
    assert (done.status, done.out) == (1, "")
    assert topic.partition(":")[0] in done.err
