"""The settings of `Consumer.process`, checked, and what a dead letter says about why it is one."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

import attrs

from pystreamlog.backend.topic import Topic
from pystreamlog.errors import ConfigError
from pystreamlog.record.record import Headers
from pystreamlog.settings import integer, one_of

__all__ = ["ProcessConfig", "checked_handler", "dead_letter_headers", "topic_name"]

_MAX_INT = 2**31 - 1

_LONGEST_BACKOFF = 32
"""By how much the wait before a retry grows at most: doubled five times."""

_MESSAGE_BYTES = 1 << 10
_TRACE_BYTES = 8 << 10
"""A dead letter must not outgrow what a topic takes because of what is said about it. Of a stack trace the end counts:
where it was raised, and what."""


@attrs.frozen
class ProcessConfig:
    """The settings of one call of `Consumer.process`, which says what each means.

    Attributes:
        workers: How many handlers run at a time.
        order: `"key"` or `"partition"`.
        max_in_flight: How many records are taken and not finished at most.
        retries: How often a record that fails is tried again.
        retry_backoff_ms: The wait before the first retry, in ms; doubled each time, up to 32 times.
        on_failure: `"stop"`, `"dead_letter"` or `"skip"`.
        dead_letter_topic: Where dead letters go.
    """

    workers: int = attrs.field(validator=integer(1, 1 << 14))
    order: str = attrs.field(validator=one_of("key", "partition"))
    max_in_flight: int = attrs.field(validator=integer(1, _MAX_INT))
    retries: int = attrs.field(validator=integer(0, _MAX_INT))
    retry_backoff_ms: int = attrs.field(validator=integer(0, _MAX_INT))
    on_failure: str = attrs.field(validator=one_of("stop", "dead_letter", "skip"))
    dead_letter_topic: str | None = attrs.field()

    @dead_letter_topic.validator
    def _check_dead_letter_topic(self, _: object, value: object) -> None:
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"dead_letter_topic is a topic or its name, not {value!r}")
        if (value is not None) != (self.on_failure == "dead_letter"):
            raise ConfigError(
                f"dead_letter_topic={value!r} with on_failure={self.on_failure!r}: a topic for dead letters and "
                'on_failure="dead_letter" go together'
            )

    def backoff(self, failures: int) -> float:
        """Seconds to wait after so many failures of one record."""
        return self.retry_backoff_ms / 1000 * min(1 << min(failures - 1, 30), _LONGEST_BACKOFF)


def topic_name(topic: str | Topic[Any, Any] | None) -> str | None:
    """The name of a topic that may be named by itself."""
    return topic.name if isinstance(topic, Topic) else topic


def checked_handler(handler: Callable[..., object], *, awaited: bool) -> None:
    """Refuse what cannot handle records.

    Args:
        handler: What is to be called with each record.
        awaited: Coroutine functions are awaited.

    Raises:
        ConfigError: It is not callable, or a coroutine function that nobody awaits.
    """
    if not callable(handler):
        raise ConfigError(f"a handler is called with each record, but {handler!r} is not callable")
    if not awaited and (
        inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 - what it is, not whether
    ):
        raise ConfigError(f"{handler!r} is a coroutine function: pass it to process_async()")


def dead_letter_headers(error: BaseException, topic: str, partition: int, offset: int) -> Headers:
    """What Kafka Streams (KIP-1034) puts behind the headers of a record that it sends to a dead letter queue.

    Args:
        error: Why nobody could handle it.
        topic: Where the record lies.
        partition: The same.
        offset: The same.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    trace = "".join(traceback.format_exception(error))
    return (
        ("__streams.errors.exception", _text(name)[:_MESSAGE_BYTES]),
        ("__streams.errors.message", _text(str(error))[:_MESSAGE_BYTES]),
        ("__streams.errors.stacktrace", _text(trace)[-_TRACE_BYTES:]),
        ("__streams.errors.topic", _text(topic)),
        ("__streams.errors.partition", b"%d" % partition),
        ("__streams.errors.offset", b"%d" % offset),
    )


def _text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
