"""Cycles: what happened before itself, seen from several processes together.

Vertices are the operations that sent or read, but for those that failed. Edges:

    wr          who sent a value -> who read it
    ww          who sent a value -> who sent the next of its key; only between atomic operations: transactions, which
                publish at once, and sends of one record. Others may be written in parts, with others' between them.
    process     what a process completed -> what it did next
    realtime    what was completed -> what was begun after that, by whomever

A cycle is named after the weakest set of edges that holds it: G0 for ww alone, G1c with wr, and `-process` or
`-realtime` where these are needed. All are wrong here: a record is written before it is read, and one partition has
one appender at a time, so that even the real-time order of atomic writes is the order of their offsets.

Real time is a chain of moments, one per completion: an operation leads to the moment of its completion, and the last
moment before it began leads to it. So there are as many edges as operations, not as pairs of them.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .history import NEVER, History, Op
from .key_log import KeyLog
from .report import Report

__all__ = ["check", "strong_components"]

Edges = tuple[array, array]
"""Sources and targets of equal length."""

_LEVELS = {
    "G0": ("ww",),
    "G1c": ("ww", "wr"),
    "G0-process": ("ww", "process"),
    "G1c-process": ("ww", "wr", "process"),
    "G0-realtime": ("ww", "process", "realtime"),
    "G1c-realtime": ("ww", "wr", "process", "realtime"),
}
"""Which edges a cycle of this name is made of, weakest first."""


def check(history: History, logs: Mapping[str, KeyLog], by_process: Mapping[int, Sequence[Op]], report: Report) -> None:
    """Find the cycles."""
    ops = [op for op in history.ops if op.type != "fail" and (op.sends or op.reads)]
    numbers = {id(op): number for number, op in enumerate(ops)}
    edges = {
        "ww": _written_after(logs, numbers),
        "wr": _read_from(ops, logs, numbers),
        "process": _next_in_process(by_process, numbers),
        "realtime": _after_in_time(ops),
    }
    for name, (sources, _) in edges.items():
        report.counts[f"edges {name}"] = len(sources)
    vertex_count = 2 * len(ops)
    report.compare("cycles", sum(len(sources) for sources, _ in edges.values()))
    if not next(_cyclic(vertex_count, edges.values()), None):
        return
    seen: set[int] = set()
    for rule, names in _LEVELS.items():
        chosen = [edges[name] for name in names]
        for component in _cyclic(vertex_count, chosen):
            # One that holds a weaker cycle has been told.
            if seen.isdisjoint(component):
                cycle = _shortest_cycle(component, chosen)
                report.find(rule, " -> ".join(_named(ops[v]) for v in cycle if v < len(ops)))
            seen.update(component)


def _named(op: Op) -> str:
    keys = ", ".join(sorted({*op.sends, *op.reads}))
    return f"{op.f} of process {op.process} at {op.invoked} ({keys})"


def _edges(pairs: Iterable[tuple[int, int]]) -> Edges:
    sources, targets = array("q"), array("q")
    last = None
    for pair in pairs:
        # A batch is read record by record, each from the same sender.
        if pair != last and pair[0] != pair[1]:
            sources.append(pair[0])
            targets.append(pair[1])
        last = pair
    return sources, targets


def _written_after(logs: Mapping[str, KeyLog], numbers: Mapping[int, int]) -> Edges:
    def pairs() -> Iterator[tuple[int, int]]:
        for log in logs.values():
            before = -1
            for offset in log.offsets:
                value = log.at[offset]
                writer = log.writers.get(value)
                # A value of two places or a place of two values orders nothing.
                if value in log.several or offset in log.clashes or writer is None or not _is_atomic(writer):
                    continue
                now = numbers.get(id(writer), -1)
                if now >= 0:
                    if before >= 0:
                        yield before, now
                    before = now

    return _edges(pairs())


def _is_atomic(op: Op) -> bool:
    return op.f == "txn" or sum(len(values) for _, values in op.sends.values()) == 1


def _read_from(ops: Sequence[Op], logs: Mapping[str, KeyLog], numbers: Mapping[int, int]) -> Edges:
    def pairs() -> Iterator[tuple[int, int]]:
        for reader, op in enumerate(ops):
            for key, (_, values) in op.reads.items():
                writers = logs[key].writers
                for value in values:
                    writer = numbers.get(id(writers.get(value)), -1)
                    if writer >= 0:
                        yield writer, reader

    return _edges(pairs())


def _next_in_process(by_process: Mapping[int, Sequence[Op]], numbers: Mapping[int, int]) -> Edges:
    def pairs() -> Iterator[tuple[int, int]]:
        for ops in by_process.values():
            # What is unknown may have happened at any time after it began: it follows, and nothing follows it.
            before = -1
            for op in ops:
                now = numbers.get(id(op), -1)
                if now >= 0:
                    if before >= 0:
                        yield before, now
                    before = now if op.type == "ok" else before

    return _edges(pairs())


def _after_in_time(ops: Sequence[Op]) -> Edges:
    moments: list[tuple[int, int, int]] = []
    for number, op in enumerate(ops):
        # At the same time: begun before the other was complete.
        moments.append((op.invoked, 0, number))
        if op.type == "ok" and op.completed < NEVER:
            moments.append((op.completed, 1, number))
    moments.sort()

    def pairs() -> Iterator[tuple[int, int]]:
        last = -1
        for _, is_completion, number in moments:
            if is_completion:
                moment = len(ops) + number
                yield number, moment
                if last >= 0:
                    yield last, moment
                last = moment
            elif last >= 0:
                yield last, number

    return _edges(pairs())


def _targets_of(vertex_count: int, edges: Iterable[Edges]) -> Callable[[int], Sequence[int]]:
    """The targets of a vertex, over all these edges: sorted by source into one array."""
    chosen = list(edges)
    starts = array("q", bytes(8 * (vertex_count + 1)))
    for sources, _ in chosen:
        for source in sources:
            starts[source + 1] += 1
    for vertex in range(vertex_count):
        starts[vertex + 1] += starts[vertex]
    filled = array("q", starts)
    targets = array("q", bytes(8 * starts[vertex_count]))
    for edge_sources, edge_targets in chosen:
        for source, target in zip(edge_sources, edge_targets, strict=True):
            targets[filled[source]] = target
            filled[source] += 1
    return lambda vertex: targets[starts[vertex] : starts[vertex + 1]]


def _cyclic(vertex_count: int, edges: Iterable[Edges]) -> Iterator[list[int]]:
    """Strongly connected components of more than one vertex; no vertex has an edge to itself."""
    for component in strong_components(vertex_count, _targets_of(vertex_count, edges)):
        if len(component) > 1:
            yield component


def strong_components(vertex_count: int, targets_of: Callable[[int], Sequence[int]]) -> Iterator[list[int]]:
    """Tarjan's algorithm ("Depth-first search and linear graph algorithms", 1972), with a stack of its own."""
    unseen, done = -1, vertex_count
    low = array("q", [unseen]) * vertex_count
    found = array("q", [0]) * vertex_count
    clock = 0
    open_: list[int] = []
    for root in range(vertex_count):
        if low[root] != unseen:
            continue
        low[root] = found[root] = clock
        clock += 1
        open_.append(root)
        path = [(root, iter(targets_of(root)))]
        while path:
            vertex, targets = path[-1]
            for target in targets:
                if low[target] == unseen:
                    low[target] = found[target] = clock
                    clock += 1
                    open_.append(target)
                    path.append((target, iter(targets_of(target))))
                    break
                if low[target] != done:
                    low[vertex] = min(low[vertex], low[target])
            else:
                path.pop()
                if path:
                    above = path[-1][0]
                    low[above] = min(low[above], low[vertex])
                if low[vertex] == found[vertex]:
                    component = []
                    while not component or component[-1] != vertex:
                        component.append(open_.pop())
                        low[component[-1]] = done
                    yield component


def _shortest_cycle(component: Sequence[int], edges: Iterable[Edges]) -> list[int]:
    """The shortest cycle through the component's first vertex."""
    inside = set(component)
    targets: dict[int, list[int]] = {vertex: [] for vertex in component}
    for edge_sources, edge_targets in edges:
        for source, target in zip(edge_sources, edge_targets, strict=True):
            if source in inside and target in inside:
                targets[source].append(target)
    start = component[0]
    came_from: dict[int, int] = {}
    queue = deque([start])
    while start not in came_from:
        vertex = queue.popleft()
        for target in targets[vertex]:
            if target not in came_from:
                came_from[target] = vertex
                queue.append(target)
    cycle = [start]
    while len(cycle) == 1 or cycle[-1] != start:
        cycle.append(came_from[cycle[-1]])
    return cycle[::-1]
