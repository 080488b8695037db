"""Memory does not grow with the log: gigabytes written and read back in one process.

Anonymous memory is what counts (`RssAnon`): pages of the segments that a process has mapped are the page cache's, and
the kernel takes them back when it needs them.
"""

import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pystreamlog
from benches import payload
from benches.child import Gate, run
from benches.measuring import Line, Settings, UnsupportedHereError, fresh_directory

TOPIC = "events"
KIB = 1_024
BATCH_COUNT = 1_000

_STATUS = Path("/proc/self/status")
_SAMPLE_INTERVAL = 0.01
_PATIENCE = 10.0


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * KIB
    raise LookupError(field)


def peak_resident_bytes() -> int:
    """Return the most memory this process ever had resident."""
    if _STATUS.exists():
        # Not `ru_maxrss`: on Linux that one starts at the peak of the process that started this one.
        return _status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB


class PeakSampler:
    """The largest anonymous memory seen while it runs, sampled every 10 ms by a thread."""

    def __init__(self) -> None:
        """Make a sampler that has seen nothing yet."""
        self.peak_bytes = 0
        self._stop = threading.Event()

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak_bytes = max(self.peak_bytes, _status_bytes("RssAnon"))
            self._stop.wait(_SAMPLE_INTERVAL)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample until the block ends."""
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def write_and_read(gate: Gate, *, path: str, size: int) -> dict[str, float]:
    """Write about `size` bytes, then read them all.

    Returns:
        Seconds of `write` and `read`; bytes of anonymous memory before (`start`) and at most (`writing`, `reading`).
    """
    values = payload.make_values(BATCH_COUNT, KIB)
    keys = payload.make_keys(BATCH_COUNT)
    count = size // (BATCH_COUNT * KIB) * BATCH_COUNT
    gate()
    start_bytes = _status_bytes("RssAnon")
    times = [time.perf_counter()]
    writing, reading = PeakSampler(), PeakSampler()
    with pystreamlog.open(path) as log:
        log.create_topic(TOPIC)
        with writing.running(), log.producer() as producer:
            for _ in range(count // BATCH_COUNT):
                producer.send_many(TOPIC, values, keys)
            producer.flush()
        times.append(time.perf_counter())
        read = 0
        with reading.running(), log.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
            while read < count:
                column = consumer.poll(_PATIENCE, max_records=BATCH_COUNT).values
                assert column, f"nothing more after {read} of {count} records"
                read += len(column)
        times.append(time.perf_counter())
    return {
        "write": times[1] - times[0],
        "read": times[2] - times[1],
        "start": start_bytes,
        "writing": writing.peak_bytes,
        "reading": reading.peak_bytes,
    }


def compare_memory(settings: Settings) -> list[Line]:
    """Producing and then reading 4 GiB: the peak of anonymous memory."""
    if not _STATUS.exists():
        message = "anonymous memory is read from /proc"
        raise UnsupportedHereError(message)
    size = max(1 << 24, int((4 << 30) * settings.scale))
    with fresh_directory(settings) as directory:
        used = run("benches.memory:write_and_read", path=str(directory), size=size)
    peak = max(used["writing"], used["reading"]) / 1e6
    note = (
        f"{used['start'] / 1e6:.0f} MB before, {used['writing'] / 1e6:.0f} writing ({used['write']:.1f} s), "
        f"{used['reading'] / 1e6:.0f} reading ({used['read']:.1f} s)"
    )
    what = f"write, then read {size / (1 << 30):.3g} GiB, anonymous memory"
    return [Line(what, peak, None, "MB", 100.0, at_least=False, absolute=True, note=note)]


LINES = {"memory": compare_memory}
