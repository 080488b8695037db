"""How pytest-benchmark times the kernels of the runner: at a small size, each round in a fresh directory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benches.measuring import Kernel, Line, Settings, fresh_directory

SCALE = 0.02
ROUNDS = 3


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return sizes that keep each benchmark to a second or so."""
    return Settings(directory=tmp_path, scale=SCALE, rounds=1)


@pytest.fixture
def time_kernel(benchmark: Any, settings: Settings) -> Iterator[Callable[[Kernel], None]]:
    """Return a function that times a kernel's work, and neither its preparation nor its checks."""
    with ExitStack() as stack:

        def prepare(kernel: Kernel) -> tuple[tuple[Callable[[], object]], dict[str, object]]:
            directory = stack.enter_context(fresh_directory(settings))
            return (stack.enter_context(kernel(directory)),), {}

        def time_it(kernel: Kernel) -> None:
            benchmark.pedantic(lambda work: work(), setup=lambda: prepare(kernel), rounds=ROUNDS)

        yield time_it


@pytest.fixture
def take_lines(benchmark: Any, settings: Settings) -> Callable[[Callable[[Settings], list[Line]]], list[Line]]:
    """Return a function that takes a measurement of the runner once, and keeps its figures beside the time it took."""

    def take(function: Callable[[Settings], list[Line]]) -> list[Line]:
        lines: list[Line] = benchmark.pedantic(function, args=(settings,), rounds=1)
        for line in lines:
            benchmark.extra_info[line.what] = {
                "ours": line.ours,
                "peer": line.peer,
                "unit": line.unit,
                "ratio": line.ratio,
            }
        return lines

    return take
