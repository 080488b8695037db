"""`benches.importing` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import importing
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="importing")
@pytest.mark.parametrize("measurement", [importing.compare_importing])
def test_importing(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """What the import costs."""
    assert take_lines(measurement)
