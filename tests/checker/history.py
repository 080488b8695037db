"""What clients did and saw: operations and events, as each process writes them down, and as the rules read them.

Each process appends to a file of its own, a JSON object a line, each line by one `write`: before it calls the library,
after the call, and from callbacks. So a file is whole up to its last line at whatever byte its process was killed.
A torn last line is dropped; an operation that was invoked and never completed is `info`: nobody knows whether it
happened. The lines:

    {"client": {...}}                                         the first: who writes, see `Client`
    {"t": ns, "invoke": "send", "sends": {key: [value...]}}   an operation begins; also "keys", "offsets", "how"
    {"t": ns, "more": {"sends": ..., "reads": ...}}           it goes on: what a transaction read and is about to send,
                                                              also "origins", "offsets", and "keys"
    {"t": ns, "type": "ok", "reads": {key: [run...]}}         it is complete; also "at" (offsets of sends), "offsets",
                                                              "ends"
    {"t": ns, "event": "assign", "since": ns, "keys": [...]}  something happened to this process; also "offsets"
    {"t": ns, "event": "kill", "process": 3}                  or to another one: the orchestrator writes these

Times are of the monotonic clock, which is the same for all processes of a machine. A key is a topic-partition, written
`topic/partition`; values are whole numbers, unique per key. A run is `[first offset, value, value, ...]`.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Any

import msgspec

__all__ = ["NEVER", "Client", "Column", "Event", "History", "Op", "Recorder", "load", "runs"]

NEVER = 2**63 - 1
"""When an operation completed that did not."""

Column = tuple[Sequence[Any], Sequence[int]]
"""Offsets and values of one key, of equal length; the offset of a send may be None."""


class Client(msgspec.Struct, omit_defaults=True):
    """Who wrote a file.

    Attributes:
        process: Its number, unique in the history; also for a process that takes another's place.
        role: What it does.
        audience: Those who share the records among them: a group's name, or a reader's own.
        group: Its group, if it is a member of one.
        max_poll_interval_ms: Of a member.
        static: Its `group_instance_id`, if it has one.
        transactional_id: A copier's.
        auto_commit: Whether a member commits by itself.
    """

    process: int
    role: str = ""
    audience: str = ""
    group: str = ""
    max_poll_interval_ms: int = 300_000
    static: str = ""
    transactional_id: str = ""
    auto_commit: bool = True


class Op(msgspec.Struct, gc=False, kw_only=True):
    """What one process did.

    Attributes:
        process: Who did it.
        f: `assign`, `subscribe`, `send`, `poll`, `txn`, `seek`, `commit`, `committed`, `look`, `close`.
        type: `ok` (it happened), `fail` (it did not), `info` (unknown).
        invoked: When it began, in ns.
        completed: When it ended, in ns.
        how: Of a poll: `poll`, or `next` for a loop's step.
        sends: What it sent, by key; offsets as far as they are known.
        reads: What it read, by key, in the order in which it was handed out.
        keys: What it assigned or subscribed; of a transaction, where it looked for what it sent itself.
        offsets: What it committed, read as committed, or sought, by key.
        rebalanced: Keys that came or went while it ran.
        origins: Of a copier's transaction: of which values those that it sends are copies, by key.
        ends: What a look found as the ends of keys.
    """

    process: int
    f: str
    type: str = "info"
    invoked: int = 0
    completed: int = NEVER
    how: str = "poll"
    sends: dict[str, Column] = {}
    reads: dict[str, Column] = {}
    keys: frozenset[str] = frozenset()
    offsets: dict[str, int | None] = {}
    rebalanced: frozenset[str] = frozenset()
    origins: dict[str, Sequence[int]] = {}
    ends: dict[str, int] = {}


class Event(msgspec.Struct, gc=False, kw_only=True):
    """What happened to one process.

    Attributes:
        process: To whom.
        what: `assign`, `revoke`, `lost` (callbacks), `commit` (a successful one in a callback); `start`,
            `kill`, `stop`, `continue`, `leave`, `end`.
        since: When it began, in ns.
        time: When it was over, in ns.
        keys: Of a callback.
        offsets: What was committed at an `assign`, or by a `commit`; a key that is missing was not asked for.
    """

    process: int
    what: str
    since: int
    time: int
    keys: tuple[str, ...] = ()
    offsets: dict[str, int | None] = {}


class History:
    """All that was done, by whom, and all that happened.

    Attributes:
        clients: By process.
        ops: Those of one process stand in their order.
        events: In no order.
        complete: Audiences that had time to read everything at the end; None says that there is one audience, of all.
        torn: Files with a torn last line.
    """

    def __init__(self, ops: Iterable[Op] = (), events: Iterable[Event] = (), clients: Iterable[Client] = ()) -> None:
        self.clients: dict[int, Client] = {client.process: client for client in clients}
        self.ops: list[Op] = list(ops)
        self.events: list[Event] = list(events)
        self.complete: set[str] | None = None
        self.torn = 0

    def read(self, data: bytes) -> None:
        """Take in one process's file."""
        *lines, rest = data.split(b"\n")
        self.torn += bool(rest)
        process = -1
        op: Op | None = None
        for text in lines:
            line = msgspec.json.decode(text)
            if "client" in line:
                client = msgspec.convert(line["client"], Client)
                process = client.process
                self.clients[process] = client
            elif "invoke" in line:
                assert op is None, f"process {process} did two things at once: {text!r}"
                op = _invoked(process, line)
                self.ops.append(op)
            elif "more" in line:
                assert op is not None
                _go_on(op, line["more"])
            elif "type" in line:
                assert op is not None, f"process {process} completed what it never began: {text!r}"
                _complete(op, line)
                op = None
            elif "complete" in line:
                self.complete = {*(self.complete or ()), line["complete"]}
            else:
                event = _event(process, line)
                self.events.append(event)
                if op is not None and event.keys:
                    op.rebalanced |= frozenset(event.keys)


