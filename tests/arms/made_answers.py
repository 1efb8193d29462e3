"""Answers with known figures."""

from __future__ import annotations

import numpy as np

from benchmarks.arms.answers import Answers
from benchmarks.arms.setting import STRONG, WEAK
from bon_server.loop.rounds.evaluation import SampledText


def made_answers(seed: int, questions: int = 40, samples: int = 8, shift: float = 0.0) -> Answers:
    """Rewards with ties, and a gold value that goes along with them."""
    random = np.random.default_rng(seed)
    rewards = np.asarray(random.integers(5, size=(questions, samples)) + shift, dtype=np.float64)
    right = (rewards + random.normal(size=rewards.shape) > 3).astype(np.float64)
    return Answers(
        {STRONG: rewards, WEAK: np.asarray(rewards + random.integers(5, size=rewards.shape), dtype=np.float64)},
        right,
        np.full(rewards.shape, 20.0),
        np.zeros(rewards.shape),
        tuple(SampledText((1,), (2,), 0.8, 1.0) for _ in range(questions)),
        1.0,
    )
