"""What was sent to a log, what was promised, and whether what is found after a crash keeps it.

Time is counted in steps of a life's trace. Everything that was sent or committed notes the step at which it began, and
each promise the step at which it was given; so that for a crash at any step, `at` tells what may be found after it, and
what must.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import msgspec

from .gaps import Gaps

__all__ = ["NEVER", "Commit", "Commits", "Expectation", "Finding", "Line", "Subject", "Transaction"]

NEVER = 1 << 60
"""A step that does not come."""


class Finding(Exception):  # noqa: N818 - it is what is looked for
    """A promise that was not kept.

    Attributes:
        kind: Which one: `"lost"`, `"invented"`, `"hole"`, `"torn"`, `"refused"`, `"topic"`, `"committed"`,
            `"forgotten"`, `"slots"`, `"locks"`, `"poison"`, `"twice"`, `"fenced"`, `"deleted"`, `"compacted"` or
            `"failed"`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Start(msgspec.Struct):
    """Where a partition was told to start.

    Attributes:
        began: The step.
        done: The step by which it was promised; from then on no record below is ever there again.
        offset: The first record that stays.
    """

    began: int
    done: int
    offset: int


class Line:
    """The records of one partition.

    Attributes:
        sent: What was read in this life and sent since, in the order of offsets; with what was deleted.
        seen: The step at which it was read first in this life.
        starts: What was deleted, or may have been.
        gaps: What was compacted away, or may have been; None where every record stays.
    """

    def __init__(
        self,
        choices: Sequence[Sequence[bytes]] = ((),),
        shadows: Sequence[list[bytes]] = (),
        *,
        durable: int = 0,
        present: int = 0,
        fresh: bool = True,
        starts: Sequence[Start] = (),
        gaps: Gaps | None = None,
    ) -> None:
        """What is known before it is read.

        Args:
            choices: What may be found; one of them, or the first part of one.
            shadows: What may be found after the next power loss too.
            durable: So many records must be found after the next power loss.
            present: So many must be found now.
            fresh: There was a power loss since it was read last: it will be recovered, and then all of it is on disk.
            starts: Where it may start.
            gaps: What is gone where it is compacted.
        """
        self.gaps = gaps
        self.sent: list[bytes] = []
        self.seen: int | None = None
        self.starts = list(starts)
        self._choices = [list(choice) for choice in choices]
        self._shadows = list(shadows)
        self._durable = durable
        self._present = present
        self._fresh = fresh
        self._began: list[int] = []
        self._kept: list[tuple[int, int]] = []
        self._synced: list[tuple[int, int]] = []
        self._asides: list[tuple[int, list[bytes]]] = []

    @property
    def present(self) -> int:
        """So many records had to be found."""
        return self._present

    @property
    def is_published(self) -> bool:
        """Nothing happened to it but that processes died, after it was read or recovered."""
        return self._present > 0 and not self._fresh

    def found(self, start: int, end: int, records: Mapping[int, bytes], step: int) -> None:
        """These records were read, by that step, of a log that starts and ends there.

        Args:
            start: The offset at which it starts.
            end: At which the next record will be.
            records: By offset.
            step: By which it was read.

        Raises:
            Finding: A record is missing, or one is there that must not be; or it starts where nobody had it start.
        """
        promised = self.promised_start(step)
        if start not in {promised, *(one.offset for one in self.starts if promised < one.offset)}:
            raise Finding("deleted", f"the log starts at {start}, where {promised} was promised: {self.starts}")
        if self.seen is not None:
            if start != self.start:
                raise Finding("deleted", f"the log starts at {start} instead of {self.start} without a crash")
            if end != len(self.sent) or not _agrees(self.sent, end, records):
                raise Finding("lost", f"{_difference(end, records, self.sent)} without a crash")
            self._look_at_gaps(self.sent, start, records, step)
            return
        # What is not there any more is taken to be as it was sent, by the choice that goes on as what is there.
        choice = next((one for one in self._choices if _agrees(one, end, records)), None)
        if choice is None:
            best = max(_common(one, start, end, records) for one in self._choices)
            kind = "lost" if best < self._present else "invented"
            raise Finding(kind, f"of {end} records {best} are as sent, {self._present} were promised")
        if end < self._present:
            raise Finding("lost", f"{self._present} records were promised, {end} are there")
        sent = choice[:end]
        self._look_at_gaps(sent, start, records, step)
        self.seen = step
        self.sent = sent
        self._began = [-1] * end
        self._kept = [(0, self._present), (step, end)]
        self._synced = [(0, self._durable)]
        if self._fresh:
            self._synced.append((step, end))
        else:
            longer = [choice for choice in self._choices if len(choice) > end]
            self._asides = [(-1, choice) for choice in (*self._shadows, *longer)]
        self.starts = [Start(-1, 0, promised), Start(-1, 0 if self._fresh else NEVER, start)]

    def _look_at_gaps(self, sent: list[bytes], start: int, records: Mapping[int, bytes], step: int) -> None:
        if self.gaps is not None:
            is_synced = self.seen is None and self._fresh
            wrong = self.gaps.found(sent, start, records.keys(), step, synced=is_synced)
            if wrong is not None:
                raise Finding("compacted", wrong)
        elif len(records) != len(sent) - start:
            raise Finding("hole", f"{len(records)} records from {start} to {len(sent)}")

    def promised_start(self, step: float) -> int:
        """No record below this is ever there again."""
        return max((one.offset for one in self.starts if one.done <= step), default=0)

    @property
    def start(self) -> int:
        """Where it starts, as far as was seen and told."""
        return max((one.offset for one in self.starts), default=0)

    def delete_below(self, offset: int, began: int) -> Start:
        """The records below an offset are deleted now; `done` is to be set, by `deleted`, when that is promised."""
        start = Start(began, NEVER, offset)
        self.starts.append(start)
        return start

    def deleted(self, start: Start, step: int) -> None:
        """They are deleted, and stay so; what they were synced with is on disk."""
        start.done = step
        self._kept.append((step, start.offset))
        self._synced.append((step, start.offset))

    def send(self, values: list[bytes], began: int) -> None:
        """These are appended now."""
        self.sent += values
        self._began += [began] * len(values)

    def send_aside(self, values: list[bytes], began: int) -> None:
        """These were written behind the end by a process that died before it published them."""
        self._asides.append((began, [*self.sent, *values]))

    def withdraw(self, values: list[bytes], began: int) -> None:
        """These, which were to be sent last, are not there; they may come after a power loss."""
        self._asides.append((began, self.sent.copy()))
        del self.sent[-len(values) :], self._began[-len(values) :]

    def acknowledge(self, step: int, *, synced: bool) -> None:
        """What was sent is acknowledged."""
        self._kept.append((step, len(self.sent)))
        if synced:
            self._synced.append((step, len(self.sent)))

    def at(self, step: float, *, killed: bool) -> Line:
        """What is to be expected after a crash at that step."""
        promised = self.promised_start(step)
        undone = [one.offset for one in self.starts if one.began < step and one.offset > promised]
        starts = [Start(-1, 0, promised), *(Start(-1, NEVER, offset) for offset in undone)]
        gaps = None if self.gaps is None else self.gaps.at(step, killed=killed)
        more = {"starts": starts, "gaps": gaps}
        if self.seen is None or step < self.seen:
            if killed:
                twin = Line(self._choices, self._shadows, durable=self._durable, present=self._present, **more)
                twin._fresh = self._fresh
                return twin
            choices = [*self._choices, *self._shadows]
            return Line(choices, durable=self._durable, present=self._durable, **more)
        sent = self.sent[: bisect_left(self._began, step)]
        asides = [values for began, values in self._asides if began < step]
        durable = max(count for given, count in self._synced if given <= step)
        if killed:
            kept = max(count for given, count in self._kept if given <= step)
            return Line([sent], asides, durable=durable, present=kept, fresh=False, **more)
        return Line([sent, *asides], durable=durable, present=durable, **more)


