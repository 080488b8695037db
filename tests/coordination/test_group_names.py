"""What a group's folder is called: free text becomes a file name, and no two texts the same one."""

import os
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pystreamlog.coordination.names import check_text, encoded_id
from pystreamlog.errors import ConfigError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
# Texts of few characters collide sooner where an encoding is careless.
NEAR = st.text(st.sampled_from("aA%2e./~\0 é"), min_size=1, max_size=8)
PAIRS = st.tuples(TEXTS, TEXTS) | st.tuples(NEAR, NEAR)
ALLOWED = frozenset(string.ascii_lowercase + string.digits + "_-.%")


@given(PAIRS)
@example(("a", "A"))
@example(("ß", "ss"))
@example(("%41", "A"))
@example(("a%", "a%25"))
@example((".a", "%2ea"))
@example(("a" * 300, "A" * 300))
@example(("é" * 100, "é" * 101))
@example(("\u00e9", "e\u0301"))
def test_no_two_ids_share_a_folder(pair):
    """Also where file names fold case, or normalise."""
    one, other = pair
    assert (encoded_id(one).casefold() == encoded_id(other).casefold()) == (one == other)


@given(TEXTS | NEAR)
@example(".")
@example("..")
@example("/")
@example("\0")
@example("../../etc/passwd")
@example("~new-group")
@example("a" * 200)
@example("a" * 201)
@example("\U0001f600" * 8000)
@example("con")
def test_an_encoded_id_is_the_name_of_one_folder(text):
    """Of few characters, none of which leads elsewhere, hides it, or marks a folder that is being made."""
    name = encoded_id(text)
    assert 1 <= len(os.fsencode(name)) <= 255
    assert set(name) <= ALLOWED
    assert not name.startswith((".", "~"))
    assert encoded_id(text) == name


def test_folder_of_any_id_can_be_made(tmp_path):
    """On this file system."""
    ids = [".", "..", "a/b", "\0", "größe", "A" * 1000, "a" * 1000, "a" * 200, "a" * 201, "\uff21", " ", "%", "%25"]
    for text in ids:
        (tmp_path / encoded_id(text)).mkdir()
    assert len(list(tmp_path.iterdir())) == len(ids)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("workers", "workers"),
        ("eu.orders_2-b", "eu.orders_2-b"),
        ("Orders", "%4frders"),
        (".hidden", "%2ehidden"),
        ("a/b", "a%2fb"),
        ("100%", "100%25"),
        ("é", "%c3%a9"),
        ("a" * 200, "a" * 200),
        ("a" * 201, "a" * 100 + "%%a92efd82109373e58f9a2056dee01e807e216ce6075f7051207c0a9f7d666e50"),
    ],
)
def test_examples(text, name):
    """The names are part of the format: they must not change."""
    assert encoded_id(text) == name


@pytest.mark.parametrize("group_id", ["", None, 1, b"bytes", "a\ud800", "a" * 32_768, "é" * 16_384])
def test_impossible_ids_are_refused(group_id):
    """What is no text, is empty, cannot be encoded, or is longer than Kafka's protocol can carry."""
    with pytest.raises(ConfigError, match="group_id"):
        check_text(group_id, "group_id")


@pytest.mark.parametrize("group_id", ["a", " ", "\0", "é" * 16_383, "a" * 32_767])
def test_any_other_id_is_allowed(group_id):
    """Up to the limit."""
    assert check_text(group_id, "group_id") == group_id
