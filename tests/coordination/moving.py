"""What tests of maintenance share: a clock that they move, and the ids of two boots of the machine."""

import time

from pystreamlog.clock import Clock

BOOT, NEXT_BOOT = b"this-boot-of-it.", b"next-boot-of-it."


class MovedClock(Clock):
    """The machine's clock, moved by the test: its wall alone, or all of it."""

    __slots__ = ("jumped_ms", "passed_ms")

    def __init__(self):
        self.passed_ms = self.jumped_ms = 0

    def now_ns(self):
        """The machine's time, moved."""
        return time.time_ns() + (self.passed_ms + self.jumped_ms) * 1_000_000

    def monotonic(self):
        """Moved by what passes only."""
        return time.monotonic() + self.passed_ms / 1000