class Commit(msgspec.Struct):
    """A committed offset.

    Attributes:
        began: The step.
        done: The step by which it was acknowledged.
        offset: As committed.
        limit: So many of the records that were there at the commit are still there.
        number: Tells it apart, and rises; 0 when it cannot be told any more.
        synced: The step from which on it survives a power loss.
    """

    began: int
    done: int
    offset: int
    limit: int
    number: int
    synced: int = NEVER

    @property
    def expected(self) -> int:
        """What reads as committed."""
        return min(self.offset, self.limit)


class Commits:
    """The committed offsets of one group in one partition."""

    def __init__(
        self,
        made: Sequence[Commit] = (),
        shadows: Sequence[Commit] = (),
        *,
        certain: bool = False,
        settled: bool = False,
        fresh: bool = True,
    ) -> None:
        """What is known before it is read.

        Args:
            made: Any of them may be found.
            shadows: What may be found after the next power loss too.
            certain: One of them must be found now.
            settled: One of them must be found after the next power loss.
            fresh: There was a power loss since it was read last.
        """
        self._made = list(made)
        self._shadows = list(shadows)
        self._certain = certain
        self._settled = settled
        self._fresh = fresh
        self.numbers: set[int] = set()
        self._unread: tuple[int, Commits] | None = None

    def begin(self, step: int, offset: int, number: int) -> Commit:
        """This is committed now; `done` is to be set when it is acknowledged."""
        commit = Commit(step, NEVER, offset, offset, number)
        self._made.append(commit)
        return commit

    def found(self, offset: int | None, length: int, step: int) -> None:
        """This is committed, in a partition of that many records; read by that step.

        Raises:
            Finding: It never was, or the records below it are not those that were there.
        """
        if self._unread is None:
            made, shadows = ([msgspec.structs.replace(one) for one in part] for part in (self._made, self._shadows))
            self._unread = step, Commits(made, shadows, certain=self._certain, settled=self._settled, fresh=self._fresh)
        for commit in (*self._made, *self._shadows):
            commit.limit = min(commit.limit, length)
        made = [one for one in self._made if one.expected == offset]
        expected = sorted({one.expected for one in self._made})
        if offset is None:
            if self._certain:
                raise Finding("forgotten", f"no offset is committed, {expected} may be")
        elif offset > length:
            raise Finding("committed", f"offset {offset} is committed beyond the end, {length}")
        elif not made:
            kind = "forgotten" if expected and offset < expected[0] else "committed"
            raise Finding(kind, f"offset {offset} is committed, {expected} may be")
        if self._fresh:
            self._shadows = []
            self._settled = offset is not None
        else:
            self._shadows += [one for one in self._made if one.expected != offset]
        self._fresh = False
        self.numbers = {one.number for one in made}
        self._made = made[-1:]
        for one in self._made:
            one.began, one.done = -1, 0
            one.number = one.number if len(self.numbers) == 1 else 0

    def holds(self, number: int) -> bool | None:
        """Whether what was found is that commit, or an earlier one (False); None when that cannot be told."""
        if self.numbers == {number}:
            return True
        return False if all(0 < found < number for found in self.numbers) else None

    def at(self, step: float, *, killed: bool) -> Commits:
        """What is to be expected after a crash at that step."""
        if self._unread is not None and step < self._unread[0]:
            return self._unread[1].at(step, killed=killed)
        before = [one for one in (*self._shadows, *self._made) if one.began < step]
        synced = max((place for place, one in enumerate(before) if one.synced <= step), default=-1)
        settled = self._settled or synced >= 0
        left = [
            msgspec.structs.replace(one, began=-1, done=NEVER, synced=0 if one.synced <= step else NEVER)
            for one in [*_later(before, synced), *before[max(0, synced) :]]
        ]
        if not killed:
            return Commits(left, certain=settled, settled=settled)
        made = [one for one in self._made if one.began < step]
        done = max((place for place, one in enumerate(made) if one.done <= step), default=-1)
        count = len(made) - max(done, 0)
        first = max(0, len(left) - count)
        certain, fresh = (True, False) if done >= 0 else (self._certain, self._fresh)
        return Commits(left[first:], left[:first], certain=certain, settled=settled, fresh=fresh)


