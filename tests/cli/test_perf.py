"""`pystreamlog perf`: Kafka's lines, and figures that are counted right."""

from __future__ import annotations

import json
import re
import signal

import pytest

import pystreamlog
from pystreamlog.cli.perf_figures import ConsumerFigures, Latencies, percentile, total_line
from tests.cli.shell import run, start, wait_for_output

TOTAL = re.compile(
    r"(\d+) records sent, (\d+\.\d) records/sec \((\d+\.\d\d) MB/sec\), (\d+\.\d\d) ms avg latency, "
    r"(\d+\.\d\d) ms max latency, (\d+) ms 50th, (\d+) ms 95th, (\d+) ms 99th, (\d+) ms 99\.9th\.\n"
)
WINDOW = re.compile(
    rb"(\d+) records sent, \d+\.\d records/sec \(\d+\.\d\d MB/sec\), \d+\.\d ms avg latency, \d+\.\d ms max latency\.\n"
)
HEAD = (
    "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, rebalance.time.ms, "
    "fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec"
)
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d:\d{3}"
ROW = re.compile(
    rf"{TIME}, {TIME}, (\d+\.\d{{4}}), \d+\.\d{{4}}, (\d+), \d+\.\d{{4}}, \d+, \d+, \d+\.\d{{4}}, \d+\.\d{{4}}"
)


def make_log(path):
    """A log with a topic."""
    with pystreamlog.open(path) as opened:
        opened.create_topic("perf")
    return path


@pytest.fixture
def log(tmp_path):
    """A log that the test may change."""
    return make_log(tmp_path / "data")


@pytest.fixture(scope="module")
def shared_log(tmp_path_factory):
    """One to which nothing is written."""
    return make_log(tmp_path_factory.mktemp("perf") / "data")


def test_producing_prints_kafkas_line(log):
    """And what it counts was written."""
    options = ("--topic", "perf", "--num-records", "2500", "--record-size", "64")
    found = TOTAL.fullmatch(run(log, "perf", "produce", *options).stdout)
    assert found
    assert found[1] == "2500"
    with pystreamlog.open(log, read_only=True) as opened:
        values = [record.value for record in opened.topic("perf").read()]
    assert {len(value) for value in values} == {64}
    assert (len(values), len(set(values))) == (2500, 1000)
    figures = json.loads(run(log, "perf", "produce", *options, "--json", "--print-metrics").stdout)
    assert figures["records"] == figures["metrics"]["record-send-total"] == 2500
    assert 0 < figures["latency_ms_50th"] <= figures["latency_ms_99.9th"] <= figures["latency_ms_max"]
    assert "record-send-total" in run(log, "perf", "produce", *options, "--print-metrics").stdout


def test_payloads_come_from_a_file(log, tmp_path):
    """In turn, between what is told to stand between them."""
    (tmp_path / "payloads").write_bytes(b"one,two,three")
    options = ("--topic", "new", "--create", "--num-records", "5", "--payload-delimiter", ",")
    run(log, "perf", "produce", *options, "--payload-file", tmp_path / "payloads", "--throughput", "1000")
    assert run(log, "consume", "--topic", "new").stdout == "one\ntwo\nthree\none\ntwo\n"


def test_producing_reports_now_and_then_and_at_a_signal(log):
    """Ctrl-C ends it with 130, and says how many were acknowledged: as many as are there."""
    options = ("--num-records", "1000000000", "--record-size", "10", "--reporting-interval", "100")
    with start(log, "perf", "produce", "--topic", "perf", *options, "--producer-property", "linger.ms=1") as process:
        try:
            wait_for_output(process, b"max latency.\n")
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    count = int(re.search(rb"produced ([\d,]+) records", errors)[1].replace(b",", b""))
    with pystreamlog.open(log, read_only=True) as opened:
        assert opened.topic("perf").end_offsets() == {0: count}
    assert all(map(WINDOW.fullmatch, printed.splitlines(keepends=True)))


def test_throughput_is_held(log):
    """No more records a second than were allowed."""
    options = ("--topic", "perf", "--num-records", "300", "--record-size", "1", "--throughput", "1000", "--json")
    assert json.loads(run(log, "perf", "produce", *options).stdout)["records_per_second"] <= 1010


