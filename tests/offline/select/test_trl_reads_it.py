"""The exported files are what `datasets` and TRL take: loaded and prepared by them, in a process of their own.

Importing TRL takes long and sets up logging and caches.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest

from bon_server.core.selection import OfflineRule
from bon_server.log.spool.spool import Spool
from bon_server.offline.select.options import FormatName, Written
from bon_server.offline.select.select import SelectOptions, select
from tests.log.records import ODD_TEXT, record, scored

READ = """
import sys
from pathlib import Path
from datasets import load_dataset
from trl.data_utils import is_conversational, is_conversational_from_value, maybe_convert_to_chatml
from trl.data_utils import unpair_preference_dataset
out, cache, odd = Path(sys.argv[1]), sys.argv[2], sys.stdin.read()

def read(folder):
    for file in sorted((out / folder).glob("part-*")):
        kind = "parquet" if file.suffix == ".parquet" else "json"
        yield load_dataset(kind, data_files=str(file), split="train", cache_dir=cache)

def answer(text):
    return [{"role": "assistant", "content": text}]

question = [{"role": "user", "content": "What is 3 + 4?"}]
for folder in ("trl-sft", "gzip", "parquet"):
    chat, text = read(folder)
    assert {"prompt", "completion"} <= set(chat.column_names) and chat.column_names == text.column_names, folder
    assert is_conversational(chat[0]) and not is_conversational(text[0]), folder
    assert chat[0]["prompt"] == question and chat[0]["completion"] == answer("answer 1"), chat[0]
    assert text[0]["completion"] == odd, text[0]

chat, text = read("trl-tokens")
assert chat[0] == {"input_ids": [1, 2, 3, 7, 8], "labels": [-100] * 3 + [7, 8]}, chat[0]

chat, text = read("trl-dpo")
assert is_conversational(chat[0]) and not is_conversational(text[0])
assert (chat[0]["chosen"], chat[0]["rejected"]) == (answer("answer 1"), answer("answer 0")), chat[0]
kto = next(read("trl-kto"))
unpaired = unpair_preference_dataset(chat)
assert sorted(map(str, unpaired)) == sorted(map(str, kto.select_columns(unpaired.column_names))), list(kto)

(messages,) = read("messages")
assert is_conversational(messages[0]) and messages[0]["messages"] == question + answer("answer 1")
(sharegpt,) = read("sharegpt")
assert is_conversational_from_value(sharegpt[0])
roles = {"human": "user", "gpt": "assistant"}
converted = [one | {"role": roles[one["role"]]} for one in maybe_convert_to_chatml(sharegpt[0])["messages"]]
assert converted == messages[0]["messages"], converted

# OpenAI's rules for chats, as its documentation has them.
(openai,) = read("openai")
for row in openai:
    assert all(set(one) - {"weight"} == {"role", "content"} for one in row["messages"])
    assert all(one["role"] in ("system", "user", "assistant") and one["content"] for one in row["messages"])
    assert row["messages"][-1]["role"] == "assistant"
(pairs,) = read("openai-dpo")
assert pairs[0]["input"]["messages"] == question and pairs[0]["preferred_output"] == answer("answer 1")
assert pairs[0]["non_preferred_output"] == answer("answer 0")

chat, text = read("grouped")
assert chat[0]["responses"] == ["answer 0", "answer 1"] and chat[0]["rewards"] == [0.25, 0.5]
"""


def _rule(name: str) -> dict[str, Any]:
    if name in ("trl-dpo", "trl-kto", "openai-dpo"):
        return {"rule": OfflineRule.PAIRS}
    if name == "grouped":
        return {"rule": OfflineRule.TOP_K_PER_PROMPT, "k": 2}
    return {"rule": OfflineRule.BEST_PER_PROMPT}


@pytest.mark.slow
def test_datasets_and_trl_read_every_format(tmp_path: Path) -> None:
    texts = (scored(0, 0.25, text="x"), scored(1, 0.5, text=ODD_TEXT))
    chats = (scored(0, 0.25), scored(1, 0.5, token_ids=(7, 8)))
    with closing(Spool.open(tmp_path / "log")) as spool:
        spool.append(
            [record("c", candidates=chats), record("t", prompt_text="Once", prompt_messages=None, candidates=texts)]
        )
    for name in get_args(FormatName):
        select(SelectOptions((tmp_path / "log",), out=tmp_path / "out" / name, format=name, **_rule(name)))
    packed = Written(compression="gzip")
    select(SelectOptions((tmp_path / "log",), OfflineRule.BEST_PER_PROMPT, tmp_path / "out" / "gzip", written=packed))
    command = [sys.executable, "-c", READ, str(tmp_path / "out"), str(tmp_path / "cache")]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, input=ODD_TEXT, env=environment, capture_output=True, text=True, timeout=200, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
