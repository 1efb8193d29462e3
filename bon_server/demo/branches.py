"""One forward pass over a prompt and all its completions: the prompt once, the completions as branches after it.

A row of the batch is `prompt, completion 1, completion 2, …`. Each completion attends to the prompt and to itself, and
its positions go on from the prompt's end, so that it gets the reward it would get alone, at half the work or less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
