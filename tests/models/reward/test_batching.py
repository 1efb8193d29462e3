"""Batches: within the budget, similar lengths together, the oldest never left behind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bon_server.models.reward.transformers import next_batch

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 2000))
def test_a_batch_holds_the_oldest_and_keeps_the_budget(lengths: list[int], budget_tokens: int) -> None:
    batch = next_batch(lengths, budget_tokens)
    chosen = [lengths[index] for index in batch]
    assert 0 in batch
    assert len(set(batch)) == len(batch)
    assert chosen == sorted(chosen)
    assert len(batch) == 1 or len(batch) * max(chosen) <= budget_tokens


@given(LENGTHS, st.integers(1, 2000))
def test_everything_is_run_once(lengths: list[int], budget_tokens: int) -> None:
    waiting, done = list(enumerate(lengths)), []
    while waiting:
        batch = next_batch([length for _, length in waiting], budget_tokens)
        done += [waiting[index][0] for index in batch]
        waiting = [each for index, each in enumerate(waiting) if index not in batch]
    assert sorted(done) == list(range(len(lengths)))


def test_similar_lengths_share_a_batch() -> None:
    assert next_batch([10, 500, 12, 490, 11], 1000) == [0, 4, 2]


def test_a_sequence_above_the_budget_runs_alone() -> None:
    assert next_batch([900, 5, 5], 100) == [0]
