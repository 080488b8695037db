"""`pystreamlog consume`: what is printed of records, where it begins and ends, and what counts as handled."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import pystreamlog
from tests.cli.shell import Terminal, run, shell, start, wait_for_output

HOSTILE = b"\x1b[31mred\x07\xc2\x9b\xe2\x80\xae\n\xff"
MANY = 30_000


def make_log(path):
    """Six records in three partitions, with all that records have."""
    with pystreamlog.open(path) as opened:
        topic = opened.create_topic("orders", partitions=3)
        topic.append(b"a", b"k", partition=0, timestamp_ms=1000, headers=[("h", b"1"), ("i", b"2")])
        topic.append(b"b", partition=0, timestamp_ms=2000)
        topic.append(None, b"k", partition=1, timestamp_ms=3000)
        topic.append(b"c", partition=1, timestamp_ms=4000)
        topic.append(b"d", partition=1, timestamp_ms=5000)
        topic.append(b"e", partition=2, timestamp_ms=6000)
    return path


@pytest.fixture
def log(tmp_path):
    """A log that the test may change."""
    return make_log(tmp_path / "data")


@pytest.fixture(scope="module")
def shared_log(tmp_path_factory):
    """One that is only read."""
    return make_log(tmp_path_factory.mktemp("consume") / "data")


@pytest.fixture
def many(tmp_path):
    """Many records in one partition."""
    with pystreamlog.open(tmp_path / "many") as opened, opened.producer() as producer:
        opened.create_topic("orders")
        producer.send_many("orders", [b"%d" % number for number in range(MANY)])
    return tmp_path / "many"


def consumed(log, *options, **others):
    """What is printed."""
    return run(log, "consume", "--topic", "orders", *options, **others).stdout_bytes


def test_values_are_lines(shared_log):
    """Exactly the bytes; a tombstone is the null literal; and it ends at the end."""
    assert consumed(shared_log) == b"a\nb\nnull\nc\nd\ne\n"
    assert consumed(shared_log, "--property", "null.literal=-") == b"a\nb\n-\nc\nd\ne\n"
    assert consumed(shared_log, "--property", "null.marker=-", "--property", "line.separator=;") == b"a;b;-;c;d;e;"


def test_bytes_are_not_changed_on_the_way_to_a_pipe(log):
    """Whatever they would do to a terminal."""
    with pystreamlog.open(log) as opened:
        opened.create_topic("hostile").append(HOSTILE, HOSTILE)
    printed = run(log, "consume", "--topic", "hostile", "--property", "print.key=true").stdout_bytes
    assert printed == HOSTILE + b"\t" + HOSTILE + b"\n"


def test_everything_is_printed_as_kafka_does(shared_log):
    """In its order, and with its words."""
    named = ("timestamp", "partition", "offset", "headers", "key")
    options = [each for name in named for each in ("--formatter-property", f"print.{name}=true")]
    assert consumed(shared_log, *options, "--partition", "0").splitlines() == [
        b"CreateTime:1000\tPartition:0\tOffset:0\th:1,i:2\tk\ta",
        b"CreateTime:2000\tPartition:0\tOffset:1\tNO_HEADERS\tnull\tb",
    ]
    options += [
        "--property",
        "print.value=false",
        "--property",
        "key.separator= | ",
        "--property",
        "headers.separator=&",
    ]
    assert consumed(shared_log, *options, "--partition", "0", "--max-messages", "1") == (
        b"CreateTime:1000 | Partition:0 | Offset:0 | h:1&i:2 | k\n"
    )
    assert consumed(shared_log, "--property", "print.value=false", "--partition", "2") == b"\n"


def test_time_of_the_log_is_called_so(log):
    """As the topic has it."""
    with pystreamlog.open(log) as opened:
        opened.create_topic("stamped", message_timestamp_type="LogAppendTime").append(b"a")
    printed = run(log, "consume", "--topic", "stamped", "--property", "print.timestamp=true").stdout
    assert printed.startswith("LogAppendTime:1")


def test_json_has_all_of_a_record(log):
    """Text as text, other bytes in base64, and null for what is none."""
    with pystreamlog.open(log) as opened:
        opened.topic("orders").append(b"\xff", b'"\x1b', partition=2, timestamp_ms=7000, headers=[("b", b"\xfe")])
    rows = list(map(json.loads, consumed(log, "--json").splitlines()))
    assert rows[0] == {
        "topic": "orders",
        "partition": 0,
        "offset": 0,
        "timestamp": 1000,
        "key": "k",
        "value": "a",
        "headers": [["h", "1"], ["i", "2"]],
    }
    assert (rows[2]["key"], rows[2]["value"]) == ("k", None)
    assert (rows[-1]["key"], rows[-1]["value"]) == ('"\x1b', {"base64": "/w=="})
    assert rows[-1]["headers"] == [["b", {"base64": "/g=="}]]


def test_copy_through_json_is_exact(log):
    """Whatever the records hold: keys, values, headers, times and partitions."""
    with pystreamlog.open(log) as opened:
        for value in (b"", b"null", b'{"base64":"AA=="}', HOSTILE, b"\r", "\u2028\0ü".encode()):
            opened.topic("orders").append(value, value, partition=1, headers=[("", value), ("", b"")])
        opened.create_topic("copy", partitions=3)
    script = "pystreamlog consume --topic orders --json | pystreamlog produce --topic copy --json --keep-partitions"
    done = shell(log, script)
    assert (done.returncode, done.stderr) == (0, b"")
    with pystreamlog.open(log) as opened:
        both = [
            [(r.partition, r.offset, r.key, r.value, r.headers, r.timestamp_ms) for r in opened.topic(name).read()]
            for name in ("orders", "copy")
        ]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        (("--from-beginning",), b"a\nb\nnull\nc\nd\ne\n"),
        (("--offset", "earliest"), b"a\nb\nnull\nc\nd\ne\n"),
        (("--offset", "latest"), b""),
        (("--offset", "-1"), b"b\nd\ne\n"),
        (("--offset", "-100"), b"a\nb\nnull\nc\nd\ne\n"),
        (("--partition", "1", "--offset", "1"), b"c\nd\n"),
        (("--partition", "1", "--offset", "3"), b""),
        (("--partition", "1", "--offset", "-2"), b"c\nd\n"),
        (("--timestamp", "4000"), b"c\nd\ne\n"),
        (("--timestamp", "1970-01-01T00:00:04"), b"c\nd\ne\n"),
        (("--timestamp", "1970-01-01T01:00:05+01:00"), b"d\ne\n"),
        (("--timestamp", "2100-01-01"), b""),
        (("--max-messages", "3"), b"a\nb\nnull\n"),
        (("--isolation-level", "read_committed"), b"a\nb\nnull\nc\nd\ne\n"),
        (("--consumer-property", "max.poll.records=1"), b"a\nb\nnull\nc\nd\ne\n"),
        (("--consumer-property", "auto.offset.reset=latest"), b""),
        (("--consumer-property", "auto.offset.reset=latest", "--offset", "earliest"), b"a\nb\nnull\nc\nd\ne\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_start_and_end(shared_log, options, printed):
    """Each way to say where to begin, and how many."""
    assert consumed(shared_log, *options) == printed


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (("--offset", "1"), 2, "--partition"),
        (("--offset", "x"), 2, "earliest or latest"),
        (("--offset", "4", "--partition", "1"), 2, "0 to 2"),
        (("--offset", "-1", "--from-beginning"), 2, "exclude"),
        (("--offset", "-1", "--timestamp", "1"), 2, "exclude"),
        (("--timestamp", "yesterday"), 2, "no time"),
        (("--timestamp", "-5"), 2, "1970"),
        (("--partition", "3"), 1, "no partition 3"),
        (("--partition", "-1"), 2, "--partition"),
        (("--max-messages", "0"), 2, "--max-messages"),
        (("--isolation-level", "serializable"), 2, "isolation_level"),
        (("--property", "print.kye=true"), 2, "did you mean 'print_key'"),
        (("--property", "print.key"), 2, "sets nothing"),
        (("--json", "--property", "print.key=true"), 2, "--json"),
        (("--consumer-property", "group.ids=a"), 2, "did you mean 'group_id'"),
        (("--consumer-property", "group.id=a"), 2, "--group"),
        (("--consumer-property", "auto.offset.reset=none"), 2, "--group"),
        (("--group", "g", "--offset", "earliest"), 2, "--group"),
        (("--group", "g", "--partition", "1"), 2, "--group"),
        (("--include", "x"), 2, "--topic or --include"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_make_no_sense_are_refused(shared_log, options, status, why):
    """Each says what to do."""
    result = run(shared_log, "consume", "--topic", "orders", *options, status=status)
    assert why in result.stderr
    assert result.stdout == ""


def test_topics_are_named_or_match(log):
    """Several by name, or all whose names match; the log's own are left out."""
    with pystreamlog.open(log) as opened:
        opened.create_topic("other").append(b"other")
        opened.create_topic("__internal").append(b"internal")
    assert run(log, "consume", "--include", "o.*", "--offset", "-1").stdout == "b\nd\ne\nother\n"
    assert run(log, "consume", "--topic", "other", "--topic", "orders", "--offset", "-1").stdout == "other\nb\nd\ne\n"
    assert run(log, "consume", "--include", ".*internal", status=1).stdout == ""
    assert "no regular expression" in run(log, "consume", "--include", "(", status=2).stderr
    assert "'nope' does not exist" in run(log, "consume", "--topic", "nope", status=1).stderr
    assert "does not exist" in run(log / "none", "consume", "--topic", "orders", status=2).stderr
    assert "--topic" in run(log, "consume", status=2).stderr


