"""Attention keys and values of prompts, computed once and reused for all completions of a prompt.

Of a decoder's work on n completions of a prompt, n - 1 passes over the prompt are repetitions. Here the prompt runs
once, its keys and values are kept, and each completion only attends to them. `padded` puts token ids of different
lengths into one tensor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


def padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    """(n, length) int64, filled up on the right."""
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.int64)


ROOM_BYTES = 256 << 20
"""For the kept states of all prompts; those not used for the longest time go first."""


class PromptStates:
    """The states of recent prompts for one decoder. Not for use by two threads at a time."""

    def __init__(self, model: Any, room_bytes: int = ROOM_BYTES) -> None:
        self._model = model
        self._room_bytes = room_bytes
        self._kept: OrderedDict[tuple[int, ...], DynamicCache] = OrderedDict()
        self._kept_bytes = 0

    def logits(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], pad_id: int) -> Any:
        """Raw logits (n, labels) of n prompts, each with its continuation, in one pass; none of them is empty.

        pad_id: a token that none of them has; the model takes its score at the last token that is not this one.
        """
        longest_prompt, longest = max(map(len, prompts)), max(map(len, continuations))
        pairs = list(zip(prompts, continuations, strict=True))
        attended = [[0] * (longest_prompt - len(prompt)) + [1] * (len(prompt) + len(rest)) for prompt, rest in pairs]
        positions = [range(len(prompt), len(prompt) + len(rest)) for prompt, rest in pairs]
        inputs = {
            "input_ids": padded(continuations, longest, pad_id),
            "attention_mask": padded(attended, longest_prompt + longest, 0),
            "position_ids": padded(positions, longest, 0),
        }
        on_device = {name: rows.to(self._model.device) for name, rows in inputs.items()}
        states = self._joined([self._states(tuple(prompt)) for prompt in prompts], longest_prompt)
        return self._model(**on_device, past_key_values=states, use_cache=True).logits

    def _joined(self, states: Sequence[DynamicCache], tokens: int) -> DynamicCache:
        """A row for each of them, filled up on the left to so many tokens, where nothing attends."""
        joined = DynamicCache(config=self._model.config)
        for number, layers in enumerate(zip(*(each.layers for each in states), strict=True)):
            keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
            joined.update(_filled_up(keys, tokens), _filled_up(values, tokens), number)
        return joined

    def _states(self, prompt_ids: tuple[int, ...]) -> DynamicCache:
        found = self._kept.get(prompt_ids)
        if found is not None:
            self._kept.move_to_end(prompt_ids)
            return found
        states = DynamicCache(config=self._model.config)
        ids = torch.tensor([prompt_ids], dtype=torch.int64, device=self._model.device)
        self._model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=states, use_cache=True)
        self._kept[prompt_ids] = states
        self._kept_bytes += _bytes(states)
        while self._kept_bytes > self._room_bytes and len(self._kept) > 1:
            self._kept_bytes -= _bytes(self._kept.popitem(last=False)[1])
        return states


def _filled_up(kept: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
    """(n, heads, tokens, width) of n tensors (1, heads, at most so many tokens, width)."""
    return torch.cat([torch.nn.functional.pad(each, (0, 0, tokens - each.shape[-2], 0)) for each in kept])


def _bytes(states: DynamicCache) -> int:
    tensors = [tensor for layer in states.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