def _invoked(process: int, line: dict[str, Any]) -> Op:
    op = Op(process=process, f=line["invoke"], invoked=line["t"], how=line.get("how", "poll"))
    _go_on(op, line)
    return op


def _go_on(op: Op, line: dict[str, Any]) -> None:
    if "sends" in line:
        op.sends = {
            **op.sends,
            **{key: (_unknown(values), array("q", values)) for key, values in line["sends"].items()},
        }
    if "reads" in line:
        op.reads = _joined(op.reads, _columns(line["reads"]))
    if "offsets" in line:
        op.offsets = {**op.offsets, **line["offsets"]}
    if "keys" in line:
        op.keys = frozenset(line["keys"])
    if "origins" in line:
        op.origins = line["origins"]


def _complete(op: Op, line: dict[str, Any]) -> None:
    op.completed = line["t"]
    op.type = line["type"]
    if "reads" in line:
        op.reads = _joined(op.reads, _columns(line["reads"]))
    if "offsets" in line:
        op.offsets = line["offsets"]
    if "ends" in line:
        op.ends = line["ends"]
    for key, offsets in line.get("at", {}).items():
        _, values = op.sends[key]
        assert len(offsets) == len(values), f"{len(values)} values were sent to {key}, {len(offsets)} offsets came back"
        op.sends[key] = _compact(offsets), values


def _event(process: int, line: dict[str, Any]) -> Event:
    return Event(
        process=line.get("process", process),
        what=line["event"],
        since=line.get("since", line["t"]),
        time=line["t"],
        keys=tuple(line.get("keys", ())),
        offsets=line.get("offsets", {}),
    )


def _unknown(values: Sequence[int]) -> Sequence[None]:
    return (None,) * len(values)


def _compact(offsets: Sequence[int | None]) -> Sequence[int | None]:
    if None in offsets or not offsets:
        return offsets
    first, last = offsets[0], offsets[-1]
    run = range(first, last + 1)  # type: ignore[operator, arg-type]
    return run if list(run) == offsets else array("q", offsets)  # type: ignore[arg-type]


def _columns(reads: Mapping[str, list[list[int]]]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for key, runs in reads.items():
        if len(runs) == 1:
            first, *values = runs[0]
            columns[key] = range(first, first + len(values)), array("q", values)
        else:
            offsets = array("q", (first + n for first, *values in runs for n in range(len(values))))
            columns[key] = offsets, array("q", (value for _, *values in runs for value in values))
    return columns


def _joined(before: Mapping[str, Column], now: Mapping[str, Column]) -> dict[str, Column]:
    joined = dict(before)
    for key, (offsets, values) in now.items():
        old = before.get(key)
        joined[key] = (offsets, values) if old is None else ([*old[0], *offsets], [*old[1], *values])
    return joined


def load(directory: Path) -> History:
    """The history of all files of a directory."""
    history = History()
    for path in sorted(directory.glob("*.jsonl")):
        history.read(path.read_bytes())
    return history


class Recorder:
    """Writes one process's file.

    Args:
        path: The file; made, or continued.
        client: Who writes; None goes on without a first line.
    """

    def __init__(self, path: Path, client: Client | None) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if client is not None:
            self._write({"client": msgspec.to_builtins(client)})

    def _write(self, line: dict[str, Any]) -> None:
        data = msgspec.json.encode(line) + b"\n"
        written = os.write(self._fd, data)
        assert written == len(data), "the disk is full"

    def invoke(self, f: str, **what: Any) -> None:
        """An operation is about to begin; a process has one at a time."""
        self._write({"t": monotonic_ns(), "invoke": f, **what})

    def more(self, **what: Any) -> None:
        """What a transaction read, or is about to send."""
        self._write({"t": monotonic_ns(), "more": what})

    def complete(self, kind: str, **what: Any) -> None:
        """It is over."""
        self._write({"t": monotonic_ns(), "type": kind, **what})

    def event(self, what: str, **details: Any) -> None:
        """Something happened."""
        self._write({"t": monotonic_ns(), "event": what, **details})

    def audience_is_complete(self, audience: str) -> None:
        """These readers had time to read everything."""
        self._write({"complete": audience})

    def close(self) -> None:
        """No more lines."""
        os.close(self._fd)


def runs(offsets: Sequence[int], values: Sequence[int]) -> list[list[int]]:
    """Offsets and values as the runs that a line holds."""
    found: list[list[int]] = []
    expected = -1
    for offset, value in zip(offsets, values, strict=True):
        if offset != expected:
            found.append([offset])
        found[-1].append(value)
        expected = offset + 1
    return found
