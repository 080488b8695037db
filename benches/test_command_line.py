"""`benches.command_line` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import command_line
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="command line")
@pytest.mark.parametrize("measurement", [command_line.compare_pipes, command_line.compare_help])
def test_command_line(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """What a command costs with the start of its process."""
    assert take_lines(measurement)
