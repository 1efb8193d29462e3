"""The file of samples: resumed, never mixed with another plan's, whole lines only. Here nothing is really sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bon_server.demo import samples
from bon_server.demo.problems import Problem, problems
from bon_server.demo.samples import SamplingPlan, sample

PROBLEMS = problems("train", {"chain_sum": 4})
PLAN = SamplingPlan(n=2)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts that were sampled, in order."""
    prompts: list[str] = []

    def draw(policy: Path, wanted: Sequence[Problem], plan: SamplingPlan) -> Iterator[tuple[Problem, list[str]]]:
        for problem in wanted:
            prompts.append(problem.prompt)
            yield problem, [f"{problem.answer}\u2028", "7"]

    monkeypatch.setattr(samples, "_draw", draw)
    return prompts


def test_resumed_in_the_order_asked(tmp_path: Path, drawn: list[str]) -> None:
    file = tmp_path / "folder" / "samples.jsonl"
    sample(tmp_path, PROBLEMS[2:], PLAN, file)
    found = sample(tmp_path, PROBLEMS, PLAN, file)
    assert [one.problem for one in found] == PROBLEMS
    assert found[2].completions == (f"{PROBLEMS[2].answer}\u2028", "7")
    assert drawn == [problem.prompt for problem in PROBLEMS[2:] + PROBLEMS[:2]]


def test_a_torn_line_is_sampled_again(tmp_path: Path, drawn: list[str]) -> None:
    file = tmp_path / "samples.jsonl"
    sample(tmp_path, PROBLEMS, PLAN, file)
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    assert len(sample(tmp_path, PROBLEMS, PLAN, file)) == 4
    assert drawn[4:] == [PROBLEMS[3].prompt]
    assert file.read_bytes() == content


def test_another_plan_is_refused(tmp_path: Path, drawn: list[str]) -> None:
    file = tmp_path / "samples.jsonl"
    sample(tmp_path, PROBLEMS, PLAN, file)
    with pytest.raises(ValueError, match="remove it or name another"):
        sample(tmp_path, PROBLEMS, SamplingPlan(n=2, temperature=1.0), file)
