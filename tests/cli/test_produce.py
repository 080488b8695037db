"""`pystreamlog produce`: what becomes of lines, and what is told of those that are no records."""

from __future__ import annotations

import signal
import subprocess
from unittest import mock

import pytest

import pystreamlog
from pystreamlog.cli import produce
from pystreamlog.cli.line_reader import Columns
from tests.cli.shell import Terminal, run, shell, start


def make_log(path):
    """A log with a topic of one partition and one of four."""
    with pystreamlog.open(path) as opened:
        opened.create_topic("orders")
        opened.create_topic("spread", partitions=4)
    return path


@pytest.fixture
def log(tmp_path):
    """A log that the test may change."""
    return make_log(tmp_path / "data")


@pytest.fixture(scope="module")
def shared_log(tmp_path_factory):
    """One to which nothing is written."""
    return make_log(tmp_path_factory.mktemp("produce") / "data")


def records(log, topic="orders"):
    """All records of a topic."""
    with pystreamlog.open(log, read_only=True) as opened:
        return list(opened.topic(topic).read())


def values(log, topic="orders"):
    """The values of a topic."""
    return [record.value for record in records(log, topic)]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (b"", []),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"one\r\ntwo\r\n\r\nthree\r", [b"one", b"two", b"", b"three"]),
        (b"\n\n", [b"", b""]),
        (b"\xff\x00\x1b[31m\n", [b"\xff\x00\x1b[31m"]),
    ],
    ids=["empty", "lines", "no end", "crlf", "blank", "binary"],
)
def test_each_line_is_a_value(log, given, sent):
    """Ends of lines do not count, and bytes need not be text."""
    run(log, "produce", "--topic", "orders", stdin=given)
    assert values(log) == sent


def test_more_than_a_block_of_lines_keeps_its_order(log):
    """Lines that lie across two reads are whole."""
    lines = [b"%d %s" % (number, b"x" * (number % 300)) for number in range(20_000)]
    run(log, "produce", "--topic", "orders", stdin=b"\n".join(lines))
    assert values(log) == lines


def test_keys_headers_and_nulls_are_parsed(log):
    """As Kafka's console producer reads them, with the separators that are told."""
    properties = ["parse.key=true", "parse.headers=true", "key.separator=|", "headers.delimiter=;", "null.marker=NULL"]
    options = [each for name in properties for each in ("--property", name)]
    lines = b"a:1,b:2;key|value|more\n;k|NULL\n;NULL|v\n"
    run(log, "produce", "--topic", "orders", *options, stdin=lines)
    assert [(record.headers, record.key, record.value) for record in records(log)] == [
        ((("a", b"1"), ("b", b"2")), b"key", b"value|more"),
        ((), b"k", None),
        ((), None, b"v"),
    ]


@pytest.mark.parametrize(
    ("properties", "line", "why"),
    [
        (["parse.key=true"], b"no separator", "key.separator"),
        (["parse.headers=true"], b"no delimiter", "headers.delimiter"),
        (["parse.headers=true"], b"name\tvalue", "has no ':'"),
        (["parse.headers=true"], b"\xff:1\tvalue", "no UTF-8"),
    ],
)
def test_line_without_its_parts_is_told_with_its_number(log, properties, line, why):
    """What stood before it is sent and counted, and what stands behind it is not."""
    good = b"a:1\tvalue\n"
    options = [each for name in properties for each in ("--reader-property", name)]
    result = run(log, "produce", "--topic", "orders", *options, stdin=good * 2 + line + b"\n" + good, status=1)
    assert "line 3 of the standard input" in result.stderr
    assert why in result.stderr
    assert "produced 2 records" in result.stderr
    assert len(values(log)) == 2


