"""Links between pages lead somewhere, also those to a heading."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.pages.pasting import ROOT

FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def pages() -> Iterator[Path]:
    """Those of the project, without what is installed below its folder."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if not name.startswith(".") and name != "node_modules"]
        yield from (Path(folder) / name for name in files if name.endswith(".md"))


PAGES = sorted(pages())


def links(page: Path) -> Iterator[str]:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for markdown, html in LINK.findall(text):
        yield markdown or html


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them of headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        name = base = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.add(name)
    return frozenset(found)


def wrong(page: Path, link: str) -> str | None:
    """What is wrong with it."""
    parts = urlsplit(link)
    if parts.scheme:
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return f"{link}: there is no such file"
    if parts.fragment and target.suffix == ".md" and parts.fragment not in anchors(target):
        return f"{link}: the page has no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [problem for link in links(page) if (problem := wrong(page, link))] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    to_do = [ROOT / "README.md"]
    while to_do:
        page = to_do.pop()
        seen.add(page)
        targets = {(page.parent / urlsplit(link).path).resolve() for link in links(page) if not urlsplit(link).scheme}
        to_do += [target for target in targets if target.suffix == ".md" and target.exists() and target not in seen]
    assert {str(page.relative_to(ROOT)) for page in PAGES if page not in seen} == set()


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# The `one`, and more\n[a](#the-one-and-more) [b](#two) [c](none.md) ![d](https://example.org/)\n")
    assert [wrong(page, link) for link in links(page)] == [
        None,
        "#two: the page has no such heading",
        "none.md: there is no such file",
        None,
    ]
