"""Figures have the digits that their interval bears."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from bon_server.evaluate.report.page import interval, number, share, with_interval


@pytest.mark.parametrize(
    ("value", "around", "printed"),
    [
        (-1.8974, (-1.9812, -1.8134), "−1.90 [−1.98, −1.81]"),
        (0.08571, (0.0659, 0.1081), "0.086 [0.066, 0.108]"),
        (0.0391, (0.0342, 0.0441), "0.039 [0.034, 0.044]"),
        (12345.6, (12000.0, 12700.0), "12,346 [12,000, 12,700]"),
        (0.5, None, "0.5"),
        (1 / 3, (1 / 3, 1 / 3), "0.333 [0.333, 0.333]"),
        (1e-9, (0.0, 2e-9), "1e−09 [0, 2e−09]"),
        (1.0, (0.0, math.inf), "1 [0, inf]"),
        (None, None, "–"),
    ],
)
def test_with_an_interval(value: float | None, around: Sequence[float] | None, printed: str) -> None:
    assert with_interval(value, around).replace("\u00a0", " ") == printed


def test_alone_and_as_shares() -> None:
    assert number(None) == "–" and interval(None) == ""
    assert share(0.4432, (0.411, 0.4774)) == "44.3 % [41.1,\u00a047.7]"
    assert share(0.5, None) == "50.0 %" and share(None, None) == "–"