def test_error_that_is_to_be_ignored_makes_the_line_a_value(log):
    """As Kafka's `ignore.error`."""
    options = ("--property", "parse.key=true", "--property", "ignore.error=true")
    run(log, "produce", "--topic", "orders", *options, stdin=b"k\tv\nno separator\n")
    assert [(record.key, record.value) for record in records(log)] == [(b"k", b"v"), (None, b"no separator")]


def test_json_lines_are_records(log):
    """Strings, base64, other JSON, and nothing; the time is kept, and the partition when that is told."""
    lines = b"""\
{"value":"text","key":"k","headers":[["n","v"],["b",{"base64":"/w=="}]],"timestamp":1700000000000,"partition":3}

{"topic":"other","offset":9,"value":{"base64":"AP8="},"partition":1}
{"value": {"a": [1, 2.50, 123456789012345678901234567890], "base64": 1}, "key": 7,"partition":1}
{"value":null,"key":null,"partition":0}
"""
    run(log, "produce", "--topic", "spread", "--json", "--keep-partitions", stdin=lines)
    found = records(log, "spread")
    assert [(record.partition, record.key, record.value) for record in found] == [
        (0, None, None),
        (1, None, b"\x00\xff"),
        (1, b"7", b'{"a":[1,2.50,123456789012345678901234567890],"base64":1}'),
        (3, b"k", b"text"),
    ]
    assert found[3].headers == (("n", b"v"), ("b", b"\xff"))
    assert found[3].timestamp_ms == 1_700_000_000_000
    assert found[0].timestamp_ms > 1_700_000_000_000


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "no record"),
        (b'{"key":"a"}', "`value`"),
        (b'{"value":"a","vlaue":"b"}', "`vlaue`"),
        (b'{"value":"a","timestamp":-1}', "no record"),
        (b'{"value":"a","headers":[["n",null]]}', "the header 'n' is null"),
        (b'{"value":{"base64":"?"}}', "base64"),
        (b'{"value":"a","partition":9}', "partitions 0 to 3"),
        (b'{"value":' + b"[" * 5000, "line 3"),
    ],
)
def test_json_line_that_is_no_record_is_told_with_its_number(log, line, why):
    """What stood before it, empty lines among it, is sent and counted."""
    given = b'{"value":"good"}\n\n' + line + b'\n{"value":"behind"}\n'
    keep = ["--keep-partitions"] if b"partition" in line else []
    if keep:
        given = given.replace(b'"good"', b'"good","partition":0')
    result = run(log, "produce", "--topic", "spread", "--json", *keep, stdin=given, status=1)
    assert "line 3 of the standard input" in result.stderr
    assert why in result.stderr
    assert "produced 1 records" in result.stderr
    assert values(log, "spread") == [b"good"]


@pytest.mark.parametrize("size", [1_100_000, 30_000_000])
def test_line_that_is_too_large_is_told_with_its_number(log, size):
    """However long: it is not kept in memory past what a record may have."""
    result = run(log, "produce", "--topic", "orders", stdin=b"good\n" + b"x" * size + b"\nbehind\n", status=1)
    assert "line 2 of the standard input" in result.stderr
    assert "produced 1 records" in result.stderr
    assert values(log) == [b"good"]


def test_first_of_two_lines_that_are_too_large_is_told(log):
    """Not the larger one."""
    options = ("--producer-property", "max.request.size=10")
    given = b"good\n" + b"x" * 20 + b"\n" + b"x" * 30 + b"\n"
    result = run(log, "produce", "--topic", "orders", *options, stdin=given, status=1)
    assert "line 2 of the standard input" in result.stderr
    assert values(log) == [b"good"]


def test_files_are_read_one_after_the_other(log, tmp_path):
    """And a line is told with its file."""
    (tmp_path / "first").write_bytes(b"k\t1\nk\t2")
    (tmp_path / "second").write_bytes(b"k\t3\nbad\n")
    inputs = ("--input", tmp_path / "first", "--input", tmp_path / "second")
    result = run(log, "produce", "--topic", "orders", "--property", "parse.key=true", *inputs, status=1)
    assert f"line 2 of {tmp_path / 'second'}" in result.stderr
    assert values(log) == [b"1", b"2", b"3"]


