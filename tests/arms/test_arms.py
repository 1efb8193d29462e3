"""The parts that the round trip and the comparison of arms are put together from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.arms.answers import Floats, read_answers
from benchmarks.arms.commands import Run, harvest
from benchmarks.arms.demo_questions import gold
from benchmarks.arms.intervals import figures, over_seeds
from benchmarks.arms.recipe import Recipe, recipe_of
from benchmarks.arms.setting import STRONG, WEAK, Setting, setting_of, take_lines
from benchmarks.arms.work import Work
from bon_server.core.errors import ConfigError, LogError
from bon_server.core.types import Outcome
from bon_server.log.record import Record
from tests.evaluate.logs import written
from tests.log.records import record


def test_a_part_is_done_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def do(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        return {"answer": 42}

    for _ in range(2):
        work = Work(tmp_path, {"seed": 1})
        folder = work.part("seed-1/harvest", do)
        assert work.read("seed-1/harvest")["answer"] == 42
        assert set(work.seconds) == {"seed-1/harvest"}
    assert calls == [folder]


def test_an_interrupted_part_is_done_again(tmp_path: Path) -> None:
    work = Work(tmp_path, {})

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.part("policy", fail)
    folder = work.part("policy", lambda folder: {"found": (folder / "half").exists()})
    assert json.loads((folder / "done.json").read_text())["found"]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    Work(tmp_path, {"recipe": {"rank": 16}, "sizes": (1, 2)})
    Work(tmp_path, {"recipe": {"rank": 16}, "sizes": (1, 2)})
    with pytest.raises(ConfigError, match="other settings \\(recipe\\)"):
        Work(tmp_path, {"recipe": {"rank": 8}, "sizes": (1, 2)})


def test_recipes_change_by_assignment() -> None:
    recipe = recipe_of(["rank=4", "sft_learning_rate=1e-3", "rl_stops=1,2,3"])
    assert (recipe.rank, recipe.sft_learning_rate, recipe.rl_stops) == (4, 1e-3, (1, 2, 3))
    assert recipe_of([]) == Recipe()
    for wrong in ("speed=3", "rank=many", "rank"):
        with pytest.raises(ConfigError, match="recipe"):
            recipe_of([wrong])


def test_questions_are_numbered(tmp_path: Path) -> None:
    lines = [{"prompt": f"{number}?", "reward_context": {"answer": "1"}, "tags": {"other": "x"}} for number in range(3)]
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first = take_lines(file, 2, tmp_path / "out" / "two.jsonl")
    taken = [json.loads(line) for line in (tmp_path / "out" / "two.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["tags"]) for line in taken] == [("0?", {"question": "0"}), ("1?", {"question": "1"})]
    assert take_lines(file, 3, tmp_path / "three.jsonl") != first
    with pytest.raises(ConfigError, match="4 prompts are needed, it has 3"):
        take_lines(file, 4, tmp_path / "four.jsonl")


def test_models_and_questions_are_named_together() -> None:
    named = argparse.Namespace(policy="p", reward=None, train_prompts=None, held_out_prompts=None)
    with pytest.raises(ConfigError, match="go together"):
        setting_of(named)


def test_nothing_but_the_temperature_changes_the_sampling() -> None:
    own = dict.fromkeys(("policy", "reward", "train_prompts", "held_out_prompts"))
    with pytest.raises(ConfigError, match=r"'defaults\.top_p=0\.9' given"):
        setting_of(argparse.Namespace(**own, serve=["policy.max_num_seqs=8", "defaults.top_p=0.9"]))


def test_differences_are_paired() -> None:
    one: Floats = np.random.default_rng(0).normal(size=200) * 100
    found = figures({"a": one, "b": one + 1, "b_minus_a": one + 1 - one})
    assert found["b_minus_a"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    low, high = found["a"]["ci95"]
    assert low < one.mean() < high
    assert found["b"]["ci95"] == pytest.approx([low + 1, high + 1], abs=1e-3)
    assert figures({"alone": np.array([3.0])})["alone"] == {"value": 3.0, "ci95": None}


def test_what_was_not_measured_is_left_out() -> None:
    whole = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], dtype=np.float64)
    some = np.array([1.0, 2.0, 3.0, np.nan, np.nan, np.nan], dtype=np.float64)
    found = figures({"whole": whole, "some": some})
    assert (found["whole"]["value"], found["some"]["value"]) == (2.5, 2.0)
    assert 1 <= found["some"]["ci95"][0] < found["some"]["ci95"][1] <= 3


def test_seeds_are_averaged_by_question() -> None:
    assert over_seeds([np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 0.0])]).tolist() == [0.75, 0.5]


def test_the_demo_is_judged_exactly() -> None:
    context = {"task": "chain_sum", "answer": "7"}
    assert gold(prompt="State 3 + 4", completion="3 + 4 = 7", context=context) == 1.0
    assert gold(prompt="State 3 + 4", completion="It is 8.", context=context) == 0.0


def digits(*, prompt: str, completion: str, context: Mapping[str, str]) -> float:
    """A judge that depends on all it is given."""
    return len(completion) + 1000 * int(context["answer"]) + 1e6 * len(prompt)


def _logged(question: int, **fields: Any) -> Record:
    return record(f"r{question}", tags={"question": str(question)}, reward_context={"answer": "1"}, **fields)


def test_an_attempt_that_was_interrupted_does_not_count(tmp_path: Path) -> None:
    """What a killed harvest left in the log is asked for again, and is no answer."""
    cancelled = [_logged(question, outcome=Outcome.CANCELLED) for question in (0, 1)]
    log = written(tmp_path, [*cancelled, _logged(1, attempt=2), _logged(0, attempt=2, rewards=(2.0, 1.0))])
    assert read_answers(log, 0.8, digits, (STRONG,)).rewards[STRONG].tolist() == [[2.0, 1.0], [0.5, 0.25]]
    with pytest.raises(LogError, match="request r1 ended as cancelled"):
        read_answers(written(tmp_path, [_logged(0), *cancelled[1:]], "other"), 0.8, digits, (STRONG,))


def test_answers_without_tokens_are_refused(tmp_path: Path) -> None:
    """As redacted ones are; their KL would be 0."""
    log = written(tmp_path, [_logged(0, prompt_token_ids=None)])
    with pytest.raises(LogError, match="request r0 has no token ids"):
        read_answers(log, 0.8, digits, (STRONG,))


@pytest.mark.slow
def test_answers_are_read_as_they_were_given(tmp_path: Path) -> None:
    """A real server, harvest and log; models that need no weights."""
    prompts = tmp_path / "prompts.jsonl"
    source = tmp_path / "source.jsonl"
    lines = [{"prompt": "?" * (number + 1), "reward_context": {"answer": str(number)}} for number in range(6)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    take_lines(source, 6, prompts)
    setting = Setting("synthetic:tokens=5", "synthetic", "tests.arms.test_arms:digits")
    rewards = {STRONG: "synthetic", WEAK: "function:tests.arms.test_arms:digits"}
    document = harvest(setting, setting.policy, rewards, prompts, tmp_path, [Run(1, 0.0), Run(3, 0.8)], seed=5)
    assert [each["requests"] for each in document["harvests"]] == [6, 6]

    sampled = read_answers(tmp_path / "log", 0.8, digits, (STRONG, WEAK))
    assert sampled.gold.shape == sampled.rewards[STRONG].shape == sampled.tokens.shape == (6, 3)
    assert np.allclose(sampled.gold, sampled.rewards[WEAK])  # the same function, called by the server
    assert not np.allclose(sampled.gold, sampled.rewards[STRONG])
    assert (sampled.gold // 1e6).tolist() == [[number + 1] * 3 for number in range(6)]
    assert all(
        len(text.completion_ids) == tokens for text, tokens in zip(sampled.first, sampled.tokens[:, 0], strict=True)
    )
    assert read_answers(tmp_path / "log", 0.0, digits, (STRONG,)).gold.shape == (6, 1)
    with pytest.raises(LogError, match=r"0 questions have answers at temperature 0\.5"):
        read_answers(tmp_path / "log", 0.5, digits, (STRONG,))
