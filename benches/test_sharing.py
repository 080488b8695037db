"""`benches.sharing` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import sharing
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="sharing")
@pytest.mark.parametrize("measurement", [sharing.compare_sharing])
def test_sharing(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """Four writer processes on one partition."""
    assert take_lines(measurement)
