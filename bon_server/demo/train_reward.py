"""Trains the demo reward model on the policy's own answers and saves the small adapter that it learned.

    python -m bon_server.demo.train_reward [--out FOLDER] [--work DIR] [--seed S] [--quick]

Steps: sample the policy on training problems; label every answer with the exact verifier; train; report on the
development problems. The setting is that of Cobbe et al. 2021 (verifiers on sampled solutions). Needs the extra
`[train]`; about 15 minutes of sampling and 20 of training on two cores.

Loss, with s the raw reward and eight problems a batch: pointwise cross-entropy (it puts all prompts on one scale, so
that rewards of different prompts can be compared) plus the mean of -log sigmoid(s_right - s_wrong) over the pairs of
one problem (Bradley-Terry: what best-of-n needs). Half of the problems are seen with other numbers each time
(`samples.Moves`): their few hundred pairs of operands would be learned by heart otherwise.

One forward pass takes a prompt and all its completions (`branch_rewards`): the prompt once, the completions as branches
after it. A row of the batch is `prompt, completion 1, completion 2, …`. Each completion attends to the prompt and to
itself, and its positions go on from the prompt's end, so that it gets the reward it would get alone, at half the work
or less.
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
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from tqdm import trange
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bon_server.demo.evaluate import SEEDS, evaluate, revision
from bon_server.demo.policy_model import build_policy
from bon_server.demo.problems import is_right, problems
from bon_server.demo.reward_model import ADAPTER, build_reward, load_backbone, save_adapter
from bon_server.demo.samples import Moves, Sampled, SamplingPlan, sample

Branches = tuple[str, Sequence[str]]
"""A question and completions of it."""


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    positions: list[int]
    branch: list[int]
    """0 for the prompt's tokens, i + 1 for those of completion i."""
    ends: list[int]
    """Where each completion ends."""


def branch_rewards(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Branches]
) -> list[Tensor]:
    """Returns for each question (n,) float32: the raw logits of its n completions, differentiable."""
    rows = [_row(tokenizer, prompt, completions) for prompt, completions in batch]
    length = max(len(row.ids) for row in rows)
    ids = _filled([row.ids for row in rows], length, 0)
    branch = _filled([row.branch for row in rows], length, -1)
    seen = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(len(rows), 1, length, length).masked_fill(~seen[:, None], torch.finfo(torch.float32).min)
    hidden = model.model(
        input_ids=ids,
        attention_mask=bias,
        position_ids=_filled([row.positions for row in rows], length, 0),
        use_cache=False,
    ).last_hidden_state
    return [model.score(hidden[index, torch.tensor(row.ends)])[:, 0] for index, row in enumerate(rows)]


def _row(tokenizer: PreTrainedTokenizerBase, prompt: str, completions: Sequence[str]) -> _Row:
    question = {"role": "user", "content": prompt}
    opened = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    row = _Row(list(opened), list(range(len(opened))), [0] * len(opened), [])
    for number, completion in enumerate(completions, start=1):
        answer = {"role": "assistant", "content": completion}
        whole = tokenizer.apply_chat_template([question, answer], return_dict=False)
        if whole[: len(opened)] != opened:
            raise ValueError("the chat template does not begin all answers to a question alike")
        row.ids.extend(whole[len(opened) :])
        row.positions.extend(range(len(opened), len(whole)))
        row.branch.extend([number] * (len(whole) - len(opened)))
        row.ends.append(len(row.ids) - 1)
    return row


def _filled(rows: Sequence[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


TRAIN_COUNTS = {"chain_sum": 550, "basic_arithmetic": 400, "products": 50}
POOL_COUNTS = {"chain_sum": 3000, "basic_arithmetic": 1500, "products": 50}
"""Training problems that answers are moved to; nothing is sampled for them."""
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """All that decides the result, beside the packages."""

    seed: int = 0
    """Of shuffling and the fresh parts; the samples are the same for all."""
    problems: int = 1000
    """Training problems sampled, drawn from TRAIN_COUNTS."""
    n: int = 8
    """Samples a problem: more problems teach more than more samples of each."""
    steps: int = 220
    """Optimiser steps."""
    right_each: int = 3
    """Right answers taken of a problem each time, at most."""
    wrong_each: int = 4
    """Wrong ones: beyond a few they teach little more, and cost as much."""
    moved_share: float = 0.5
    """Share of the problems in a batch that are seen with other numbers."""
    learning_rate: float = 7e-4
    """Peak, after a warm-up of 6 % of the steps; then linear to 0."""
    rank: int = 16
    """Of the low-rank updates; their scale is 2."""


MIXED_A_BATCH = 7
"""Problems of a batch that have right and wrong answers; one more has wrong ones alone."""
QUICK = Recipe(problems=24, n=4, steps=4)


def train(policy: Path, recipe: Recipe, work: Path, out: Path) -> None:
    """Trains by the recipe and writes the adapter to `out`; the policy's samples are kept in `work`."""
    chosen = problems("train", TRAIN_COUNTS)
    random.Random(0).shuffle(chosen)
    plan = SamplingPlan(n=recipe.n, seed=SEEDS["train"])
    file = work / f"train-{recipe.n}-{revision(policy)[:12]}.jsonl"
    sampled = sample(policy, chosen[: recipe.problems], plan, file)
    torch.manual_seed(recipe.seed)
    backbone, tokenizer = load_backbone(policy)
    lora = LoraConfig(task_type="SEQ_CLS", r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=LINEARS)
    model = get_peft_model(backbone, lora)
    _optimise(model, tokenizer, sampled, recipe)
    save_adapter(model, out)


def _optimise(model: PeftModel, tokenizer: PreTrainedTokenizerBase, sampled: Sequence[Sampled], recipe: Recipe) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe.steps))
    batches = _batches(sampled, recipe)
    model.train()
    with trange(recipe.steps, desc="training") as bar:
        for _ in bar:
            loss = batch_loss(model, tokenizer, next(batches))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")


