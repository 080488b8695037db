"""What was sent is written when a process ends without closing anything, however it ends; but for a kill."""

from __future__ import annotations

import multiprocessing
import sys

import pytest

import pystreamlog

from .conftest import PATIENCE, run

SEND = """
import sys
import pystreamlog

log = pystreamlog.open(sys.argv[1])
producer = log.producer(linger_ms=600_000)
for number in range(10):
    delivery = producer.send("events", b"%d" % number)
"""

EXPECTED = [b"%d" % number for number in range(10)]


def stored(log):
    """The payloads of the topic."""
    return [record.value for record in log.topic("events").read()]


@pytest.mark.parametrize(
    ("end", "returncode"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError('unhandled')", 1),
        ("del producer, log, delivery", 0),
        ("import threading; threading.Thread(target=lambda: producer.send('events', b'10')).start()", 0),
    ],
)
def test_script_that_never_closes(log, path, end, returncode):
    """Its records are there when it has ended."""
    log.create_topic("events")
    run(SEND + end, path, returncode=returncode)
    assert stored(log)[:10] == EXPECTED


def test_segments_may_roll_at_exit(log, path):
    """Nothing at exit needs a new thread, which Python refuses from 3.12 on."""
    log.create_topic("events", segment_bytes=4096)
    program = """
        import sys
        import pystreamlog

        log = pystreamlog.open(sys.argv[1])
        producer = log.producer(linger_ms=600_000)
        count = 1
        while producer.send("events", b"x" * 1400).done():
            count += 1
        for _ in range(3):
            producer.send("events", b"x" * 1400)
        print(count + 3)
    """
    out, err = run(program, path)
    assert err == ""
    assert stored(log) == [b"x" * 1400] * int(out)


def test_loss_at_exit_is_logged(log, path):
    """Nobody is left to raise to."""
    log.create_topic("events")
    _, err = run(SEND + "log.delete_topic('events')", path)
    assert "records were lost at exit" in err
    assert "UnknownTopicError" in err


def leave(path, how):
    """What a `multiprocessing` child does that closes nothing: `atexit` does not run there."""
    log = pystreamlog.open(path)
    producer = log.producer(linger_ms=600_000)
    for number in range(10):
        producer.send("events", b"%d" % number)
    if how == "exit":
        sys.exit(3)
    if how == "raise":
        sys.stderr = None  # the traceback is expected
        raise ValueError


@pytest.mark.parametrize("how", ["return", "exit", "raise"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_child_flushes(log, path, method, how):
    """Whichever way it was started and ends."""
    log.create_topic("events")
    process = multiprocessing.get_context(method).Process(target=leave, args=(path, how))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == {"return": 0, "exit": 3, "raise": 1}[how]
    assert stored(log) == EXPECTED


def test_child_forked_by_hand_flushes(log, path):
    """`os.fork` and an ordinary end; the parent's own records are written by the parent only."""
    log.create_topic("events")
    program = (
        SEND
        + """
import os, warnings

warnings.simplefilter("ignore")
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
else:
    mine = log.producer(linger_ms=600_000)
    mine.send("events", b"a")
    mine.send("events", b"b")
"""
    )
    _, err = run(program, path)
    assert err == ""
    values = stored(log)
    assert [value for value in values if value in EXPECTED] == EXPECTED
    assert [value for value in values if value not in EXPECTED] == [b"a", b"b"]


def test_closing_the_log_at_exit_twice_is_harmless(log, path):
    """An `atexit` of the user's own may close what pystreamlog closes too."""
    log.create_topic("events")
    _, err = run("import atexit\n" + SEND + "atexit.register(log.close)", path)
    assert err == ""
    assert stored(log) == EXPECTED