def test_file_that_cannot_be_read_is_told_before_anything_is_sent(shared_log, tmp_path):
    """A missing one, and a directory."""
    (tmp_path / "first").write_bytes(b"1\n")
    for wrong in (tmp_path / "missing", tmp_path):
        inputs = ("--input", tmp_path / "first", "--input", wrong)
        assert str(wrong) in run(shared_log, "produce", "--topic", "orders", *inputs, status=2).stderr
    assert values(shared_log) == []


def test_topic_that_is_missing_is_made_only_when_told(log, tmp_path):
    """So that a typing error makes none; the log too."""
    assert "--create" in run(log, "produce", "--topic", "ordres", stdin=b"1\n", status=1).stderr
    run(log, "produce", "--topic", "more", "--create", stdin=b"1\n")
    run(log, "produce", "--topic", "more", "--create", stdin=b"2\n")
    assert values(log, "more") == [b"1", b"2"]
    run(tmp_path / "none", "produce", "--topic", "more", stdin=b"1\n", status=2)
    assert not (tmp_path / "none").exists()
    run(tmp_path / "none", "produce", "--topic", "more", "--create", stdin=b"1\n")
    assert values(tmp_path / "none", "more") == [b"1"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--property", "parse.kye=true"), "did you mean 'parse_key'"),
        (("--property", "parse.key=maybe"), "true or false"),
        (("--property", "key.separator="), "empty"),
        (("--producer-property", "linger.mz=1"), "did you mean 'linger_ms'"),
        (("--producer-property", "linger.ms=x"), "whole number"),
        (("--command-property", "transactional.id=a"), "program"),
        (("--compression-codec", "rar"), "rar"),
        (("--batch-size", "0"), "batch_size"),
        (("--keep-partitions",), "--json"),
        (("--json", "--property", "parse.key=true"), "--json"),
        (("--partition", "-1"), "--partition"),
    ],
)
def test_options_that_make_no_sense_are_refused(shared_log, options, why):
    """With 2, and nothing is sent."""
    assert why in run(shared_log, "produce", "--topic", "orders", *options, stdin=b"a\tb\n", status=2).stderr
    assert values(shared_log) == []


def test_partition_that_is_not_there_is_told(shared_log):
    """With what there is."""
    result = run(shared_log, "produce", "--topic", "spread", "--partition", "4", stdin=b"1\n", status=1)
    assert "0 to 3" in result.stderr


def test_partition_and_codec_are_taken(log):
    """All goes to one partition, packed."""
    options = ("--partition", "2", "--compression-codec", "gzip", "--sync", "--timeout", "0", "--max-block-ms", "1000")
    run(log, "produce", "--topic", "spread", *options, stdin=b"same\n" * 1000)
    assert {record.partition for record in records(log, "spread")} == {2}
    assert "compresscodec: gzip" in run(log, "dump", "--topic", "spread").stdout


def test_what_was_read_is_written_when_a_signal_ends_it(log):
    """Ctrl-C and SIGTERM: what was accepted is written and counted, and the exit status says which it was."""
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with start(log, "produce", "--topic", "orders") as process:
            try:
                process.stdin.write(b"one\ntwo\nhalf")
                process.stdin.flush()
                with (
                    pystreamlog.open(log, read_only=True) as opened,
                    opened.consumer("orders", auto_offset_reset="earliest") as consumer,
                ):
                    seen = 0
                    while seen < 2:
                        seen += len(consumer.poll(60.0))
                process.send_signal(number)
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == status, errors
        assert b"interrupted: produced 2 records" in errors
        with pystreamlog.open(log) as opened:
            opened.delete_topic("orders")
            opened.create_topic("orders")


