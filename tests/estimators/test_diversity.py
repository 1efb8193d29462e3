"""distinct-n against counting by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.estimators.diversity import distinct_n


def test_counted_by_hand() -> None:
    texts = [["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "sat"]]
    assert distinct_n(texts, 1) == 5 / 9
    assert distinct_n(texts, 2) == 5 / 7  # the cat, cat sat, sat on, on the, the mat; the cat, cat sat again
    assert distinct_n(texts, 3) == 4 / 5


def test_without_any_there_is_none() -> None:
    assert math.isnan(distinct_n([], 1))
    assert math.isnan(distinct_n([[], [1]], 2))
    with pytest.raises(ValueError, match="n: 0 given"):
        distinct_n([[1]], 0)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=5), st.integers(1, 3))
def test_against_brute_force(texts: list[list[int]], n: int) -> None:
    seen: list[list[int]] = []
    total = 0
    for text in texts:
        for start in range(len(text)):
            gram = text[start : start + n]
            if len(gram) == n:
                total += 1
                if gram not in seen:
                    seen.append(gram)
    got = distinct_n(texts, n)
    assert math.isnan(got) if total == 0 else got == len(seen) / total
