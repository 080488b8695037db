"""Every error pystreamlog raises, grouped by who must act on it.

Each error carries its data as attributes (the keyword arguments it was raised with) and a message that says what to
do. All survive pickling, so that an error raised in a worker process arrives whole.
"""

from __future__ import annotations

__all__ = [
    "ClosedError",
    "CommitFailedError",
    "ConfigError",
    "CorruptLogError",
    "DeliveryTimeoutError",
    "FencedError",
    "GroupNotEmptyError",
    "IllegalStateError",
    "IncompatibleFormatError",
    "InvalidRecordError",
    "InvalidTopicError",
    "LockTimeoutError",
    "NoOffsetError",
    "NotSupportedError",
    "OffsetOutOfRangeError",
    "ReadOnlyError",
    "RebalanceInProgressError",
    "RecordTooLargeError",
    "SerdeError",
    "StorageError",
    "StreamLogError",
    "TopicExistsError",
    "TransactionAbortedError",
    "UnknownGroupError",
    "UnknownPartitionError",
    "UnknownTopicError",
    "VersionConflictError",
    "WakeupError",
]


class StreamLogError(Exception):
    """Base of every error of this library.

    Args:
        message: What went wrong and what to do about it.
        **attributes: The data of the error; each becomes an attribute.
    """

    def __init__(self, message: str = "", **attributes: object) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)


# --- fix the call -----------------------------------------------------------------------------------------------------


class ConfigError(StreamLogError, ValueError):
    """A setting or an argument is unknown, of the wrong type, or out of range."""


class UnknownTopicError(StreamLogError, LookupError):
    """The topic does not exist, or was deleted (``topic``)."""

    topic: str = ""


class TopicExistsError(StreamLogError):
    """The topic exists already (``topic``)."""

    topic: str = ""


class InvalidTopicError(StreamLogError, ValueError):
    """The topic's name breaks Kafka's rule, or differs from another's only in case (``topic``)."""

    topic: str = ""


class UnknownPartitionError(StreamLogError, LookupError):
    """The topic has no such partition (``topic``, ``partition``)."""

    topic: str = ""
    partition: int = -1


class OffsetOutOfRangeError(StreamLogError, LookupError):
    """The offset lies before the log's start or beyond its end (``topic``, ``partition``, ``offset``)."""

    topic: str = ""
    partition: int = -1
    offset: int = -1


class NoOffsetError(StreamLogError, LookupError):
    """There is no position to start from and ``auto_offset_reset`` is ``"none"`` (``topic``, ``partition``)."""

    topic: str = ""
    partition: int = -1


class RecordTooLargeError(StreamLogError, ValueError):
    """A record exceeds ``max_request_size`` or the topic's ``max_message_bytes`` (``size``, ``limit``)."""

    size: int = 0
    limit: int = 0


class InvalidRecordError(StreamLogError, ValueError):
    """A record has no key, in a topic that is compacted (``topic``; ``index`` among the records of one call)."""

    topic: str = ""
    index: int = 0


class SerdeError(StreamLogError, ValueError):
    """A key or value could not be turned into bytes, or bytes not into a key or value.

    On the consumer's side ``topic``, ``partition`` and ``offset`` say where the record lies, and ``key``, ``value``
    and ``headers`` hold its raw bytes; seek past ``offset`` to go on.
    """

    topic: str = ""
    partition: int = -1
    offset: int = -1
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class ClosedError(StreamLogError):
    """The object was closed, or belongs to the process that this one was forked from."""


class IllegalStateError(StreamLogError, RuntimeError):
    """The call does not fit the object's state, for example ``assign`` after ``subscribe``."""


class ReadOnlyError(StreamLogError):
    """The log was opened with ``read_only=True``, or lies on a file system that cannot be written."""


class NotSupportedError(StreamLogError):
    """This platform, file system or backend cannot do what was asked."""


class UnknownGroupError(StreamLogError, LookupError):
    """The consumer group does not exist (``group_id``)."""

    group_id: str = ""


class GroupNotEmptyError(StreamLogError):
    """The consumer group still has members (``group_id``)."""

    group_id: str = ""


# --- try again --------------------------------------------------------------------------------------------------------


class DeliveryTimeoutError(StreamLogError, TimeoutError):
    """A record was not written within ``delivery_timeout_ms``, or a result not there within its time-out."""


class LockTimeoutError(StreamLogError, TimeoutError):
    """A lock was not free in time; ``path`` is its file and ``holder`` names who holds it."""

    path: str = ""
    holder: str = ""


class RebalanceInProgressError(StreamLogError):
    """The group is changing hands; call again after the next ``poll``."""


# --- poll again -------------------------------------------------------------------------------------------------------


class CommitFailedError(StreamLogError):
    """The consumer lost the partitions it tried to commit; poll again to rejoin."""


# --- decide again -----------------------------------------------------------------------------------------------------


class VersionConflictError(StreamLogError):
    """Somebody else wrote first: ``expected`` is what the caller assumed, ``actual`` what the log holds.

    It is about the end of ``partition`` of ``topic``, or, with a ``key``, about the number of its records there.
    """

    expected: int = -1
    actual: int = -1
    topic: str = ""
    partition: int = -1
    key: bytes | None = None


# --- abort the transaction --------------------------------------------------------------------------------------------


class TransactionAbortedError(StreamLogError):
    """The transaction cannot commit any more; abort it and start another."""


# --- start anew -------------------------------------------------------------------------------------------------------


class FencedError(StreamLogError):
    """A newer instance took over this identity; this one must stop."""


# --- call the operator ------------------------------------------------------------------------------------------------


class CorruptLogError(StreamLogError):
    """Data that was published or known durable does not verify.

    ``path`` and ``position`` (bytes) say where, ``expected`` and ``found`` what was compared.
    """

    path: str = ""
    position: int = 0
    expected: object = None
    found: object = None


class StorageError(StreamLogError):
    """The operating system refused a file operation: disk full, I/O error, no descriptors.

    Wraps the ``OSError`` (``__cause__``); ``path`` is the file, ``errno`` its code.
    """

    path: str = ""
    errno: int = 0


class IncompatibleFormatError(StreamLogError):
    """The directory is no log, or one of a format that this version cannot read (``path``)."""

    path: str = ""


# --- not a failure ----------------------------------------------------------------------------------------------------


class WakeupError(StreamLogError):
    """``wakeup()`` ended a waiting ``poll``."""
