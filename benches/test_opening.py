"""`benches.opening` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import opening
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="opening")
@pytest.mark.parametrize("measurement", [opening.compare_opening, opening.compare_many_topics])
def test_opening(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """Logs of many topics."""
    assert take_lines(measurement)
