"""`pystreamlog dump`: what lies in a partition's files, whole or damaged."""

from __future__ import annotations

import json

import pytest

import pystreamlog
from pystreamlog.storage.format import SEAL, SEGMENT_HEADER
from pystreamlog.storage.segment import seal_bytes
from tests.cli.shell import run, shell, start

_BATCH = SEGMENT_HEADER.size
"""Where the first batch of a segment begins."""


def make_log(path):
    """A topic whose first partition has several segments, with all that batches may have."""
    with pystreamlog.open(path) as opened:
        opened.create_topic("orders", partitions=3, segment_bytes=65_536)
        with opened.producer(compression_type="gzip") as producer:
            producer.send_many("orders", [b"packed"] * 100, partition=0)
        with opened.producer(producer_id="p") as producer:
            producer.send("orders", b"v", b"\x1b[31m", partition=0, sequence=7, headers=[("h", b"\xff")])
        with opened.producer(transactional_id="t") as producer, producer.transaction():
            producer.send("orders", None, partition=0)
            producer.send("orders", None, partition=2)
        with opened.producer(batch_size=4096) as producer:
            for number in range(40):
                producer.send_many("orders", [b"%d" % number * 2000], partition=0)
                producer.flush()
    return path


@pytest.fixture
def log(tmp_path):
    """A log that the test may change."""
    return make_log(tmp_path / "data")


@pytest.fixture(scope="module")
def shared_log(tmp_path_factory):
    """One that is only read."""
    return make_log(tmp_path_factory.mktemp("dump") / "data")


def items(log, *options, status=0):
    """What is printed as JSON."""
    return list(map(json.loads, run(log, "dump", *options, "--json", status=status).stdout.splitlines()))


def test_every_file_is_told_of(shared_log):
    """Header, batches, seal and end, index entries, and slots; each verifies."""
    found = items(shared_log, "--topic", "orders", "--partition", "0")
    kinds = {item["type"] for item in found}
    assert kinds == {"control", "slot", "segment", "batch", "seal", "end", "index", "entry"}
    batches = [item for item in found if item["type"] == "batch"]
    assert [batch["baseOffset"] for batch in batches[1:]] == [batch["lastOffset"] + 1 for batch in batches[:-1]]
    assert all(item["isvalid"] for item in found if "isvalid" in item)
    assert batches[0]["compresscodec"] == "gzip"
    assert batches[0]["count"] == 100
    assert batches[1]["producerId"] > 0
    assert (batches[1]["baseSequence"], batches[1]["lastSequence"]) == (7, 7)
    assert batches[2]["isTransactional"]
    with pystreamlog.open(shared_log, read_only=True) as opened:
        end = opened.topic("orders").end_offsets()[0]
    assert [(item["offset"], item["published"]) for item in found if item["type"] == "end"] == [(end, True)]
    assert sum(item["type"] == "segment" for item in found) == 1 + sum(item["type"] == "seal" for item in found)
    ruling = [item for item in found if item["type"] == "slot" and item["kind"] == "published" and item["rules"]]
    assert [slot["endOffset"] for slot in ruling] == [end]


def test_records_are_printed_when_asked_for(shared_log):
    """With keys, headers and sequences; escaped for people, exact for programs."""
    found = [
        item
        for item in items(shared_log, "--topic", "orders", "--partition", "0", "--print-data-log")
        if item["type"] == "record"
    ]
    assert [item["offset"] for item in found] == list(range(142))
    assert found[100]["key"] == "\x1b[31m"
    assert found[100]["headers"] == [["h", {"base64": "/w=="}]]
    assert (found[100]["sequence"], found[101]["payload"], found[101]["valueSize"]) == (7, None, -1)
    text = run(shared_log, "dump", "--topic", "orders", "--print-data-log", "--deep-iteration").stdout
    assert "| offset: 100 CreateTime: " in text
    assert "key: \\x1b[31m payload: v" in text
    assert "\x1b" not in text


def segments(log):
    """The segment files, oldest first."""
    return sorted(log.glob("topics/orders/0/*.log"))


def damage(path, position, data=b"damage"):
    """Put other bytes somewhere in a file."""
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


@pytest.mark.parametrize(
    ("position", "why", "goes_on"),
    [(0, "segment header", False), (_BATCH + 46, "header's checksum", False), (_BATCH + 236, "body's checksum", True)],
)
def test_damaged_segment_is_told_and_the_others_dumped(log, position, why, goes_on):
    """Where it is, and as much as can be told apart."""
    before = items(log, "--topic", "orders")
    first = segments(log)[0]
    damage(first, position)
    found = items(log, "--topic", "orders", status=1)
    damages = [item for item in found if item["type"] == "damage" and item["file"] == str(first)]
    assert len(damages) == 1
    assert why in damages[0]["why"]

    def batches(dumped, *, of_first):
        return [each for each in dumped if each["type"] == "batch" and (each["file"] == str(first)) == of_first]

    assert batches(found, of_first=False) == batches(before, of_first=False)
    assert len(batches(found, of_first=True)) == (len(batches(before, of_first=True)) if goes_on else 0)
    text = run(log, "dump", "--topic", "orders", status=1)
    assert f"DAMAGED at position {damages[0]['position']} of {first}" in text.stdout


