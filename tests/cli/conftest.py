"""What the tests of the command line share: a filled log, and commands run within the test's own process."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

import msgspec
import pytest

import pystreamlog
from pystreamlog.cli.app import app
from pystreamlog.cli.options import LOG_VARIABLE

GROUP, IDLE_TOPIC, TOPIC, TRANSACTIONAL_ID = "billing", "idle", "orders", "invoices"


class Done(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        """What it printed, as JSON."""
        return msgspec.json.decode(self.out)

    @property
    def lines(self):
        """What it printed, line by line."""
        return self.out.splitlines()

    @property
    def rows(self):
        """The cells of the table that it printed, without the headings."""
        return [line.split() for line in self.lines[1:]]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    """No log is named but by the test; `pystreamlog --log` sets the variable for its command."""
    monkeypatch.setenv(LOG_VARIABLE, "to be deleted")
    monkeypatch.delenv(LOG_VARIABLE)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def path(tmp_path):
    """Where the test's log lies."""
    return str(tmp_path / "log")


@pytest.fixture
def filled(path):
    """A log with a topic of two partitions, ten records each, of which a group has committed four, and an empty one."""
    with pystreamlog.open(path) as log:
        orders = log.create_topic(TOPIC, partitions=2)
        for number in range(10):
            for partition in range(2):
                orders.append(b"%d" % number, b"key", partition=partition, timestamp_ms=1000 * (number + 1))
        log.create_topic(IDLE_TOPIC, retention_ms=1000)
        log.admin.alter_consumer_group_offsets(GROUP, {pystreamlog.TopicPartition(TOPIC, n): 4 for n in range(2)})
        with log.producer(transactional_id=TRANSACTIONAL_ID) as producer, producer.transaction():
            producer.send(IDLE_TOPIC, b"x", partition=0)
    return path


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a command line, without input, and returns what it did."""

    def run_arguments(*arguments):
        capsys.readouterr()
        with open(os.devnull, encoding="utf-8") as nothing, monkeypatch.context() as patched:
            patched.setattr("sys.stdin", nothing)
            return run_without_input(arguments)

    def run_without_input(arguments):
        with pytest.raises(SystemExit) as exited:
            app([str(each) for each in arguments], prog_name="pystreamlog")
        return Done(exited.value.code or 0, *capsys.readouterr())

    return run_arguments


@pytest.fixture
def on(run, filled):
    """Runs a command line on the filled log."""
    return lambda *arguments: run("--log", filled, *arguments)
