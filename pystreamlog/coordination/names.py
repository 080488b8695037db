"""Which names topics and consumer groups may have, and what a group's folder is called.

Topics follow Kafka's rule, so that every name also works on a cluster. Group ids are free text, as in Kafka.
"""

from __future__ import annotations

import re

from pystreamlog.errors import ConfigError, InvalidTopicError

__all__ = ["check_text", "check_topic_name", "encoded_id", "is_topic_name"]

_MAX_LENGTH = 249
_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")
_LONGEST_ID = 32_767
"""Bytes of UTF-8: the longest string that Kafka's protocol can carry."""
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-.")
_LONGEST_ENCODED = 200
_KEPT_OF_LONGER = 100


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


def check_text(text: object, what: str) -> str:
    """`text`, if it is one that a group's files, and Kafka, can hold: 1 to 32,767 bytes of UTF-8.

    Args:
        text: A group id or the like.
        what: Its name, for messages.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{what} is a text of at least one character, not {text!r}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} holds characters that UTF-8 cannot encode: {text[:40]!a}") from error
    if size > _LONGEST_ID:
        raise ConfigError(f"{what} has {size} bytes of UTF-8: at most {_LONGEST_ID} are allowed")
    return text


def encoded_id(text: str) -> str:
    """A file name for free text: no two texts share one, also where file names fold case; at most 200 characters.

    All but `a-z0-9_-.` is percent-encoded, and so is a point at the start; what is too long for a file name ends in
    `%%` and the SHA-256 of the text.
    """
    data = text.encode()
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in data)
    if encoded.startswith("."):
        encoded = f"%2e{encoded[1:]}"
    if len(encoded) <= _LONGEST_ENCODED:
        return encoded
    import hashlib  # noqa: PLC0415 - brings OpenSSL, and few ids are that long

    return f"{encoded[:_KEPT_OF_LONGER]}%%{hashlib.sha256(data).hexdigest()}"