def _later(commits: list[Commit], place: int) -> list[Commit]:
    """Those before a place that are later than the one there: a dead process had not come to publish them."""
    return [one for one in commits[: max(0, place)] if one.number > commits[place].number]


class Subject:
    """A topic.

    Attributes:
        name: Its name.
        id: 16 bytes.
        made: The steps at which making it began, and was done.
        deleted: The same for deleting it; None while nobody does.
        counts: How many partitions it may have, each with the same.
        lines: The partitions that were written.
        compacts: Of each key only the last record stays.
        forgets: Tombstones do not stay either.
    """

    def __init__(
        self,
        name: str,
        topic_id: bytes,
        made: tuple[int, int],
        count: int,
        *,
        compacts: bool = False,
        forgets: bool = False,
    ) -> None:
        self.name = name
        self.id = topic_id
        self.made = made
        self.deleted: tuple[int, int] | None = None
        self.counts = [(*made, count)]
        self.lines: dict[int, Line] = {}
        self.compacts = compacts
        self.forgets = forgets
        self._fresh = False
        self._certain = True
        self._settled = made[1]
        self._least = 0

    @property
    def count(self) -> int:
        """How many partitions it has."""
        return self.counts[-1][2]

    def line(self, partition: int) -> Line:
        """One of its partitions; one that nobody wrote is empty."""
        line = self.lines.get(partition)
        if line is None:
            gaps = Gaps(forgets=self.forgets) if self.compacts else None
            self.lines[partition] = line = Line(gaps=gaps)
            line.found(0, 0, {}, 0)
        return line

    def gone(self) -> None:
        """It is not there.

        Raises:
            Finding: It should be.
        """
        promised = sum(line.present for line in self.lines.values())
        if self.deleted is None and (self._certain or promised):
            raise Finding("topic" if self._certain else "lost", f"topic {self.name!r} is gone, with {promised} records")

    def found(self, count: int) -> None:
        """It is there, with so many partitions.

        Raises:
            Finding: With too few, or too many.
        """
        counts = [count for *_, count in self.counts]
        if count not in counts:
            raise Finding("topic", f"topic {self.name!r} has {count} partitions, not {counts}")
        if any(line.present for number, line in self.lines.items() if number >= count):
            raise Finding("lost", f"topic {self.name!r} has {count} partitions, and others had promised records")
        self.lines = {number: line for number, line in self.lines.items() if number < count}
        if self._fresh:
            self._settled, self._least = 0, count
        self.counts = [(-1, 0, count)]
        self._certain, self._fresh = True, False

    def at(self, step: float, *, killed: bool) -> Subject | None:
        """What is to be expected after a crash at that step; None when it is not there for certain."""
        if self.made[0] >= step or (self.deleted is not None and self.deleted[1] <= step):
            return None
        twin = Subject(self.name, self.id, (-1, 0), 0, compacts=self.compacts, forgets=self.forgets)
        twin.deleted = (-1, NEVER) if self.deleted is not None and self.deleted[0] < step else None
        # A process that saw a change of another, which was killed, does not know whether it is on disk.
        twin._settled = 0 if self._settled <= step else NEVER
        twin._certain = self._certain and (self.made[1] <= step if killed else self._settled <= step)
        twin._fresh = self._fresh or not killed
        done = max((number for number, one in enumerate(self.counts) if one[1] <= step), default=0)
        counts = [one[2] for one in self.counts[done:] if one[0] < step]
        least = max([self._least, *(one[2] for one in self.counts if 0 < one[1] <= step)])
        twin._least = least
        if not killed:
            counts = list(range(least or 1, max(counts) + 1))
        twin.counts = [(-1, NEVER if number else 0, count) for number, count in enumerate(counts)]
        twin.lines = {number: line.at(step, killed=killed) for number, line in self.lines.items()}
        return twin


