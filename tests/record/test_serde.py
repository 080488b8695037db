"""Serdes: values come back as they were, and what cannot be written or read is a `SerdeError` that says where."""

import dataclasses
import decimal
import json as standard_json
import math
import pickle
import threading
import typing
import uuid
from collections import OrderedDict, UserDict, deque
from datetime import UTC, datetime

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pystreamlog.serde
from pystreamlog.errors import ConfigError, SerdeError
from pystreamlog.record import serde as record_serde
from pystreamlog.record.serde import (
    as_bytes,
    bytes_,
    dumps_column,
    dumps_with,
    float64,
    int64,
    json,
    loads_with,
    msgpack,
    string,
    struct,
)

HEADERS = (("trace", b"1"),)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4),
    max_leaves=10,
)


@dataclasses.dataclass
class DataOrder:
    """An order as a dataclass."""

    id: int
    tags: list[str]
    paid: datetime | None = None


@attrs.frozen
class AttrsOrder:
    """The same order as an attrs class."""

    id: int
    tags: list[str]
    paid: datetime | None = None


class StructOrder(msgspec.Struct, frozen=True):
    """The same order as a msgspec struct."""

    id: int
    tags: list[str]
    paid: datetime | None = None


ORDERS = [DataOrder, AttrsOrder, StructOrder]


class Created(msgspec.Struct, tag=True):
    """One type of event in a topic."""

    id: int


class Cancelled(msgspec.Struct, tag=True):
    """Another type of event in the same topic."""

    id: int


class Custom:
    """A class that no serde of the library knows."""


# --- the serdes -------------------------------------------------------------------------------------------------------


@given(st.binary())
def test_bytes_pass_as_they_are(value):
    """Bytes are written and read unchanged; what is like bytes is copied."""
    assert bytes_.loads(bytes_.dumps(value)) == value
    assert bytes_.dumps(bytearray(value)) == bytes_.dumps(memoryview(value)) == value


@given(st.text())
def test_strings_are_utf8(value):
    """A string is its UTF-8 bytes."""
    assert string.dumps(value) == value.encode()
    assert string.loads(value.encode()) == value


@given(st.integers(-(2**63), 2**63 - 1))
def test_int64_is_kafkas_long(value):
    """An integer is 8 bytes, big-endian, two's complement."""
    assert int64.dumps(value) == value.to_bytes(8, "big", signed=True)
    assert int64.loads(int64.dumps(value)) == value


@given(st.floats(allow_nan=False))
def test_float64_is_kafkas_double(value):
    """A float is 8 bytes, big-endian, IEEE 754; nothing is rounded."""
    assert float64.loads(float64.dumps(value)) == value
    assert float64.dumps(1.0) == bytes.fromhex("3ff0000000000000")


@given(PLAIN)
def test_json_comes_back(value):
    """Plain values survive, and any JSON library reads them."""
    data = json.dumps(value)
    assert json.loads(data) == value
    assert standard_json.loads(data) == value


@given(PLAIN | st.binary())
def test_msgpack_comes_back(value):
    """Plain values and bytes survive."""
    assert msgpack.loads(msgpack.dumps(value)) == value


def test_json_null_is_a_value():
    """JSON's null is four bytes, no tombstone."""
    assert json.dumps(None) == b"null"


def test_json_keeps_the_order_of_keys():
    """Objects are written in the order of the dict, not sorted."""
    assert json.dumps({"b": 1, "a": 2}) == b'{"b":1,"a":2}'


def test_json_has_no_nan():
    """NaN and infinities become null, as documented; msgpack keeps them."""
    assert json.dumps([math.nan, math.inf]) == b"[null,null]"
    assert math.isnan(msgpack.loads(msgpack.dumps(math.nan)))
    assert msgpack.loads(msgpack.dumps(-math.inf)) == -math.inf


def test_json_writes_what_is_nearly_plain():
    """Standard types with an obvious JSON form are written in it."""
    moment = datetime(2024, 1, 2, tzinfo=UTC)
    value = {
        "moment": moment,
        "id": uuid.UUID(int=1),
        "price": decimal.Decimal("1.10"),
        "bytes": b"x",
        "order": DataOrder(1, []),
        "mapping": UserDict(a=OrderedDict(b=1)),
        "sequence": deque([1, (2, 3)]),
        "keys": {4: 5}.keys(),
        6: 7,
    }
    assert json.loads(json.dumps(value)) == {
        "moment": "2024-01-02T00:00:00Z",
        "id": "00000000-0000-0000-0000-000000000001",
        "price": "1.10",
        "bytes": "eA==",
        "order": {"id": 1, "tags": [], "paid": None},
        "mapping": {"a": {"b": 1}},
        "sequence": [1, [2, 3]],
        "keys": [4],
        "6": 7,
    }
    assert msgpack.loads(msgpack.dumps({"moment": moment, 1: deque([2])})) == {"moment": moment, 1: [2]}


