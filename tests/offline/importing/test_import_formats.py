"""Each framework's files arrive whole: prompts with all their candidates, rewards where they are numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bon_server.core.errors import ConfigError, LogError
from bon_server.core.types import CandidateStatus, FinishReason, Kind, Message, ModelRef, Outcome
from bon_server.offline.importing.options import parse_columns
from tests.offline.importing.import_files import (
    WRITERS,
    Sample,
    import_into,
    records,
    rejections,
    write_lines,
    write_parquet,
)

SCORED, UNSCORED, NON_FINITE = CandidateStatus.SCORED, CandidateStatus.UNSCORED, CandidateStatus.NON_FINITE
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def one_of(tmp_path: Path, file_format: str, line: dict[str, Any], **options: Any) -> Any:
    """The only record of the only line."""
    result = import_into(tmp_path / "log", file_format, write_lines(tmp_path / "f.jsonl", [line]), **options)
    assert result.imported == 1, rejections(result)
    (record,) = records(tmp_path / "log")
    return record


@pytest.mark.parametrize("file_format", WRITERS)
def test_samples_of_a_prompt_become_one_record_wherever_they_are(tmp_path: Path, file_format: str) -> None:
    order = [Sample(f"q{i % 3}", f"a{i}", i / 8) for i in range(12)]
    file = write_lines(tmp_path / "f.jsonl", [WRITERS[file_format](sample) for sample in order])
    result = import_into(tmp_path / "log", file_format, file)
    assert (result.lines, result.imported, result.requests) == (12, 12, 3)
    assert (result.candidates, result.scored, result.rejected) == (12, 12, 0)
    got = records(tmp_path / "log")
    assert [record.ordinal for record in got] == [1, 2, 3]
    for position, record in enumerate(got):
        assert (record.kind, record.outcome, record.n) == (Kind.IMPORT, Outcome.OK, 4)
        assert record.prompt_messages == (Message("user", f"q{position}"),)
        assert [c.text for c in record.candidates] == [f"a{i}" for i in range(position, 12, 3)]
        assert [c.reward for c in record.candidates] == [i / 8 for i in range(position, 12, 3)]
        assert [c.index for c in record.candidates] == [0, 1, 2, 3]


@pytest.mark.parametrize("file_format", WRITERS)
def test_rewards_that_are_no_numbers(tmp_path: Path, file_format: str) -> None:
    order = [Sample("q", f"a{i}", reward) for i, reward in enumerate([1.0, None, math.nan, math.inf, -math.inf])]
    lines = [WRITERS[file_format](sample) for sample in order]
    result = import_into(tmp_path / "log", file_format, write_lines(tmp_path / "f.jsonl", lines))
    assert (result.candidates, result.scored) == (5, 1)
    (record,) = records(tmp_path / "log")
    assert [c.status for c in record.candidates] == [SCORED, UNSCORED, NON_FINITE, NON_FINITE, NON_FINITE]
    assert [c.reward for c in record.candidates] == [1.0, None, None, None, None]
    assert record.outcome is Outcome.PARTIAL
    for candidate in record.candidates:
        assert all(map(math.isfinite, candidate.rewards.values()))


@pytest.mark.parametrize("file_format", ["openrlhf", "open-instruct", "verl"])
@pytest.mark.parametrize("reward", ["0.5", "NaN", True, [1.0], 10**400])
def test_what_cannot_be_a_reward_is_rejected(tmp_path: Path, file_format: str, reward: Any) -> None:
    line = WRITERS[file_format](Sample("q", "a", reward))
    result = import_into(tmp_path / "log", file_format, write_lines(tmp_path / "f.jsonl", [line]))
    assert (result.imported, result.rejected) == (0, 1)
    ((number, reason),) = rejections(result)
    assert number == 1 and ("must be a number or null" in reason or "too large" in reason)


def test_openrlhf_lines_without_reward_are_unscored(tmp_path: Path) -> None:
    record = one_of(tmp_path, "openrlhf", {"input": "<|user|>q<|assistant|>", "output": ""}, raw=True)
    assert record.prompt_text == "<|user|>q<|assistant|>" and record.prompt_messages is None
    assert [(c.text, c.status) for c in record.candidates] == [("", UNSCORED)]


def test_openrlhf_preference_pairs_are_rejected_by_name(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "chosen_reward": 1.0, "rejected": "b", "rejected_reward": 0.0}
    result = import_into(tmp_path / "log", "openrlhf", write_lines(tmp_path / "f.jsonl", [pair]))
    assert rejections(result) == [(1, "input, output: missing")]


def grpo(**columns: Any) -> dict[str, Any]:
    return {"step": 3, "prompt": [USER], "completion": [ASSISTANT], **columns, "advantage": 0.25}


def test_trl_reward_functions_are_parts_and_their_sum_the_reward(tmp_path: Path) -> None:
    rows = [
        grpo(accuracy=1.0, style=0.25, answer="7", tries=4),
        grpo(accuracy=None, style=0.5, answer=None, tries=5),
        grpo(accuracy=None, style=None),
    ]
    file = write_parquet(tmp_path / "completions_00003.parquet", rows)
    result = import_into(tmp_path / "log", "trl-grpo", file)
    (record,) = records(tmp_path / "log")
    assert [c.reward for c in record.candidates] == [1.25, 0.5, None]
    assert [c.rewards for c in record.candidates] == [{"accuracy": 1.0, "style": 0.25}, {"style": 0.5}, {}]
    assert [c.status for c in record.candidates] == [SCORED, SCORED, UNSCORED]
    assert record.tags == {"step": "3"}
    assert set(result.ignored_keys) == {"advantage", "answer", "tries"}
    assert record.reward_models == (ModelRef("reward", result.reward_model, ""),)


def test_trl_weights_are_the_callers(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "f.parquet", [grpo(accuracy=1.0, style=0.25, extra=100.0)])
    columns = parse_columns(["accuracy", "style=-0.5"])
    import_into(tmp_path / "log", "trl-grpo", file, reward_columns=columns)
    (record,) = records(tmp_path / "log")
    assert [c.reward for c in record.candidates] == [0.875]
    assert [c.rewards for c in record.candidates] == [{"accuracy": 1.0, "style": 0.25}]


def test_trl_a_reward_column_is_the_total(tmp_path: Path) -> None:
    record = one_of(tmp_path, "trl-grpo", grpo(reward=2, accuracy=1.0))
    assert [(c.reward, c.rewards) for c in record.candidates] == [(2.0, {"accuracy": 1.0})]


def test_trl_strings_steps_and_other_turns(tmp_path: Path) -> None:
    plain = {"step": 1, "prompt": "q", "completion": "a", "f": 1.0}
    turns = grpo(f=1.0) | {"completion": [ASSISTANT, USER, ASSISTANT]}
    file = write_lines(tmp_path / "f.jsonl", [plain, plain | {"step": 2}, turns])
    result = import_into(tmp_path / "log", "trl-grpo", file, raw=True)
    first, second = records(tmp_path / "log")
    assert (first.prompt_text, first.tags, second.tags) == ("q", {"step": "1"}, {"step": "2"})
    assert first.prompt_hash == second.prompt_hash
    assert rejections(result)[0][1].startswith("completion: 3 messages")


def test_parquet_fills_messages_with_nulls(tmp_path: Path) -> None:
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
    schema = pa.schema([("prompt", pa.list_(message)), ("completion", pa.string()), ("f", pa.float32())])
    rows: list[dict[str, Any]] = [
        {"prompt": [USER], "completion": "a", "f": 1.5},
        {"prompt": [USER | {"name": "x"}], "completion": "a"},
    ]
    result = import_into(tmp_path / "log", "trl-grpo", write_parquet(tmp_path / "f.parquet", rows, schema))
    assert [record.prompt_messages for record in records(tmp_path / "log")] == [(Message("user", "q"),)]
    assert rejections(result) == [(2, "prompt[0]: may have role and content only")]


def test_open_instruct_names_its_reward_models(tmp_path: Path) -> None:
    line = WRITERS["open-instruct"](Sample("q", "a", 1.5))
    record = one_of(tmp_path, "open-instruct", line)
    assert record.reward_models == (ModelRef("reward", "org/rm", ""),)
    assert record.reward_context == {"reference_completion": "a reference"}
    assert [(c.reward, c.rewards) for c in record.candidates] == [(1.5, {})]


def test_open_instruct_several_reward_models(tmp_path: Path) -> None:
    line = WRITERS["open-instruct"](Sample("q", "a", None)) | {"score": {"rm/a": 1.5, "rm/b": -1.0}}
    record = one_of(tmp_path, "open-instruct", line)
    assert record.reward_models == (ModelRef("rm/a", "rm/a", ""), ModelRef("rm/b", "rm/b", ""))
    assert [(c.reward, c.rewards) for c in record.candidates] == [(0.5, {"rm/a": 1.5, "rm/b": -1.0})]


def test_open_instruct_one_of_several_reward_models(tmp_path: Path) -> None:
    line = WRITERS["open-instruct"](Sample("q", "a", None)) | {"score": {"rm/a": 1.5, "rm/b": -1.0}}
    record = one_of(tmp_path, "open-instruct", line, reward_columns={"rm/b": 1.0})
    assert record.reward_models == (ModelRef("reward", "rm/b", ""),)
    assert [c.reward for c in record.candidates] == [-1.0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": [USER]}, "messages[0].role: the last message must be by the assistant"),
        ({"messages": [ASSISTANT]}, "messages: nothing before the completion"),
        ({"messages": "q"}, "messages: must be"),
        ({"model_completion": "b"}, "model_completion: is not the last message"),
        ({"reference_completion": 7}, "reference_completion: must be a string"),
        ({"score": {"rm": "1"}}, "score.rm: must be a number or null"),
    ],
)
def test_open_instruct_bad_lines(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    line = WRITERS["open-instruct"](Sample("q", "a", 1.0)) | change
    result = import_into(tmp_path / "log", "open-instruct", write_lines(tmp_path / "f.jsonl", [line]))
    assert rejections(result)[0][1].startswith(reason)


def test_verl_keeps_numbers_and_the_ground_truth(tmp_path: Path) -> None:
    line = {"input": "user\nq", "output": "a", "gts": {"b": [1], "a": "é"}, "score": -1, "step": 12}
    extras = {"acc": False, "format": 0.5, "pred": "7", "loss": math.nan, "request_id": "x", "finish_reason": "length"}
    record = one_of(tmp_path, "verl", line | extras, raw=True)
    assert record.prompt_text == "user\nq" and record.tags == {"step": "12"}
    assert record.reward_context == {"ground_truth": '{"a": "é", "b": [1]}'}
    (candidate,) = record.candidates
    assert (candidate.reward, candidate.rewards) == (-1.0, {"acc": 0.0, "format": 0.5})
    assert candidate.finish_reason is FinishReason.LENGTH


def test_verl_another_column_as_the_reward(tmp_path: Path) -> None:
    line = WRITERS["verl"](Sample("q", "a", -1.0))
    record = one_of(tmp_path, "verl", line, reward_columns={"acc": 2.0})
    assert [(c.reward, c.rewards) for c in record.candidates] == [(2.0, {"score": -1.0, "acc": 1.0})]


def test_a_reward_column_that_is_not_there(tmp_path: Path) -> None:
    for file_format, write in WRITERS.items():
        file = write_lines(tmp_path / "f.jsonl", [write(Sample("q", "a", 1.0))])
        result = import_into(tmp_path / "log", file_format, file, reward_columns={"nowhere": 1.0})
        assert rejections(result) == [(1, "nowhere: missing, or not a number")]


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "f.jsonl", [])
    with pytest.raises(ConfigError, match="formats with a line per candidate"):
        import_into(tmp_path / "log", "grouped", file, reward_columns={"a": 1.0})
    with pytest.raises(ConfigError, match="weight nan given"):
        import_into(tmp_path / "log", "verl", file, reward_columns=parse_columns(["a=nan"]))
    with pytest.raises(ConfigError, match="not of the form NAME or NAME=WEIGHT"):
        parse_columns(["a=b"])
    with pytest.raises(ConfigError, match="which is to be imported"):
        import_into(tmp_path / "log", "verl", file, rejected=file)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "f.parquet", [grpo(f=float(i)) for i in range(9)])
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(LogError, match=r"f\.parquet is not Parquet that can be read"):
        import_into(tmp_path / "log", "trl-grpo", file)
    table = pa.table([["a"], ["b"]], names=["prompt", "prompt"])
    pa.parquet.write_table(table, file)
    with pytest.raises(LogError, match="two columns of one name"):
        import_into(tmp_path / "log", "trl-grpo", file)
