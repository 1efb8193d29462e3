"""A reward model behind HTTP, as one would write it next to `vllm serve`: all texts of a prompt in, rewards out.

Run as `python -m benchmarks.reward_process PORT MODEL`. POST / with {"prompt", "completions"} gives {"rewards"}, in
order; GET / answers once the model is loaded.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BATCH_TOKENS = 4096
"""Padded tokens of one forward pass, as in the server."""


class Scorer:
    """A sequence classifier with one label, in float32."""

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        loaded = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        loaded.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = loaded.to(self._device).eval()
        self.score("warm", ["up"])

    def score(self, prompt: str, completions: list[str]) -> list[float]:
        """The raw logit of each completion."""
        encoded = [self._encode(prompt, completion) for completion in completions]
        rewards = [0.0] * len(encoded)
        for batch in _batches([len(each["input_ids"]) for each in encoded]):
            padded = self._tokenizer.pad([encoded[place] for place in batch], return_tensors="pt").to(self._device)
            with self._torch.inference_mode():
                logits = self._model(**padded).logits[:, 0].tolist()
            for place, reward in zip(batch, logits, strict=True):
                rewards[place] = reward
        return rewards

    def _encode(self, prompt: str, completion: str) -> Any:
        """A chat for models with a chat template, a pair of texts for the others."""
        if self._tokenizer.chat_template is None:
            return self._tokenizer(prompt, completion)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return self._tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Places in order of length, cut where padding to the longest would pass the budget."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda each: lengths[each]):
        if batch and lengths[place] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def main(port: int, model: str) -> None:
    """Serves until the process is ended."""
    from aiohttp import web

    scorer = Scorer(model)
    thread = ThreadPoolExecutor(max_workers=1)

    async def ready(request: web.Request) -> web.Response:
        return web.json_response({})

    async def score(request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        work = asyncio.get_running_loop().run_in_executor(thread, scorer.score, asked["prompt"], asked["completions"])
        return web.json_response({"rewards": await work})

    application = web.Application()
    application.add_routes([web.get("/", ready), web.post("/", score)])
    web.run_app(application, host="127.0.0.1", port=port, access_log=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