def test_what_comes_later_does_not_hold_up_the_end(tmp_path):
    """It ends at the ends that it found, though more came before it got there."""
    log = tmp_path / "data"
    with pystreamlog.open(log) as opened, opened.producer() as producer:
        opened.create_topic("orders")
        producer.send_many("orders", [b"x" * 1000] * 300)  # the first 100 are more than a pipe takes
        producer.flush()
        with start(log, "consume", "--topic", "orders") as process:
            try:
                wait_for_writing(process)
                producer.send_many("orders", [b"later"] * 50)
                producer.flush()
                printed, errors = process.communicate(timeout=60)
            finally:
                process.kill()
    assert (process.returncode, errors) == (0, b"")
    assert printed == (b"x" * 1000 + b"\n") * 300


def test_group_goes_on_where_it_committed(many):
    """What was written out is committed, as far as `--max-messages` let it."""
    first = consumed(many, "--group", "g", "--max-messages", "10")
    assert first == b"".join(b"%d\n" % number for number in range(10))
    rest = consumed(many, "--group", "g")
    assert rest == b"".join(b"%d\n" % number for number in range(10, MANY))
    assert consumed(many, "--group", "g") == b""
    assert consumed(many, "--group", "other", "--max-messages", "1") == b"0\n"


def test_group_without_a_commit_is_told_when_it_shall_not_choose(many):
    """As `auto.offset.reset=none` says."""
    options = ("--topic", "orders", "--group", "g", "--consumer-property", "auto.offset.reset=none")
    assert "no position" in run(many, "consume", *options, status=1).stderr


