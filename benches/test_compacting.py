"""`benches.compacting` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import compacting
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="compacting")
@pytest.mark.parametrize("measurement", list(compacting.LINES.values()))
def test_compacting(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """Each of them."""
    assert take_lines(measurement)
