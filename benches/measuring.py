"""What a line of the table is, and how its two figures are taken.

A *kernel* is a context manager over a fresh directory: entering it prepares (untimed), what it yields is the work
(timed), leaving it checks and closes (untimed). Kernels alternate, A B A B, so that a busy moment of the machine hits
both, each round in a process of its own; the best round of each counts, because noise only ever adds time.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from attrs import field, frozen

from benches.child import Gate, find, run

Kernel: TypeAlias = Callable[[Path], AbstractContextManager[Callable[[], object]]]
KernelMaker: TypeAlias = Callable[..., AbstractContextManager[Callable[[], object]]]


class UnsupportedHereError(Exception):
    """This machine lacks what the line measures with; the runner shows the line as skipped."""


@frozen
class Settings:
    """How large and how often.

    Attributes:
        directory: Where the logs and the peers' files go: both on the same file system.
        scale: Factor on every count and duration; 1 is the full size.
        rounds: How often each side of a line is measured; the best counts.
    """

    directory: Path = field(converter=Path)
    scale: float = 1.0
    rounds: int = 5

    def count(self, full: int, *, least: int = 1_000) -> int:
        """Return a scaled number of records, a whole number of thousands unless `least` is smaller."""
        scaled = int(full * self.scale)
        return max(least, scaled - scaled % 1_000 if scaled >= 1_000 else scaled)  # noqa: PLR2004

    def seconds(self, full: float, *, least: float) -> float:
        """Return a scaled duration."""
        return max(least, full * self.scale)


@frozen
class Line:
    """One line of the table.

    Attributes:
        what: What was measured.
        ours: Our figure, in `unit`.
        peer: The peer's figure of the same run, or None where the bound is absolute.
        unit: Unit of both figures.
        bound: What is required: of the ratio ours / peer, or of `ours` where `absolute`; None for a line that only
            informs.
        at_least: True where more is better.
        absolute: True where the bound is on our figure itself.
        note: What else is worth knowing.
    """

    what: str
    ours: float
    peer: float | None
    unit: str
    bound: float | None = None
    at_least: bool = True
    absolute: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours divided by the peer's, or None without a peer."""
        return self.ours / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the bound is met; None where there is none."""
        held = self.ours if self.absolute else self.ratio
        if self.bound is None or held is None:
            return None
        return held >= self.bound if self.at_least else held <= self.bound


@contextmanager
def fresh_directory(settings: Settings) -> Iterator[Path]:
    """Make a directory that is gone afterwards, with its pages: no round pays for another's write-back."""
    with tempfile.TemporaryDirectory(prefix="benches-", dir=settings.directory, ignore_cleanup_errors=True) as name:
        yield Path(name)


def time_kernel(kernel: Kernel, directory: Path) -> float:
    """Return the seconds that the kernel's work takes, in a directory that is empty."""
    with kernel(directory) as work:
        gc.collect()
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


def time_named_kernel(gate: Gate, *, kernel: str, arguments: dict[str, object], directory: str) -> float:
    """Time a kernel in this child process, twice, and return the better; `kernel` is its `module:name`.

    Twice, because in a virtual machine the memory that the first time takes may be for the host to give: a copy into
    new pages then runs at 0.6 GB/s instead of 2.2. The second time finds what the first one freed.
    """
    gate()
    figures = []
    for attempt in ("first", "second"):
        with tempfile.TemporaryDirectory(prefix=attempt, dir=directory) as place:
            figures.append(time_kernel(partial(find(kernel), **arguments), Path(place)))
    return min(figures)


def best_seconds(kernels: Mapping[str, partial[Any]], settings: Settings) -> dict[str, float]:
    """Time kernels in turn, `settings.rounds` times, and return the best of each, in seconds.

    Each round has a process of its own, because what one side leaves behind in a process costs the other: a million
    values come out of LMDB at 12 M/s, and at 7 M/s once librdkafka has been used.

    Args:
        kernels: Partials over functions of a module, with keyword arguments that JSON can hold.
        settings: Where, and how often.
    """

    def measure(kernel: partial[Any]) -> float:
        with fresh_directory(settings) as directory:
            seconds: float = run(
                "benches.measuring:time_named_kernel",
                kernel=f"{kernel.func.__module__}:{kernel.func.__name__}",
                arguments=kernel.keywords,
                directory=str(directory),
            )
            return seconds

    timings = {name: partial(measure, kernel) for name, kernel in kernels.items()}
    return {name: min(figures) for name, figures in alternate(timings, settings.rounds).items()}


def alternate(measurements: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Take each measurement in turn, `rounds` times over, and return the figures of each."""
    figures: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            figures[name].append(measure())
    return figures
