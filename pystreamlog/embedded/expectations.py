"""What callers may expect of a partition's end and of a key's version, and the errors for what cannot be checked."""

from __future__ import annotations

from pystreamlog.coordination.topics import TopicState
from pystreamlog.errors import ConfigError

__all__ = ["check_expected", "check_sent", "keys_decide", "not_indexed"]


def keys_decide(topic: str) -> ConfigError:
    """The error for a partition that was named in a topic with a key index."""
    return ConfigError(
        f"topic {topic!r} has a key index, so each key's records lie in the key's partition: leave partition out"
    )


def not_indexed(topic: str, what: str) -> ConfigError:
    """The error for what needs a key index."""
    return ConfigError(
        f"{what} needs an index of keys, which topic {topic!r} has not: make the topic with key_index=True"
    )


def check_expected(
    topic: TopicState,
    partition: int | None,
    key: bytes | None,
    expected_end: int | None,
    expected_version: int | None,
) -> None:
    """Refuse conditions that cannot be checked.

    Args:
        topic: The topic.
        partition: The partition that was named; None when none was.
        key: The record's key.
        expected_end: See `Topic.append`.
        expected_version: Likewise.

    Raises:
        ConfigError: One of them.
    """
    if expected_end is not None:
        if type(expected_end) is not int or expected_end < 0:
            raise ConfigError(f"expected_end is an offset, a whole number from 0 on, not {expected_end!r}")
        if topic.partitions > 1 and partition is None and key is None:
            raise ConfigError(
                f"topic {topic.name!r} has {topic.partitions} partitions, each with an end of its own: pass a key, or "
                "the partition, with expected_end"
            )
    if expected_version is not None:
        if not topic.config.key_index:
            raise not_indexed(topic.name, "expected_version")
        if type(expected_version) is not int or expected_version < 0:
            raise ConfigError(f"expected_version is a whole number from 0 on, not {expected_version!r}")
        if key is None:
            raise ConfigError("expected_version is the number of records with a key: pass the key")


def check_sent(
    topic: TopicState,
    partition: int | None,
    key: bytes | None,
    expected_end: int | None,
    expected_version: int | None,
    transaction: object,
) -> tuple[int | None, int | None]:
    """As `check_expected`, for a producer in `transaction`, which is None outside of one; returns the conditions.

    Raises:
        ConfigError: They cannot be checked, or there is no transaction.
    """
    if transaction is None:
        raise ConfigError(
            "expected_end and expected_version hold for a whole transaction: send in one, or use Topic.append"
        )
    check_expected(topic, partition, key, expected_end, expected_version)
    return expected_end, expected_version
