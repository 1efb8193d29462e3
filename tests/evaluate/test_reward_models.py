"""Reward models of requests, by the names that the log gives them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bon_server.core.types import ModelRef
from bon_server.evaluate.arrow_columns import models_of
from bon_server.log.record import reward_model_names
from bon_server.log.segments.columns import MODEL

ONE = {"name": "reward", "id": "rm", "revision": "1"}
OTHER = {"name": "length", "id": "brief", "revision": ""}


@pytest.mark.parametrize(
    "rows",
    [
        [[ONE], [ONE], [ONE]],
        [[ONE], [OTHER], [ONE]],
        [[ONE, OTHER], [ONE, OTHER]],
        [[ONE, OTHER], [OTHER], [], [ONE]],
        [[OTHER]],
        [],
    ],
)
def test_each_request_has_the_names_of_its_own(rows: list[list[dict[str, str]]]) -> None:
    models = models_of(pa.array([[ONE], *rows], pa.list_(MODEL)).slice(1))
    expected = [reward_model_names([ModelRef(**one) for one in row]) for row in rows]
    assert [tuple(models.names[which]) for which in models.which.tolist()] == expected
    for name in ("rm", "rm@1", "brief", "rm+brief", "rm@1+brief", "none"):
        assert models.named(name).tolist() == [name in names for names in expected]
    mask = np.arange(len(rows)) % 2 == 0
    assert models.where(mask).which.tolist() == models.which[mask].tolist()
