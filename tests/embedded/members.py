"""Members of a consumer group in processes of their own: they do what they are told, and tell what happens to them."""

from __future__ import annotations

import ast
import contextlib
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pystreamlog.coordination.group_state import GroupState, StateFile
from pystreamlog.coordination.names import encoded_id
from pystreamlog.storage.files import File

from .conftest import PATIENCE, ROOT

TOPIC = "events"
GROUP = "workers"

PROGRAM = """
import asyncio, contextlib, gc, os, queue, signal, sys, threading, time
import pystreamlog
from pystreamlog import TopicPartition
from pystreamlog.errors import *

def say(kind, value):
    os.write(1, (repr((kind, value)) + "\\n").encode())

def telling(kind):
    return lambda consumer, tps: say(kind, [tp.partition for tp in tps])

def listen():
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\\n")
        for line in lines:
            orders.put(eval(line))
            consumer.wakeup()

def obey(order):
    if order.startswith("!"):
        exec(order[1:], globals())
        return
    try:
        try:
            code = compile(order, "order", "eval")
        except SyntaxError:
            exec(order, globals())
            say("reply", None)
        else:
            say("reply", repr(eval(code, globals())))
    except Exception as error:
        say("refused", (type(error).__name__, str(error)))

def run():
    global waiting
    while True:
        if waiting:
            obey(orders.get())
            continue
        try:
            for record in consumer.poll(None):
                say("record", (record.partition, record.offset, record.value))
        except WakeupError:
            pass
        except Exception as error:
            say("failed", (type(error).__name__, str(error)))
            waiting = True
        while not orders.empty():
            obey(orders.get())

orders = queue.SimpleQueue()
waiting = False
path, options, setup = sys.argv[1:]
exec(setup)
log = pystreamlog.open(path)
consumer = log.consumer(
    "events",
    on_assign=telling("assigned"), on_revoke=telling("revoked"), on_lost=telling("lost"),
    **eval(options),
)
threading.Thread(target=listen, daemon=True).start()
say("started", os.getpid())
run()
"""


class Refused(Exception):  # noqa: N818 - what the member answered
    """A member's order raised; `kind` is the name of the error's class."""

    def __init__(self, kind, text):
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class Member:
    """A process with one consumer of the group, which polls, waiting for ever, unless it is told otherwise.

    Attributes:
        path: Of the log.
        pid: Of the process, in its own pid namespace.
        owned: The partitions that it was told it has.
        records: What it read, as (partition, offset, value).
        events: Everything that it told, as (kind, value).
    """

    def __init__(self, path, *, setup="", prefix=(), **options):
        options = {"group_id": GROUP, "auto_offset_reset": "earliest", "enable_auto_commit": False} | options
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PROGRAM, path, repr(options), textwrap.dedent(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.path = path
        self.owned = set()
        self.records = []
        self.events = []
        self._told = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.until(lambda: bool(self.events))
        assert self.events[0][0] == "started"
        self.pid = self.events[0][1]

    def _read(self):
        for line in self.process.stdout:
            self._told.put(ast.literal_eval(line.decode()))
        self._told.put(None)

    def _note(self, told):
        kind, value = told
        self.events.append(told)
        if kind == "assigned":
            self.owned |= set(value)
        elif kind in ("revoked", "lost"):
            self.owned -= set(value)
        elif kind == "record":
            self.records.append(value)

    def note(self):
        """Take up what it told so far."""
        with contextlib.suppress(queue.Empty):
            while (told := self._told.get_nowait()) is not None:
                self._note(told)

    def until(self, condition, timeout=PATIENCE):
        """Take up what it tells, until the condition holds."""
        end = time.monotonic() + timeout
        while not condition():
            try:
                told = self._told.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"waited {timeout} s for a member that has {self.owned} and told {self.events[-20:]}")
            if told is None:
                pytest.fail(f"a member ended: {self.process.stderr.read().decode()[-4000:]}")
            self._note(told)

    def until_it_owns(self, *partitions):
        """Wait until it was told that it has exactly these partitions."""
        self.until(lambda: self.owned == set(partitions))

    def told(self, kind):
        """The values of everything of one kind that it told."""
        self.note()
        return [value for told, value in self.events if told == kind]

    def send(self, order):
        """Give it an order, some lines of Python; what those after a `!` raise is caught by nobody."""
        self.process.stdin.write(repr(textwrap.dedent(order)).encode() + b"\n")
        self.process.stdin.flush()

    def do(self, order):
        """Give it an order; the result of an expression, or `Refused`."""
        before = len(self.events)
        self.send(order)

        def answers():
            return [told for told in self.events[before:] if told[0] in ("reply", "refused")]

        self.until(lambda: bool(answers()))
        kind, value = answers()[0]
        if kind == "refused":
            raise Refused(*value)
        return value if value is None else _parsed(value)

    def stop_polling(self):
        """Have it wait for orders between two polls."""
        self.do("waiting = True")

    def go_on(self):
        """Have it poll again."""
        self.do("waiting = False")

    def signal(self, number):
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self):
        """End it as a crash does."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def discard(self):
        """End it, however it is."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()


def _parsed(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@contextlib.contextmanager
def starting(path):
    """Starts members on the log there; ends those that are left."""
    members = []

    def start(**options):
        members.append(Member(path, **options))
        return members[-1]

    try:
        yield start
    finally:
        for member in members:
            member.discard()


def until_shared(members, count):
    """Wait until these members have all of `count` partitions, no two of them one, and about as many each."""
    least, most = count // len(members), -(-count // len(members))
    end = time.monotonic() + PATIENCE
    while True:
        for member in members:
            member.note()
        sizes = sorted(len(member.owned) for member in members)
        union = set().union(*(member.owned for member in members))
        if sum(sizes) == count == len(union) and least <= sizes[0] and sizes[-1] <= most:
            return
        assert time.monotonic() < end, [(member.owned, member.events[-10:]) for member in members]
        time.sleep(0.002)


def group_folder(path, group=GROUP):
    """Where the group's files lie."""
    return Path(path, "groups", encoded_id(group))


def group_state(path, group=GROUP):
    """The group's state as it is now."""
    fd = os.open(group_folder(path, group) / "members", os.O_RDONLY)
    try:
        found = StateFile(File(fd, "members")).read()
    finally:
        os.close(fd)
    return GroupState() if found is None else found[1]


def poll_until(consumer, condition, timeout=PATIENCE):
    """Have a consumer of this process poll until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, consumer.assignment()
        consumer.poll(0.002)


def until(condition, timeout=PATIENCE):
    """Wait until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)