class Transaction(msgspec.Struct):
    """Records in several partitions, and committed offsets, that are there together or not at all.

    Attributes:
        began: The step at which the commit began.
        parts: Topic id, partition, offset of the first record, values.
        commits: Key in `Expectation.commits`, number of the commit.
        decided: From that step on it is known, and on disk, which of both it is.
    """

    began: int
    parts: list[tuple[bytes, int, int, list[bytes]]]
    commits: list[tuple[tuple[str, bytes, int], int]]
    decided: int = NEVER


class Expectation:
    """A whole log.

    Attributes:
        subjects: Its topics, those that are gone too.
        commits: By group, topic id and partition.
        transactions: Those of which it is not known, on disk, whether they are there.
        written: How many values were made.
    """

    def __init__(self) -> None:
        self.written = 0
        self.transactions: list[Transaction] = []
        self.subjects: list[Subject] = []
        self.commits: dict[tuple[str, bytes, int], Commits] = {}

    def at(self, step: float, *, killed: bool) -> Expectation:
        """What is to be expected after a crash at that step."""
        twin = Expectation()
        twin.written = self.written
        twin.transactions = [
            Transaction(-1, one.parts, one.commits) for one in self.transactions if one.began < step < one.decided
        ]
        twin.subjects = [one for one in (one.at(step, killed=killed) for one in self.subjects) if one is not None]
        known = {subject.id for subject in twin.subjects}
        twin.commits = {
            key: commits.at(step, killed=killed) for key, commits in self.commits.items() if key[1] in known
        }
        return twin

    def number(self) -> int:
        """A number that nothing else has."""
        self.written += 1
        return self.written

    def check_transactions(self, step: int, *, recovered: bool) -> None:
        """Everything was read, by that step; after a recovery it is on disk.

        Raises:
            Finding: Of a transaction something is there, and something is not.
        """
        subjects = {one.id: one for one in self.subjects if one.deleted is None}
        for transaction in self.transactions:
            told: dict[str, bool] = {}
            for topic_id, number, first, values in transaction.parts:
                subject = subjects.get(topic_id)
                if subject is None or number >= subject.count:
                    continue
                sent = subject.line(number).sent
                told[f"{subject.name}/{number}"] = sent[first : first + len(values)] == values
                if sent[first : first + len(values)] != values and not set(values).isdisjoint(sent):
                    raise Finding("torn", f"{subject.name}/{number} has some of a transaction's {len(values)} records")
            for key, number in transaction.commits:
                if key in self.commits and key[1] in subjects:
                    held = self.commits[key].holds(number)
                    if held is not None:
                        told[f"offsets of {key[0]} in {subjects[key[1]].name}/{key[2]}"] = held
            if len(set(told.values())) > 1:
                raise Finding("torn", f"of a transaction there is {told}")
            if recovered:
                transaction.decided = step


def _agrees(choice: list[bytes], end: int, records: Mapping[int, bytes]) -> bool:
    """Whether these records are those of the first part of a choice, as far as they are there."""
    return end <= len(choice) and all(choice[offset] == record for offset, record in records.items())


def _common(choice: list[bytes], start: int, end: int, records: Mapping[int, bytes]) -> int:
    """Up to where they are."""
    places = range(start, min(end, len(choice)))
    return next((each for each in places if records.get(each, choice[each]) != choice[each]), places.stop)


def _difference(end: int, records: Mapping[int, bytes], expected: list[bytes]) -> str:
    return f"{end} records instead of {len(expected)}, {_common(expected, 0, end, records)} of them as expected"
