"""Records as lines of JSON, and back.

`{"topic":"orders","partition":0,"offset":7,"timestamp":1700000000000,"key":"a","value":"b","headers":[["n","v"]]}`

Bytes that are UTF-8 are a string, others `{"base64": "..."}`; no key, and the value of a tombstone, are `null`. So a
line has exactly the bytes that the record has. A line that somebody wrote may also have any other JSON for a key or a
value: that is sent as its text, without the blanks.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Annotated, Any

import msgspec

from pystreamlog.clock import MAX_TIMESTAMP_MS
from pystreamlog.record.record import Headers

__all__ = ["RecordLine", "SentLine", "bytes_in", "encode_lines", "json_of", "line_decoder"]


class RecordLine(msgspec.Struct, gc=False):
    """A record as it is printed."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Any
    value: Any
    headers: Any


class SentLine(msgspec.Struct, forbid_unknown_fields=True):
    """A record as somebody wrote it; `topic` and `offset` are not looked at."""

    value: msgspec.Raw
    key: msgspec.Raw = msgspec.Raw(b"null")
    headers: tuple[tuple[str, msgspec.Raw], ...] = ()
    timestamp: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMESTAMP_MS)] | None = None
    partition: Annotated[int, msgspec.Meta(ge=0)] | None = None
    topic: msgspec.Raw = msgspec.Raw(b"null")
    offset: msgspec.Raw = msgspec.Raw(b"null")


class _Base64(msgspec.Struct, forbid_unknown_fields=True):
    base64: str


line_decoder = msgspec.json.Decoder(SentLine)
_encoder = msgspec.json.Encoder()
_decode_string = msgspec.json.Decoder(str).decode
_decode_base64 = msgspec.json.Decoder(_Base64).decode


def json_of(data: bytes | None) -> str | dict[str, str] | None:
    """What stands for bytes in JSON."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(data).decode()}


def _all_json_of(column: Sequence[bytes | None]) -> list[Any]:
    try:
        return list(map(bytes.decode, column))  # type: ignore[arg-type] # None is a TypeError
    except (UnicodeDecodeError, TypeError):
        return list(map(json_of, column))


def encode_lines(
    topic: str,
    partition: int,
    offsets: Iterable[int],
    timestamps_ms: Iterable[int],
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    headers: Sequence[Headers],
) -> bytes:
    """Records of one partition as lines of JSON, given as columns."""
    pairs: Iterable[Any] = headers
    if any(headers):
        pairs = [[(name, json_of(content)) for name, content in each] for each in headers]
    rows = map(
        RecordLine,
        repeat(topic),
        repeat(partition),
        offsets,
        timestamps_ms,
        _all_json_of(keys) if any(keys) or keys.count(None) < len(keys) else keys,
        _all_json_of(values),
        pairs,
    )
    return _encoder.encode_lines(list(rows))


def bytes_in(raw: msgspec.Raw) -> bytes | None:
    """The bytes that a key or a value of a line stands for.

    Raises:
        ValueError: It says base64, and is none.
    """
    text = bytes(raw)
    if text == b"null":
        return None
    if text[:1] == b'"':
        return _decode_string(text).encode()
    if text[:1] == b"{" and b'"base64"' in text:
        try:
            return b64decode(_decode_base64(text).base64, validate=True)
        except binascii.Error as error:
            raise ValueError(f"what is called base64 is none: {error}") from error
        except msgspec.ValidationError:
            pass  # an object like any other
    return msgspec.json.format(text, indent=-1)