def test_damaged_seal_and_control_are_told(log):
    """A slot that does not verify, a seal, and a control file that is none."""
    control = log / "topics" / "orders" / "0" / "control"
    first = segments(log)[0]
    seal = first.read_bytes().index(b"PSLSEAL\n")
    damage(first, seal + 20)
    rules = [each for each in items(log, "--topic", "orders", status=1) if each["type"] == "slot" and not each["rules"]]
    damage(control, rules[0]["position"] + 8)
    found = items(log, "--topic", "orders", status=1)
    assert {item["position"] for item in found if item["type"] == "damage"} == {seal, rules[0]["position"]}
    damage(control, 0)
    assert any("control header" in item.get("why", "") for item in items(log, "--topic", "orders", status=1))
    control.unlink()
    assert any("no control file" in item.get("why", "") for item in items(log, "--topic", "orders", status=1))


def test_seal_that_says_something_else_is_told(log):
    """Though its checksum holds."""
    first = segments(log)[0]
    raw = first.read_bytes()
    at = raw.index(b"PSLSEAL\n")
    _, segment_id, end, position, last, time, _ = SEAL.unpack_from(raw, at)
    lie = seal_bytes(
        segment_id=segment_id, end_offset=end + 1, position=position, last_checksum=last, max_timestamp=time
    )
    damage(first, at, lie)
    found = items(log, "--topic", "orders", status=1)
    assert [item["position"] for item in found if item["type"] == "damage"] == [at]


def test_indexes_are_held_against_their_segments(log):
    """An entry that does not verify, one that lies, and the index of another segment."""
    index = segments(log)[0].with_suffix(".index")
    others = sorted(log.glob("topics/orders/0/*.index"))
    good = index.read_bytes()
    assert "fits its segment" in run(log, "dump", "--topic", "orders", "--verify-index-only").stdout
    assert "passed sanity check" in run(log, "dump", "--topic", "orders", "--index-sanity-check").stdout
    damage(index, 40)
    for option in ("--verify-index-only", "--index-sanity-check"):
        found = items(log, "--topic", "orders", option, status=1)
        assert [(item["type"], item["position"]) for item in found] == [("damage", 32)]
    index.write_bytes(others[1].read_bytes())
    assert "another segment" in run(log, "dump", "--topic", "orders", "--verify-index-only", status=1).stdout
    index.write_bytes(good[:16])
    assert "valid header" in run(log, "dump", "--topic", "orders", "--index-sanity-check", status=1).stdout


def test_files_are_dumped_by_their_paths(shared_log, tmp_path):
    """As `kafka-dump-log --files`: also copies, without the rest of the shared_log."""
    first, second = segments(shared_log)[:2]
    copy = tmp_path / first.name
    copy.write_bytes(first.read_bytes())
    found = items("", "--files", f"{copy},{second}", "--files", shared_log / "topics" / "orders" / "0" / "control")
    assert [item["type"] for item in found if item["type"] in ("segment", "seal", "control")] == [
        "segment",
        "seal",
        "segment",
        "seal",
        "control",
    ]
    last = tmp_path / segments(shared_log)[-1].name
    last.write_bytes(segments(shared_log)[-1].read_bytes())
    assert [item["published"] for item in items("", "--files", last) if item["type"] == "end"] == [None]


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ((), 2, "--topic, or --files"),
        (("--topic", "nope"), 1, "does not exist"),
        (("--topic", "../orders"), 1, "does not exist"),
        (("--topic", "orders", "--partition", "5"), 1, "no files of partition 5"),
        (("--topic", "orders", "--partition", "1"), 1, "nothing was sent to it"),
        (("--files", "missing.log"), 2, "does not exist"),
        (("--files", "nowhere/missing.log"), 2, "nowhere does not exist"),
        (("--files", "README.md"), 2, "no segment"),
        (("--partition", "0"), 2, "--topic"),
        (("--topic", "orders", "--index-sanity-check", "--verify-index-only"), 2, "exclude"),
    ],
)
def test_what_is_not_there_is_told(shared_log, tmp_path, monkeypatch, options, status, why):
    """Each says what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("text")
    result = run(shared_log, "dump", *options, status=status)
    assert why in result.stderr


def test_directory_that_is_no_log_is_told(tmp_path):
    """Without a traceback, whatever is missing."""
    assert "no directory of a log" in run(tmp_path, "dump", "--topic", "orders", status=2).stderr
    assert "--log" in run("", "dump", "--topic", "orders", status=2).stderr


def test_log_without_its_own_file_is_dumped(log):
    """What a partition's files say needs nothing else."""
    before = items(log, "--topic", "orders")
    (log / "log.json").unlink()
    (log / "topics" / "orders" / "topic.json").write_text("damage")
    assert items(log, "--topic", "orders") == before


def test_log_that_others_write_is_dumped_without_damage(log):
    """Nothing that comes meanwhile looks like damage."""
    with start(
        log, "perf", "produce", "--topic", "orders", "--num-records", "100000000", "--record-size", "500"
    ) as other:
        try:
            for _ in range(5):
                found = items(log, "--topic", "orders")
                assert found[-1]["type"] in ("end", "seal")
                assert other.poll() is None
        finally:
            other.kill()


def test_closed_pipe_is_no_error_message(shared_log):
    """`head` takes what it wants."""
    done = shell(shared_log, "pystreamlog dump --topic orders --print-data-log | head -n 1; echo ${PIPESTATUS[0]}")
    assert done.stderr == b""
    assert done.stdout.startswith(b"Dumping ")
