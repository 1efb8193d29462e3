"""docs/settings.md lists every setting as the source has it."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import pytest
from msgspec import Meta

from bon_server.config.settings import Config
from bon_server.core.types import Durability
from docs.write_settings import PAGE, allowed, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.write_settings"


def test_every_setting_has_a_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    defaults = Config()
    for section in fields(Config):
        for key in fields(getattr(defaults, section.name)):
            assert f"\n| `{section.name}.{key.name}` | " in text


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Annotated[int, Meta(ge=1)] | None, "integer ≥ 1"),
        (Annotated[float, Meta(gt=0, le=1)], "number > 0, ≤ 1"),
        (Annotated[float, Meta(ge=1, le=1_000_000)], "number ≥ 1, ≤ 1,000,000"),
        (tuple[str, ...], "list of texts"),
        (Durability, "`fsync`, `group`, `async`"),
        (bool, "`true`, `false`"),
    ],
)
def test_what_a_type_accepts(hint: object, words: str) -> None:
    assert allowed(hint) == words
