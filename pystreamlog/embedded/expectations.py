"""What senders may expect of a log before it takes their records, checked for sense before anything is done."""

from __future__ import annotations

from pystreamlog.embedded.key_history import keys_decide, not_indexed
from pystreamlog.errors import ConfigError, InvalidRecordError

__all__ = ["check_expectations", "keyless"]


def keyless(topic: str, index: int = 0) -> InvalidRecordError:
    """The error for a record without a key in a compacted topic; `index` is its place among those of one call."""
    return InvalidRecordError(
        f"topic {topic!r} is compacted, which keeps the last record of each key: send every record with a key, or "
        "leave 'compact' out of the topic's cleanup_policy",
        topic=topic,
        index=index,
    )


def check_expectations(
    topic: str,
    count: int,
    *,
    key_index: bool,
    key: bytes | None,
    partition: int | None,
    expected_end: int | None,
    expected_version: int | None,
) -> None:
    """Whether a record may expect that.

    Args:
        topic: The topic's name.
        count: How many partitions it has.
        key_index: It has a key index.
        key: The record's key.
        partition: The partition that was named; None when none was.
        expected_end: See `Topic.append`.
        expected_version: Likewise.

    Raises:
        ConfigError: It may not; the message says why.
    """
    if key_index and partition is not None:
        raise keys_decide(topic)
    if expected_end is not None:
        if type(expected_end) is not int or expected_end < 0:
            raise ConfigError(f"expected_end is an offset, a whole number from 0 on, not {expected_end!r}")
        if count > 1 and partition is None and key is None:
            raise ConfigError(
                f"topic {topic!r} has {count} partitions, each with an end of its own: pass a key, or the partition, "
                "with expected_end"
            )
    if expected_version is not None:
        if not key_index:
            raise not_indexed(topic, "expected_version")
        if type(expected_version) is not int or expected_version < 0:
            raise ConfigError(f"expected_version is a whole number from 0 on, not {expected_version!r}")
        if key is None:
            raise ConfigError("expected_version is the number of records with a key: pass the key")
