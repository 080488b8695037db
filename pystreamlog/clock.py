"""The only reader of time: wall-clock milliseconds for records, the monotonic clock for waiting.

Everything that needs time takes a `Clock`, so that a test can move it. `SYSTEM` is the machine's.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from pystreamlog.errors import ConfigError

__all__ = ["MAX_TIMESTAMP_MS", "SYSTEM", "Clock", "to_datetime", "to_timestamp_ms"]

MAX_TIMESTAMP_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, the last that `datetime` can hold."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Clock:
    """The machine's clocks; subclass it to control time in a test."""

    __slots__ = ()

    now_ns = staticmethod(time.time_ns)
    """Wall-clock nanoseconds since 1970 (UTC)."""

    def now_ms(self) -> int:
        """Wall-clock milliseconds since 1970 (UTC)."""
        return self.now_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds of a clock that never jumps; only differences mean anything."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Do nothing for `seconds`; a signal handler that raises ends it early."""
        time.sleep(seconds)


SYSTEM = Clock()


def to_timestamp_ms(when: datetime | int) -> int:
    """Milliseconds since 1970 of an aware datetime or of an int that is that already.

    Raises:
        ConfigError: A naive datetime, another type, before 1970 or after the year 9999.
    """
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise ConfigError(f"{when!r} has no time zone: pass an aware datetime or milliseconds since 1970 (UTC)")
        when = (when - _EPOCH) // _MILLISECOND
    if type(when) is not int:
        raise ConfigError(f"a time is an aware datetime or int milliseconds since 1970 (UTC), not {when!r}")
    if not 0 <= when <= MAX_TIMESTAMP_MS:
        raise ConfigError(f"timestamp {when} ms lies outside 1970 to 9999: timestamps are milliseconds since 1970")
    return when


def to_datetime(timestamp_ms: int) -> datetime:
    """The aware UTC datetime of milliseconds since 1970."""
    return _EPOCH + timedelta(milliseconds=timestamp_ms)
