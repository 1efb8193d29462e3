"""Winners that a trainer would cut, counted with a tokenizer of another model than the one that sampled."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from bon_server.core.selection import OfflineRule
from bon_server.log.spool.spool import Spool
from bon_server.offline.select.options import Written
from bon_server.offline.select.select import SelectOptions, select
from tests.log.records import record


@pytest.mark.slow
def test_tokens_are_counted_as_the_chat_template_renders_them(tmp_path: Path) -> None:
    """A token is a byte. A turn is `<|im_start|>ROLE\n` … `<|im_end|>\n`, and each of the two marks is one token."""
    from tests.tiny_models import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with closing(Spool.open(tmp_path / "log")) as spool:
        spool.append([record("chat", (0.5,)), record("text", (0.5,), prompt_text="Once", prompt_messages=None)])
    chat = 1 + 5 + len("What is 3 + 4?") + 2 + 1 + 10 + len("answer 0") + 2
    for limit, cut in ((chat, 0), (chat - 1, 1), (len("Onceanswer 0") - 1, 2)):
        written = Written(max_length=limit, tokenizer=str(tmp_path / "tokenizer"))
        options = SelectOptions(
            (tmp_path / "log",), OfflineRule.BEST_PER_PROMPT, tmp_path / f"out{limit}", written=written
        )
        assert select(options)["audit"] == {
            "max_length": limit,
            "counted_with": str(tmp_path / "tokenizer"),
            "candidates": 2,
            "cut": cut,
            "longest": chat,
            "unknown": 0,
        }
