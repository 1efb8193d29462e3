"""Token ids of different lengths in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    """(n, length) int64, filled up on the right."""
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.int64)
