"""`benches.writing` under pytest-benchmark."""

from collections.abc import Callable
from functools import partial

import pytest

from benches import writing
from benches.measuring import Kernel, KernelMaker, Line, Settings

Timer = Callable[[Kernel], None]


@pytest.mark.benchmark(group="send_many")
@pytest.mark.parametrize("partitions", [1, 8])
def test_send_many(time_kernel: Timer, settings: Settings, partitions: int) -> None:
    """Batches of 1,000 through a producer."""
    count = settings.count(500_000)
    time_kernel(partial(writing.stream_send_many, count=count, partitions=partitions))


@pytest.mark.benchmark(group="send_many")
def test_rocksdict_write_batches(time_kernel: Timer, settings: Settings) -> None:
    """The same batches into RocksDB."""
    count = settings.count(500_000)
    time_kernel(partial(writing.rocksdict_write_batches, count=count))


@pytest.mark.benchmark(group="send")
@pytest.mark.parametrize("kernel", [writing.stream_send, writing.confluent_produce])
def test_send(time_kernel: Timer, settings: Settings, kernel: KernelMaker) -> None:
    """Records one by one, the outcome of each looked at."""
    count = settings.count(300_000)
    time_kernel(partial(kernel, count=count))


@pytest.mark.benchmark(group="large values")
def test_send_many_large_values(time_kernel: Timer, settings: Settings) -> None:
    """Values of 1 KiB in batches of 1,000."""
    count = settings.count(300_000)
    time_kernel(partial(writing.stream_send_many, count=count, value_size=writing.KIB))


@pytest.mark.benchmark(group="large values")
def test_map_copy(time_kernel: Timer, settings: Settings) -> None:
    """The same bytes copied into mapped memory."""
    time_kernel(partial(writing.map_copy, count=settings.count(300_000)))


@pytest.mark.benchmark(group="append")
def test_append(take_lines: Callable[[Callable[[Settings], list[Line]]], list[Line]]) -> None:
    """One record made visible, beside the bare system calls."""
    assert take_lines(writing.compare_append)