def test_members_of_a_group_share_the_records(log):
    """Each record goes to one of them, and all of them end."""
    with pystreamlog.open(log) as opened, opened.producer() as producer:
        for partition in range(3):
            producer.send_many("orders", [b"%d" % number for number in range(5000)], partition=partition)
    command = "pystreamlog consume --topic orders --group g"
    done = shell(log, f"({command} & {command} & {command} & wait) | wc -l")
    assert done.stdout.strip() == b"15006", done.stderr


def test_group_repeats_what_a_closed_pipe_did_not_take(many):
    """At least once: nothing that was not written counts as handled."""
    done = shell(many, "pystreamlog consume --topic orders --group g | head -n 1; echo ${PIPESTATUS[0]}")
    assert done.stdout == b"0\n1\n"
    assert done.stderr == b""
    rest = list(map(int, consumed(many, "--group", "g").split()))
    assert rest[-1] == MANY - 1
    assert rest == list(range(rest[0], MANY))
    assert rest[0] > 0, "the records of the first writes were taken"


def test_group_commits_what_was_written_before_a_signal(log):
    """Ctrl-C and SIGTERM say how many there were, by their own exit status."""
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with start(
            log, "consume", "--topic", "orders", "--group", f"g{status}", "--follow", "--from-beginning"
        ) as process:
            try:
                seen = b""
                while seen.count(b"\n") < 6:
                    seen += wait_for_output(process, b"\n")
                process.send_signal(number)
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == status, errors
        assert b"interrupted: consumed 6 records" in errors
        assert consumed(log, "--group", f"g{status}") == b""


