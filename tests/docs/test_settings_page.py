"""`docs/reference/settings.md` has every setting as the code has it, and the code says enough of each."""

from __future__ import annotations

import inspect

import attrs
import pytest

import pystreamlog
from tests.docs.settings_page import _KAFKAS, KAFKA_NAMES, PAGE, SECTIONS, Setting, documented, page

SETTINGS = [(section, setting) for section in SECTIONS for setting in section.settings()]

each_setting = pytest.mark.parametrize(
    "setting",
    [setting for _, setting in SETTINGS],
    ids=[f"{section.anchor}-{setting.name}" for section, setting in SETTINGS],
)


def setting(**changes):
    """A setting that takes a number."""
    return attrs.evolve(Setting("wait", "int", 1, "How long it waits, in ms."), **changes)


def test_page_is_as_the_code_says():
    """The page was made again after the last change of a setting."""
    assert PAGE.read_text("utf-8") == page(), "run `python -m tests.docs.settings_page`, and commit what it wrote"


@each_setting
def test_setting_has_a_meaning(setting):
    """The docstring says in a sentence what the setting does, and not what another one does."""
    assert len(setting.meaning.split()) > 3, f"{setting.name} has no meaning: describe it in the docstring"
    assert setting.meaning.endswith((".", ")"))
    assert not setting.meaning.startswith(("The same", "Likewise")), "who looks it up has not read the one above"


@each_setting
def test_number_has_a_unit(setting):
    """Nobody has to guess what a number counts."""
    assert bool(setting.unit) == setting.is_number, f'{setting.name}: say "in ms", "how many bytes" or the like'


@each_setting
def test_setting_has_a_default(setting):
    """Only what the call is about must be passed."""
    assert setting.shown_default != "(required)" or setting.name in {"target", "handler"}


@each_setting
def test_kafkas_name_is_one(setting):
    """What a docstring calls Kafka's is a setting that Kafka has."""
    assert set(_KAFKAS.findall(setting.meaning)) <= KAFKA_NAMES


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.anchor)
def test_docstring_describes_only_what_there_is(section):
    """No description stays behind for a setting that is gone."""
    names = [setting.name for setting in section.settings()]
    assert len(names) == len(set(names)) > 4
    assert set(section.documented()) - {"options"} == set(names)  # `**options` are other backends'


def test_docstring_entries_are_read_over_their_lines():
    """An entry ends where the next one begins, and a section where the next one does."""
    docstring = """Do it.

    Args:
        first: One line
            and another: one.
        **rest: More.

    Raises:
        Error: Never.
    """
    assert documented(docstring, "Args") == {"first": "One line and another: one.", "rest": "More."}
    assert documented("No sections.", "Args") == {}


@pytest.mark.parametrize(
    ("changes", "unit"),
    [
        ({}, "ms"),
        ({"meaning": "How long it waits, in milliseconds."}, "ms"),
        ({"meaning": "How many bytes at most."}, "bytes"),
        ({"meaning": "How often it is tried."}, "times"),
        ({"name": "wait_ms", "meaning": "How long it waits."}, "ms"),
        ({"kind": "int | None", "meaning": "How many records."}, "records"),
        ({"meaning": "How long it waits."}, ""),
        ({"kind": "str"}, ""),
        ({"kind": "Callable[[int], object]"}, ""),
    ],
)
def test_unit(changes, unit):
    """A unit is the name's, or the first one that the meaning counts in."""
    assert setting(**changes).unit == unit


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"default": 60_000}, "`60_000` (1 min)"),
        ({"default": 90_000}, "`90_000` (90 s)"),
        ({"default": -1}, "`-1`"),
        ({"default": 1 << 20, "meaning": "How many bytes."}, "`1_048_576` (1 MiB)"),
        ({"default": "os", "kind": "str"}, '`"os"`'),
        ({"default": None}, "`None`"),
        ({"default": 0o700, "meaning": "Permission bits."}, "`0o700`"),
        ({"default": inspect.Parameter.empty}, "(required)"),
        ({"default": attrs.NOTHING}, "(required)"),
    ],
)
def test_shown_default(changes, shown):
    """A default stands as it is passed, and a large number as it is said."""
    assert setting(**changes).shown_default == shown


@pytest.mark.parametrize(
    ("changes", "kafka_name"),
    [
        ({"name": "linger_ms"}, "linger.ms"),
        ({"meaning": "As Kafka's `acks`."}, "acks"),
        ({}, ""),
    ],
)
def test_kafka_name(changes, kafka_name):
    """Kafka's name is the setting's with dots, or the one that the docstring gives."""
    assert setting(**changes).kafka_name == kafka_name


def test_bounds_are_those_of_the_checks():
    """What the page says of a number's range is what is refused outside of it."""
    bounded = {f"{section.anchor}-{setting.name}": setting for section, setting in SETTINGS if setting.bounds}
    assert len(bounded) >= 15
    with pystreamlog.open(":memory:") as log:
        least, greatest = bounded["producer-batch_size"].bounds
        log.producer(batch_size=least).close()
        for wrong in (least - 1, greatest + 1):
            with pytest.raises(pystreamlog.ConfigError):
                log.producer(batch_size=wrong)