def batch_loss(model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Sampled]) -> Tensor:
    """Cross-entropy over all answers of some problems, plus Bradley-Terry over each problem's (right, wrong) pairs."""
    questions = [(one.problem.prompt, one.completions) for one in batch]
    rewards = branch_rewards(model.get_base_model(), tokenizer, questions)
    right = [torch.tensor([is_right(one.problem, text) for text in one.completions]) for one in batch]
    loss = binary_cross_entropy_with_logits(torch.cat(rewards), torch.cat(right).float())
    pairs = [
        softplus(reward[~good][None, :] - reward[good][:, None]).flatten()
        for reward, good in zip(rewards, right, strict=True)
    ]
    between = torch.cat(pairs)
    return loss + between.mean() if len(between) else loss


def _batches(sampled: Sequence[Sampled], recipe: Recipe) -> Iterator[list[Sampled]]:
    """Endless: all problems with right and wrong answers in a new order each time, some of each batch moved."""
    random_ = random.Random(recipe.seed)
    moves = Moves(problems("train", POOL_COUNTS), random_)
    mixed = [one for one in sampled if len(set(_verdicts(one))) == 2]
    others = [one for one in sampled if not any(_verdicts(one))]
    while True:
        order = random_.sample(mixed, len(mixed))
        for start in range(0, max(1, len(order) - MIXED_A_BATCH + 1), MIXED_A_BATCH):
            chosen = [*order[start : start + MIXED_A_BATCH], random_.choice(others)]
            moved = [moves.move(one) if random_.random() < recipe.moved_share else one for one in chosen]
            yield [_some(one, recipe, random_) for one in moved]


def _verdicts(one: Sampled) -> list[bool]:
    return [is_right(one.problem, text) for text in one.completions]


def _some(one: Sampled, recipe: Recipe, random_: random.Random) -> Sampled:
    """A few of the right and of the wrong answers."""
    texts = random_.sample(one.completions, len(one.completions))
    right = [text for text in texts if is_right(one.problem, text)]
    wrong = [text for text in texts if text not in right]
    return Sampled(one.problem, (*right[: recipe.right_each], *wrong[: recipe.wrong_each]))


def _rate(step: int, steps: int) -> float:
    return min((step + 1) / (0.06 * steps + 1), max(0.02, 1 - step / steps))


def main() -> None:
    """Command line: builds what is missing, trains, saves, and prints the development figures as JSON."""
    parser = argparse.ArgumentParser(description="train the demo reward model")
    parser.add_argument("--out", type=Path, default=ADAPTER, help="folder of the adapter (default: the committed one)")
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="folder of models and samples")
    parser.add_argument("--seed", type=int, default=0, help="another seed shuffles and starts anew")
    parser.add_argument("--quick", action="store_true", help="a few steps: checks the script, not the model")
    options = parser.parse_args()
    recipe = Recipe(**{**asdict(QUICK if options.quick else Recipe()), "seed": options.seed})
    started = time.monotonic()
    policy = build_policy(options.work / "policy")
    train(policy, recipe, options.work, options.out)
    sys.stderr.write(f"trained in {time.monotonic() - started:.0f} s\n")
    reward = build_reward(options.work / f"reward-{options.seed}", policy, options.out)
    limit = 3 if options.quick else None
    figures = evaluate(policy, reward, options.work, split="development", n=4 if options.quick else 16, limit=limit)
    sys.stdout.write(json.dumps({"recipe": asdict(recipe), **figures}) + "\n")


if __name__ == "__main__":
    main()