def test_signal_ends_who_waits_for_a_reader(many):
    """A pager that takes nothing holds up no Ctrl-C, and what it did not take is not committed."""
    with start(many, "consume", "--topic", "orders", "--group", "g") as process:
        try:
            wait_for_output(process, b"\n")  # the pipe fills again, and nobody reads on
            wait_for_writing(process)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
    rest = list(map(int, consumed(many, "--group", "g").split()))
    assert rest == list(range(rest[0], MANY))


def test_signal_ends_who_can_write_nothing(log):
    """A write into a full pipe is not begun."""
    if not hasattr(fcntl, "F_GETPIPE_SZ"):
        pytest.skip("only Linux tells what a pipe takes")
    reader, writer = os.pipe()
    size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
    os.close(reader)
    os.close(writer)
    run(log, "produce", "--topic", "full", "--create", stdin=b"x" * (size - 1) + b"\n")
    with start(log, "consume", "--topic", "full", "--follow", "--from-beginning") as process:
        try:
            select.select([process.stdout], [], [], 60)
            run(log, "produce", "--topic", "full", stdin=b"second\n")
            wait_for_writing(process)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert b"consumed 1 records" in process.stderr.read()
        finally:
            process.kill()


def wait_for_writing(process):
    """Wait until a process has done what it can, and its pipe is full."""
    status, used, same = Path(f"/proc/{process.pid}/stat"), [], 0
    if not status.exists():
        pytest.skip("only Linux tells what a process does")
    select.select([process.stdout], [], [], 60)
    while same < 10:
        before, used = used, status.read_text().rpartition(")")[2].split()[11:13]
        same = same + 1 if before == used else 0
        time.sleep(0.02)


def test_closed_pipe_is_no_error_message(many):
    """`head` takes what it wants; the exit status tells that not all was written."""
    done = shell(many, "pystreamlog consume --topic orders | head -n 2; echo ${PIPESTATUS[0]}")
    assert done.stdout == b"0\n1\n1\n"
    assert done.stderr == b""


def test_follow_begins_at_the_end_and_prints_what_comes(log):
    """At once, and also of partitions and topics that are made later, if they match."""
    with start(log, "consume", "--include", "or.*", "--follow", "--offset", "earliest") as process:
        try:
            seen = b""
            while seen.count(b"\n") < 6:
                seen += wait_for_output(process, b"\n")
            run(log, "produce", "--topic", "orders", stdin=b"new\n")
            wait_for_output(process, b"new\n")
            run(log, "produce", "--topic", "ordinary", "--create", stdin=b"topic\n")
            wait_for_output(process, b"topic\n")
        finally:
            process.kill()
    assert consumed(log, "--timeout-ms", "50") == b""
    assert consumed(log, "--timeout-ms", "50", "--from-beginning").count(b"\n") == 7
    assert consumed(log, "--follow", "--from-beginning", "--max-messages", "2") == b"a\nb\n"


