"""`":memory:"`: a log of one's own that leaves nothing behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import pystreamlog
from pystreamlog.errors import ConfigError

from .conftest import PATIENCE, run, start

OPEN = """
import sys
import pystreamlog

log = pystreamlog.open(":memory:")
log.create_topic("events").append(b"x")
producer = log.producer(linger_ms=600_000)
for _ in range(5):
    producer.send("events", b"y")
print(log.path, flush=True)
"""


def test_memory_logs_are_private():
    """Two of them know nothing of each other."""
    with pystreamlog.open(":memory:") as first, pystreamlog.open(":memory:") as second:
        first.create_topic("events")
        assert second.topics() == []
        assert first.path != second.path


def test_closing_removes_it():
    """With all that was in it, whoever still has something open."""
    log = pystreamlog.open(":memory:")
    home = Path(log.path).parent
    topic = log.create_topic("events")
    topic.append(b"x")
    log.consumer("events")
    assert home.is_dir()
    log.close()
    assert not home.exists()
    log.close()


@pytest.mark.parametrize(
    ("end", "returncode"),
    [("", 0), ("sys.exit(3)", 3), ("raise ValueError", 1), ("del log, producer", 0), ("import multiprocessing", 0)],
)
def test_exit_removes_it(end, returncode):
    """However the process ends; producers that flush at exit find it there."""
    out, err = run(OPEN + end, returncode=returncode)
    assert "lost" not in err
    assert not Path(out.strip()).parent.exists()


def test_log_that_nobody_holds_goes_on():
    """A client of it is enough."""
    producer = pystreamlog.open(":memory:", auto_create_topics=True).producer()
    assert producer.send("events", b"x").result().offset == 0
    producer.close()


def test_killed_owners_log_is_swept():
    """By the next memory log that is opened; one whose owner lives is not."""
    processes = [start(OPEN + "sys.stdin.read()") for _ in range(2)]
    killed, living = (Path(process.stdout.readline().strip()).parent for process in processes)
    processes[0].kill()
    processes[0].communicate(timeout=PATIENCE)
    assert killed.is_dir()
    pystreamlog.open(":memory:").close()
    assert not killed.exists()
    assert living.is_dir()
    processes[1].communicate(timeout=PATIENCE)
    assert not living.exists()


def test_forked_child_removes_nothing():
    """It belongs to the process that made it."""
    with pystreamlog.open(":memory:") as log:
        topic = log.create_topic("events")
        pid = os.fork()
        if not pid:
            try:
                signal.alarm(int(PATIENCE))
                topic.append(b"child")
                log.close()
                pystreamlog.embedded.exits._close_all()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert [record.value for record in topic.read()] == [b"child"]


def test_children_of_multiprocessing_may_outlive_the_script():
    """The process waits for them before it removes what they work in."""
    program = """
        import multiprocessing
        import pystreamlog

        def child(path, started):
            import time
            started.set()
            time.sleep(0.3)
            with pystreamlog.open(path, create=False) as log:
                log.topic("events").append(b"child")
                print([record.value for record in log.topic("events").read()], flush=True)

        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            log = pystreamlog.open(":memory:")
            log.create_topic("events").append(b"parent")
            started = context.Event()
            context.Process(target=child, args=(log.path, started)).start()
            started.wait(10)
            print(log.path, flush=True)
    """
    out, err = run(program)
    home, values = sorted(out.splitlines())
    assert (values, err) == ("[b'parent', b'child']", "")
    assert not Path(home).parent.exists()


@pytest.mark.parametrize("options", [{"read_only": True}, {"create": False}])
def test_memory_log_is_made_by_opening_it(options):
    """Without making it there is nothing."""
    with pytest.raises(ConfigError):
        pystreamlog.open(":memory:", **options)


def test_failed_opening_leaves_nothing(monkeypatch):
    """No directory and no descriptor."""
    made = []
    make = pystreamlog.embedded.memory.tempfile.mkdtemp

    def mkdtemp(**arguments):
        made.append(make(**arguments))
        return made[0]

    def refuse(*_, **__):
        raise ConfigError("refused")

    monkeypatch.setattr("pystreamlog.embedded.memory.tempfile.mkdtemp", mkdtemp)
    monkeypatch.setattr("pystreamlog.embedded.log.open_directory", refuse)
    with pytest.raises(ConfigError, match="refused"):
        pystreamlog.open(":memory:")
    assert not Path(made[0]).exists()
