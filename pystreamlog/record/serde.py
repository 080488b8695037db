"""Turns keys and values into bytes and back: the serdes that come with the library, and the calls that use any serde.

None never reaches a serde: it means "no key", or a tombstone. Serdes raise what they like; `dumps_with`, `loads_with`
and `dumps_column` are the only callers, and turn it into `SerdeError`.

One serde serves all threads at once, so it must keep nothing between calls that is not safe to share.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import repeat
from struct import Struct
from types import NoneType
from typing import Any, Generic, Protocol, TypeVar, overload

import msgspec

from pystreamlog.errors import ConfigError, SerdeError
from pystreamlog.record.record import Headers

__all__ = [
    "Serde",
    "StructSerde",
    "TopicSerde",
    "as_bytes",
    "bytes_",
    "dumps_column",
    "dumps_with",
    "float64",
    "int64",
    "json",
    "loads_with",
    "msgpack",
    "string",
    "struct",
]

T = TypeVar("T")


class Serde(Protocol[T]):
    """Turns values of one type into bytes and back.

    Any object with these two methods will do. Both are called from any thread, several at once, and never with or for
    None. What they raise reaches the user as the cause of a `SerdeError`.
    """

    def dumps(self, value: T, /) -> bytes:
        """The bytes of `value`; called inside ``send``, in the sender's thread. Must return ``bytes``, nothing like it.

        Not promised: that the record is written afterwards, or that the call happens once per record.
        """

    def loads(self, data: bytes, /) -> T:
        """The value of `data`; called while records are read. Not promised: that `dumps` of this serde wrote it."""


class TopicSerde(Serde[T], Protocol[T]):
    """A serde that needs to know where a record goes or comes from, such as one with a schema registry.

    A serde may have one of the two methods or both; where one is missing, `dumps` or `loads` is called. Keys and values
    are told apart by giving the producer or consumer two different serdes.
    """

    def dumps_for(self, topic: str, headers: Headers, value: T, /) -> bytes:
        """As `dumps`, for a record of `topic` with `headers`, which it cannot change."""

    def loads_for(self, topic: str, headers: Headers, data: bytes, /) -> T:
        """As `loads`, for a record of `topic` with `headers`."""


# --- the serdes of the library ----------------------------------------------------------------------------------------


class BytesSerde:
    """Bytes as they are."""

    __slots__ = ()

    def dumps(self, value: bytes, /) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"a {type(value).__name__} is not bytes")
        return bytes(value)

    def loads(self, data: bytes, /) -> bytes:
        return data


class StringSerde:
    """UTF-8, strictly."""

    __slots__ = ()

    def dumps(self, value: str, /) -> bytes:
        return str.encode(value, "utf-8")

    def loads(self, data: bytes, /) -> str:
        return str(data, "utf-8")


class NumberSerde(Generic[T]):
    """One number of 8 bytes, big-endian."""

    __slots__ = ("_layout",)

    def __init__(self, layout: str) -> None:
        self._layout = Struct(layout)

    def dumps(self, value: T, /) -> bytes:
        return self._layout.pack(value)

    def loads(self, data: bytes, /) -> T:
        number: T = self._layout.unpack(data)[0]
        return number


def _plain(value: object) -> object:
    """What msgspec is to encode instead of an object it does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | AbstractSet):
        return list(value)
    raise TypeError(f"a {type(value).__name__} has no such form; convert it first, or write a serde for it")


class PlainSerde:
    """Values without a declared type."""

    __slots__ = ("_decoder", "_encoder")

    def __init__(
        self,
        encoder: msgspec.json.Encoder | msgspec.msgpack.Encoder,
        decoder: msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any],
    ) -> None:
        self._encoder = encoder
        self._decoder = decoder

    def dumps(self, value: Any, /) -> bytes:
        return self._encoder.encode(value)

    def loads(self, data: bytes, /) -> Any:
        return self._decoder.decode(data)


