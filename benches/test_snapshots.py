"""`benches.snapshots` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import snapshots
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="snapshots")
@pytest.mark.parametrize("measurement", [snapshots.compare_many_segments, snapshots.compare_many_topics])
def test_snapshots(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """Copies of a log by hard links."""
    assert take_lines(measurement)