@pytest.mark.parametrize(
    ("serde", "value"),
    [
        (bytes_, "text"),
        (bytes_, 3),
        (string, b"bytes"),
        (string, 3),
        (string, "\ud800"),
        (int64, 2**63),
        (int64, 1.0),
        (int64, "1"),
        (float64, "1"),
        (json, Custom()),
        (json, {"nested": [Custom()]}),
        (json, {(1, 2): 3}),
        (json, "\ud800"),
        (msgpack, Custom()),
        (struct(DataOrder), {"id": 1, "tags": []}),
        (struct(DataOrder), AttrsOrder(1, [])),
        (struct(DataOrder), DataOrder(Custom(), [])),
    ],
)
def test_value_that_cannot_be_written_is_a_serde_error(serde, value):
    """A value of the wrong type is refused, with the reason and the topic."""
    with pytest.raises(SerdeError, match=r"topic 'orders': the key, an? \w+, could not be written") as caught:
        dumps_with(serde, "orders", (), value, "key")
    assert caught.value.topic == "orders"
    assert isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize(
    ("serde", "data"),
    [
        (string, b"\xff"),
        (string, b"\xed\xa0\x80"),
        (int64, b""),
        (int64, b"1234567"),
        (int64, b"123456789"),
        (float64, b"1234"),
        (json, b""),
        (json, b"{"),
        (json, b"1 2"),
        (json, b"NaN"),
        (json, b'"\xff"'),
        (msgpack, b""),
        (msgpack, b"\x01\x02"),
        (msgpack, b"\xc1"),
        *((struct(kind), data) for kind in ORDERS for data in (b"{}", b'{"id":"1","tags":[]}', b"[1,[]]", b"null")),
    ],
)
def test_bytes_that_cannot_be_read_are_a_serde_error(serde, data):
    """Bytes that hold no such value are refused, and the error carries them."""
    with pytest.raises(SerdeError, match=rf"topic 'orders': the value, {len(data)} bytes, could not be read") as caught:
        loads_with(serde, "orders", HEADERS, data)
    error = caught.value
    assert (error.topic, error.headers, error.key, error.value) == ("orders", HEADERS, None, data)
    assert isinstance(error.__cause__, Exception)


def test_key_that_cannot_be_read_is_carried_as_key():
    """The raw bytes are where the record has them."""
    with pytest.raises(SerdeError) as caught:
        loads_with(int64, "orders", (), b"12", "key")
    assert (caught.value.key, caught.value.value) == (b"12", None)


# --- struct -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ORDERS)
def test_structs_come_back_as_their_class(kind):
    """Dataclasses, attrs classes and msgspec structs are read back as what they were."""
    order = kind(7, ["new"], datetime(2024, 1, 2, tzinfo=UTC))
    serde = struct(kind)
    assert standard_json.loads(serde.dumps(order)) == {"id": 7, "tags": ["new"], "paid": "2024-01-02T00:00:00Z"}
    assert serde.loads(serde.dumps(order)) == order
    assert serde.kind is kind


@pytest.mark.parametrize("kind", ORDERS)
def test_structs_grow(kind):
    """New fields with defaults, and fields that this version does not know, do not stop a reader."""
    assert struct(kind).loads(b'{"id":1,"tags":[],"new":true}') == kind(1, [])


def test_union_of_tagged_structs_comes_back():
    """A topic may hold several types of event."""
    serde = struct(Created | Cancelled)
    assert [serde.loads(serde.dumps(event)) for event in (Created(1), Cancelled(2))] == [Created(1), Cancelled(2)]


def test_struct_of_a_typed_dict_comes_back():
    """What msgspec knows besides classes works too."""
    serde = struct(typing.TypedDict("Order", {"id": int}))
    assert serde.loads(serde.dumps({"id": 1})) == {"id": 1}
    lists = struct(list[DataOrder])
    assert lists.loads(lists.dumps([DataOrder(1, [])])) == [DataOrder(1, [])]


@pytest.mark.parametrize("kind", [Custom, 3, DataOrder(1, []), Created | StructOrder, threading.Lock])
def test_struct_of_an_unreadable_type_is_refused(kind):
    """A type that could be written but never read is an error when the serde is made."""
    with pytest.raises(ConfigError, match="struct"):
        struct(kind)


def test_threads_share_a_serde():
    """One serde serves many threads at once."""
    serde = struct(DataOrder)
    failures = []

    def work(number):
        order = DataOrder(number, [str(number)] * 20)
        failures.extend(() for _ in range(300) if serde.loads(serde.dumps(order)) != order)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- the calls --------------------------------------------------------------------------------------------------------


class Registry:
    """A serde with a schema registry: it notes where records go and come from."""

    def __init__(self):
        self.calls = []

    def dumps(self, value):
        """Must not be called: `dumps_for` goes first."""
        raise AssertionError

    loads = dumps

    def dumps_for(self, topic, headers, value):
        """Notes the call."""
        self.calls.append((topic, headers, value))
        return b"written"

    def loads_for(self, topic, headers, data):
        """Notes the call."""
        self.calls.append((topic, headers, data))
        return "read"


class Half:
    """A serde with only one of the two methods that get the topic."""

    dumps = staticmethod(str.encode)

    def loads(self, data):
        """Must not be called: `loads_for` goes first."""
        raise AssertionError

    def loads_for(self, topic, headers, data):
        """The topic, as proof."""
        return topic


