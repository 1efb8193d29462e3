"""Attention keys and values of prompts, computed once and reused for all completions of a prompt.

Of a decoder's work on n completions of a prompt, n - 1 passes over the prompt are repetitions. Here the prompt runs
once, its keys and values are kept, and each completion only attends to them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from bon_server.reward.padding import padded

ROOM_BYTES = 256 << 20
"""For the kept states of all prompts; those not used for the longest time go first."""


class PromptStates:
    """The states of recent prompts for one decoder. Not for use by two threads at a time."""

    def __init__(self, model: Any, room_bytes: int = ROOM_BYTES) -> None:
        self._model = model
        self._room_bytes = room_bytes
        self._kept: OrderedDict[tuple[int, ...], DynamicCache] = OrderedDict()
        self._kept_bytes = 0

    def logits(self, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]], pad_id: int) -> Any:
        """Raw logits (n, labels) of a prompt with each of n continuations, none of them empty.

        pad_id: a token that none of them has; the model takes its score at the last token that is not this one.
        """
        states = copy.deepcopy(self._states(tuple(prompt_ids)))
        states.batch_repeat_interleave(len(continuations))
        longest = max(map(len, continuations))
        attended = [[1] * (len(prompt_ids) + len(each)) for each in continuations]
        inputs = {
            "input_ids": padded(continuations, longest, pad_id),
            "attention_mask": padded(attended, len(prompt_ids) + longest, 0),
        }
        on_device = {name: rows.to(self._model.device) for name, rows in inputs.items()}
        return self._model(**on_device, past_key_values=states, use_cache=True).logits

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


def _bytes(states: DynamicCache) -> int:
    tensors = [tensor for layer in states.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
