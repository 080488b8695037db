"""The page of metrics has what the code measures."""

from __future__ import annotations

import pytest

from pystreamlog.backend.metrics import DEFINITIONS
from tests.docs.metrics_page import PAGE, page


def test_page_is_what_the_code_says():
    """Write it anew by `python -m tests.docs.metrics_page`."""
    assert PAGE.read_text("utf-8") == page()


@pytest.mark.parametrize("key", DEFINITIONS, ids=" ".join)
def test_every_metric_is_on_the_page(key):
    """Once in the section of its group, with a unit and a meaning."""
    definition = DEFINITIONS[key]
    assert definition.unit
    assert definition.meaning.endswith(".")
    sections = PAGE.read_text("utf-8").split("\n## ")
    mine = next(each for each in sections if each.startswith(key[0].capitalize()))
    assert mine.count(f"\n| `{key[1]}` |") == 1
