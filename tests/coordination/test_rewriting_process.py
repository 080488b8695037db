"""The process that compacts in the background: started when there is work, it gives way, and ends with its parent."""

import logging
import os
import subprocess
import sys
import threading
import time

import pytest

import pystreamlog
from pystreamlog import __main__ as command_line
from pystreamlog.coordination import rewriting_process
from pystreamlog.coordination.maintenance import LOCK_FILE, Maintenance
from pystreamlog.coordination.partition import SETTLE_TIMEOUT
from pystreamlog.coordination.rewriting_process import RewritingProcess

PATIENCE = 60


def until(condition):
    """Wait for something."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill(log, count=100, **config):
    """Records with ten keys in a topic of small segments."""
    topic = log.create_topic("t", exist_ok=True, segment_bytes=4096, **{"cleanup_policy": "compact", **config})
    for number in range(count):
        topic.append(b"%d" % number, b"%d" % (number % 10))
    return topic


def count(topic):
    """How many records can be read."""
    return sum(1 for _ in topic.read())


@pytest.fixture
def log(tmp_path):
    """A log without maintenance of its own."""
    with pystreamlog.open(tmp_path / "log", maintenance=False) as opened:
        yield opened


@pytest.fixture
def background(log):
    """Maintenance of the log that runs in the background."""
    made = Maintenance(log._files, log._topics, log._partitions, log._context, in_background=True, first_seconds=0.01)
    yield made
    made.close()


def test_the_thread_has_it_done(log, background):
    """By another process, while this one goes on."""
    topic = fill(log)
    background.seen(log._topics.find("t"))
    until(lambda: count(topic) < 30)
    assert log.verify().ok
    assert topic.append(b"more", b"1").offset == 100


def test_none_is_started_without_work(log, background, monkeypatch):
    """A look is enough."""
    fill(log, 5)
    monkeypatch.setattr(RewritingProcess, "run", lambda *_: pytest.fail("it was started"))
    background.run_in_background()


def test_it_does_nothing_while_another_process_is_at_it(log, caplog):
    """And says nothing."""
    topic = fill(log)
    process = RewritingProcess(log.path)
    with log._maintenance._alone(1), caplog.at_level(logging.WARNING, "pystreamlog"):
        # The child waits for the lock for some seconds, and then leaves it.
        runner = threading.Thread(target=process.run, args=(threading.Event(),))
        runner.start()
        runner.join(PATIENCE)
    assert not runner.is_alive()
    assert not caplog.records
    assert count(topic) == 100


def test_it_ends_when_it_shall(log, monkeypatch):
    """Closing the log ends it, wherever it is."""
    fill(log)
    monkeypatch.setattr(rewriting_process, "_command", lambda _: [sys.executable, "-c", "import time; time.sleep(600)"])
    process, ended = RewritingProcess(log.path), threading.Event()
    runner = threading.Thread(target=process.run, args=(ended,))
    runner.start()
    until(lambda: process._process is not None)
    child = process._process
    ended.set()
    process.end()
    runner.join(PATIENCE)
    assert not runner.is_alive()
    assert child.poll() is not None
    process.end()


def test_its_failure_is_one_warning(log, monkeypatch, caplog):
    """With what it said."""
    command = [sys.executable, "-c", "import sys; sys.exit('no luck')"]
    monkeypatch.setattr(rewriting_process, "_command", lambda _: command)
    with caplog.at_level(logging.WARNING, "pystreamlog"):
        RewritingProcess(log.path).run(threading.Event())
    assert len(caplog.records) == 1
    assert "no luck" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("executable", None), ("executable", "/bin/app"), ("frozen", True)])
def test_program_that_is_no_python_goes_on_without(log, monkeypatch, caplog, name, value):
    """And says so once."""
    monkeypatch.setattr(sys, name, value, raising=False)
    process = RewritingProcess(log.path)
    with caplog.at_level(logging.WARNING, "pystreamlog"):
        process.run(threading.Event())
        process.run(threading.Event())
    assert len(caplog.records) == 1
    assert "maintain" in caplog.text


def test_package_that_only_the_parent_finds_is_found(log, monkeypatch, tmp_path, caplog):
    """By its module path."""
    topic = fill(log)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING, "pystreamlog"):
        RewritingProcess(log.path).run(threading.Event())
    assert not caplog.records
    assert count(topic) < 30


@pytest.mark.skipif(not hasattr(os, "kill"), reason="needs signals")
def test_it_ends_with_its_parent(log):
    """One whose parent is another process by now does nothing."""
    topic = fill(log)
    command = [sys.executable, "-m", "pystreamlog", "compact", "--log", log.path, "--child-of", "1"]
    environment = rewriting_process._environment()
    done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0
    assert count(topic) == 100


def test_command(log, monkeypatch, capsys):
    """Does it now, and tells what it did."""
    topic = fill(log, min_cleanable_dirty_ratio=1.0)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["pystreamlog", "compact", *arguments])
        try:
            return command_line.main()
        except SystemExit as ended:  # so does the command line of the extra `cli`
            return ended.code

    assert run("--log", log.path, "--topic", "t", "--force") == 0
    assert "t/0" in capsys.readouterr().out
    assert count(topic) < 30
    assert run("--log", log.path, "--json") == 0
    assert '"compacted"' in capsys.readouterr().out
    assert run("--log", log.path, "--topic", "missing") == 1
    assert "missing" in capsys.readouterr().err
    assert run("--log", os.path.join(log.path, "nowhere")) != 0
    assert os.path.exists(os.path.join(log.path, LOCK_FILE))


def test_processes_of_many_parents_do_not_queue(log, monkeypatch):
    """One is enough: those that all started as their parents looked at the log at once wait for it no longer."""
    topic = fill(log)
    waited = []
    real = Maintenance._alone

    def alone(maintenance, timeout):
        waited.append(timeout)
        return real(maintenance, timeout)

    monkeypatch.setattr(Maintenance, "_alone", alone)
    monkeypatch.setattr("os.nice", lambda _: 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    command = ["pystreamlog", "compact", "--log", log.path, "--child-of", str(os.getppid())]
    monkeypatch.setattr("sys.argv", command)
    with log._maintenance._alone(0):
        assert command_line.main() == 0
    assert count(topic) == 100
    assert len(waited) == 2
    assert waited[1] < SETTLE_TIMEOUT
