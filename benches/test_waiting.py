"""`benches.waiting` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import waiting
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="waiting")
@pytest.mark.parametrize("measurement", [waiting.compare_latency, waiting.compare_idle])
def test_waiting(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """Between processes, and while nothing happens."""
    assert take_lines(measurement)
