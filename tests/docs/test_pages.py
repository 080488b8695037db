"""The pages hang together: each is found from the others, every link leads somewhere, and the API's page is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pystreamlog

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DECISIONS = DOCS / "decisions"
TEXTS = [*sorted(ROOT.glob("*.md")), *PAGES]

FENCED = re.compile(r"^([ \t]*)(```+).*?^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ITEM = re.compile(r" *(?:[-*+]|\d+\.) ")
HEADING = re.compile(r"^#+ +(.*?)$", re.MULTILINE)
ANCHOR = re.compile(r'<a id="([^"]+)"></a>')


def prose(path: Path) -> str:
    """A page without its code."""
    return FENCED.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """What a link to a place of the page may name: its headings, and the places that are marked."""
    text = prose(path)
    words = [re.sub(r"<[^>]*>|[^\w\s-]", "", heading.lower()) for heading in HEADING.findall(text)]
    return {re.sub(r"[-\s]+", "-", heading.strip()) for heading in words} | set(ANCHOR.findall(text))


def named_in(path: Path) -> set[Path]:
    """The files that a page links to."""
    targets = (link.partition("#")[0] for link in LINK.findall(prose(path)) if "://" not in link)
    return {(path.parent / target).resolve() for target in targets if target}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    """Each relative link names a file of the repository and, behind `#`, a heading of it."""
    for link in LINK.findall(prose(path)):
        target, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.is_file(), f"{link}: there is no such file"
        assert not anchor or anchor in anchors(file), f"{link}: {file.name} has no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_links_of_the_site_stay_in_it(path):
    """A page of the site cannot link to a file that is not published with it."""
    assert {file for file in named_in(path) if not file.is_relative_to(DOCS)} == set()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lists_begin_behind_a_blank_line(path):
    """Else the site shows their items as text of the paragraph above."""
    for block in re.split(r"\n\s*\n", prose(path)):
        first, *others = block.strip("\n").splitlines() or [""]
        assert ITEM.match(first) or not any(map(ITEM.match, others)), block


def test_every_page_is_in_the_navigation():
    """Each page once; decisions are in the table of their own page."""
    _, _, navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")
    listed = re.findall(r"- (?:.*: )?(\S+\.md)$", navigation, re.MULTILINE)
    decisions = {path for path in PAGES if path.parent == DECISIONS and path.name != "README.md"}
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in set(PAGES) - decisions)
    assert decisions
    assert decisions <= named_in(DECISIONS / "README.md")


@pytest.mark.parametrize("contents", [DOCS / "index.md", ROOT / "README.md"], ids=lambda path: path.name)
def test_every_page_is_in_the_contents(contents):
    """Who starts at the first page, or at the README, finds all the others from there."""
    pages = {path for path in PAGES if path.parent != DECISIONS or path.name == "README.md"}
    assert pages - named_in(contents) <= {DOCS / "index.md"}


def test_api_page_has_every_public_name():
    """Each name of the package once, and what a public call returns without being one."""
    named = re.findall(r"^::: (\S+)$", (DOCS / "reference" / "api.md").read_text("utf-8"), re.MULTILINE)
    others = ["pystreamlog.backend.transaction.Transaction"]
    assert sorted(named) == sorted([f"pystreamlog.{name}" for name in pystreamlog.__all__] + others)