class Returns:
    """A serde that returns what it was made with."""

    def __init__(self, answer):
        self.answer = answer

    def dumps(self, value):
        """What it was made with."""
        return self.answer


def test_serde_that_asks_for_the_topic_gets_it():
    """`dumps_for` and `loads_for` go before `dumps` and `loads`."""
    serde = Registry()
    assert dumps_with(serde, "orders", HEADERS, 1) == b"written"
    assert loads_with(serde, "orders", HEADERS, b"2") == "read"
    assert serde.calls == [("orders", HEADERS, 1), ("orders", HEADERS, b"2")]


def test_serde_may_ask_for_the_topic_on_one_side_only():
    """Each of the two methods is optional on its own."""
    assert dumps_with(Half(), "orders", (), "x") == b"x"
    assert loads_with(Half(), "orders", (), b"x") == "orders"


@pytest.mark.parametrize("answer", [None, "text", bytearray(b"x"), 3])
def test_serde_must_return_bytes(answer):
    """What a serde returns instead of bytes is named: None would be a tombstone."""
    with pytest.raises(SerdeError, match=f"Returns returned a {type(answer).__name__} for the value"):
        dumps_with(Returns(answer), "orders", (), 1)


def test_serde_without_methods_is_a_serde_error():
    """Something that is no serde fails as one."""
    with pytest.raises(SerdeError, match="could not be written by Custom"):
        dumps_with(Custom(), "orders", (), 1)
    with pytest.raises(SerdeError, match="could not be read by Custom"):
        loads_with(Custom(), "orders", (), b"1")


def test_interrupt_is_no_serde_error():
    """Ctrl-C inside a serde stays Ctrl-C."""

    class Interrupted:
        def dumps(self, value):
            raise KeyboardInterrupt

        loads = dumps

    with pytest.raises(KeyboardInterrupt):
        dumps_with(Interrupted(), "orders", (), 1)
    with pytest.raises(KeyboardInterrupt):
        loads_with(Interrupted(), "orders", (), b"1")


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x"), memoryview(b"x_x")[:1:2]])
def test_bytes_need_no_serde(value):
    """Without a serde, bytes and what is like them pass, as bytes of their own."""
    for data in (as_bytes(value, "value", "orders"), dumps_with(None, "orders", (), value)):
        assert type(data) is bytes
        assert data == b"x"
    assert loads_with(None, "orders", (), b"x") == b"x"


@pytest.mark.parametrize("value", ["text", 3, None, [1], Custom()])
@pytest.mark.parametrize("what", ["key", "value"])
def test_other_values_without_a_serde_name_the_setting(value, what):
    """Without a serde, anything else is an error that says which serde to pass."""
    with pytest.raises(SerdeError, match=f"the {what} is a {type(value).__name__}, not bytes; pass {what}_serde="):
        as_bytes(value, what, "orders")
    with pytest.raises(SerdeError, match=f"pass {what}_serde="):
        dumps_with(None, "orders", (), value, what)


@pytest.mark.parametrize("serde", [None, string, json, Registry()])
def test_none_never_reaches_a_serde(serde):
    """In a column, None stays None: no key, or a tombstone."""
    assert dumps_column(serde, "orders", None, [None, None]) == [None, None]
    assert dumps_column(serde, "orders", None, []) == []


def test_column_is_written_record_by_record():
    """A column's values get their own headers."""
    serde = Registry()
    assert dumps_column(serde, "orders", [HEADERS, (), ()], [1, None, 2]) == [b"written", None, b"written"]
    assert serde.calls == [("orders", HEADERS, 1), ("orders", (), 2)]
    assert dumps_column(string, "orders", None, ("a", None, "b")) == [b"a", None, b"b"]


def test_column_of_bytes_is_a_copy():
    """The caller may change its list afterwards."""
    values = [b"a", None]
    column = dumps_column(None, "orders", None, values)
    values.clear()
    assert column == [b"a", None]
    assert dumps_column(None, "orders", None, [b"a", bytearray(b"b"), None]) == [b"a", b"b", None]


@pytest.mark.parametrize(("serde", "values"), [(None, [b"a", None, "c"]), (string, ["a", None, 3])])
def test_failure_in_a_column_says_where(serde, values):
    """The error of a column carries the index of the value."""
    with pytest.raises(SerdeError, match="at index 2") as caught:
        dumps_column(serde, "orders", None, values)
    assert (caught.value.topic, caught.value.index) == ("orders", 2)
    assert (caught.value.__cause__ is None) == (serde is None)


def test_errors_survive_pickling():
    """An error raised in a worker process arrives with its bytes."""
    with pytest.raises(SerdeError) as caught:
        loads_with(int64, "orders", HEADERS, b"12")
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 -- our own bytes
    assert (str(error), error.value, error.headers) == (str(caught.value), b"12", HEADERS)


def test_user_module_offers_the_serdes():
    """`pystreamlog.serde` is the same serdes under the name that users know."""
    assert all(getattr(pystreamlog.serde, name) is getattr(record_serde, name) for name in pystreamlog.serde.__all__)
