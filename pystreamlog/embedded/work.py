"""The bookkeeping of `Consumer.process`: which record may be begun, and up to where all are finished. Pure.

Each record that was taken is a `Task`:

    WAITING   -> RUNNING    a worker has begun it
    WAITING   -> DROPPED    nobody will: its partition goes, or everything ends; the position is put back before it
    RUNNING   -> FINISHED   it was handled, dead-lettered or skipped
    RUNNING   -> DROPPED    it was given up: the handler failed and everything ends, or its partition was lost

Tasks that must follow each other form a *lane*: those of one key of one partition, or all of one partition. A lane is a
chain of tasks, and only its first is ready or running; a task that ends makes the next one ready. Tasks without a key
have no lane, unless their partition is one. A single worker needs no lanes: it takes everything in order.

Stages: RUNNING; DRAINING, when nothing begins but what lies before something that is finished or running; HALTED, when
nothing begins at all.

Invariants:

1. A partition's `entries` are its tasks from the first that is not finished on, in the order of their offsets. Its
   `prefix`, before which everything is finished, is the offset of the first of them, or what was taken up to.
2. `in_flight` counts the entries that wait or run; `held` all entries.
3. A partition that is lost leaves the lanes of its running tasks behind. When it comes back, what follows them there
   waits for them: no key is ever handled twice at the same time by one consumer.

Whoever calls anything here holds `lock`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import repeat
from typing import Any

from pystreamlog.backend.records import RecordSlice
from pystreamlog.embedded.positions import Position
from pystreamlog.errors import SerdeError
from pystreamlog.record.record import Record, TopicPartition

__all__ = ["Part", "Stage", "State", "Task", "Work"]

_HELD_LIMIT = 100_000
"""How many finished records may be held behind one that is not: some 100 bytes each, and as many are handled again
after a crash. Then taking waits for that one."""

_WHOLE: Any = object()
"""The key of the lane that holds a whole partition."""

Key = Any
"""Raw bytes of a key, `_WHOLE`, or None for no lane."""


class State(Enum):
    """How far a task is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    DROPPED = "dropped"


_WAITING, _RUNNING, _FINISHED, _DROPPED = State


class Stage(Enum):
    """What may begin."""

    RUNNING = "everything"
    DRAINING = "what fills gaps"
    HALTED = "nothing"


class Task:
    """One record to handle.

    Attributes:
        record: The record; None for one that does not deserialise.
        offset: Its offset.
        part: Its partition.
        key: Of its lane.
        source: Where its raw bytes are: a slice, or the error of a record that does not deserialise.
        state: How far it is.
        following: The next in its lane.
    """

    __slots__ = ("following", "key", "offset", "part", "record", "source", "state")

    def __init__(
        self,
        record: Record[Any, Any] | None,
        offset: int,
        part: Part,
        key: Key,
        source: RecordSlice | SerdeError,
    ) -> None:
        self.record = record
        self.offset = offset
        self.part = part
        self.key = key
        self.source = source
        self.state = _WAITING
        self.following: Task | None = None


class Part:
    """The work in one partition, while the consumer has it.

    Attributes:
        tp: The partition.
        position: The consumer's place in it; when that is another, the partition was lost and came back.
        entries: See the invariants.
        taken: The offset up to which records were taken.
        left: How many of the entries wait or run.
        lanes: The last task of each lane.
        is_gone: The partition was lost, or drained: how its tasks end means nothing any more.
        is_going: The group takes it, and waits until nothing of it runs.
    """

    __slots__ = ("entries", "is_going", "is_gone", "lanes", "left", "position", "taken", "tp")

    def __init__(self, position: Position, lanes: dict[Key, Task]) -> None:
        self.tp: TopicPartition = position.tp
        self.position = position
        self.entries: deque[Task] = deque()
        self.taken = position.offset
        self.left = 0
        self.lanes = lanes
        self.is_gone = False
        self.is_going = False

    @property
    def prefix(self) -> int:
        """The offset before which everything is finished."""
        return self.entries[0].offset if self.entries else self.taken