class StructSerde(Generic[T]):
    """JSON of one declared type, checked when it is read; `struct` makes it."""

    __slots__ = ("_class", "_decoder", "_encoder", "kind")

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self._class = kind if isinstance(kind, type) and not typing.is_typeddict(kind) else object
        self._encoder = msgspec.json.Encoder()
        try:
            self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
            described = msgspec.inspect.type_info(kind)
        except TypeError as error:
            raise ConfigError(f"struct({kind!r}): {error}") from error
        if isinstance(described, msgspec.inspect.CustomType):
            raise ConfigError(
                f"struct({kind!r}): it takes dataclasses, attrs classes and msgspec structs; "
                "for other classes write a serde, an object with dumps and loads"
            )

    def dumps(self, value: T, /) -> bytes:
        """The JSON of `value`.

        Raises:
            TypeError: `value` is of another class, or a field holds what JSON cannot. The types of the fields are not
                checked here: annotations are promises, and checking would take as long as reading.
        """
        if not isinstance(value, self._class):
            raise TypeError(f"expected {self._class.__qualname__}")
        return self._encoder.encode(value)

    def loads(self, data: bytes, /) -> T:
        """The value that `data` holds.

        Raises:
            ValueError: `data` is no JSON, or its fields do not fit the type. Fields it does not know are skipped.
        """
        return self._decoder.decode(data)


bytes_: Serde[bytes] = BytesSerde()
"""Bytes as they are; ``bytearray`` and ``memoryview`` are copied when sent."""

string: Serde[str] = StringSerde()
"""Strings as UTF-8, strictly: lone surrogates and invalid bytes are errors."""

json: Serde[Any] = PlainSerde(msgspec.json.Encoder(enc_hook=_plain), msgspec.json.Decoder())
"""JSON of plain values: str, int, float, bool, None, list, dict, as msgspec encodes them.

Other types are written, but read back as plain values: dataclasses, attrs classes, msgspec structs and mappings as
objects, other sequences and sets as arrays, datetimes, UUIDs, decimals and bytes (base64) as strings, numeric keys as
strings. NaN and infinities become ``null``, since JSON has neither; `msgpack` keeps them. The JSON ``null`` is
``b'null'``, a value; a tombstone is ``value=None``.
"""

msgpack: Serde[Any] = PlainSerde(msgspec.msgpack.Encoder(enc_hook=_plain), msgspec.msgpack.Decoder())
"""MessagePack of plain values: those of `json`, and bytes, aware datetimes, numeric keys, NaN and infinities."""

int64: Serde[int] = NumberSerde(">q")
"""Integers from `-2**63` to `2**63 - 1` in 8 bytes, big-endian, as Kafka's ``LongSerializer``."""

float64: Serde[float] = NumberSerde(">d")
"""Floats in 8 bytes, big-endian, as Kafka's ``DoubleSerializer``."""


@overload
def struct(kind: type[T]) -> StructSerde[T]: ...
@overload
def struct(kind: object) -> StructSerde[Any]: ...
def struct(kind: Any) -> StructSerde[Any]:
    """A serde for one type: JSON that is checked against the type when it is read.

    Args:
        kind: A dataclass, an attrs class or a `msgspec.Struct`; also what msgspec builds from them, such as a union of
            tagged structs. Make the serde once and keep it: it compiles the type.

    Raises:
        ConfigError: msgspec cannot read values of this type.
    """
    return StructSerde(kind)


# --- the calls of producers and consumers -----------------------------------------------------------------------------

_RAW_TYPES = frozenset({bytes, NoneType})


def as_bytes(value: object, what: str, topic: str) -> bytes:
    """A key or value that has no serde, as bytes.

    Args:
        value: ``bytes``, or ``bytearray`` or ``memoryview``, which are copied.
        what: ``key`` or ``value``, for the message.
        topic: The topic's name, for the message.

    Raises:
        SerdeError: `value` is anything else.
    """
    if type(value) is bytes:  # what nearly all are; the union below takes 200 ns
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise SerdeError(
        f"topic {topic!r}: the {what} is a {type(value).__name__}, not bytes; "
        f"pass {what}_serde=, for example pystreamlog.serde.string, json or struct(SomeType)",
        topic=topic,
    )


