"""Packs the body of a batch with gzip, lz4 or zstd, and unpacks it without trusting it.

A codec's number is stored in the batch header. The numbers are Kafka's; 2, snappy, is not used::

    0 none    1 gzip    3 lz4    4 zstd

Each body is exactly one gzip member, lz4 frame or zstd frame. Whatever the packed bytes claim about themselves,
unpacking stops one byte past the size that the batch header promised, so it takes at most about twice that size and the
codec's own window: a small damaged file must not eat the memory of the process that reads it.

Libraries are imported at first use, since most logs use one codec or none. Any thread may call anything here; packing
and unpacking let other threads run meanwhile.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType, ModuleType

import attrs

from pystreamlog.errors import ConfigError, NotSupportedError

__all__ = ["CODEC_NAMES", "Codec", "decompress", "parse_codec"]

_GZIP_WBITS = 31
"""zlib's number for a 32 KiB window (15) inside a gzip header and trailer (16)."""

_LZ4_FAST_LEVEL = 9
"""Kafka's lz4 level 9, its default, is the fast compressor; its other levels are the high compressor (KIP-390)."""

_LZ4_MIN_HIGH_LEVEL, _LZ4_MAX_HIGH_LEVEL = 3, 12
"""The levels at which liblz4 uses its high compressor; it has no levels for what Kafka calls 13 to 17."""

_LZ4_MAX_EXPANSION = 255
"""A byte of an lz4 block stands for at most 255 bytes: the largest step of a match length."""

_ZSTD_MIN_WINDOW_LOG, _ZSTD_MAX_WINDOW_LOG = 23, 27
"""Every decoder is to accept windows of 8 MiB (RFC 8878, 3.1.1.1.2); 128 MiB is the largest that level 22 asks for."""


def _pack_gzip(zlib: ModuleType, data: bytes | memoryview, level: int) -> bytes:
    packed: bytes = zlib.compress(data, level, wbits=_GZIP_WBITS)
    return packed


def _pack_lz4(lz4: ModuleType, data: bytes | memoryview, level: int) -> bytes:
    high_level = min(max(level, _LZ4_MIN_HIGH_LEVEL), _LZ4_MAX_HIGH_LEVEL)
    packed: bytes = lz4.compress(data, compression_level=0 if level == _LZ4_FAST_LEVEL else high_level)
    return packed


def _pack_zstd(zstd: ModuleType, data: bytes | memoryview, level: int) -> bytes:
    packed: bytes = zstd.compress(data, level)
    return packed


# The unpackers ask for one byte more than there may be: it lets the decoder reach the end of the stream in the same
# call, and shows a stream that is too long. They return the bytes, whether the stream ended, and how many bytes follow.


def _unpack_gzip(zlib: ModuleType, data: bytes | memoryview, size: int) -> tuple[bytes, bool, int]:
    stream = zlib.decompressobj(wbits=_GZIP_WBITS)
    try:
        body = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"the gzip stream is damaged: {error}") from error
    return body, stream.eof, len(stream.unused_data)


def _unpack_lz4(lz4: ModuleType, data: bytes | memoryview, size: int) -> tuple[bytes, bool, int]:
    # The library allocates all it is allowed to return, so a short frame is not given room for a wrong size.
    room = min(size, _LZ4_MAX_EXPANSION * len(data)) + 1
    try:
        body, consumed, ended = lz4.decompress_chunk(lz4.create_decompression_context(), data, max_length=room)
    except RuntimeError as error:
        raise ValueError(f"the lz4 stream is damaged: {error}") from error
    return body, ended, len(data) - consumed if ended else 0


def _unpack_zstd(zstd: ModuleType, data: bytes | memoryview, size: int) -> tuple[bytes, bool, int]:
    window_log = min(max(size.bit_length(), _ZSTD_MIN_WINDOW_LOG), _ZSTD_MAX_WINDOW_LOG)
    try:
        declared = zstd.get_frame_info(data).decompressed_size
        if declared is not None and declared != size:
            raise ValueError(f"the zstd stream declares {declared} bytes, not {size}")
        stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})
        body = stream.decompress(data, size + 1)
    except zstd.ZstdError as error:
        raise ValueError(f"the zstd stream is damaged: {error}") from error
    return body, stream.eof, len(stream.unused_data)


@attrs.frozen
class _Format:
    """What there is to know of one codec."""

    id: int
    package: str
    """The module that packs and unpacks."""
    remedy: str
    """What to do when the module is missing."""
    levels: range
    """Kafka's levels."""
    default_level: int
    """Kafka's default."""
    pack: Callable[[ModuleType, bytes | memoryview, int], bytes]
    unpack: Callable[[ModuleType, bytes | memoryview, int], tuple[bytes, bool, int]]


def _extra(name: str) -> str:
    return f"install it with: pip install 'pystreamlog[{name}]'"


_BUILT_WITHOUT = "this Python was built without it"
_ZSTD_IN_PYTHON = sys.version_info >= (3, 14)

