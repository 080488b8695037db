"""What a history must not hold: the rules on values, offsets and order; `check` applies them and all the others.

After the description of the Kafka workload of Jepsen, with stronger claims where one directory and one appender at a
time allow them. A key is a topic-partition, an index is the place of an offset among those of its key that are known.

    inconsistent-offsets    an offset holds two values
    duplicate               a value lies at two offsets
    unwritten-read          somebody read what nobody sent
    G1a                     a successful operation read a value whose send failed
    precommitted-read       a transaction read what it sent itself
    lost-write              nobody read a value that must be there, though a later one of its key was read
    unseen                  at the end, an audience has not read what was acknowledged
    poll-skip               a process's poll begins more than one place behind its last one
    nonmonotonic-poll       ... or at a place it has read
    int-poll-skip, int-nonmonotonic-poll    the same inside one operation, but where partitions came or went in it
    nonmonotonic-send       what a process sent lies before what it had sent before
    int-nonmonotonic-send   the same inside one operation
    int-send-skip           values of one operation have others between them; allowed, only counted
    reread                  an audience read a value twice; allowed to groups, only counted

Only successful polls advance a process's position; an `assign` or a `subscribe` drops the positions of the keys that
it drops; a `seek` sets them. Skips and repeats between polls are allowed to those who subscribed: partitions may have
gone elsewhere and come back. `group_rules` holds members to more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from . import copy_rules, graph, group_rules
from .history import History, Op
from .key_log import KeyLog, key_logs, must_have_happened
from .report import Report

__all__ = ["ASSIGNED_RULES", "GROUP_RULES", "check"]

ASSIGNED_RULES = frozenset(
    {
        "G1a",
        "cycles",
        "duplicate",
        "inconsistent-offsets",
        "int-nonmonotonic-poll",
        "int-nonmonotonic-send",
        "int-poll-skip",
        "lost-write",
        "nonmonotonic-poll",
        "nonmonotonic-send",
        "poll-skip",
        "unseen",
        "unwritten-read",
    }
)
"""What a run with producers and assigned consumers must have had something to compare for."""

GROUP_RULES = ASSIGNED_RULES | {
    "commit-regression",
    "committed-too-far",
    "double-ownership",
    "hold-skip",
    "start-mismatch",
    "unowned-read",
}
"""The same with a group."""

Logs = dict[str, KeyLog]


def check(history: History) -> Report:
    """Apply every rule."""
    report = Report()
    count(history, report)
    if not any(op.f in ("send", "poll", "txn") for op in history.ops):
        report.find("empty", "nobody sent or polled: there is nothing to be right about")
        return report
    logs = key_logs(history, report)
    by_process: dict[int, list[Op]] = defaultdict(list)
    for op in history.ops:
        by_process[op.process].append(op)
    _offsets(logs, report)
    _reads(history, logs, report)
    _lost_writes(logs, report)
    _unseen(history, logs, report)
    for ops in by_process.values():
        _poll_order(ops, logs, report)
        _send_order(ops, logs, report)
    for op in history.ops:
        if op.type == "ok":
            _order_inside_polls(op, logs, report)
    graph.check(history, logs, by_process, report)
    group_rules.check(history, by_process, report)
    copy_rules.check(history, logs, report)
    return report


def count(history: History, report: Report) -> None:
    """Say what the history holds."""
    counts = report.counts
    counts["processes"] = len(history.clients)
    counts["torn last lines"] = history.torn
    for op in history.ops:
        counts[f"{op.f} {op.type}"] += 1
        for _, values in op.sends.values():
            counts[f"records sent {op.type}"] += len(values)
        for _, values in op.reads.values():
            counts[f"records read {op.type}"] += len(values)
    for event in history.events:
        counts[f"event {event.what}"] += 1


def _offsets(logs: Logs, report: Report) -> None:
    for key, log in logs.items():
        for offset, values in log.clashes.items():
            report.find("inconsistent-offsets", f"{key} offset {offset} holds {sorted(values)}")
        report.compare("duplicate", len(log.at))
        for value, indexes in log.several.items():
            report.find("duplicate", f"{key} holds {value} at offsets {[log.offsets[index] for index in indexes]}")


def _reads(history: History, logs: Logs, report: Report) -> None:
    """What was read had been sent, not aborted, and by somebody else."""
    for op in history.ops:
        if op.f == "txn":
            report.compare("precommitted-read", len((op.keys | op.reads.keys()) & op.sends.keys()))
        for key, (_, values) in op.reads.items():
            writers = logs[key].writers
            report.compare("unwritten-read", len(values))
            report.compare("G1a", len(values) if op.type == "ok" else 0)
            for value in values:
                writer = writers.get(value)
                if writer is None:
                    report.find("unwritten-read", f"process {op.process} read {value} in {key}, which nobody sent")
                elif writer is op:
                    report.find("precommitted-read", f"process {op.process} read {value} in {key}, sent by itself")
                elif writer.type == "fail" and op.type == "ok":
                    report.find("G1a", f"process {op.process} read {value} in {key}, whose send failed")


def _lost_writes(logs: Logs, report: Report) -> None:
    """Below the highest offset that was read, all that must be there was read."""
    for key, log in logs.items():
        bound = -1
        unread = []
        for index, offset in enumerate(log.offsets):
            for value in log.clashes.get(offset) or (log.at[offset],):
                if value in log.read:
                    bound = max(bound, log.first_index(value, index))
                else:
                    unread.append((log.last_index(value, index), offset, value))
        report.compare("lost-write", bound + 1)
        for index, offset, value in unread:
            writer = log.writers.get(value)
            if index <= bound and writer is not None and must_have_happened(writer, logs):
                report.find("lost-write", f"{key} offset {offset}: {value} was never read, though later ones were")


def _unseen(history: History, logs: Logs, report: Report) -> None:
    """At the end, every audience has read what was acknowledged."""
    acknowledged = {
        key: {value for value, writer in log.writers.items() if writer.type == "ok"} for key, log in logs.items()
    }
    for audience in sorted({""} if history.complete is None else history.complete):
        chosen = _chosen(history, audience)
        seen: dict[str, set[int]] = defaultdict(set)
        rereads = 0
        for op in history.ops:
            client = history.clients.get(op.process)
            if audience and (client is None or client.audience != audience):
                continue
            # A transaction that is known by what it wrote has also moved past what it read.
            if op.type != "ok" and not (op.f == "txn" and must_have_happened(op, logs)):
                continue
            for key, (_, values) in op.reads.items():
                if chosen and key not in chosen:
                    continue
                before = len(seen[key])
                seen[key].update(values)
                rereads += len(values) - (len(seen[key]) - before)
        if audience:
            report.compare("reread", sum(map(len, seen.values())) + rereads)
            report.violations["reread"] += rereads
            report.counts[f"records reread by {audience}"] = rereads
        for key, values in acknowledged.items():
            if chosen and key not in chosen:
                continue
            report.compare("unseen", len(values))
            for value in sorted(values - seen[key]):
                report.find("unseen", f"{value} was acknowledged in {key} and never read by {audience or 'anybody'}")


def _chosen(history: History, audience: str) -> set[str]:
    """What an audience assigned or subscribed; nothing where nobody said so, and all is meant."""
    chosen: set[str] = set()
    for op in history.ops:
        client = history.clients.get(op.process)
        if audience and client is not None and client.audience == audience and op.f in ("assign", "subscribe"):
            chosen |= op.keys
    return chosen


def _place(log: KeyLog, offset: int) -> str:
    return f"offset {offset} (place {log.index(offset)})"


def _poll_order(ops: Sequence[Op], logs: Logs, report: Report) -> None:
    """From one poll to the next, an assigned consumer goes on where it was."""
    if any(op.f == "subscribe" for op in ops):
        return
    places: dict[str, int] = {}
    for op in ops:
        if op.f == "assign" and op.type != "fail":
            places = {key: place for key, place in places.items() if key in op.keys}
        elif op.f == "seek" and op.type == "ok":
            places |= {key: logs[key].index(offset or 0) - 1 for key, offset in op.offsets.items() if key in logs}
        elif op.type == "ok":
            for key, (offsets, _) in op.reads.items():
                log = logs[key]
                report.compare("poll-skip", key in places)
                report.compare("nonmonotonic-poll", key in places)
                step = log.index(offsets[0]) - places[key] if key in places else 1
                if step != 1:
                    rule = "poll-skip" if step > 1 else "nonmonotonic-poll"
                    said = f"process {op.process} came to {key} {_place(log, offsets[0])} from place {places[key]}"
                    report.find(rule, said)
                places[key] = log.index(offsets[-1])


def _order_inside_polls(op: Op, logs: Logs, report: Report) -> None:
    for key, (offsets, _) in op.reads.items():
        if key in op.rebalanced:
            continue
        log = logs[key]
        pairs = len(offsets) - 1
        report.compare("int-poll-skip", pairs)
        report.compare("int-nonmonotonic-poll", pairs)
        if isinstance(offsets, range) and log.index(offsets[-1]) - log.index(offsets[0]) == pairs:
            continue
        for before, now in pairwise(offsets):
            step = log.index(now) - log.index(before)
            if step != 1:
                rule = "int-poll-skip" if step > 1 else "int-nonmonotonic-poll"
                report.find(rule, f"process {op.process} read {key} {_place(log, now)} after offset {before}")


def _send_order(ops: Sequence[Op], logs: Logs, report: Report) -> None:
    """What a process sends later lies later; also what may have happened, if it did."""
    unknown: dict[str, list[int]] = defaultdict(list)
    for op in ops:
        for key, (offsets, values) in op.sends.items():
            unknown[key] += [value for offset, value in zip(offsets, values, strict=True) if offset is None]
    known = {key: logs[key].places(values) for key, values in unknown.items() if values}
    places: dict[str, int] = {}
    for op in ops:
        if op.f in ("assign", "subscribe") and op.type != "fail":
            places = {key: place for key, place in places.items() if key in op.keys}
        if op.type == "fail":
            continue
        for key, (offsets, values) in op.sends.items():
            log = logs[key]
            mine = [
                log.index(offset) if offset is not None else known[key].get(value, -1)
                for offset, value in zip(offsets, values, strict=True)
            ]
            mine = [place for place in mine if place >= 0]
            if not mine:
                continue
            if key in places:
                report.compare("nonmonotonic-send")
                if mine[0] <= places[key]:
                    text = f"process {op.process} sent to {key} place {mine[0]} after place {places[key]}"
                    report.find("nonmonotonic-send", text)
            places[key] = mine[-1]
            _order_inside_send(op, key, mine, report)


def _order_inside_send(op: Op, key: str, places: Sequence[int], report: Report) -> None:
    report.compare("int-nonmonotonic-send", len(places) - 1)
    report.compare("int-send-skip", len(places) - 1)
    for before, now in pairwise(places):
        if now - before < 1:
            report.find("int-nonmonotonic-send", f"process {op.process} sent to {key} place {now} after place {before}")
        elif now - before > 1:
            report.find("int-send-skip", f"process {op.process} sent to {key} place {now} after place {before}")
