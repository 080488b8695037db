"""`benches.reading` under pytest-benchmark."""

from collections.abc import Callable
from functools import partial

import pytest

from benches import reading
from benches.measuring import Kernel, KernelMaker, Settings


@pytest.mark.benchmark(group="reading")
@pytest.mark.parametrize(
    "kernel", [reading.stream_values, reading.stream_records, reading.lmdb_values, reading.lmdb_items]
)
def test_reading(time_kernel: Callable[[Kernel], None], settings: Settings, kernel: KernelMaker) -> None:
    """Everything that one partition, or one LMDB file, holds."""
    count = settings.count(1_000_000)
    time_kernel(partial(kernel, count=count))
