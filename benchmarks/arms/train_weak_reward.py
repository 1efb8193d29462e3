"""Trains `weak_reward`'s model, in a process of its own: `python -m benchmarks.arms.train_weak_reward --policy M …`.

As `bon_server.demo.train_reward`, on its first problems alone, and without its problems with other numbers: those bring
labels of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bon_server.demo.reward_model import build_reward
from bon_server.demo.train_reward import Recipe, train


def main() -> None:
    """Writes `OUT/model`; samples and adapter stay beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, required=True, help="labelled problems")
    parser.add_argument("--n", type=int, required=True, help="labelled samples of each")
    parser.add_argument("--steps", type=int, required=True, help="of the optimiser")
    options = parser.parse_args()
    recipe = Recipe(problems=options.problems, n=options.n, steps=options.steps, moved_share=0.0)
    train(options.policy, recipe, options.out, options.out / "adapter")
    build_reward(options.out / "model", options.policy, options.out / "adapter")


if __name__ == "__main__":
    main()
