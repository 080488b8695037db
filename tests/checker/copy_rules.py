"""What copiers must not do: exactly one copy of each record, in whole transactions; after Kafka's own test of them.

    copy-lost           at the end, a record has no copy
    copy-doubled        a record has two copies
    copy-order          two records of one partition have copies in one partition, in another order
    aborted-txn-read    anybody, at any time, saw a record of a transaction that did not commit
    torn-txn            a part of a transaction is there and another is not: at the end; or when somebody looks how far
                        the outputs go, after a part of it was seen or its commit returned
    txn-interleaved     what a transaction sent to one partition has something else in between

A look that begins after an operation was complete that read a part of a transaction must find the ends of all
partitions behind all its other parts: so at any moment it is there as a whole, or not at all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate, pairwise

from .history import NEVER, History, Op
from .key_log import KeyLog, must_have_happened
from .report import Report

__all__ = ["COPY_RULES", "check"]

COPY_RULES = frozenset(
    {
        "aborted-txn-read",
        "copy-doubled",
        "copy-lost",
        "copy-order",
        "precommitted-read",
        "torn-txn",
        "txn-interleaved",
    }
)
"""What a run with copiers must have had something to compare for."""

Logs = Mapping[str, KeyLog]
Place = tuple[str, int]
"""A key and a value."""


def check(history: History, logs: Logs, report: Report) -> None:
    """Apply the rules."""
    txns = [op for op in history.ops if op.f == "txn" and op.sends]
    if not txns:
        return
    places = {
        (key, value): offset
        for key in {key for op in txns for key in op.sends}
        for offset in logs[key].offsets
        for value in logs[key].clashes.get(offset) or (logs[key].at[offset],)
    }
    _aborted(txns, places, report)
    _whole(txns, places, logs, report)
    _together(txns, places, logs, report)
    _looks(history, txns, places, report)
    _copies(history, txns, places, logs, report)


def _aborted(txns: list[Op], places: Mapping[Place, int], report: Report) -> None:
    for op in txns:
        if op.type == "fail":
            for key, (_, values) in op.sends.items():
                report.compare("aborted-txn-read", len(values))
                for value in values:
                    if (key, value) in places:
                        report.find("aborted-txn-read", f"{value} is in {key}; process {op.process} aborted it")


def _whole(txns: list[Op], places: Mapping[Place, int], logs: Logs, report: Report) -> None:
    """Of what happened, everything is there."""
    for op in txns:
        if op.type == "fail" or not must_have_happened(op, dict(logs)):
            continue
        report.compare("torn-txn", len(op.sends) > 1)
        # What was acknowledged and never read is another rule's.
        missing = [
            (key, value)
            for key, (offsets, values) in op.sends.items()
            for offset, value in zip(offsets, values, strict=True)
            if (key, value) not in places and offset is None
        ]
        if missing:
            report.find("torn-txn", f"process {op.process}: {missing} are missing, other parts of it are there")


def _together(txns: list[Op], places: Mapping[Place, int], logs: Logs, report: Report) -> None:
    for op in txns:
        for key, (_, values) in op.sends.items():
            mine = [logs[key].index(places[key, value]) for value in values if (key, value) in places]
            report.compare("txn-interleaved", max(0, len(mine) - 1))
            if any(now - before > 1 for before, now in pairwise(sorted(mine))):
                report.find("txn-interleaved", f"process {op.process} sent to {key}, and others in between: {mine}")


def _looks(history: History, txns: list[Op], places: Mapping[Place, int], report: Report) -> None:
    """No end that somebody sees leaves out a part of a transaction of which a part was seen before."""
    writer = {(key, value): op for op in txns for key, (_, values) in op.sends.items() for value in values}
    seen: dict[int, int] = {id(op): op.completed for op in txns if op.type == "ok"}
    for op in history.ops:
        if op.type == "ok" and op.completed < NEVER:
            for key, (_, values) in op.reads.items():
                for txn in {id(writer[key, value]): writer[key, value] for value in values if (key, value) in writer}:
                    seen[txn] = min(seen.get(txn, NEVER), op.completed)
    due: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for op in txns:
        for key, (_, values) in op.sends.items():
            ends = [places[key, value] + 1 for value in values if (key, value) in places]
            if ends and id(op) in seen:
                due[key].append((seen[id(op)], max(ends)))
    bounds = {}
    for key, steps in due.items():
        steps.sort()
        bounds[key] = [time for time, _ in steps], list(accumulate((end for _, end in steps), max))
    for op in history.ops:
        if op.f != "look" or op.type != "ok":
            continue
        for key, end in op.ends.items():
            times, highest = bounds.get(key, ([], []))
            number = bisect_left(times, op.invoked)
            if number:
                report.compare("torn-txn")
                if end < highest[number - 1]:
                    text = f"process {op.process} saw {key} end at {end}, where {highest[number - 1]} was seen before"
                    report.find("torn-txn", text)


def _copies(history: History, txns: list[Op], places: Mapping[Place, int], logs: Logs, report: Report) -> None:
    """Each record has one copy, in order."""
    sources: dict[Place, tuple[str, int]] = {}
    for op in txns:
        read = {value: key for key, (_, values) in op.reads.items() for value in values if key not in op.sends}
        for key, origins in op.origins.items():
            for value, origin in zip(op.sends[key][1], origins, strict=True):
                sources[key, value] = read[origin], origin
    index = {
        key: {logs[key].at[offset]: number for number, offset in enumerate(logs[key].offsets)}
        for key in {key for key, _ in sources.values()}
    }
    copies: dict[tuple[str, int], list[Place]] = defaultdict(list)
    last: dict[tuple[str, str], int] = {}
    for (key, value), _ in sorted(places.items(), key=lambda place: place[1]):
        if (key, value) not in sources:
            continue
        source, origin = sources[key, value]
        copies[source, origin].append((key, value))
        report.compare("copy-doubled")
        if len(copies[source, origin]) == 2:
            report.find("copy-doubled", f"{origin} of {source} was copied twice: {copies[source, origin]}")
        place = index[source].get(origin, -1)
        if (source, key) in last:
            report.compare("copy-order")
            if place < last[source, key]:
                report.find("copy-order", f"{key} has the copy of {origin} of {source} after that of a later record")
        last[source, key] = max(place, last.get((source, key), -1))
    _check_complete(history, copies, logs, report)


def _check_complete(history: History, copies: Mapping[Place, list[Place]], logs: Logs, report: Report) -> None:
    copiers = {op.process for op in history.ops if op.f == "txn"}
    audiences = {history.clients[process].audience for process in copiers if process in history.clients}
    if history.complete is not None and not audiences <= history.complete:
        return
    inputs = {key for op in history.ops if op.f == "subscribe" and op.process in copiers for key in op.keys}
    for key in sorted(inputs & logs.keys()):
        for offset in logs[key].offsets:
            value = logs[key].at[offset]
            report.compare("copy-lost")
            if (key, value) not in copies:
                report.find("copy-lost", f"{value} at offset {offset} of {key} was never copied")