_FORMATS: Mapping[str, _Format] = {
    # -1 leaves the choice to zlib, which chooses 6.
    "gzip": _Format(1, "zlib", _BUILT_WITHOUT, range(1, 10), -1, _pack_gzip, _unpack_gzip),
    "lz4": _Format(3, "lz4.frame", _extra("lz4"), range(1, 18), _LZ4_FAST_LEVEL, _pack_lz4, _unpack_lz4),
    "zstd": _Format(
        4,
        "compression.zstd" if _ZSTD_IN_PYTHON else "backports.zstd",
        _BUILT_WITHOUT if _ZSTD_IN_PYTHON else _extra("zstd"),
        range(-131072, 23),
        3,
        _pack_zstd,
        _unpack_zstd,
    ),
}

CODEC_NAMES: Mapping[int, str] = MappingProxyType({0: "none"} | {entry.id: name for name, entry in _FORMATS.items()})
"""The name of each codec number that a batch header may hold."""

_VALID_NAMES = ", ".join(CODEC_NAMES.values())


@cache
def _load(library: str) -> ModuleType:
    return import_module(library)


def _format_of(name: str) -> _Format:
    entry = _FORMATS.get(name)
    if entry is None:
        raise ConfigError(f"unknown compression {name!r}: valid are {_VALID_NAMES}, each codec also with :level")
    return entry


@attrs.frozen
class Codec:
    """One way to pack a batch; immutable, and any number of threads may use it at once.

    Raises:
        ConfigError: The name or the level is unknown, or the codec's library is not installed.
    """

    name: str
    """``gzip``, ``lz4`` or ``zstd``."""
    level: int = attrs.field()
    """Kafka's level: gzip 1 to 9 (default -1: zlib's choice, 6); lz4 1 to 17, where 9, the default, is the fast
    compressor and every other level the high one; zstd -131072 to 22 (default 3). Higher packs smaller and slower."""
    id: int = attrs.field(init=False, default=attrs.Factory(lambda self: _format_of(self.name).id, takes_self=True))
    """The number stored in the batch header."""

    @level.default
    def _default_level(self) -> int:
        return _format_of(self.name).default_level

    @level.validator
    def _check_level(self, _: object, level: int) -> None:
        entry = _format_of(self.name)
        if level not in entry.levels and level != entry.default_level:
            raise ConfigError(
                f"{self.name} has no level {level}: valid are {entry.levels[0]} to {entry.levels[-1]}, "
                f"and {entry.default_level} is the default"
            )

    def __attrs_post_init__(self) -> None:
        entry = _FORMATS[self.name]
        try:
            _load(entry.package)
        except ImportError as error:
            raise ConfigError(f"compression {self.name} needs {entry.package}: {entry.remedy}") from error

    def compress(self, data: bytes | memoryview) -> bytes:
        """Packs `data`, contiguous bytes, into one stream of this codec, which may be longer than `data`."""
        entry = _FORMATS[self.name]
        return entry.pack(_load(entry.package), data, self.level)


def parse_codec(compression_type: str) -> Codec | None:
    """The codec that a ``compression_type`` names.

    Args:
        compression_type: ``none``, ``gzip``, ``lz4`` or ``zstd``, a codec also with its level: ``zstd:9``.

    Returns:
        The codec, or None for ``none``.

    Raises:
        ConfigError: The name or the level is unknown, or the codec's library is not installed.
    """
    if compression_type == "none":
        return None
    if not isinstance(compression_type, str):
        raise ConfigError(f"compression_type is one of {_VALID_NAMES}, not a {type(compression_type).__name__}")
    name, colon, level = compression_type.partition(":")
    if not colon:
        return Codec(name)
    if name == "none":
        raise ConfigError("compression none has no levels")
    _format_of(name)
    if not re.fullmatch(r"-?[0-9]{1,9}", level):
        raise ConfigError(f"{compression_type!r}: a level is an integer, as in {name}:{_FORMATS[name].default_level}")
    return Codec(name, int(level))


def decompress(codec_id: int, data: bytes | memoryview, size: int) -> bytes:
    """Unpacks one body; the twin of `Codec.compress`.

    Args:
        codec_id: The number in the batch header.
        data: The packed bytes, contiguous; nothing about them is trusted.
        size: Bytes that `data` unpacks to, from the batch header. At most one byte more is unpacked.

    Returns:
        Exactly `size` bytes.

    Raises:
        ValueError: No codec has this number, or `data` is damaged, cut off, followed by other bytes, or unpacks to
            another size.
        NotSupportedError: The codec's library is not installed.
    """
    name = CODEC_NAMES.get(codec_id)
    if name is None:
        raise ValueError(f"no codec has the number {codec_id}")
    if size < 0:
        raise ValueError(f"a body cannot unpack to {size} bytes")
    if not codec_id:
        if len(data) != size:
            raise ValueError(f"the body has {len(data)} bytes, not {size}")
        return bytes(data)
    entry = _FORMATS[name]
    try:
        library = _load(entry.package)
    except ImportError as error:
        raise NotSupportedError(
            f"this batch is packed with {name}, which needs {entry.package}: {entry.remedy}"
        ) from error
    body, ended, trailing = entry.unpack(library, data, size)
    if len(body) > size:
        raise ValueError(f"the {name} stream unpacks to more than {size} bytes")
    if not ended:
        raise ValueError(f"the {name} stream is cut off")
    if len(body) < size:
        raise ValueError(f"the {name} stream unpacks to {len(body)} bytes, not {size}")
    if trailing:
        raise ValueError(f"{trailing} bytes follow the end of the {name} stream")
    return body