@pytest.mark.parametrize("options", [("--topic", "orders"), ("--topic", "orders", "--partition", "0", "--offset", "0")])
def test_topic_that_is_deleted_ends_who_follows_it(log, options):
    """Rather than waiting for ever for what cannot come."""
    with start(log, "consume", *options, "--follow", "--from-beginning" if len(options) == 2 else "--json") as process:
        try:
            wait_for_output(process, b"\n")
            with pystreamlog.open(log) as opened:
                opened.delete_topic("orders")
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert b"'orders' was deleted" in errors
    assert b"Traceback" not in errors


def test_log_that_is_removed_ends_who_follows_it(log):
    """Also whole."""
    with start(log, "consume", "--topic", "orders", "--follow", "--from-beginning") as process:
        try:
            wait_for_output(process, b"\n")
            shutil.rmtree(log)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert b"Traceback" not in errors, errors


def test_damage_is_told_behind_what_is_whole(many):
    """Records before it are printed, and the file and position named."""
    run(many, "produce", "--topic", "orders", stdin=b"behind the damage\n")
    segment = next(many.glob("topics/orders/0/*.log"))
    data = bytearray(segment.read_bytes())
    at = data.index(b"behind the damage")
    data[at] ^= 1
    segment.write_bytes(data)
    result = run(many, "consume", "--topic", "orders", status=1)
    assert result.stdout.count("\n") == MANY
    assert f"consumed {MANY:,} records before this" in result.stderr
    assert segment.name in result.stderr


def test_output_file_is_not_written_over_unless_told(shared_log, tmp_path):
    """What is in a file may be all there is of it."""
    target = tmp_path / "out"
    run(shared_log, "consume", "--topic", "orders", "--output", target)
    assert target.read_bytes() == b"a\nb\nnull\nc\nd\ne\n"
    assert "--force" in run(shared_log, "consume", "--topic", "orders", "--output", target, status=2).stderr
    run(shared_log, "consume", "--topic", "orders", "--output", target, "--max-messages", "1", "--force")
    assert target.read_bytes() == b"a\n"
    assert (
        "cannot be written"
        in run(shared_log, "consume", "--topic", "orders", "--output", tmp_path / "no" / "o", status=2).stderr
    )


def test_full_disk_is_told(many):
    """And nothing of it counts as handled."""
    result = run(many, "consume", "--topic", "orders", "--group", "g", "--output", "/dev/full", "--force", status=1)
    assert "No space left" in result.stderr
    assert consumed(many, "--group", "g", "--max-messages", "1") == b"0\n"


def on_terminal(log, *options, columns=40):
    """What a terminal shows."""
    with Terminal(columns) as terminal:
        process = start(log, "consume", *options, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs)
        try:
            terminal.hand_over()
            shown = terminal.wait_for()
            assert process.wait(60) == 0, shown
        finally:
            process.kill()
            process.wait()
    return shown.decode()


def test_terminal_gets_nothing_that_it_would_obey(log):
    """Keys, values, names of headers and JSON are escaped; and what they were can be told."""
    with pystreamlog.open(log) as opened:
        opened.create_topic("hostile").append(HOSTILE, HOSTILE, headers=[(HOSTILE[:-1].decode(), HOSTILE)])
    options = ("--topic", "hostile", "--property", "print.key=true", "--property", "print.headers=true")
    shown = on_terminal(log, *options, "--property", "key.separator= ")
    escapes = "\\x1b[31mred\\x07\\x9b\\u202e\\n"
    assert shown.replace("\n", "") == f"{escapes}:{escapes}\\xff {escapes}\\xff {escapes}\\xff"
    with pystreamlog.open(log) as opened:
        text = HOSTILE[:-1].decode() + "\x7f\U000e0001"
        opened.create_topic("text").append(text.encode())
    shown = on_terminal(log, "--topic", "text", "--json")
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown)["value"] == text


def test_progress_is_told_where_only_the_errors_go_to_a_terminal(many):
    """And how many there were, at the end."""
    with Terminal(40) as terminal:
        process = start(many, "consume", "--topic", "orders", stdout=subprocess.DEVNULL, stderr=terminal.theirs)
        try:
            terminal.hand_over()
            shown = terminal.wait_for()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.communicate()
    assert f"consumed {MANY:,} records".encode() in shown
