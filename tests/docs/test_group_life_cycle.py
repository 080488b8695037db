"""The diagram of a member's life in `docs/explanation/consumer-groups.md` is the table `LIFE_CYCLE`, drawn.

When the table changes, this test fails and prints the block that belongs on the page: replace the old one by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pystreamlog.embedded.life_cycle import LIFE_CYCLE, Event, Stage

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "consumer-groups.md"
MARKER = "<!-- life-cycle -->"
BLOCK = re.compile(re.escape(MARKER) + r"\n\n(```mermaid\n.*?^```)$", re.DOTALL | re.MULTILINE)


def drawn(life_cycle: Mapping[tuple[Stage, Event], Stage]) -> str:
    """The table as a state diagram: each stage in the order of `Stage`, with what leads out of it."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {Stage.OUTSIDE.value}"]
    for stage in Stage:
        lines += [
            f"    {source.value} --> {target.value}: {event.value}"
            for (source, event), target in life_cycle.items()
            if source is stage
        ]
    return "\n".join([*lines, f"    {Stage.CLOSED.value} --> [*]", "```"])


def test_diagram_is_the_table():
    """Every transition is drawn, and no other."""
    found = BLOCK.findall(PAGE.read_text("utf-8"))
    assert len(found) == 1, f"the page has no {MARKER} with a mermaid block behind it, or several"
    assert found[0] == drawn(LIFE_CYCLE), f"the table has changed; the page's block must be\n\n{drawn(LIFE_CYCLE)}\n"


def test_labels_can_be_drawn():
    """A colon or a line break in a name would end the label."""
    for name in (*Stage, *Event):
        assert re.fullmatch(r"[\w ,]+", name.value), name


def test_every_stage_and_event_is_in_the_table():
    """What is not in it would be missing in the diagram."""
    assert {stage for stage, _ in LIFE_CYCLE} | set(LIFE_CYCLE.values()) == set(Stage)
    assert {event for _, event in LIFE_CYCLE} == set(Event)