def test_full_disk_is_told_with_what_was_written_before_it(log, tmp_path):
    """The count is that of the records that are there."""
    (tmp_path / "lines").write_bytes(b"".join(b"%099d\n" % number for number in range(100_000)))
    script = f"ulimit -f 3000; pystreamlog produce --topic orders --input {tmp_path / 'lines'}; echo $?"
    done = shell(log, script)
    assert done.stdout == b"1\n", done.stderr
    count = len(values(log))
    assert f"produced {count:,} records before this".encode() in done.stderr
    assert b"File too large" in done.stderr
    assert 0 < count < 100_000


def test_closed_standard_streams_are_told(log):
    """Rather than reading what else has their numbers."""
    done = shell(
        log, "pystreamlog produce --topic orders <&-; echo $?; echo 1 | pystreamlog produce --topic orders >&-"
    )
    assert done.returncode == 0, done.stderr
    assert b"no standard input" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout == b"2\n"
    assert values(log) == [b"1"]


def test_full_buffer_of_a_slow_reader_is_no_error(log):
    """A pipe that gives little at a time is read as it comes."""
    done = shell(log, "(for each in 1 2 3; do echo $each; sleep 0.05; done) | pystreamlog produce --topic orders")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert values(log) == [b"1", b"2", b"3"]


def test_terminal_prompts_and_sends_each_line_at_once(log):
    """What is typed is there before the end is."""
    with Terminal(40) as terminal:
        process = start(
            log, "produce", "--topic", "orders", stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs
        )
        try:
            terminal.hand_over()
            terminal.wait_for(b"> ")
            terminal.type(b"first\n")
            with (
                pystreamlog.open(log, read_only=True) as opened,
                opened.consumer("orders", auto_offset_reset="earliest") as consumer,
            ):
                assert consumer.poll(60.0).values == [b"first"]
            terminal.type(b"\x04")
            shown = terminal.wait_for()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    assert b"produced 1 records" in shown


def test_progress_fits_a_narrow_terminal(log):
    """Long work shows how far it came on one line, which is gone at the end."""
    with Terminal(40) as terminal:
        process = start(
            log,
            "produce",
            "--topic",
            "orders",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=terminal.theirs,
        )
        try:
            terminal.hand_over()
            while b"/s" not in terminal.seen:
                process.stdin.write(b"a line\n")
                process.stdin.flush()
                terminal.glance()
            process.stdin.close()
            shown = terminal.wait_for()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    drawn = [part.partition(b"\x1b")[0] for part in shown.split(b"\r") if b"records  " in part]
    assert drawn
    assert max(map(len, drawn)) < 40
    assert b"\r\x1b[K" in shown


class Late:
    """Three records that were not written in time."""

    def __len__(self):
        return 3

    def done(self):
        """They are settled."""
        return True

    def result(self):
        """Tells that they were not."""
        raise pystreamlog.DeliveryTimeoutError("3 records were not written within 5 ms")


@pytest.mark.parametrize("sync", [False, True])
def test_records_that_are_late_are_not_counted(sync):
    """Nobody is told that they were produced."""
    producer = mock.Mock()
    producer.send_many.return_value = Late()
    sending = produce.Sending(producer, "orders", None, keep_partitions=False, sync=sync)
    with pytest.raises((pystreamlog.DeliveryTimeoutError, ExceptionGroup), match="not written"):
        sending.lines("a file", 1, [b"a", b"b", b"c"], Columns)
    assert sending.produced == 0


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"value": "\xff"}', "it is no JSON: a string in it is no UTF-8"),
        (b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it is nested too deeply"),
    ],
)
def test_line_of_json_that_is_odd(filled, line, why):
    """It is told in words, with its number, and what stood before it was sent."""
    done = run(filled, "produce", "orders", "--json", stdin=b'{"value": "good"}\n' + line + b"\n", status=1)
    assert f"line 2 of the standard input: {why}\n" in done.stderr
    assert "produced 1 records before this" in done.stderr