def test_consuming_prints_kafkas_table(log):
    """Bytes are those of keys and values."""
    with pystreamlog.open(log) as opened, opened.producer() as producer:
        producer.send_many("perf", [b"x" * 100] * 20_000, [b"key"] * 20_000)
    options = ("--topic", "perf", "--messages", "20000")
    head, row = run(log, "perf", "consume", *options).stdout.splitlines()
    assert head == HEAD
    found = ROW.fullmatch(row)
    assert found
    assert (found[1], found[2]) == (f"{103 * 20_000 / (1 << 20):.4f}", "20000")
    assert ROW.fullmatch(run(log, "perf", "consume", *options, "--hide-header", "--group", "g").stdout.strip())
    assert json.loads(run(log, "perf", "consume", *options, "--json").stdout)["data_consumed_in_nmsg"] == 20_000
    detailed = run(log, "perf", "consume", *options, "--show-detailed-stats", "--print-metrics").stdout
    assert detailed.startswith("time, threadId, ")
    assert "records-consumed-total" in detailed


def test_consuming_ends_when_nothing_comes(log):
    """And says so."""
    result = run(log, "perf", "consume", "--topic", "perf", "--num-records", "5", "--timeout", "50")
    assert "ended after 0 of 5 records" in result.stderr
    assert (
        "ended after 0 of 5"
        in run(
            log, "perf", "consume", "--topic", "perf", "--num-records", "5", "--timeout", "0", "--from-latest"
        ).stderr
    )


def test_way_from_end_to_end_is_measured(log):
    """Each record comes back alone."""
    options = ("--topic", "e2e", "--create", "--num-records", "1001", "--record-key-size", "8")
    lines = run(log, "perf", "e2e", *options).stdout.splitlines()
    assert re.fullmatch(r"0\t\d+\.\d{4}", lines[0])
    assert re.fullmatch(r"1000\t\d+\.\d{4}", lines[1])
    assert re.fullmatch(r"Avg latency: \d+\.\d{4} ms", lines[2])
    assert re.fullmatch(r"Percentiles: 50th = \d+\.\d{4}, 99th = \d+\.\d{4}, 99\.9th = \d+\.\d{4}", lines[3])
    assert json.loads(run(log, "perf", "e2e", *options, "--json").stdout)["records"] == 1001


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (("produce", "--topic", "perf", "--num-records", "1"), 2, "--record-size or --payload-file"),
        (("produce", "--topic", "perf", "--num-records", "0", "--record-size", "1"), 2, "--num-records"),
        (("produce", "--topic", "perf", "--num-records", "1", "--payload-file", "none"), 2, "cannot be read"),
        (("produce", "--topic", "nope", "--num-records", "1", "--record-size", "1"), 1, "--create"),
        (("produce", "--topic", "perf", "--num-records", "1", "--record-size", "2000000"), 1, "exceeds"),
        (("consume", "--topic", "nope", "--num-records", "1"), 1, "does not exist"),
        (("consume", "--topic", "perf", "--num-records", "1", "--command-property", "x=1"), 2, "known are"),
        (("e2e", "--topic", "nope", "--num-records", "1"), 1, "--create"),
    ],
)
def test_what_makes_no_sense_is_refused(shared_log, options, status, why):
    """Each says what to do."""
    assert why in run(shared_log, "perf", *options, status=status).stderr


def test_figures_are_counted_as_kafka_does():
    """Percentiles by index, and totals over everything."""
    assert [percentile(range(10), part) for part in (0.5, 0.99, 0.999)] == [5, 9, 9]
    assert percentile([], 0.5) == 0
    latencies = Latencies()
    for number in range(1000):
        latencies.add(number, 1 << 10)
    first, again = latencies.window(), latencies.window()
    assert (first["records"], first["latency_ms_avg"], first["latency_ms_max"]) == (1000, 499.5, 999)
    assert (again["records"], again["latency_ms_avg"]) == (0, 0)
    assert total_line(latencies.total()).endswith(
        "499.50 ms avg latency, 999.00 ms max latency, 500 ms 50th, 950 ms 95th, 990 ms 99th, 999 ms 99.9th."
    )
    figures = ConsumerFigures(1000.0)
    figures.count, figures.size, figures.rebalance_seconds = 100, 10 << 20, 1.0
    found = figures.to_dict(1003.0)
    assert (found["data_consumed_in_mb"], found["fetch_mb_sec"], found["fetch_nmsg_sec"]) == (10, 5, 50)
    assert (found["rebalance_time_ms"], found["fetch_time_ms"]) == (1000, 2000)
    assert figures.to_dict(1004.0, (1002.0, 50, 0))["nmsg_sec"] == 25
