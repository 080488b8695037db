"""Running sums, and what they were some time ago: what totals, rates, averages and maxima are computed from.

As in Kafka, a rate, an average or a maximum looks back over two samples of 30 s: over the last 30 to 60 s. Whoever
counts only adds to running sums; each 30 s, the next to count notes how they stand. So the sums of a window are a
difference of two, and counting costs the same however many windows there are.

Writers of one tally take turns. Readers take no lock: they may miss what is being counted just now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar

__all__ = ["EXPIRY_SECONDS", "SAMPLE_SECONDS", "Reading", "Tallies", "Tally", "Times", "Waits", "reading"]

SAMPLE_SECONDS = 30.0
"""How long a sample is; Kafka's `metrics.sample.window.ms`."""
_WINDOW_SECONDS = 2 * SAMPLE_SECONDS
"""Two samples, as Kafka's `metrics.num.samples` says."""
EXPIRY_SECONDS = 3600.0
"""How long a topic or partition is told of after it was last used; Kafka's sensors live that long too."""

Key = TypeVar("Key")
T = TypeVar("T", bound="Tally")

Mark = tuple[float, tuple[float, ...]]


class Tally:
    """Sums and maxima of one thing that is measured. Subclasses name them, and add to them.

    Args:
        now: Monotonic time in seconds.

    Attributes:
        SUMS: Attributes that only grow.
        PEAKS: Attributes that hold the highest value of the present sample.
        rolls_at: When the next sample begins: whoever counts then calls `roll` first.
        marks: When the last two samples began, and how the sums stood then.
        earlier_peaks: The maxima of the sample before.
        home: Where it is told of; None for nowhere in particular.
        key: Its key there.
    """

    __slots__ = ("earlier_peaks", "home", "key", "marks", "rolls_at")

    SUMS: ClassVar[tuple[str, ...]] = ()
    PEAKS: ClassVar[tuple[str, ...]] = ()
    sums: ClassVar[Callable[[Any], tuple[float, ...]]]
    peaks: ClassVar[Callable[[Any], tuple[float, ...]]]

    def __init_subclass__(cls) -> None:
        cls.sums = _getter(cls.SUMS)
        cls.peaks = _getter(cls.PEAKS)

    def __init__(self, now: float) -> None:
        self.home: Tallies[Any, Any] | None = None
        self.key: Any = None
        self.reset(now)

    def reset(self, now: float) -> None:
        """Begin anew."""
        for name in (*self.SUMS, *self.PEAKS):
            setattr(self, name, 0)
        self.earlier_peaks: tuple[float, ...] = (0,) * len(self.PEAKS)
        start: Mark = now, (0,) * len(self.SUMS)
        self.marks: tuple[Mark, Mark] = start, start
        self.rolls_at = now + SAMPLE_SECONDS

    def roll(self, now: float) -> None:
        """Begin a sample; the caller counts next, and nobody else does meanwhile."""
        kind = type(self)
        mark: Mark = now, kind.sums(self)
        if now - self.marks[1][0] < _WINDOW_SECONDS:
            self.earlier_peaks = kind.peaks(self)
            self.marks = self.marks[1], mark
        else:  # nothing was counted for long
            self.earlier_peaks = (0,) * len(self.PEAKS)
            self.marks = mark, mark
        for name in self.PEAKS:
            setattr(self, name, 0)
        self.rolls_at = now + SAMPLE_SECONDS
        if self.home is not None:
            self.home.keep(self, now)


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[float, ...]]:
    """Reads these attributes into a tuple, also when they are fewer than two."""
    if len(names) > 1:
        return staticmethod(attrgetter(*names))
    return staticmethod(lambda tally: tuple(getattr(tally, name) for name in names))


class Times(Tally):
    """How often something was done, and how long it took."""

    __slots__ = ("count", "longest", "seconds")

    SUMS = ("count", "seconds")
    PEAKS = ("longest",)

    count: int
    seconds: float
    longest: float

    def add(self, started: float, now: float) -> None:
        """It was done from `started` until `now`."""
        if now >= self.rolls_at:
            self.roll(now)
        took = now - started
        self.count += 1
        self.seconds += took
        self.longest = max(self.longest, took)


class Waits(Tally):
    """How long threads have waited."""

    __slots__ = ("seconds", "threads")

    SUMS = ("seconds", "threads")

    seconds: float
    threads: int

    def add(self, started: float, now: float) -> None:
        """A thread waited from `started` until `now`."""
        if now >= self.rolls_at:
            self.roll(now)
        self.seconds += now - started
        self.threads += 1


# --- reading


