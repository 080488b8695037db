"""`benches.durability` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import durability
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="durability")
@pytest.mark.parametrize("measurement", durability.LINES.values(), ids=list(durability.LINES))
def test_durability(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """Each measurement gives lines."""
    assert take_lines(measurement)
