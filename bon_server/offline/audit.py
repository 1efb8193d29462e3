"""How many tokens the chosen have, so that one knows what a trainer's `max_length` would cut.

A trainer cuts at the end: what it cuts from a winner is the answer, and its end-of-text first.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.offline.eligible import lengths_of
from bon_server.offline.writing import chats
from bon_server.tokenizer import load_tokenizer

_one_at_a_time = Lock()
"""A tokenizer is not made for several threads."""


def lengths_in_tokens(tokenizer: str | None, table: Any) -> NDArray[np.int64]:
    """(p,) tokens of prompt and completion together, −1 where they are not known.

    tokenizer: folder; None: count the tokens in the log. table: what `fetch` returned, of prompts of one form.
    """
    if tokenizer is None:
        prompt = lengths_of(table["prompt_token_ids"].combine_chunks())
        completion = table["completion_tokens"].to_numpy()
        empty = pc.equal(pc.binary_length(pc.fill_null(table["text"], "")), 0).to_numpy(zero_copy_only=False)
        return np.where((prompt == 0) | ((completion == 0) & ~empty), -1, prompt + completion)
    with _one_at_a_time:
        return _by_tokenizer(_load(tokenizer), table)


@cache
def _load(folder: str) -> Any:
    return load_tokenizer(Path(folder))


def _by_tokenizer(tokenizer: Any, table: Any) -> NDArray[np.int64]:
    texts, prompts = table["text"].to_pylist(), table["prompt_text"].to_pylist()
    answers = [{"role": "assistant", "content": text} for text in texts]
    if table["prompt_text"].null_count == 0:
        whole = [f"{prompt}{text}" for prompt, text in zip(prompts, texts, strict=True)]
        special = True
    elif table["prompt_messages"].null_count == 0:
        messages = chats(table["prompt_messages"])
        whole = [
            tokenizer.apply_chat_template([*chat, answer], tokenize=False)
            for chat, answer in zip(messages, answers, strict=True)
        ]
        special = False  # the template has them already
    else:
        return np.full(len(texts), -1)
    return np.array([len(ids) for ids in tokenizer(whole, add_special_tokens=special)["input_ids"]], dtype=np.int64)