class Reading:
    """What one or several tallies of a kind say together.

    Attributes:
        totals: The sums, since the beginning.
        recent: Of the window.
        rates: Of the window, per second of it.
        peaks: The maxima in the window.
    """

    __slots__ = ("peaks", "rates", "recent", "totals")

    def __init__(self, kind: type[Tally], before: Sequence[float] = ()) -> None:
        self.totals: dict[str, float] = dict(zip(kind.SUMS, before or (0,) * len(kind.SUMS), strict=True))
        self.recent: dict[str, float] = dict.fromkeys(kind.SUMS, 0)
        self.rates: dict[str, float] = dict.fromkeys(kind.SUMS, 0.0)
        self.peaks: dict[str, float] = dict.fromkeys(kind.PEAKS, 0)

    def average(self, what: str, count: str) -> float:
        """So much of something there was in the window for each of another; 0 when there was none."""
        return self.recent[what] / self.recent[count] if self.recent[count] else 0.0


def reading(kind: type[T], tallies: Iterable[T], now: float, before: Sequence[float] = ()) -> Reading:
    """What tallies of a kind say together; some 3 us for each that was used in the last minute.

    Args:
        kind: Their class.
        tallies: They.
        now: Monotonic time in seconds.
        before: Sums of those that are gone, to be added to the totals.
    """
    found = Reading(kind, before)
    tallies = list(tallies)
    marks = [tally.marks for tally in tallies]  # first: sums that were read before their marks would lie behind them
    sums = [kind.sums(tally) for tally in tallies]
    if sums:
        for name, values in zip(kind.SUMS, zip(*sums, strict=True), strict=True):
            found.totals[name] += sum(values)
    oldest = now - _WINDOW_SECONDS
    for tally, (older, newer), latest in zip(tallies, marks, sums, strict=True):
        if newer[0] <= oldest:
            continue
        start, then = older if older[0] > oldest else newer
        seconds = max(now - start, SAMPLE_SECONDS)  # as Kafka: one event a moment ago is no high rate
        for name, value, at_start in zip(kind.SUMS, latest, then, strict=True):
            found.recent[name] += value - at_start
            found.rates[name] += (value - at_start) / seconds
        peaks = zip(kind.PEAKS, kind.peaks(tally), tally.earlier_peaks, strict=True)
        for name, present, earlier in peaks:
            highest = max(present, earlier) if older[0] > oldest else present
            found.peaks[name] = max(found.peaks[name], highest)
    return found


# --- by topic and partition


class Tallies(Generic[Key, T]):
    """The tallies of one kind, by key. One that was not used for an hour goes, and its sums stay in `gone`.

    `tally` and `keep` are called by those who count, who take turns; the others may be called by anybody.

    Args:
        kind: Their class.

    Attributes:
        gone: The sums of those that went.
    """

    __slots__ = ("_by_key", "_kind", "_sweep_at", "gone")

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._by_key: dict[Key, T] = {}
        self._sweep_at = 0.0
        self.gone: tuple[float, ...] = (0,) * len(kind.SUMS)

    def get(self, key: object) -> T | None:
        """The tally of a key, if it was used lately."""
        return self._by_key.get(key)  # type: ignore[arg-type]  # a plain tuple is as good

    def tally(self, key: Key, now: float) -> T:
        """The tally of a key, a new one if there is none. It may be held on to: it comes back when it is used."""
        found = self._by_key.get(key)
        if found is None:
            found = self._kind(now)
            found.home, found.key = self, key
            self.keep(found, now)
        return found

    def keep(self, tally: T, now: float) -> None:
        """A tally is used: tell of it; called when it begins a sample."""
        self._by_key[tally.key] = tally
        if now >= self._sweep_at:
            self._sweep_at = now + EXPIRY_SECONDS / 10
            for key, other in list(self._by_key.items()):
                if now - other.marks[1][0] >= EXPIRY_SECONDS:
                    del self._by_key[key]
                    self.gone = tuple(map(sum, zip(self.gone, self._kind.sums(other), strict=True)))
                    other.reset(now)

    def revive(self, tally: T) -> None:
        """A tally is used, which may have gone."""
        self._by_key.setdefault(tally.key, tally)

    def roll(self, now: float) -> None:
        """Have those that were used since their sample began begin another."""
        for tally in list(self._by_key.values()):
            if now >= tally.rolls_at and self._kind.sums(tally) != tally.marks[1][1]:
                tally.roll(now)

    def read(self, now: float) -> Reading:
        """What all of them say together, with those that went."""
        before = self.gone
        return reading(self._kind, list(self._by_key.values()), now, before)

    def used(self, now: float) -> dict[Key, T]:
        """Those that were used in the last hour."""
        return {
            key: tally
            for key, tally in list(self._by_key.items())
            if now - tally.marks[1][0] < EXPIRY_SECONDS + SAMPLE_SECONDS
        }
