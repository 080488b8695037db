"""Serdes: how keys and values become bytes and come back.

Pass one as ``key_serde`` or ``value_serde``. Any object with ``dumps(value) -> bytes`` and ``loads(bytes) -> value`` is
a serde too. Without one, keys and values are bytes.
"""

from __future__ import annotations

from pystreamlog.record.serde import (
    Serde,
    StructSerde,
    TopicSerde,
    bytes_,
    float64,
    int64,
    json,
    msgpack,
    string,
    struct,
)

__all__ = [
    "Serde",
    "StructSerde",
    "TopicSerde",
    "bytes_",
    "float64",
    "int64",
    "json",
    "msgpack",
    "string",
    "struct",
]
