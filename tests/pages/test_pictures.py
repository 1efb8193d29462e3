"""The diagrams are those that their script draws."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from docs.images.make_pictures import FOLDER, PICTURES


@pytest.mark.parametrize(("name", "draw"), PICTURES.items(), ids=PICTURES)
def test_a_picture_is_current(name: str, draw: Callable[[], str]) -> None:
    ElementTree.fromstring(draw())
    assert (FOLDER / name).read_text(encoding="utf-8") == draw(), "run: python -m docs.images.make_pictures"
