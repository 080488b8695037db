"""`benches.memory` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import memory
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize("measurement", [memory.compare_memory])
def test_memory(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """The anonymous memory of a large log."""
    assert take_lines(measurement)
