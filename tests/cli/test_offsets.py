"""`pystreamlog offsets` and `pystreamlog delete-records`."""

from __future__ import annotations

import json

import pytest

import pystreamlog


@pytest.mark.parametrize(
    ("time", "offset"),
    [
        ("-1", "10"),
        ("latest", "10"),
        ("-2", "0"),
        ("earliest", "0"),
        ("-3", "9"),
        ("max-timestamp", "9"),
        ("5500", "5"),
        ("1970-01-01T00:00:05.500", "5"),
        ("10001", ""),
    ],
)
def test_offsets_at_times(on, time, offset):
    """As Kafka's tool prints them; without an offset where there is no such record."""
    assert on("offsets", "--topic", "orders", "--time", time).lines == [f"orders:0:{offset}", f"orders:1:{offset}"]


def test_offsets_of_topics_and_partitions(on):
    """Topics by name or pattern, partitions by number; all without."""
    assert on("offsets").lines == ["idle:0:1", "orders:0:10", "orders:1:10"]
    assert on("offsets", "--topic", "ord.*", "--partitions", "1").lines == ["orders:1:10"]
    assert on("offsets", "--partitions", "1").lines == ["orders:1:10"]
    assert on("offsets", "--topic", "orders", "--time", "9000", "--partitions", "0", "--json").json == [
        {"topic": "orders", "partition": 0, "offset": 8, "timestamp_ms": 9000}
    ]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--topic", "missing"], 1),
        (["--topic", "orders", "--partitions", "0-2"], 1),
        (["--topic", "("], 2),
        (["--partitions", "some"], 2),
        (["--partitions", "0-999999999"], 2),
        (["--time", "soon"], 2),
        (["--time", "-9"], 2),
        (["--time", "9" * 5000], 2),
    ],
)
def test_offsets_that_there_are_not(on, arguments, status):
    """What is wrong is said."""
    done = on("offsets", *arguments)
    assert (done.status, done.out) == (status, "")
    assert done.err


def starts(path):
    """The first offset of each partition."""
    with pystreamlog.open(path) as log:
        return log.topic("orders").beginning_offsets()


def test_records_are_deleted_by_options(on, filled):
    """After being asked twice; -1 deletes all."""
    arguments = ["delete-records", "--topic", "orders", "--partition", "1", "--offset", "4"]
    asked = on(*arguments)
    assert asked.status == 2
    assert "orders:1 below 4" in asked.err
    assert starts(filled) == {0: 0, 1: 0}
    assert on(*arguments, "--execute").rows == [["orders", "1", "4"]]
    done = on("delete-records", "--topic", "orders", "--offset", "-1", "--execute", "--json")
    assert [each["low_watermark"] for each in done.json] == [10, 10]
    assert starts(filled) == {0: 10, 1: 10}


def test_records_are_deleted_by_kafkas_file(on, filled, tmp_path):
    """The file of Kafka's tool works as it is."""
    file = tmp_path / "offsets.json"
    entries = [{"topic": "orders", "partition": 0, "offset": 3}, {"topic": "orders", "partition": 1, "offset": -1}]
    file.write_text(json.dumps({"partitions": entries, "version": 1}), "utf-8")
    assert on("delete-records", "--offset-json-file", file, "--execute").status == 0
    assert starts(filled) == {0: 3, 1: 10}


def entry(topic="orders", partition=0, offset=1):
    """One entry of a file, in front of it one that is right."""
    right = {"topic": "orders", "partition": 1, "offset": 1}
    return json.dumps({"partitions": [right, {"topic": topic, "partition": partition, "offset": offset}]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "line 1: no JSON"),
        ('{"partitions": [\n{"topic": "orders",}]}', "line 2: no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "Expected `object`"),
        ('{"partitions": []}', "names no partitions"),
        ('{"partitions": [{"topic": "orders", "partition": 0}]}', "offset"),
        ('{"partitions": [{"topic": "orders", "partition": "0", "offset": 1}]}', "partition"),
        ('{"version": 2, "partitions": [{"topic": "orders", "partition": 0, "offset": 1}]}', "version 2"),
        (entry(partition=2), "entry 2: topic 'orders' has partitions 0 to 1, not 2"),
        (entry(partition=-1), "entry 2"),
        (entry(topic="missing"), "entry 2: topic 'missing' does not exist"),
        (entry(topic="../orders"), "entry 2"),
        (entry(partition=1), "entry 2: orders:1 is named twice"),
        (entry(offset=-2), "entry 2: offset -2"),
        (entry(offset=11), "orders:0 ends at 10"),
    ],
)
def test_file_is_wrong(on, filled, tmp_path, text, words):
    """What is wrong with it is said, and nothing is deleted, not even by entries that are right."""
    file = tmp_path / "offsets.json"
    if text is not None:
        file.write_text(text, "utf-8")
    done = on("delete-records", "--offset-json-file", file, "--execute")
    assert done.status in (1, 2)
    assert words in done.err
    assert "Traceback" not in done.err
    assert starts(filled) == {0: 0, 1: 0}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--topic", "orders"],
        ["--offset", "3"],
        ["--topic", "orders", "--offset", "-2"],
        ["--topic", "orders", "--offset", "1", "--partition", "x"],
        ["--topic", "orders", "--offset", "1", "--offset-json-file", "-"],
    ],
    ids=" ".join,
)
def test_command_line_makes_no_sense(on, filled, arguments):
    """It is told, with the exit status for that."""
    assert on("delete-records", *arguments, "--execute").status == 2
    assert starts(filled) == {0: 0, 1: 0}
