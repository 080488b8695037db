"""Which names topics may have: Kafka's rule, so that every name also works on a cluster."""

from __future__ import annotations

import re

from pystreamlog.errors import InvalidTopicError

__all__ = ["check_topic_name", "is_topic_name"]

_MAX_LENGTH = 249
_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")


def is_topic_name(name: str) -> bool:
    """Whether a topic may have that name; files that are no topics have names that none may have."""
    return 1 <= len(name) <= _MAX_LENGTH and name not in (".", "..") and _LEGAL.fullmatch(name) is not None


def check_topic_name(name: object) -> str:
    """`name`, if a topic may be called so.

    Raises:
        InvalidTopicError: It may not.
    """
    if isinstance(name, str) and is_topic_name(name):
        return name
    shown = ascii(name)
    if len(shown) > _MAX_LENGTH:
        shown = f"{shown[:40]}... ({len(shown)} characters)"
    raise InvalidTopicError(
        f"{shown} is no topic name: use 1 to {_MAX_LENGTH} of a-z, A-Z, 0-9, '.', '_' and '-', and not '.' or '..'",
        topic=name if isinstance(name, str) else repr(name),
    )
