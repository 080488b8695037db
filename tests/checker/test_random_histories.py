"""Random histories of a log that is right: the rules find nothing in them, and find each small change to them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .histories import Made, column
from .history import NEVER, Op
from .rules import check

KEYS = ("k", "l")
PRODUCERS, COPIERS, READERS, MEMBERS = (11, 12), (21,), (31, 32), (1, 2, 3)
LAST = 99
SEEDS = st.integers(0, 2**32 - 1)


class Model(Made):
    """A log in memory and its users; each step begins an operation, lets it happen, or ends it.

    Args:
        choices: All that is random.
        steps: How many steps are taken.
    """

    def __init__(self, choices: random.Random, steps: int) -> None:
        super().__init__(members=len(MEMBERS), max_poll_interval=NEVER // 10**7)
        self._random = choices
        self.logs: dict[str, list[int]] = {key: [] for key in KEYS}
        self._value = 0
        self._open: dict[int, Op] = {}
        self._positions: dict[tuple[int, str], int] = {}
        self._owners: dict[str, int] = {}
        self._committed: dict[str, int] = dict.fromkeys(KEYS, 0)
        for process in MEMBERS:
            self.op(process, "subscribe", keys=frozenset(KEYS))
        for _ in range(steps):
            self._step(choices.choice(PRODUCERS + COPIERS + READERS + MEMBERS))
        for process in list(self._open):
            self._complete(process)
        for key, values in self.logs.items():
            # Something to change, whatever was drawn.
            values += [-2, -1]
            self.send(LAST - 1, len(values) - 2, -2, -1, key=key)
            self.poll(LAST, 0, *values, key=key)

    def _step(self, process: int) -> None:
        if process in MEMBERS:
            self._member(process)
        elif process in self._open:
            self._complete(process)
        else:
            self._begin(process)

    # --- producers, copiers and readers: what they do happens when it completes, or before, as it was begun

    def _begin(self, process: int) -> None:
        f = "send" if process in PRODUCERS else "txn" if process in COPIERS else "poll"
        if f == "poll" and self._random.random() < 0.1:
            self._seek(process)
        op = Op(process=process, f=f, invoked=self.tick())
        self._open[process] = op
        self.ops.append(op)
        if f != "send":
            self._read(op)
        if f != "poll":
            for key in self._random.sample(KEYS, self._random.randint(1, len(KEYS))):
                count = self._random.randint(1, 3)
                values = range(self._value, self._value + count)
                self._value += count
                op.sends[key] = [None] * count, list(values)
        if self._random.random() < 0.5:
            self._happen(op)

    def _seek(self, process: int) -> None:
        key = self._random.choice(KEYS)
        offset = self._random.randint(0, self._positions.get((process, key), 0))
        self._positions[process, key] = offset
        self.op(process, "seek", offsets={key: offset})

    def _read(self, op: Op) -> None:
        for key in KEYS:
            start = self._positions.get((op.process, key), 0)
            values = self.logs[key][start : start + self._random.randint(1, 5)]
            if values:
                op.reads[key] = column(start, *values)
                self._positions[op.process, key] = start + len(values)

    def _happen(self, op: Op) -> None:
        for key, (_, values) in op.sends.items():
            op.sends[key] = column(len(self.logs[key]), *values)
            self.logs[key] += values

    def _complete(self, process: int) -> None:
        op = self._open.pop(process)
        happened = all(None not in offsets for offsets, _ in op.sends.values())
        chance = self._random.random() if op.sends and op.f == "send" else 1.0
        if chance < 0.1 and not happened:
            op.type = "fail"
        elif chance < 0.2:
            if op.sends:
                op.sends = {key: ([None] * len(values), values) for key, (_, values) in op.sends.items()}
            return
        else:
            if not happened:
                self._happen(op)
            op.type = "ok"
        op.completed = self.tick()

    # --- members: one partition changes hands at a time

    def _member(self, process: int) -> None:
        mine = [key for key, owner in self._owners.items() if owner == process]
        free = [key for key in KEYS if key not in self._owners]
        chance = self._random.random()
        if free and chance < 0.5:
            key = self._random.choice(free)
            self._owners[key] = process
            self._positions[process, key] = self._committed[key]
            self.given(process, **{key: self._committed[key]})
        elif mine and chance < 0.1:
            key = self._random.choice(mine)
            del self._owners[key]
            begun = self.tick()
            self.callback(process, "revoke", key)
            self.op(process, "poll", begun=begun)
        elif mine and chance < 0.3:
            key = self._random.choice(mine)
            self._committed[key] = self._positions[process, key]
            self.op(process, "commit", offsets={key: self._committed[key]})
        elif mine:
            key = self._random.choice(mine)
            start = self._positions[process, key]
            values = self.logs[key][start : start + 4]
            self._positions[process, key] = start + len(values)
            self.poll(process, start, *values, key=key)


@given(SEEDS)
@settings(max_examples=60)
def test_right_histories_pass(seed):
    """Whatever the interleaving."""
    report = check(Model(random.Random(seed), 80))
    assert report.bad == set(), "\n".join(map(str, report.findings))


def acknowledged(history, choices):
    """A value that was acknowledged: its key, its offset and itself."""
    found = [
        (key, offset, value)
        for op in history.ops
        if op.type == "ok"
        for key, (offsets, values) in op.sends.items()
        for offset, value in zip(offsets, values, strict=True)
    ]
    return choices.choice(found)


def last_read(history, key):
    """What the last reader read of a key."""
    return next(op for op in history.ops if op.process == LAST and key in op.reads)


def drop(history, choices):
    """A record is gone: nobody reads it."""
    key, _, value = acknowledged(history, choices)
    for op in history.ops:
        if key in op.reads:
            pairs = [(o, v) for o, v in zip(*op.reads[key], strict=True) if v != value]
            op.reads = {**op.reads, key: ([o for o, _ in pairs], [v for _, v in pairs])}
            if not pairs:
                del op.reads[key]


def double(history, choices):
    """A record was written twice."""
    key, _, value = acknowledged(history, choices)
    op = last_read(history, key)
    offsets, values = op.reads[key]
    op.reads[key] = [*offsets, len(offsets)], [*values, value]


def swap(history, choices):
    """Two offsets hold one another's values."""
    key, offset, _ = acknowledged(history, choices)
    op = last_read(history, key)
    offsets, values = op.reads[key]
    other = choices.choice([o for o in offsets if o != offset] or [offset + 1])
    renamed = {offset: other, other: offset}
    op.reads[key] = [renamed.get(o, o) for o in offsets], values


def reread(history, choices):
    """A poll hands out again what the one before it had handed out."""
    key, _, _ = acknowledged(history, choices)
    history.op(LAST, "poll", reads={key: last_read(history, key).reads[key]})


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (drop, {"lost-write", "unseen"}),
        (double, {"duplicate"}),
        (swap, {"inconsistent-offsets"}),
        (reread, {"nonmonotonic-poll"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@given(seed=SEEDS)
@settings(max_examples=25)
def test_changed_histories_are_found(change, rules, seed):
    """By the name of what was done to them."""
    choices = random.Random(seed)
    history = Model(choices, 80)
    change(history, choices)
    assert check(history).bad & rules
