"""What members of a group must not do; after the description of a group's promises, and of an auto-commit workload.

    double-ownership    a member was given a partition while another one held it
    unowned-read        a member was handed records of a partition that it did not hold
    start-mismatch      the first record that a new owner reads is not the one committed when it was assigned
    hold-skip           while a member holds a partition and does not seek, its polls leave out or repeat records
    commit-regression   a committed offset is lower than one that was committed, or seen, before; nobody sought
    committed-too-far   more was committed than members had moved past or committed themselves

A hold begins with the `assign` callback. It ends when the `revoke` callback returns, when `lost` is called, when the
member is killed or begins to close; and, for a member that did not poll for `max_poll_interval_ms`, when it lost the
partition without knowing. The last is decided from its polls alone: each polls at least once between its beginning
and its end, so a gap between two is at most from the beginning of the one to the end of the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from .history import NEVER, Event, History, Op
from .report import Report

__all__ = ["check"]

_CLOCK_GRAIN_NS = 2_000_000
"""Times in the group's file may be rounded to milliseconds."""


@dataclass
class Hold:
    """A member has a partition.

    Attributes:
        process: The member.
        start: From when on.
        end: Until when at least, if it did not lose it earlier by not polling.
        committed: The offset that was committed at its start, None if there was none.
        known: Whether that was asked.
    """

    process: int
    start: int
    end: int
    committed: int | None
    known: bool


@dataclass
class Member:
    """What one process did, as a member."""

    max_poll_interval_ns: int
    static: str
    ops: list[Op]
    events: list[Event]
    polls: list[Op] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.polls = [op for op in self.ops if op.f in ("poll", "txn")]
        self.begun = [op.invoked for op in self.polls]

    def may_have_lost(self, start: int, end: int) -> bool:
        """Whether it may have polled so seldom that it lost what it held from `start` on, before `end`."""
        first = max(0, bisect_right(self.begun, start) - 1)
        last = bisect_right(self.begun, end)
        for number in range(first, last):
            until = self.polls[number + 1].completed if number + 1 < len(self.polls) else NEVER
            if min(end, until) - self.begun[number] + _CLOCK_GRAIN_NS >= self.max_poll_interval_ns:
                return True
        return False


def check(history: History, by_process: Mapping[int, Sequence[Op]], report: Report) -> None:
    """Apply the rules, group by group."""
    groups: dict[str, dict[int, Member]] = defaultdict(dict)
    events: dict[int, list[Event]] = defaultdict(list)
    for event in history.events:
        events[event.process].append(event)
    for process, client in history.clients.items():
        if client.group:
            mine = sorted(events[process], key=lambda event: event.time)
            interval_ns = client.max_poll_interval_ms * 1_000_000
            groups[client.group][process] = Member(interval_ns, client.static, list(by_process.get(process, ())), mine)
    for members in groups.values():
        holds: dict[str, list[Hold]] = defaultdict(list)
        for process, member in members.items():
            _Walk(process, member, holds, report).walk()
        for key, of_key in holds.items():
            _check_owners(key, sorted(of_key, key=lambda hold: hold.start), members, report)
        _check_commits(members, report)
        _check_moved_past(members, report)


class _Walk:
    """One member's life in its order: what it held when, and whether it read what it should."""

    def __init__(self, process: int, member: Member, holds: dict[str, list[Hold]], report: Report) -> None:
        self._process = process
        self._member = member
        self._holds = holds
        self._report = report
        self._held: dict[str, Hold] = {}
        self._next: dict[str, int] = {}
        self._begins: set[str] = set()
        self._killed = False

    def walk(self) -> None:
        """Go through it."""
        # A poll hands out after its callbacks; a close lets go when it begins.
        steps: list[tuple[int, int, Op | Event]] = [(event.time, 0, event) for event in self._member.events]
        steps += [(op.invoked if op.f == "close" else op.completed, 1, op) for op in self._member.ops]
        steps.sort(key=lambda step: step[:2])
        for time, _, step in steps:
            if isinstance(step, Event):
                self._event(step)
            elif step.f == "close":
                # Callbacks while it closes come later, and end what they name once more, with their own time.
                self._end(tuple(self._held), time, keep=True)
            elif step.f == "seek" and step.type == "ok":
                for key, offset in step.offsets.items():
                    self._next[key] = offset or 0
                    self._begins.discard(key)
            elif step.type == "ok" and not self._killed:
                self._read(step)

    def _event(self, event: Event) -> None:
        if event.what == "assign":
            for key in event.keys:
                if key in self._held:
                    self._report.find("double-ownership", f"process {self._process} was assigned {key} twice")
                committed = event.offsets.get(key)
                hold = Hold(self._process, event.since, NEVER, committed, key in event.offsets)
                self._held[key] = hold
                self._holds[key].append(hold)
                self._next.pop(key, None)
                if self._killed:
                    hold.end = hold.start  # the signal was on its way
                if hold.known:
                    self._next[key] = committed or 0
                    self._begins.add(key)
        elif event.what == "revoke":
            self._end(event.keys, event.time)
        elif event.what == "lost":
            self._end(event.keys, event.since)
        elif event.what == "kill":
            self._killed = True
            self._end(tuple(self._held), event.time)

    def _end(self, keys: Sequence[str], time: int, *, keep: bool = False) -> None:
        for key in keys:
            hold = self._held.get(key) if keep else self._held.pop(key, None)
            if hold is not None:
                hold.end = time
            self._begins.discard(key)

    def _read(self, op: Op) -> None:
        report = self._report
        for key, (offsets, _) in op.reads.items():
            if op.f == "txn" and key in op.keys:
                continue  # a copier looks at what it writes, without being a member for that
            report.compare("unowned-read")
            if key not in self._held:
                report.find(
                    "unowned-read", f"process {self._process} read {key} at {offsets[0]}, which it did not hold"
                )
                continue
            if key in self._next:
                rule = "start-mismatch" if key in self._begins else "hold-skip"
                report.compare(rule)
                if offsets[0] != self._next[key]:
                    text = f"process {self._process} read {key} from {offsets[0]}, not from {self._next[key]}"
                    report.find(rule, text)
            self._begins.discard(key)
            self._next[key] = offsets[-1] + 1


