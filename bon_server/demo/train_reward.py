"""Trains the demo reward model on the policy's own answers and saves the small part that changes.

    python -m bon_server.demo.train_reward [--out FILE] [--work DIR] [--seed S] [--quick]

Steps: sample the policy on training problems; label every answer with the exact verifier; train; report on the
development problems. The setting is that of Cobbe et al. 2021 (verifiers on sampled solutions).

Loss, with s the raw reward and eight problems a batch: pointwise cross-entropy (it puts all prompts on one scale, so
that rewards of different prompts can be compared) plus the mean of -log sigmoid(s_right - s_wrong) over the pairs of
one problem (Bradley-Terry: what best-of-n needs). Most problems are seen with other numbers each time (see moving.py):
their few hundred pairs of operands would be learned by heart otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.nn.utils import parametrize
from tqdm import trange
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bon_server.demo.evaluate import SEEDS, evaluate, revision
from bon_server.demo.moving import Moves
from bon_server.demo.policy_model import build_policy
from bon_server.demo.problems import is_right, problems
from bon_server.demo.reward_model import TRAINED_PART, build_reward, load_backbone
from bon_server.demo.samples import Sampled, SamplingPlan, sample
from bon_server.demo.trained_part import make_trainable, save_trained

TRAIN_COUNTS = {"chain_sum": 550, "basic_arithmetic": 400, "products": 50}
POOL_COUNTS = {"chain_sum": 3000, "basic_arithmetic": 1500, "products": 50}
"""Training problems that answers are moved to; nothing is sampled for them."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the result, beside the two packages."""

    seed: int = 0
    """Of sampling, shuffling, dropout and the fresh parts."""
    problems: int = 384
    """Training problems sampled, drawn from TRAIN_COUNTS."""
    n: int = 8
    """Samples a problem: more problems teach more than more samples of each."""
    steps: int = 260
    """Optimiser steps."""
    moved_share: float = 0.6
    """Share of the problems in a batch that are seen with other numbers."""
    dropout: float = 0.1
    """In the backbone, while training."""
    learning_rate: float = 7e-4
    """Peak, after a warm-up of 6 % of the steps; then linear to 0."""
    rank: int = 64
    """Of the low-rank updates."""
    scale: float = 0.125
    """Of the low-rank updates."""


PROBLEMS_A_BATCH = 8
FORWARD_TEXTS = 16
QUICK = Recipe(problems=16, n=4, steps=8)


def train(policy: Path, recipe: Recipe, work: Path, out: Path) -> None:
    """Trains by the recipe and writes the trained part to `out`; the policy's samples are kept in `work`."""
    chosen = problems("train", TRAIN_COUNTS)
    random.Random(0).shuffle(chosen)
    plan = SamplingPlan(n=recipe.n, seed=SEEDS["train"] + 100 * recipe.seed)
    file = work / f"train-{recipe.n}-{recipe.seed}-{revision(policy)[:12]}.jsonl"
    sampled = sample(policy, chosen[: recipe.problems], plan, file)
    torch.manual_seed(recipe.seed)
    model, tokenizer = load_backbone(recipe.dropout)
    make_trainable(model, recipe.rank, recipe.scale, number_tokens(tokenizer))
    _optimise(model, tokenizer, sampled, recipe)
    save_trained(model, out)


def number_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids of the tokens whose vectors are trained: the numbers 0 to 199 and the signs of arithmetic."""
    vocabulary = tokenizer.get_vocab()
    numbers = {str(number) for number in range(200)}
    signs = set("+-*/=x×÷().,")
    return sorted(token_id for token, token_id in vocabulary.items() if token in numbers | signs)


def _optimise(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampled: Sequence[Sampled], recipe: Recipe
) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe.steps))
    batches = _batches(sampled, recipe)
    model.train()
    with trange(recipe.steps, desc="training") as bar:
        for _ in bar:
            with parametrize.cached():  # the merged weights serve all forward passes of the step
                loss = batch_loss(model, tokenizer, next(batches))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")


def batch_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Sampled]) -> Tensor:
    """Cross-entropy over all answers of some problems, plus Bradley-Terry over each problem's (right, wrong) pairs."""
    texts = [(one.problem.prompt, completion) for one in batch for completion in one.completions]
    right = torch.tensor([is_right(one.problem, completion) for one in batch for completion in one.completions])
    problem = torch.tensor([index for index, one in enumerate(batch) for _ in one.completions])
    rewards = _rewards(model, tokenizer, texts)
    loss = binary_cross_entropy_with_logits(rewards, right.float())
    pairs = right[:, None] & ~right[None, :] & (problem[:, None] == problem[None, :])
    if pairs.any():
        loss = loss + softplus(rewards[None, :] - rewards[:, None])[pairs].mean()
    return loss


def _rewards(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> Tensor:
    """Forward passes of similar lengths: padding a whole batch to its longest would cost half as much again."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index][1]))
    rewards: list[Tensor] = []
    for start in range(0, len(order), FORWARD_TEXTS):
        prompts, completions = zip(*(texts[index] for index in order[start : start + FORWARD_TEXTS]), strict=True)
        inputs = tokenizer(list(prompts), list(completions), truncation=False, padding=True, return_tensors="pt")
        rewards.append(model(**inputs).logits[:, 0])
    return torch.cat(rewards)[torch.tensor(order).argsort()]


def _batches(sampled: Sequence[Sampled], recipe: Recipe) -> Iterator[list[Sampled]]:
    """Endless: all problems in a new order each time, some of each batch moved."""
    random_ = random.Random(recipe.seed)
    moves = Moves(problems("train", POOL_COUNTS), random_)
    while True:
        order = list(sampled)
        random_.shuffle(order)
        for start in range(0, len(order) - PROBLEMS_A_BATCH + 1, PROBLEMS_A_BATCH):
            chosen = order[start : start + PROBLEMS_A_BATCH]
            yield [moves.move(one) if random_.random() < recipe.moved_share else one for one in chosen]


def _rate(step: int, steps: int) -> float:
    return min((step + 1) / (0.06 * steps + 1), max(0.02, 1 - step / steps))


def main() -> None:
    """Command line: builds what is missing, trains, saves, and prints the development figures as JSON."""
    parser = argparse.ArgumentParser(description="train the demo reward model")
    parser.add_argument("--out", type=Path, default=TRAINED_PART, help="the trained part (default: the committed file)")
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="folder of models and samples")
    parser.add_argument("--seed", type=int, default=0, help="another seed samples and trains anew")
    parser.add_argument("--quick", action="store_true", help="a few steps: checks the script, not the model")
    options = parser.parse_args()
    recipe = Recipe(**{**asdict(QUICK if options.quick else Recipe()), "seed": options.seed})
    started = time.monotonic()
    policy = build_policy(options.work / "policy")
    train(policy, recipe, options.work, options.out)
    sys.stderr.write(f"trained in {time.monotonic() - started:.0f} s; {options.out.stat().st_size} bytes\n")
    reward = build_reward(options.work / f"reward-{options.seed}", options.out)
    limit = 3 if options.quick else None
    figures = evaluate(policy, reward, options.work, split="development", n=4 if options.quick else 16, limit=limit)
    sys.stdout.write(json.dumps({"recipe": asdict(recipe), **figures}) + "\n")


if __name__ == "__main__":
    main()
