"""`pystreamlog demo`: producers and a consumer group, a process each; two of them are killed, and every record checked.

1. Two producers send a record each millisecond, and three consumers, a group, share the partitions; latency is taken
   here. In the middle of it one consumer is killed by SIGKILL, and the others take over.
2. A burst: the producers send as fast as they can. In the middle of it one is killed by SIGKILL.
3. The other ends its burst; when the consumers have caught up, it goes on with a record each millisecond to the end.
4. What was acknowledged is held against what was read: see `demo_verdict`.

Needs the core dependencies only: no terminal library, no command-line library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from time import monotonic, monotonic_ns, sleep
from types import FrameType
from typing import Generic, NoReturn, TypeVar

import msgspec

import pystreamlog
from pystreamlog.cli.demo_clients import PRODUCER_COUNT, TOPIC, ConsumerReport, Order, ProducerReport
from pystreamlog.cli.demo_verdict import Account, Reader, Reading, Verdict
from pystreamlog.cli.output import on_terminal
from pystreamlog.errors import StreamLogError, TopicExistsError

__all__ = ["main"]

_PARTITION_COUNT = 6
_CONSUMER_COUNT = 3
_TICK = 0.05
_PIPE_SIZE = 256 << 10
"""Bytes of reports that a process may be ahead: some 200 ms at a report of a kilobyte each millisecond."""
_PLAIN_INTERVAL = 1.0
_PATIENCE = 60.0
"""Seconds that processes may take to start, to catch up or to end; they need a hundredth of it on a machine at rest."""
_LONGEST_BURST = 1.5
"""Seconds: at a million records of 104 bytes a second, more would only fill the disk."""

_SHORTEST, _LONGEST = 2, 60
# Windows, where the demo says that there is no log to be had, has no SIGHUP.
_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

ReportT = TypeVar("ReportT", ProducerReport, ConsumerReport)


class _DemoError(Exception):
    """The demo could not go on; the message is all there is to say."""


class _Client(Generic[ReportT]):
    """One of the demo's processes: orders go in, reports come out.

    Args:
        name: What the screen calls it.
        report: What it has reported before it reports anything.
        arguments: Of `demo_clients`.
    """

    def __init__(self, name: str, report: ReportT, *arguments: str) -> None:
        self.name = name
        self.report: ReportT = report
        self.ready = False
        self.killed_ns = 0
        self._rest = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`; a pipe would have to be read meanwhile
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            [sys.executable, "-m", "pystreamlog.cli.demo_clients", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            pipesize=_PIPE_SIZE,
            # Ctrl-C is for the one who started the demo, who ends the others.
            process_group=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders = self._process.stdin
        self._reports = self._process.stdout
        os.set_blocking(self._reports.fileno(), False)

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.killed_ns != 0

    def order(self, order: Order) -> None:
        """Tell it what to do from now on."""
        if not self.killed:
            try:
                self._orders.write(f"{order}\n".encode())
            except BrokenPipeError:
                self._fail()

    def listen(self) -> bool:
        """Take in what it has reported; whether it still runs.

        Raises:
            _DemoError: It failed.
        """
        status = self._process.poll()  # asked first: what an ended process has reported is all there by then
        while data := self._reports.read(1 << 16):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                self.report = msgspec.json.decode(lines[-1], type=type(self.report))
                self.ready = True
        if status and not self.killed:
            self._fail()
        return status is None

    def kill(self) -> None:
        """End it as a crash would."""
        if not self.listen():
            raise _DemoError(f"{self.name} ended before it could be killed")
        self.killed_ns = monotonic_ns()
        self._process.kill()
        self._process.wait()
        self.listen()

    def _fail(self) -> NoReturn:
        self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        raise _DemoError(f"{self.name} ended with status {self._process.returncode}\n{said}")

    def end(self) -> None:
        """Make sure that nothing is left of it."""
        self._process.kill()
        self._process.wait()
        for file in (self._orders, self._reports, self._stderr):
            file.close()


class _Screen:
    """Lines that are drawn anew at the same place on a terminal; elsewhere, a plain line each second."""

    def __init__(self) -> None:
        self._is_terminal = on_terminal(sys.stdout) and os.environ.get("TERM") != "dumb"
        self._drawn = 0
        self._due = 0.0

    def show(self, lines: Sequence[str], summary: str) -> None:
        """Draw `lines` over the last ones, or print `summary` if a second has gone by."""
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            up = f"\x1b[{self._drawn}F" if self._drawn else ""
            print(up + "".join(f"{line[:width]}\x1b[K\n" for line in lines), end="", flush=True)
            self._drawn = len(lines)
        elif monotonic() >= self._due:
            self._due = monotonic() + _PLAIN_INTERVAL
            print(summary, flush=True)


class _Demo:
    """The processes, and what they do when.

    Args:
        directory: Of the log.
        ends: Tells the end offset of each partition.
        seconds: How long it runs, without starting and checking.
        stack: Ends the processes.
    """

    def __init__(self, directory: str, ends: Callable[[], Mapping[int, int]], seconds: float, stack: ExitStack) -> None:
        self._ends = ends
        self._seconds = seconds
        self._screen = _Screen()
        self._act = "starting"
        self._started = monotonic()
        self.producers: list[_Client[ProducerReport]] = []
        self.consumers: list[_Client[ConsumerReport]] = []
        for number in range(PRODUCER_COUNT):
            producer = _Client(f"producer {number + 1}", ProducerReport(), "produce", directory, str(number))
            stack.callback(producer.end)
            self.producers.append(producer)
        for number in range(_CONSUMER_COUNT):
            consumer = _Client(f"consumer {number + 1}", ConsumerReport(), "consume", directory)
            stack.callback(consumer.end)
            self.consumers.append(consumer)

    def run(self) -> None:
        """All of it, in the order of the module's head.

        Raises:
            _DemoError: A process failed, or one did not do its part in time.
        """
        self._wait("start", self._is_ready)
        self._started = monotonic()
        half, burst = self._seconds / 2, min(_LONGEST_BURST, 0.15 * self._seconds)
        self._go_on("steady", "steady", until=0.6 * (half - burst / 2))
        self.consumers[-1].kill()
        self._go_on("steady", f"steady, {self.consumers[-1].name} killed", until=half - burst / 2)
        self._go_on("burst", "burst", until=half)
        self.producers[-1].kill()
        self._go_on("burst", f"burst, {self.producers[-1].name} killed", until=half + burst / 2)
        self._order("pause", "catching up")
        self._wait("catch up", self._has_caught_up, required=False)  # if never, then records are lost: it will show
        self._go_on("steady", "steady again", until=self._seconds)
        self._order("stop", "ending")
        self._wait("end", lambda: not any(producer.listen() for producer in self.producers))
        self._wait("catch up", self._has_caught_up, required=False)
        for consumer in self.consumers:
            consumer.order("stop")
        self._wait("end", lambda: not any(consumer.listen() for consumer in self.consumers))
        self._act = "done"
        self._show()

    def verdict(self) -> Verdict:
        """What came of it."""
        readers = [Reader(consumer.name, consumer.report, consumer.killed_ns) for consumer in self.consumers]
        reading = Reading.of(readers)
        accounts = [
            Account.of(number, producer.name, producer.report, reading, killed=producer.killed)
            for number, producer in enumerate(self.producers)
        ]
        return Verdict(accounts, readers, reading)

    def _order(self, order: Order, act: str) -> None:
        self._act = act
        for producer in self.producers:
            producer.order(order)

    def _go_on(self, order: Order, act: str, *, until: float) -> None:
        """Have the producers do something until a time since the start, in seconds."""
        self._order(order, act)
        while (left := self._started + until - monotonic()) > 0:
            sleep(min(_TICK, left))
            self._listen()

    def _wait(self, what: str, is_done: Callable[[], bool], *, required: bool = True) -> None:
        """Wait until something is done."""
        deadline = monotonic() + _PATIENCE
        while not is_done():
            if monotonic() > deadline:
                if not required:
                    return
                raise _DemoError(f"the processes did not {what} within {_PATIENCE:.0f} s")
            sleep(_TICK)
            self._listen()

    def _is_ready(self) -> bool:
        """Whether all run, and the consumers have shared out the partitions."""
        share = _PARTITION_COUNT // _CONSUMER_COUNT
        return all(p.ready for p in self.producers) and all(len(_held(c)) == share for c in self.consumers)

    def _has_caught_up(self) -> bool:
        """Whether the producers rest, and all that was written was read."""
        if any(p.report.sent != p.report.acknowledged for p in self.producers if not p.killed):
            return False
        read = dict.fromkeys(range(_PARTITION_COUNT), 0)
        for consumer in self.consumers:
            for stint in consumer.report.stints:
                read[stint.partition] = max(read[stint.partition], stint.end)
        return all(read[partition] >= end for partition, end in self._ends().items())

    def _listen(self) -> None:
        for producer in self.producers:
            producer.listen()
        for consumer in self.consumers:
            consumer.listen()
        self._show()

    def _show(self) -> None:
        sent = sum(producer.report.sent for producer in self.producers)
        acknowledged = sum(producer.report.acknowledged for producer in self.producers)
        read = sum(consumer.report.read for consumer in self.consumers)
        head = f"{monotonic() - self._started:5.1f} s  {self._act}"
        lines = [head]
        for producer in self.producers:
            mark = "  killed" if producer.killed else ""
            lines.append(f"  {producer.name:<34}{producer.report.acknowledged:>12,} acknowledged{mark}")
        for consumer in self.consumers:
            held = _held(consumer)
            name = consumer.name + (f" (partitions {', '.join(map(str, held))})" if held else "")
            mark = "  killed" if consumer.killed else ""
            lines.append(f"  {name:<34}{consumer.report.read:>12,} read{mark}")
        self._screen.show(lines, f"{head}: {sent:,} sent, {acknowledged:,} acknowledged, {read:,} read")


def _held(consumer: _Client[ConsumerReport]) -> list[int]:
    """The partitions that a consumer has."""
    return sorted(stint.partition for stint in consumer.report.stints if not stint.ended)


def _end_by_signal(signal_number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal_number)


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Let a signal that comes meanwhile take effect afterwards: a process just being started would be left behind."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDING_SIGNALS)}
    for number in before:
        signal.signal(number, lambda one, _: came.append(one))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


def _ignore_signals() -> None:
    """What cleans up is not to be interrupted."""
    for number in (signal.SIGINT, *_ENDING_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not _SHORTEST <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not from {_SHORTEST} to {_LONGEST}")
    return seconds


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pystreamlog demo",
        description="Two producers and a group of three consumers, a process each, share a log; one consumer and one "
        "producer are killed. In the end every acknowledged record must have been read, in order, and only what the "
        "killed consumer had not committed twice.",
    )
    parser.add_argument("--directory", help="make the log here and keep it (default: a temporary one, removed)")
    parser.add_argument(
        "--seconds", type=_seconds, default=8.0, help=f"how long, from {_SHORTEST} to {_LONGEST} (default: 8)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the demo.

    Args:
        arguments: What stands behind `demo` on the command line.

    Returns:
        The exit status: 0 when every acknowledged record was read as `demo_verdict` says, 1 when not or when something
        failed, 130 after Ctrl-C.

    Raises:
        SystemExit: The arguments are wrong (2), or it was ended by a signal (128 and its number); all is cleaned up.
    """
    options = _options(arguments)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDING_SIGNALS)}
    for number in _ENDING_SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _end_by_signal)
    try:
        with ExitStack() as stack:
            return _run(options, stack)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise  # nobody reads what is printed
    except TopicExistsError as error:
        print(f"pystreamlog demo: {options.directory} has a topic {error.topic!r} already", file=sys.stderr)
        return 1
    except (_DemoError, StreamLogError, OSError) as error:
        print(f"pystreamlog demo: {error}", file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(options: argparse.Namespace, stack: ExitStack) -> int:
    """Run it with these options; what is on the stack in the end cleans up."""
    directory = options.directory or stack.enter_context(
        tempfile.TemporaryDirectory(prefix="pystreamlog-demo-", ignore_cleanup_errors=True)
    )
    log = stack.enter_context(pystreamlog.open(directory))
    topic = log.create_topic(TOPIC, partitions=_PARTITION_COUNT)
    print(
        f"pystreamlog {pystreamlog.__version__}: {PRODUCER_COUNT} producers and a group of {_CONSUMER_COUNT} "
        f"consumers, a process each, share the {_PARTITION_COUNT} partitions of topic {TOPIC!r} in {directory}",
        flush=True,
    )
    with _deferred_signals():
        demo = _Demo(directory, topic.end_offsets, options.seconds, stack)
        stack.callback(_ignore_signals)
    demo.run()
    verdict = demo.verdict()
    print(verdict)
    return 1 if verdict.is_bad else 0
