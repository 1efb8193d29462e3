"""Which waiting sequences share a forward pass."""

from __future__ import annotations

from collections.abc import Sequence


def next_batch(lengths: Sequence[int], budget_tokens: int) -> list[int]:
    """Indices of the sequences to run next, in order of length.

    lengths: (n,) tokens, in order of arrival, n ≥ 1. Sequences of similar length are put together, so that little is
    padding; number × longest stays within the budget, except for a single sequence that is longer by itself. Of these
    batches the one with the sequence that waits longest is returned, so none waits forever.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[index] > budget_tokens:
            if 0 in batch:
                break
            batch = []
        batch.append(index)
    return batch
