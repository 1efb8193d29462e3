"""What the trainer gets, and the count of what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bon_server.core.errors import TrainingError
from bon_server.offline.train.examples import Audit, Example, examples_of, split
from bon_server.offline.train.sources import TrainingSource, open_source
from tests import tiny_models
from tests.offline.train.sets import END, chat_ids, encoder_of, make_log, select_from, text_ids


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_policy(tmp_path_factory.mktemp("policy"))


def read(policy: Path, source: TrainingSource, max_length: int = 2048) -> tuple[list[Any], Audit]:
    """Columns of each row as lists, and the audit."""
    audit = Audit()
    examples = examples_of(source, encoder_of(policy), max_length, audit)
    return [[column.tolist() for column in one.columns] for one in examples], audit


def test_sampled_tokens_stay_as_they_were(policy: Path, tmp_path: Path) -> None:
    """Also where the tokenizer would make others of the same text: here of a token in the middle of the answer."""
    odd = (*text_ids("it"), 1, *text_ids("is"), END)
    log = make_log(tmp_path / "log", prompts=1)
    out = select_from(log, tmp_path / "set", "trl-tokens")
    (row, audit) = read(policy, open_source("data", out, "sft"))
    prompt = chat_ids("What is 0?")
    assert row == [[[*prompt, *text_ids("it is 0"), END], [-100] * len(prompt) + [*text_ids("it is 0"), END]]]
    assert (audit.truncated, audit.ended_otherwise) == (0, 0)
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"input_ids": [5, *odd], "labels": [-100, *odd]}))
    assert read(policy, open_source("data", path, "sft"))[0] == [[[5, *odd], [-100, *odd]]]


@pytest.mark.parametrize("form", ["trl-sft", "trl-tokens", "messages", "parquet"])
def test_all_formats_of_a_selection_make_the_same_tokens(policy: Path, tmp_path: Path, form: str) -> None:
    """An answer that was cut has no end in any of them."""
    log = make_log(tmp_path / "log", prompts=2)
    for keep_truncated in (False, True):
        out = select_from(log, tmp_path / f"{keep_truncated}", form, keep_truncated)
        rows, audit = read(policy, open_source("data", out, "sft"))
        texts = ["it is 0 and so", "it is 1 and so"] if keep_truncated else ["it is 0", "it is 1"]
        end = [] if keep_truncated else [END]
        prompts = [chat_ids(f"What is {number}?") for number in range(2)]
        answers = [[*text_ids(text), *end] for text in texts]
        assert sorted(rows) == sorted(
            [[*prompt, *answer], [-100] * len(prompt) + answer] for prompt, answer in zip(prompts, answers, strict=True)
        )
        assert audit.truncated == (2 if keep_truncated else 0)


def test_pairs_share_their_prompt_and_end_each_as_it_did(policy: Path, tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", prompts=1)
    out = select_from(log, tmp_path / "set", "trl-dpo", keep_truncated=True)
    rows, audit = read(policy, open_source("data", out, "dpo"))
    assert rows == [[chat_ids("What is 0?"), text_ids("it is 0 and so"), [*text_ids("no 0"), END]]]
    assert audit.truncated == 1


def test_long_rows_are_left_out_whole_and_counted(policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "ab", "completion": "c" * length} for length in (1, 5, 6, 7, 5000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "x" * 5000, "completion": "y"}]))
    kept, audit = read(policy, open_source("data", path, "sft"), max_length=8)
    assert [len(ids) for ids, _ in kept] == [4, 8], "with the prompt's two tokens, and the end"
    assert all(ids[-1] == END for ids, _ in kept)
    assert audit.left_out == {"too_long": 4} and audit.rows == 6 and audit.longest == 5003


def test_rows_that_teach_nothing_are_left_out(policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input_ids": [5, 6], "labels": [-100, -100]}\n{"input_ids": [], "labels": []}\n')
    assert read(policy, open_source("data", path, "sft"))[1].left_out == {"nothing_to_learn": 2}
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    assert read(policy, open_source("data", path, "dpo"))[1].left_out == {"nothing_to_learn": 1}


def test_samples_that_ended_in_a_stop_text_are_counted(policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input_ids": [5, 6], "labels": [-100, 6]}\n{"input_ids": [5, 2], "labels": [-100, 2]}\n')
    assert read(policy, open_source("data", path, "sft"))[1].ended_otherwise == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids": [5, 259], "labels": [5, 6]}, "token 259; the policy's vocabulary has 0 to 258"),
        ({"input_ids": [5, 6], "labels": [-1, 6]}, "labels hold the token -1"),
        ({"input_ids": [5, 6], "labels": [6]}, "2 input_ids and 1 labels"),
        ({"input_ids": "secret", "labels": []}, "input_ids are no list of whole numbers"),
    ],
)
def test_tokens_of_another_model_are_refused_by_line(
    policy: Path, tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"input_ids": [5, 6], "labels": [-100, 6]}}\n{json.dumps(row)}\n')
    with pytest.raises(TrainingError, match=f"line 2: .*{reason}") as raised:
        read(policy, open_source("data", path, "sft"))
    assert "secret" not in str(raised.value)


def test_held_out_rows_share_no_prompt_with_the_others() -> None:
    examples = [Example((np.array([row]),), prompt_key=row % 20) for row in range(100)]
    train, held_out = split(iter(examples), 0.25, seed=1)
    assert len(held_out) == 25 and len(train) == 75
    assert not {one.prompt_key for one in train} & {one.prompt_key for one in held_out}
    again = split(iter(reversed(examples)), 0.25, seed=1)[1]
    assert {one.prompt_key for one in again} == {one.prompt_key for one in held_out}, "whatever the order"
    other = split(iter(examples), 0.25, seed=2)[1]
    assert {one.prompt_key for one in other} != {one.prompt_key for one in held_out}
    assert split(iter(examples), 0.0, seed=1) == (examples, [])
