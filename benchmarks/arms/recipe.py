"""How the policies are trained.

The values of supervised fine-tuning were chosen on the development questions and then left alone: 230 winners made
sampled accuracy there .18 of .05 (100 questions, 3 answers each, standard error .03). DPO's rate by one trial of the
same size: .24 (60 questions, 2 answers each, standard error .05) after 3e-4. GRPO's by the rewards of one run of 32
steps on training questions with 5e-4, where they rose without breaking down. Neither was searched further.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from typing import Any

from bon_server.core.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """Low-rank updates for all arms, merged in the end."""

    rank: int = 16
    """Of the updates; their scale is 2."""
    batch_size: int = 16
    """Rows or pairs of an optimiser step."""
    sft_learning_rate: float = 5e-4
    """Peak."""
    sft_epochs: float = 2
    dpo_learning_rate: float = 3e-4
    """Peak."""
    dpo_epochs: float = 1
    dpo_beta: float = 0.1
    rl_learning_rate: float = 5e-4
    """Constant."""
    rl_batch: int = 24
    """Answers of a step."""
    rl_group: int = 8
    """Answers of a step to one question."""
    rl_stops: tuple[int, ...] = (8, 16, 24)
    """Steps after which the policy is measured."""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """`--recipe`, for other models."""
    names = ", ".join(f"{field.name}={_shown(field.default)}" for field in fields(Recipe))
    parser.add_argument("--recipe", action="append", default=[], metavar="KEY=VALUE", help=f"repeat; {names}")


def recipe_of(assignments: list[str]) -> Recipe:
    """The default recipe with changes. Raises ConfigError."""
    known: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in known:
            raise ConfigError(f"recipe: {name!r} given; there are {', '.join(known)}")
        try:
            changes[name] = tuple(map(int, value.split(","))) if name == "rl_stops" else type(known[name])(float(value))
        except ValueError:
            raise ConfigError(f"recipe: {assignment!r} given; a number is needed") from None
    return replace(Recipe(), **changes)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
