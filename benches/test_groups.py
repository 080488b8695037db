"""`benches.groups` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import groups
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="groups")
@pytest.mark.parametrize("measurement", groups.LINES.values(), ids=list(groups.LINES))
def test_groups(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """Take-over, joining and leaving, many at once, commits, and a group of one."""
    assert take_lines(measurement)
