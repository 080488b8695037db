"""Codecs: what is packed comes back, and damaged or hostile bytes neither pass nor eat the memory."""

import gzip
import io
import os
import re
import subprocess
import sys
import threading
import tracemalloc
import zlib
from importlib import import_module

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pystreamlog.errors import ConfigError, NotSupportedError
from pystreamlog.record import compression
from pystreamlog.record.compression import CODEC_NAMES, Codec, decompress, parse_codec

zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

CODECS = ["gzip", "lz4", "zstd"]
NUMBERS = {"gzip": 1, "lz4": 3, "zstd": 4}
BODY = b"".join(b'{"id": %d, "name": "alice"}' % number for number in range(500))
ZEROS = 256 << 20


def pack(name, body=BODY):
    """A body packed by the codec of that name, with or without a level."""
    return parse_codec(name).compress(body)


def zeros(size, block=1 << 20):
    """Zeros, block by block."""
    for _ in range(size // block):
        yield bytes(block)


def bomb(name, size=ZEROS, *, declared=False):
    """A stream of `size` zeros, packed in steps; zstd and lz4 may declare the size."""
    if name == "gzip":
        packer = zlib.compressobj(1, wbits=31)
        return b"".join([*map(packer.compress, zeros(size)), packer.flush()])
    if name == "lz4":
        target = io.BytesIO()
        with lz4.frame.LZ4FrameFile(target, "wb", source_size=size if declared else 0) as file:
            for block in zeros(size):
                file.write(block)
        return target.getvalue()
    packer = zstd.ZstdCompressor(1)
    if declared:
        packer.set_pledged_input_size(size)
    return b"".join([*map(packer.compress, zeros(size)), packer.flush()])


# --- choosing a codec -------------------------------------------------------------------------------------------------


def test_none_is_no_codec():
    """`none` needs no packing, so there is no object for it."""
    assert parse_codec("none") is None


@pytest.mark.parametrize(("name", "level"), [("gzip", -1), ("lz4", 9), ("zstd", 3)])
def test_default_levels_are_kafkas(name, level):
    """Without a level, a codec has Kafka's default."""
    codec = parse_codec(name)
    assert (codec.name, codec.level, codec.id) == (name, level, NUMBERS[name])


@pytest.mark.parametrize(
    "spec", ["gzip:1", "gzip:9", "gzip:-1", "lz4:1", "lz4:17", "zstd:-131072", "zstd:0", "zstd:22"]
)
def test_levels_at_the_edges_pack(spec):
    """Every level in Kafka's range is accepted and packs."""
    codec = parse_codec(spec)
    assert f"{codec.name}:{codec.level}" == spec
    assert decompress(codec.id, codec.compress(BODY), len(BODY)) == BODY


@pytest.mark.parametrize("spec", ["gzip:0", "gzip:10", "lz4:0", "lz4:18", "zstd:23", "zstd:-131073"])
def test_level_out_of_range_is_named(spec):
    """A level outside Kafka's range is an error that says which are valid."""
    with pytest.raises(ConfigError, match=r"valid are -?\d+ to \d+"):
        parse_codec(spec)


@pytest.mark.parametrize("spec", ["zstd:", "zstd:high", "zstd: 3", "zstd:+3", "zstd:1_0", "zstd:3:4", "zstd:٣"])
def test_level_that_is_no_integer_is_refused(spec):
    """Only plain decimal integers are levels."""
    with pytest.raises(ConfigError, match="a level is an integer"):
        parse_codec(spec)


@pytest.mark.parametrize("spec", ["snappy", "ZSTD", "", "brotli:3", " gzip", ":3"])
def test_unknown_name_lists_the_valid_ones(spec):
    """An unknown codec is an error that names those that exist."""
    with pytest.raises(ConfigError, match="none, gzip, lz4, zstd"):
        parse_codec(spec)


def test_none_has_no_levels():
    """`none:3` is a mistake."""
    with pytest.raises(ConfigError, match="no levels"):
        parse_codec("none:3")


@pytest.mark.parametrize("spec", [None, 3, b"zstd"])
def test_compression_type_that_is_no_string_is_refused(spec):
    """A codec number or None is no compression type."""
    with pytest.raises(ConfigError, match="compression_type is one of"):
        parse_codec(spec)


def test_codec_numbers_are_kafkas():
    """The numbers in batches are Kafka's, without snappy."""
    assert dict(CODEC_NAMES) == {0: "none", 1: "gzip", 3: "lz4", 4: "zstd"}


def test_codec_is_immutable():
    """A codec is shared between threads, so it cannot change."""
    with pytest.raises(AttributeError):
        Codec("gzip").level = 3


def test_lz4_level_9_is_the_fast_compressor():
    """As in Kafka, level 9 packs fast, and its neighbours high."""
    assert pack("lz4") == lz4.frame.compress(BODY, compression_level=0)
    assert pack("lz4:1") == pack("lz4:3") == lz4.frame.compress(BODY, compression_level=3)
    assert pack("lz4:10") == lz4.frame.compress(BODY, compression_level=10)
    assert pack("lz4:17") == lz4.frame.compress(BODY, compression_level=12)


@pytest.fixture
def without_libraries(monkeypatch):
    """No codec's library can be imported."""

    def fail(library):
        raise ModuleNotFoundError(f"No module named {library!r}")

    monkeypatch.setattr(compression, "_load", fail)


@pytest.mark.parametrize("name", ["lz4", "zstd"])
def test_missing_library_fails_at_construction_with_its_extra(name, without_libraries):
    """A codec without its library is an error that says how to install it."""
    remedy = "built without" if name == "zstd" and sys.version_info >= (3, 14) else f"pip install 'pystreamlog[{name}]'"
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        parse_codec(name)


@pytest.mark.parametrize("name", CODECS)
def test_missing_library_when_reading_is_not_damage(name, without_libraries):
    """A batch that cannot be read for want of a library is not corrupt."""
    with pytest.raises(NotSupportedError, match=name):
        decompress(NUMBERS[name], b"packed", 10)


def test_import_loads_no_codec():
    """Importing the module imports no codec's library."""
    program = (
        "import sys, pystreamlog.record.compression\n"
        "print([name for name in ('lz4', 'backports.zstd', 'compression.zstd') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- packing and unpacking --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
@given(body=st.binary(max_size=2000) | st.binary(min_size=1, max_size=20).map(lambda part: part * 5000))
def test_what_is_packed_comes_back(name, body):
    """Any body survives packing and unpacking, as bytes and as a view."""
    packed = pack(name, body)
    assert decompress(NUMBERS[name], packed, len(body)) == body
    assert decompress(NUMBERS[name], memoryview(pack(name, memoryview(body))), len(body)) == body


@pytest.mark.parametrize("name", CODECS)
def test_packing_is_deterministic(name):
    """The same body packs to the same bytes: no time, no name in the header."""
    assert pack(name) == pack(name)


def test_unpacked_body_passes():
    """Number 0 is a body as it is."""
    assert decompress(0, memoryview(b"abc"), 3) == b"abc"


@pytest.mark.parametrize("size", [2, 4])
def test_unpacked_body_of_another_size_is_refused(size):
    """A body that is not packed must have the size that is promised."""
    with pytest.raises(ValueError, match="3 bytes, not"):
        decompress(0, b"abc", size)


def test_large_zstd_window_of_a_large_body_passes():
    """A body larger than the window that every decoder must accept unpacks at the highest level."""
    body = os.urandom(1 << 20) * 9
    assert decompress(4, pack("zstd:20", body), len(body)) == body


def test_streams_of_other_writers_pass():
    """Streams that declare no size, or name a file, are as good as ours."""
    named = io.BytesIO()
    with gzip.GzipFile("name", "wb", fileobj=named, mtime=1) as file:
        file.write(BODY)
    assert decompress(1, named.getvalue(), len(BODY)) == BODY
    assert decompress(3, lz4.frame.compress(BODY, store_size=False, content_checksum=True), len(BODY)) == BODY
    packer = zstd.ZstdCompressor(3)
    assert decompress(4, packer.compress(BODY) + packer.flush(), len(BODY)) == BODY


def test_threads_share_a_codec():
    """One codec packs in many threads at once."""
    codec = parse_codec("zstd")
    expected = codec.compress(BODY)
    packed = []
    threads = [
        threading.Thread(target=lambda: packed.extend(codec.compress(BODY) for _ in range(50))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(packed) == 200
    assert set(packed) == {expected}


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec_id", [2, 5, -1, 255])
def test_unknown_number_is_refused(codec_id):
    """A number that no codec has is an error."""
    with pytest.raises(ValueError, match="no codec has the number"):
        decompress(codec_id, b"", 0)


@pytest.mark.parametrize("codec_id", CODEC_NAMES)
def test_negative_size_is_refused(codec_id):
    """A negative size does not lift the cap."""
    with pytest.raises(ValueError, match="cannot unpack to -1 bytes"):
        decompress(codec_id, bomb("gzip", 1 << 20), -1)


@pytest.mark.parametrize("name", CODECS)
def test_truncated_stream_is_refused_at_every_length(name):
    """A stream cut off anywhere is an error, also when all the data is there and only the end mark is missing."""
    packed = pack(name, b"some text, some text, some text")
    for length in range(len(packed)):
        with pytest.raises(ValueError, match=name):
            decompress(NUMBERS[name], packed[:length], 31)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("garbage", [b"\0", b"garbage"])
def test_trailing_garbage_is_refused(name, garbage):
    """Nothing may follow the stream."""
    with pytest.raises(ValueError, match=f"{len(garbage)} bytes follow"):
        decompress(NUMBERS[name], pack(name) + garbage, len(BODY))


@pytest.mark.parametrize("name", CODECS)
def test_second_stream_is_refused(name):
    """A body is one stream, although each format can chain them."""
    packed = pack(name)
    with pytest.raises(ValueError, match=name):
        decompress(NUMBERS[name], packed + packed, 2 * len(BODY))
    with pytest.raises(ValueError, match="bytes follow"):
        decompress(NUMBERS[name], packed + packed, len(BODY))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [0, 1, len(BODY) - 1, len(BODY) + 1, 2 * len(BODY)])
def test_wrong_size_is_refused(name, size):
    """The stream must unpack to exactly the promised size."""
    with pytest.raises(ValueError, match=rf"the {name} stream .*\b{size}\b"):
        decompress(NUMBERS[name], pack(name), size)


@pytest.mark.parametrize("size", [0, 1, len(BODY) - 1, len(BODY) + 1, 2 * len(BODY)])
def test_wrong_size_is_refused_where_none_is_declared(size):
    """A zstd stream that says nothing of its size is held to the promised one all the same."""
    packer = zstd.ZstdCompressor(3)
    with pytest.raises(ValueError, match=rf"the zstd stream unpacks to .*\b{size}\b"):
        decompress(4, packer.compress(BODY) + packer.flush(), size)


@pytest.mark.parametrize("name", CODECS)
@given(data=st.binary(max_size=200), size=st.integers(0, 1000))
def test_random_bytes_never_pass_as_another_size(name, data, size):
    """Whatever the bytes, the result has the promised size or is a ValueError."""
    try:
        body = decompress(NUMBERS[name], data, size)
    except ValueError:
        return
    assert len(body) == size


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
def test_flipped_bits_raise_nothing_but_value_errors(name, data):
    """A damaged stream fails cleanly or unpacks to the promised size."""
    packed = bytearray(pack(name))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        body = decompress(NUMBERS[name], packed, len(BODY))
    except ValueError:
        return
    assert len(body) == len(BODY)


def test_zstd_dictionary_is_refused():
    """A stream that needs a dictionary cannot be read."""
    dictionary = zstd.train_dict([b'{"id": %d, "name": "alice"}' % number for number in range(2000)], 1000)
    with pytest.raises(ValueError, match="damaged"):
        decompress(4, zstd.compress(BODY, zstd_dict=dictionary), len(BODY))


def test_zstd_window_of_two_gigabytes_is_refused():
    """A stream cannot make the decoder allocate a huge window for a small body."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 31})
    packed = packer.compress(BODY) + packer.flush()
    with pytest.raises(ValueError, match="damaged"):
        decompress(4, packed, len(BODY))


# --- bombs ------------------------------------------------------------------------------------------------------------

BOMBS = [("gzip", False), ("lz4", False), ("lz4", True), ("zstd", False), ("zstd", True)]


@pytest.mark.parametrize(("name", "declared"), BOMBS)
def test_bomb_fails_in_little_python_memory(name, declared):
    """A stream of 64 MiB zeros behind a header that promises 4 KiB takes less than 100 KiB of Python's memory."""
    packed = bomb(name, 64 << 20, declared=declared)
    limit = 100_000 + len(packed)  # a decoder may keep the part of the input that it did not get to
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=name):
            decompress(NUMBERS[name], packed, 4096)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


_BOMB_PROGRAM = """
import pathlib, re, sys
from pystreamlog.record.compression import Codec, decompress

def peak():
    # Not `getrusage`, whose peak includes that of the parent before `exec`.
    return int(re.search("VmHWM:\\s+([0-9]+) kB", pathlib.Path("/proc/self/status").read_text())[1])

name, path, size = sys.argv[1:]
codec = Codec(name)
decompress(codec.id, codec.compress(bytes(100_000)), 100_000)
packed = pathlib.Path(path).read_bytes()
before = peak()
try:
    decompress(codec.id, packed, int(size))
except ValueError:
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("size", [0, 4096, 1_000_000])
@pytest.mark.parametrize(("name", "declared"), BOMBS)
def test_bomb_fails_in_little_memory_of_the_process(name, declared, size, tmp_path):
    """A stream of 256 MiB zeros grows the process by no more than the promised size and the codec's window.

    Twice the size for gathering the output, and up to 12 MiB: zstd's window and buffers, lz4's blocks, the input.
    """
    path = tmp_path / "bomb"
    path.write_bytes(bomb(name, declared=declared))
    run = subprocess.run(
        [sys.executable, "-c", _BOMB_PROGRAM, name, str(path), str(size)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) << 10 < 2 * size + (12 << 20)


def test_short_lz4_stream_with_a_huge_size_gets_little_room():
    """A promised size that no stream of this length can reach is not allocated."""
    packed = pack("lz4", b"abc")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="unpacks to 3 bytes"):
            decompress(3, packed, 1 << 31)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000
