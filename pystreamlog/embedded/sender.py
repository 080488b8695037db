"""The producer's background thread: writes what has lingered long enough, and what nobody else could write.

It sleeps while nothing is buffered. Partitions are written in the order in which they become due; one whose lock
another process holds is tried again later, so that it does not hold up the others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from time import time_ns

from pystreamlog.embedded.accumulator import Accumulator

__all__ = ["Sender"]

_log = logging.getLogger("pystreamlog")

_RETRY_NS = 5_000_000
"""How long a partition whose lock is taken waits for its next try."""


class Sender:
    """Writes accumulators when they are due.

    Args:
        write: Writes one accumulator's batches; returns whether nothing is left.
        linger_ns: The longest time anything is scheduled ahead: what seems due later is due now, because the wall
            clock was set back.
    """

    def __init__(self, write: Callable[[Accumulator], bool], linger_ns: int) -> None:
        self._write = write
        self._longest_wait = max(linger_ns, _RETRY_NS)
        self._lock = threading.Lock()  # entered by itself: in a condition's own code, Ctrl-C would leave it locked
        self._changed = threading.Condition(self._lock)
        self._due: list[tuple[int, int, Accumulator]] = []
        # When each accumulator is due at the earliest; what the heap says else is out of date. Without it, a stream
        # of sends to a partition whose lock is taken would grow the heap by an entry each.
        self._earliest: dict[Accumulator, int] = {}
        self._order = count()
        self._thread: threading.Thread | None = None
        self._waits_until = 0
        self._stopped = False

    def schedule(self, accumulator: Accumulator, due_ns: int) -> None:
        """Have the accumulator written at `due_ns` (wall clock; 0 for at once)."""
        with self._lock:
            if self._earliest.get(accumulator, due_ns + 1) <= due_ns:
                return
            self._earliest[accumulator] = due_ns
            heappush(self._due, (due_ns, next(self._order), accumulator))
            if self._thread is None and not self._stopped:
                thread = threading.Thread(target=self._run, name="pystreamlog-sender", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except BaseException as error:
                    if not thread.is_alive():
                        self._thread = None
                    if not isinstance(error, RuntimeError):
                        raise
                    # The interpreter is shutting down: the flush at exit writes it.
                    return
            elif due_ns < self._waits_until:
                self._changed.notify()

    def stop(self) -> None:
        """End the thread; what is scheduled is not written."""
        with self._lock:
            self._stopped = True
            self._due.clear()
            self._earliest.clear()
            self._changed.notify()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _next(self) -> Accumulator | None:
        """Wait for the next accumulator to be due; None at the end."""
        with self._lock:
            while not self._stopped:
                if not self._due:
                    self._waits_until = 1 << 63
                    self._changed.wait()
                    continue
                due_ns, _, accumulator = self._due[0]
                if self._earliest.get(accumulator) != due_ns:
                    heappop(self._due)
                    continue
                wait = due_ns - time_ns()
                if wait <= 0 or wait > self._longest_wait:
                    heappop(self._due)
                    del self._earliest[accumulator]
                    return accumulator
                self._waits_until = due_ns
                self._changed.wait(wait / 1e9)
            return None

    def _run(self) -> None:
        while (accumulator := self._next()) is not None:
            try:
                done = self._write(accumulator)
            except Exception:  # noqa: BLE001 - the thread serves every partition and must go on
                _log.exception("could not write to partition %d of %r", accumulator.partition, accumulator.topic)
                done = True
            if not done:
                self.schedule(accumulator, time_ns() + _RETRY_NS)