class Work:
    """What one call of `process` has to do.

    Args:
        order: What a lane holds: `"key"` one key of a partition, `"partition"` all of it; None: there are no lanes.
        max_in_flight: How many tasks may wait or run.
        wake: Wakes the driver; called with the lock held.

    Attributes:
        lock: Held by whoever calls.
        stage: What may begin.
        closed: The workers shall end.
        error: What `process` raises.
        ready: Tasks that may begin, and some that were dropped.
        in_flight: See the invariants.
        held: See the invariants.
        running: The tasks that run, those of lost partitions included.
        parts: The partitions.
        progressed: Those whose prefix has moved, until somebody takes note of it.
        eager: Wake the driver whenever there is something to commit.
    """

    __slots__ = (
        "_hungry",
        "_lanes",
        "_max_in_flight",
        "_order",
        "_wake",
        "closed",
        "eager",
        "error",
        "held",
        "in_flight",
        "lock",
        "parts",
        "progressed",
        "ready",
        "running",
        "stage",
    )

    def __init__(self, *, order: str | None, max_in_flight: int, wake: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.stage = Stage.RUNNING
        self.closed = False
        self.error: BaseException | None = None
        self.ready: deque[Task] = deque()
        self.in_flight = 0
        self.held = 0
        self.running: set[Task] = set()
        self.parts: dict[TopicPartition, Part] = {}
        self.eager = False
        self._order = order
        self._max_in_flight = max_in_flight
        self._wake = wake
        self._hungry = False
        self._lanes: dict[TopicPartition, dict[Key, Task]] = {}
        self.progressed: dict[Part, None] = {}

    # --- taking

    def room(self) -> int:
        """How many records may be taken now; at 0 the driver is woken when there is room that is worth a look."""
        free = self._free() if self.stage is Stage.RUNNING else 0
        worth = free if free * 2 >= self._max_in_flight or not self.ready else 0
        self._hungry = not worth
        return worth

    def _free(self) -> int:
        return min(self._max_in_flight - self.in_flight, _HELD_LIMIT - self.held + self.in_flight)

    def part(self, position: Position, first_offset: int) -> Part:
        """The work in the partition of that position, which was at `first_offset` before the last records were taken.

        When the partition was lost and came back, the work of the last time is forgotten.
        """
        part = self.parts.get(position.tp)
        if part is not None and part.position is not position:
            self.forget(part)
            part = None
        if part is None:
            part = Part(position, self._lanes.setdefault(position.tp, {}))
            part.taken = first_offset
            self.parts[position.tp] = part
        return part

    def add(
        self,
        part: Part,
        records: Sequence[Record[Any, Any]],
        keys: Iterable[bytes | None],
        source: RecordSlice,
    ) -> None:
        """Records of a partition, in order, with their raw keys."""
        entries, lanes, ready = part.entries, part.lanes, self.ready
        for record, key in zip(records, keys if self._order == "key" else self._keys(), strict=False):
            task = Task(record, record.offset, part, key, source)
            entries.append(task)
            if key is None:
                ready.append(task)
                continue
            last = lanes.get(key)
            lanes[key] = task
            if last is None:
                ready.append(task)
            else:
                last.following = task
        self._count(part, len(records))

    def add_poison(self, part: Part, error: SerdeError) -> None:
        """The next record of a partition, which does not deserialise."""
        task = Task(None, error.offset, part, error.key if self._order == "key" else next(self._keys()), error)
        part.entries.append(task)
        last = None
        if task.key is not None:
            last = part.lanes.get(task.key)
            part.lanes[task.key] = task
        if last is None:
            self.ready.append(task)
        else:
            last.following = task
        self._count(part, 1)

    def _keys(self) -> Iterator[Key]:
        """The key of all lanes there are where they are not the records' keys."""
        return repeat(None if self._order is None else _WHOLE)

    def _count(self, part: Part, count: int) -> None:
        part.taken = part.entries[-1].offset + 1
        part.left += count
        self.in_flight += count
        self.held += count

    # --- working

    def begin(self) -> Task | None:
        """The next task for a worker; None when there is none just now."""
        ready = self.ready
        while ready:
            task = ready.popleft()
            if task.state is _WAITING:
                task.state = _RUNNING
                self.running.add(task)
                return task
        if self._hungry and self._free() > 0:
            self._call()
        return None

    def end(self, task: Task, *, finished: bool) -> None:
        """A worker has finished a task, or given it up."""
        part = task.part
        self.running.remove(task)
        task.state = _FINISHED if finished else _DROPPED
        if task.key is not None:
            following = task.following
            if following is None:
                del part.lanes[task.key]
            elif following.state is _WAITING:
                self.ready.append(following)
            else:  # dropped, with all behind it
                del part.lanes[task.key]
        if part.is_gone:
            self._call_if_due(part)
            return
        part.left -= 1
        self.in_flight -= 1
        if finished:
            task.record = None
            entries = part.entries
            if entries[0] is task:
                self.progressed[part] = None
                while entries and entries[0].state is _FINISHED:
                    entries.popleft()
                    self.held -= 1
        self._call_if_due(part)

    def _call_if_due(self, part: Part) -> None:
        """Wake the driver if it waits for what has just happened."""
        if (
            self.stage is not Stage.RUNNING
            or (part.is_going and not part.left)
            or (self._hungry and self.in_flight * 2 <= self._max_in_flight and self._free() > 0)
            or (self.eager and part in self.progressed)
        ):
            self._call()

    def _call(self) -> None:
        self._hungry = False
        self._wake()

    # --- ending

    def stop(self, error: BaseException) -> BaseException | None:
        """Begin nothing more, and have `process` raise this error; Ctrl-C and its like come before others.

        Returns:
            An error that is not raised, as there are two; to be logged.
        """
        first, self.error = self.error, error
        if first is not None and (not isinstance(first, Exception) or isinstance(error, Exception)):
            first, self.error = error, first
        self._halt()
        self._call()
        return first

    def _halt(self) -> None:
        self.stage = Stage.HALTED
        for part in self.parts.values():
            for task in part.entries:
                self._drop(task)
        self.ready.clear()

    def _drop(self, task: Task) -> None:
        if task.state is _WAITING:
            task.state = _DROPPED
            task.part.left -= 1
            self.in_flight -= 1

    def drain(self) -> None:
        """Take nothing more; begin only what fills gaps."""
        if self.stage is Stage.RUNNING:
            self.stage = Stage.DRAINING
            for part in self.parts.values():
                self._cut(part)
            self._call()  # it may be over with that

    def _cut(self, part: Part) -> None:
        """Drop what waits behind everything that runs or is finished."""
        entries = part.entries
        while entries and entries[-1].state is _WAITING:
            task = entries.pop()
            self._drop(task)
            part.taken = task.offset
            self.held -= 1

    def release(self, tps: Iterable[TopicPartition]) -> list[Part]:
        """The group takes these partitions: finish what is begun, and what fills gaps; the work in them."""
        parts = [self.parts[tp] for tp in tps if tp in self.parts]
        for part in parts:
            part.is_going = True
            self._cut(part)
        return parts

    def forget(self, part: Part) -> None:
        """A partition went: what waits is dropped, and of what runs only the lanes are kept."""
        for task in part.entries:
            self._drop(task)
        self.held -= len(part.entries)
        self.in_flight -= part.left
        part.left = 0
        part.is_gone = True
        part.entries.clear()
        part.lanes.clear()
        for task in self.running:
            if task.part.tp == part.tp:  # of this time or an earlier one
                task.following = None
                if task.key is not None:
                    part.lanes[task.key] = task
        self.progressed.pop(part, None)
        self.parts.pop(part.tp, None)
        self._call()  # what waits for it to be drained waits no more

    def is_over(self) -> bool:
        """Whether the end was called for, and nothing is left to wait for."""
        if self.stage is Stage.RUNNING or self.running:
            return False
        return self.stage is Stage.HALTED or not self.in_flight
