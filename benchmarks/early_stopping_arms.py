"""Which budgets are compared. They were chosen on the development split.

The two in waves were chosen anew after 140 test problems had been asked with others, which have counted as development
problems since: the one without pruning by what it saved on half of these, of those that lose nothing in a replay of
development samples through a model of the engine. So its figures have to be from test problems after those 140.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FIXED_N = 16
FIXED = "fixed"


@dataclass(frozen=True)
class Arm:
    """One way to ask."""

    name: str
    kind: str
    """`fixed`, `threshold`, `adaptive`, `pruning` or `both`: its shape in the plot."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the request."""

    @property
    def is_fixed(self) -> bool:
        """Whether it is what the others are compared with."""
        return self.name == FIXED


ARMS = [
    Arm(FIXED, "fixed", {"n": FIXED_N}),
    Arm("threshold", "threshold", {"n": 16, "stop_at_reward": 1.0}),
    Arm("threshold, in waves", "threshold", {"n": 26, "stop_at_reward": 0.6, "price_per_candidate": 0.0}),
    Arm("adaptive", "adaptive", {"n": 48, "price_per_candidate": 0.08}),
    Arm("pruning", "pruning", {"n": 24, "prune_fraction": 0.7, "prune_after_tokens": 12}),
    Arm(
        "threshold and pruning",
        "both",
        {
            "n": 32,
            "stop_at_reward": 0.6,
            "price_per_candidate": 0.0,
            "prune_fraction": 0.5,
            "prune_after_tokens": 8,
        },
    ),
]
CHOSEN = "threshold, in waves"
QUICK = (FIXED, CHOSEN)
