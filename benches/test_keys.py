"""`benches.keys` under pytest-benchmark."""

from collections.abc import Callable
from functools import partial

import pytest

from benches import keys
from benches.measuring import Kernel, KernelMaker, Line, Settings

Timer = Callable[[Kernel], None]


@pytest.mark.benchmark(group="expected_version")
@pytest.mark.parametrize("kernel", [keys.stream_expected_version, keys.stream_append])
def test_expected_version(time_kernel: Timer, settings: Settings, kernel: KernelMaker) -> None:
    """Appends among many keys, with the version of each and without."""
    time_kernel(partial(kernel, count=settings.count(50_000), keys=settings.count(keys.KEYS)))


@pytest.mark.benchmark(group="read_key")
def test_read_key(take_lines: Callable[[Callable[[Settings], list[Line]]], list[Line]]) -> None:
    """One key's records among many."""
    assert take_lines(keys.measure_read_key)
