"""Whose the numbers of a table are, where requests have different numbers of candidates and some have no number."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bon_server.evaluate.arrow_columns import bools, floats
from bon_server.evaluate.table import Table, ascending, sums_of

SIZES = [2, 0, 3, 2, 3]
NUMBERS = np.array([5, 4, 1, np.nan, 0, np.nan, 7, 9, 8, 7], dtype=np.float64)


def table() -> Table:
    """Five requests with `NUMBERS`."""
    prompts = np.arange(len(SIZES), dtype=np.uint64)
    stopped = np.zeros(len(SIZES), dtype=np.bool_)
    return Table(prompts, stopped, np.repeat(np.arange(len(SIZES)), SIZES), {}, {})


def test_numbers_are_sorted_and_stay_those_of_their_request() -> None:
    found = {
        request: row
        for requests, rows in ascending(table(), NUMBERS)
        for request, row in zip(requests.tolist(), rows.tolist(), strict=True)
    }
    assert found == {0: [4, 5], 2: [0, 1], 3: [7], 4: [7, 8, 9]}


def test_sums_are_of_each_request() -> None:
    assert sums_of(table(), np.nan_to_num(NUMBERS)).tolist() == [9, 0, 1, 7, 24]


@pytest.mark.parametrize("first", [0, 3, 11])
def test_parts_of_columns_are_read_where_they_begin(first: int) -> None:
    numbers = [None if i % 5 == 4 else i / 2 for i in range(40)]
    truths = [i % 3 == 0 for i in range(40)]
    some = slice(first, 17)
    assert floats(pa.array(numbers)[some]) == pytest.approx(
        [np.nan if one is None else one for one in numbers[some]], nan_ok=True
    )
    assert bools(pa.array(truths)[some]).tolist() == truths[some]