def dumps_with(serde: Serde[T] | None, topic: str, headers: Headers, value: T, what: str = "value") -> bytes:
    """The bytes of one key or value.

    Args:
        serde: Its serde; None takes bytes only.
        topic: The topic's name.
        headers: The record's headers.
        value: The key or value; not None.
        what: ``key`` or ``value``, for the message.

    Raises:
        SerdeError: The serde raised (``__cause__``), or returned no ``bytes``, or `value` needs a serde.
    """
    if serde is None:
        return as_bytes(value, what, topic)
    try:
        dumps_for = getattr(serde, "dumps_for", None)
        data: object = serde.dumps(value) if dumps_for is None else dumps_for(topic, headers, value)
    except Exception as error:
        raise SerdeError(
            f"topic {topic!r}: the {what}, a {type(value).__name__}, could not be written "
            f"by {type(serde).__name__}: {error!r}",
            topic=topic,
        ) from error
    if isinstance(data, bytes):
        return data
    raise SerdeError(
        f"topic {topic!r}: {type(serde).__name__} returned a {type(data).__name__} for the {what}; "
        "it must return bytes",
        topic=topic,
    )


def dumps_column(
    serde: Serde[T] | None,
    topic: str,
    headers: Sequence[Headers] | None,
    values: Sequence[T | None],
    what: str = "value",
) -> list[bytes | None]:
    """The bytes of a column of keys or values; None stays None.

    Without a serde, bytes pass at 20 ns each: their types are compared in C.

    Args:
        serde: Their serde; None takes bytes only.
        topic: The topic's name.
        headers: The headers of each record; None when no record has any.
        values: The keys or values.
        what: ``key`` or ``value``, for the message.

    Raises:
        SerdeError: As for `dumps_with`; ``index`` is the place in the column. Nothing is returned then.
    """
    if serde is None and _RAW_TYPES.issuperset(map(type, values)):
        return list(values)  # type: ignore[arg-type]  # the line above compared the types
    column: list[bytes | None] = []
    try:
        for value, of_record in zip(values, repeat(()) if headers is None else headers, strict=headers is not None):
            column.append(None if value is None else dumps_with(serde, topic, of_record, value, what))
    except SerdeError as error:
        raise SerdeError(f"{error} (at index {len(column)})", topic=topic, index=len(column)) from error.__cause__
    return column


@overload
def loads_with(serde: None, topic: str, headers: Headers, data: bytes, what: str = "value") -> bytes: ...
@overload
def loads_with(serde: Serde[T], topic: str, headers: Headers, data: bytes, what: str = "value") -> T: ...
def loads_with(serde: Serde[Any] | None, topic: str, headers: Headers, data: bytes, what: str = "value") -> Any:
    """The key or value that `data` holds; the twin of `dumps_with`.

    Args:
        serde: Its serde; None returns `data` as it is.
        topic: The topic's name.
        headers: The record's headers.
        data: The bytes of the key or value; not None.
        what: ``key`` or ``value``, for the message.

    Raises:
        SerdeError: The serde raised (``__cause__``). ``topic`` and ``headers`` are set, and `data` as the attribute
            that `what` names; the caller adds ``partition``, ``offset`` and the rest of the record.
    """
    if serde is None:
        return data
    try:
        loads_for = getattr(serde, "loads_for", None)
        return serde.loads(data) if loads_for is None else loads_for(topic, headers, data)
    except Exception as error:
        raise SerdeError(
            f"topic {topic!r}: the {what}, {len(data)} bytes, could not be read by {type(serde).__name__}: {error!r}",
            topic=topic,
            headers=headers,
            **{what: data},
        ) from error
