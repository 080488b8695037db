"""`benches.transactions` under pytest-benchmark: the runner's own measurements, small and once."""

from collections.abc import Callable

import pytest

from benches import transactions
from benches.measuring import Line, Settings

Measurement = Callable[[Settings], list[Line]]


@pytest.mark.benchmark(group="transactions")
@pytest.mark.parametrize("measurement", transactions.LINES.values(), ids=list(transactions.LINES))
def test_transactions(take_lines: Callable[[Measurement], list[Line]], measurement: Measurement) -> None:
    """Each measurement gives lines."""
    assert take_lines(measurement)
