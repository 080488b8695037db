"""Hand-made histories for the tests of the rules: a clock that ticks once at each step, and one call per operation."""

from __future__ import annotations

from typing import Any

from .history import Client, Column, Event, History, Op

__all__ = ["Made", "column"]


def column(offsets: list[int | None] | int, *values: int) -> Column:
    """Offsets and values of a key; a single offset is that of the first value."""
    if isinstance(offsets, int):
        return range(offsets, offsets + len(values)), list(values)
    return offsets, list(values)


class Made(History):
    """A history that grows step by step; `key` is `k` where nothing else is said.

    Args:
        members: Processes that are members of the group `g`.
        max_poll_interval: Theirs, in ticks.
    """

    def __init__(self, members: int = 0, max_poll_interval: int = 100) -> None:
        clients = [
            Client(process=number, audience="g", group="g", max_poll_interval_ms=max_poll_interval)
            for number in range(1, members + 1)
        ]
        super().__init__(clients=clients)
        self._now = 0

    def tick(self, count: int = 1) -> int:
        """The time, a little later; a tick is a millisecond."""
        self._now += count
        return self._now * 1_000_000

    def op(self, process: int, f: str, kind: str = "ok", *, begun: int = 0, **what: Any) -> Op:
        """An operation, begun at the next tick (or at `begun`) and completed at the one after that."""
        op = Op(process=process, f=f, type=kind, invoked=begun or self.tick(), completed=self.tick(), **what)
        self.ops.append(op)
        return op

    def send(self, process: int, offset: int | None, *values: int, key: str = "k", kind: str = "ok") -> Op:
        """Values are sent, and lie one behind the other from `offset` on; None says that nobody knows where."""
        offsets = [None] * len(values) if offset is None else offset
        return self.op(process, "send", kind, sends={key: column(offsets, *values)})

    def poll(self, process: int, offset: int | list[int], *values: int, key: str = "k", kind: str = "ok") -> Op:
        """A poll hands out values from `offset` on."""
        return self.op(process, "poll", kind, reads={key: column(offset, *values)} if values else {})

    def callback(self, process: int, what: str, *keys: str, **offsets: int | None) -> None:
        """A callback; for an `assign`, with what was committed."""
        keys = keys or tuple(offsets) or ("k",)
        since, time = self.tick(), self.tick()
        self.events.append(Event(process=process, what=what, since=since, time=time, keys=keys, offsets=dict(offsets)))

    def given(self, process: int, *, what: str = "assign", **offsets: int | None) -> None:
        """A poll in which partitions come, and which hands out nothing."""
        begun = self.tick()
        self.callback(process, what, **offsets)
        self.op(process, "poll", begun=begun)

    def taken(self, process: int, *, what: str = "revoke") -> None:
        """A poll in which `k` goes, and which hands out nothing."""
        begun = self.tick()
        self.callback(process, what)
        self.op(process, "poll", begun=begun)

    def happens(self, process: int, what: str) -> None:
        """The orchestrator does something to a process."""
        time = self.tick()
        self.events.append(Event(process=process, what=what, since=time, time=time))
