"""Training sets of the tiny policy: a real log, and a real selection from it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from bon_server.core.selection import OfflineRule
from bon_server.core.types import FinishReason, Message
from bon_server.log.spool.spool import Spool
from bon_server.models.tokenizer import load_tokenizer
from bon_server.models.weights import find_model
from bon_server.offline.select.options import Filters
from bon_server.offline.select.select import SelectOptions, select
from bon_server.offline.train.encoding import Encoder, stop_ids_of
from tests import tiny_models
from tests.log.records import record, scored

END = 2
"""The token `<|im_end|>`, at which the tiny policy ends a sample."""


def encoder_of(policy: Path) -> Encoder:
    """As the trainer makes it."""
    files, tokenizer = find_model(str(policy)), load_tokenizer(policy)
    return Encoder(tokenizer, files, stop_ids_of(tokenizer, {}, files.config))


def text_ids(text: str) -> list[int]:
    """Tokens of the byte tokenizer, without any special ones."""
    return list(tiny_models.byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


def chat_ids(question: str) -> list[int]:
    """The prompt as the server has it: rendered, with the marker that opens the answer."""
    chat = [{"role": "user", "content": question}]
    rendered = tiny_models.byte_tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return text_ids(rendered)


def make_log(log: Path, prompts: int = 24, answer: str = "it is {}", **fields: Any) -> Path:
    """A chat each; its second candidate is the better one, its third was cut. fields: of each record."""
    with closing(Spool.open(log)) as spool:
        spool.append([_record(number, answer, **fields) for number in range(prompts)])
    return log


def _record(number: int, answer: str, **fields: Any) -> Any:
    question, texts = f"What is {number}?", (f"no {number}", answer.format(number), answer.format(number) + " and so")
    cut = (False, False, True)
    candidates = tuple(
        scored(
            place,
            [0.25, 0.5, 0.75][place],
            text=text,
            token_ids=(*text_ids(text), *([] if cut[place] else [END])),
            finish_reason=FinishReason.LENGTH if cut[place] else FinishReason.STOP,
        )
        for place, text in enumerate(texts)
    )
    chat = (Message("user", question),)
    prompt = {"prompt_messages": chat, "prompt_token_ids": tuple(chat_ids(question))}
    return record(f"r{number}", candidates=candidates, **(prompt | fields))


def select_from(log: Path, out: Path, form: str = "trl-sft", keep_truncated: bool = False, **options: Any) -> Path:
    """A selection of the best."""
    rule = OfflineRule.PAIRS if form == "trl-dpo" else OfflineRule.BEST_PER_PROMPT
    filters = Filters(keep_truncated=keep_truncated)
    chosen: dict[str, Any] = {"rule": rule, "out": out, "format": form, "filters": filters}
    select(SelectOptions((log,), **(chosen | options)))
    return out