def _check_owners(key: str, holds: Sequence[Hold], members: Mapping[int, Member], report: Report) -> None:
    """Nobody was given the partition while another held it, nor read on after it had been taken away."""
    for number, hold in enumerate(holds):
        others = [other for other in holds[:number] if other.process != hold.process]
        report.compare("double-ownership", bool(others))
        for other in others:
            if other.end <= hold.start:
                continue
            member = members[other.process]
            if not member.may_have_lost(other.start, hold.start):
                text = f"{key} was given to process {hold.process} at {hold.start}, held by process {other.process}"
                report.find("double-ownership", text)
                continue
            for op in member.polls[bisect_right(member.begun, hold.start) :]:
                # Steps of a loop hand out what was got before the partition was lost.
                if op.completed >= other.end:
                    break
                if op.how == "poll" and key in op.reads:
                    text = f"process {other.process} read {key} in a poll begun at {op.invoked}, lost at {hold.start}"
                    report.find("double-ownership", text)


@dataclass
class _Look:
    """Offsets that somebody committed, or saw committed, between two times."""

    who: str
    begun: int
    ended: int
    offsets: dict[str, int | None]
    before: dict[str, int] = field(default_factory=dict)


def _looks(process: int, member: Member) -> Iterator[_Look]:
    for op in member.ops:
        if op.offsets and op.type == "ok" and op.f != "seek":
            yield _Look(f"{op.f} of process {process}", op.invoked, op.completed, op.offsets)
    for event in member.events:
        if event.offsets:
            yield _Look(f"{event.what} of process {process}", event.since, event.time, event.offsets)


def _check_commits(members: Mapping[int, Member], report: Report) -> None:
    """Whoever commits or looks finds nothing higher that was there before it began."""
    steps: list[tuple[int, int, _Look | str]] = []
    for process, member in members.items():
        for look in _looks(process, member):
            steps += [(look.begun, 0, look), (look.ended, 1, look)]
        steps += [(op.invoked, 2, key) for op in member.ops if op.f == "seek" for key in op.offsets]
    steps.sort(key=lambda step: step[:2])
    floors: dict[str, int] = {}
    open_: list[_Look] = []
    for _, kind, step in steps:
        if isinstance(step, str):
            for known in (floors, *(look.before for look in open_)):
                known.pop(step, None)
        elif kind == 0:
            step.before = {key: floors[key] for key in step.offsets if key in floors}
            open_.append(step)
        else:
            open_.remove(step)
            _compare_look(step, floors, report)


def _compare_look(look: _Look, floors: dict[str, int], report: Report) -> None:
    for key, offset in look.offsets.items():
        if key in look.before:
            report.compare("commit-regression")
            if offset is None or offset < look.before[key]:
                text = f"{look.who}: {key} was at {look.before[key]} before and is at {offset}"
                report.find("commit-regression", text)
        if offset is not None:
            floors[key] = max(offset, floors.get(key, 0))


def _check_moved_past(members: Mapping[int, Member], report: Report) -> None:
    """What was seen as committed had been moved past, or committed by hand."""
    raises: list[tuple[int, str, int]] = []
    looks: list[tuple[int, str, int, str]] = []
    for process, member in members.items():
        handed: dict[str, int] = {}
        for op in member.ops:
            if op.f in ("poll", "txn", "close"):
                raises.extend((op.invoked, key, offset) for key, offset in handed.items())
                handed = {}
            if op.f == "commit" or (op.f == "txn" and op.type != "fail"):
                raises.extend((op.invoked, key, offset) for key, offset in op.offsets.items() if offset is not None)
            elif op.f == "committed" and op.type == "ok":
                who = f"process {process}"
                looks.extend((op.completed, key, offset, who) for key, offset in op.offsets.items() if offset)
            if op.f == "txn" and op.origins:
                continue  # nothing but the transaction commits what it read
            # Whatever became of it: what was handed out may be moved past.
            handed.update({key: offsets[-1] + 1 for key, (offsets, _) in op.reads.items()})
        for event in member.events:
            who = f"process {process} at its assignment"
            if event.what == "assign":
                looks.extend((event.time, key, offset, who) for key, offset in event.offsets.items() if offset)
    heap: list[tuple[int, str, int]] = []
    for raised in raises:
        heappush(heap, raised)
    bounds: dict[str, int] = defaultdict(int)
    for time, key, offset, who in sorted(looks):
        while heap and heap[0][0] <= time:
            _, raised_key, bound = heappop(heap)
            bounds[raised_key] = max(bounds[raised_key], bound)
        report.compare("committed-too-far")
        if offset > bounds[key]:
            text = f"{who} saw {key} committed at {offset}, though nobody had gone past {bounds[key]}"
            report.find("committed-too-far", text)
