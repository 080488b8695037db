"""The figures of Kafka's performance tools: counted, and put in the lines that those print."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from datetime import datetime
from time import perf_counter
from typing import Any

__all__ = [
    "ConsumerFigures",
    "Latencies",
    "consumer_head",
    "consumer_line",
    "local_time",
    "percentile",
    "total_line",
    "window_line",
]

_MIB = 1 << 20
_MS = 1000


def percentile(ascending: Sequence[float], part: float) -> float:
    """The value below which that part of the values lies, as Kafka's tools count it; 0 of none."""
    return ascending[int(part * len(ascending))] if ascending else 0.0


def local_time(seconds: float) -> str:
    """A time as the consumer's tool prints it: of this machine's zone, to the millisecond."""
    when = datetime.fromtimestamp(seconds)  # noqa: DTZ006 - as Kafka's tool has it
    return f"{when:%Y-%m-%d %H:%M:%S}:{when.microsecond // 1000:03d}"


class Latencies:
    """Latencies of records from send to acknowledgement, in ms. Any thread may add; one reports."""

    def __init__(self) -> None:
        self._started = self._window_started = perf_counter()
        self._all = array("d")
        self._sizes = array("q")
        self._reported = 0

    def __len__(self) -> int:
        return len(self._all)

    def add(self, latency_ms: float, size: int) -> None:
        """A record of that many bytes was acknowledged."""
        self._sizes.append(size)  # first: there is a size to each latency at any moment
        self._all.append(latency_ms)

    def window(self) -> dict[str, Any]:
        """The figures since the last window."""
        now = perf_counter()
        first, stop = self._reported, len(self._all)
        seconds = max(1e-9, now - self._window_started)
        self._window_started, self._reported = now, stop
        return _figures(self._all[first:stop], sum(self._sizes[first:stop]), seconds)

    def total(self) -> dict[str, Any]:
        """The figures of all, with percentiles."""
        ascending = sorted(self._all)
        figures = _figures(self._all, sum(self._sizes), max(1e-9, perf_counter() - self._started))
        for name, part in (("50th", 0.5), ("95th", 0.95), ("99th", 0.99), ("99.9th", 0.999)):
            figures[f"latency_ms_{name}"] = percentile(ascending, part)
        return figures


def _figures(latencies: array[float], size: int, seconds: float) -> dict[str, Any]:
    return {
        "records": len(latencies),
        "records_per_second": len(latencies) / seconds,
        "mb_per_second": size / seconds / _MIB,
        "latency_ms_avg": sum(latencies) / len(latencies) if latencies else 0.0,
        "latency_ms_max": max(latencies, default=0.0),
    }


def window_line(figures: dict[str, Any]) -> str:
    """What the producer's tool prints now and then."""
    return (
        f"{figures['records']} records sent, {figures['records_per_second']:.1f} records/sec "
        f"({figures['mb_per_second']:.2f} MB/sec), {figures['latency_ms_avg']:.1f} ms avg latency, "
        f"{figures['latency_ms_max']:.1f} ms max latency."
    )


def total_line(figures: dict[str, Any]) -> str:
    """What the producer's tool prints at the end."""
    named = [f"{int(figures[f'latency_ms_{name}'])} ms {name}" for name in ("50th", "95th", "99th", "99.9th")]
    return (
        f"{figures['records']} records sent, {figures['records_per_second']:.1f} records/sec "
        f"({figures['mb_per_second']:.2f} MB/sec), {figures['latency_ms_avg']:.2f} ms avg latency, "
        f"{figures['latency_ms_max']:.2f} ms max latency, {', '.join(named)}."
    )


def consumer_head(*, detailed: bool) -> str:
    """The head of what the consumer's tool prints."""
    first = "time, threadId" if detailed else "start.time, end.time"
    return (
        f"{first}, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, rebalance.time.ms, fetch.time.ms, "
        "fetch.MB.sec, fetch.nMsg.sec"
    )


class ConsumerFigures:
    """What a consumer read, between two times.

    Args:
        start: Seconds since 1970.
    """

    def __init__(self, start: float) -> None:
        self.start = start
        self.count = 0
        self.size = 0
        self.rebalance_seconds = 0.0

    def to_dict(self, end: float, since: tuple[float, int, int] | None = None) -> dict[str, Any]:
        """The figures.

        Args:
            end: Seconds since 1970.
            since: Time, records and bytes of the last report, where the rates are of what came since.
        """
        start, count, size = since or (self.start, 0, 0)
        seconds = max(1e-3, end - start)
        fetching = max(1e-3, seconds - self.rebalance_seconds)
        records, megabytes = self.count - count, (self.size - size) / _MIB
        return {
            "start_time": local_time(start),
            "end_time": local_time(end),
            "data_consumed_in_mb": self.size / _MIB,
            "mb_sec": megabytes / seconds,
            "data_consumed_in_nmsg": self.count,
            "nmsg_sec": records / seconds,
            "rebalance_time_ms": round(self.rebalance_seconds * _MS),
            "fetch_time_ms": round(fetching * _MS),
            "fetch_mb_sec": megabytes / fetching,
            "fetch_nmsg_sec": records / fetching,
        }


def consumer_line(figures: dict[str, Any], *, detailed: bool) -> str:
    """A line under the head."""
    first = f"{figures['end_time']}, 0" if detailed else f"{figures['start_time']}, {figures['end_time']}"
    return (
        f"{first}, {figures['data_consumed_in_mb']:.4f}, {figures['mb_sec']:.4f}, "
        f"{figures['data_consumed_in_nmsg']}, {figures['nmsg_sec']:.4f}, {figures['rebalance_time_ms']}, "
        f"{figures['fetch_time_ms']}, {figures['fetch_mb_sec']:.4f}, {figures['fetch_nmsg_sec']:.4f}"
    )
