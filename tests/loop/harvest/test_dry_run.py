"""Dry runs: what they count, whom they ask, and whether their intervals hold the truth."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from bon.requests import GenerateOptions
from bon.v1 import bon_pb2 as pb

from bon_server.loop.harvest.dry_run import count, dry_run, total, total_by_ratio
from bon_server.loop.harvest.lines import Run
from tests.client.fake_server import FakeService, Refusal

RUN = Run(GenerateOptions(n=3))


def _file(folder: Path, count: int, bad: int = 0) -> Path:
    path = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"p{i}", "id": f"mine:{i}"}) for i in range(count)] + ["not json"] * bad
    path.write_text("\n".join(lines) + "\n")
    return path


async def test_a_few_are_asked_under_fresh_ids_and_nothing_is_logged(
    service: FakeService, target: str, tmp_path: Path
) -> None:
    told = await asyncio.to_thread(dry_run, _file(tmp_path, 100, bad=2), RUN, target=target, concurrency=4)
    assert (told["lines"], told["bad_lines"], told["candidates"]) == (102, 2, 300)
    assert [problem["line"] for problem in told["problems"]] == [101, 102]
    assert told["sample"] == {"requests": 8, "answered": 8, "failures": [], "seed": 0, "stopped": None}
    assert len(service.requests) == 8
    for request in service.requests:
        assert request.request_id.startswith("trial-")
        assert request.log_policy == pb.LOG_POLICY_NONE
    asked = {request.chat.messages[0].content for request in service.requests}
    again = count(_file(tmp_path, 100, bad=2), RUN, 8, seed=0)
    assert asked == {json.loads(line.content)["prompt"] for line, _ in again.sample if isinstance(line.content, bytes)}


async def test_a_failing_sample_is_told(service: FakeService, target: str, tmp_path: Path) -> None:
    service.refusal_by_prompt = {f"p{i}": Refusal(grpc.StatusCode.INTERNAL) for i in range(5)}
    told = await asyncio.to_thread(dry_run, _file(tmp_path, 5), RUN, target=target, concurrency=4)
    assert (told["sample"]["requests"], told["sample"]["answered"]) == (5, 0)
    assert told["sample"]["failures"][0]["reason"] == "INTERNAL: as scripted"
    assert "seconds" not in told


def test_the_draw_is_uniform(tmp_path: Path) -> None:
    """Each of 20 lines is in a sample of 5 with probability 1/4; over 400 seeds the count is 100 with deviation 8.7.

    That one of 20 is off by more than 4.5 deviations has a probability below 2e-4, and the seeds are fixed.
    """
    file, times = _file(tmp_path, 20), np.zeros(20)
    for seed in range(400):
        for line, _ in count(file, RUN, 5, seed).sample:
            times[line.number - 1] += 1
    assert times.sum() == 2000
    assert np.abs(times - 100).max() < 40


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """1000 samples of 8 from normal lines: coverage is binomial around .95, deviation .007; off by .03 is beyond 4."""
    dice = np.random.default_rng(3)
    sizes = dice.uniform(50, 150, 5000)
    lengths = dice.normal(40, 10, 5000)
    tokens = 0.25 * sizes + dice.normal(0, 2, 5000)
    covered = np.zeros(2)
    for _ in range(1000):
        some = dice.choice(5000, 8, replace=False)
        for which, (told, truth) in enumerate(
            (
                (total(lengths[some].tolist(), 5000), lengths.sum()),
                (total_by_ratio(tokens[some].tolist(), sizes[some].tolist(), 5000, sizes.sum()), tokens.sum()),
            )
        ):
            assert told["low"] is not None and told["high"] is not None
            covered[which] += told["low"] <= truth <= told["high"]
    assert np.abs(covered / 1000 - 0.95).max() < 0.03


def test_a_sample_of_everything_knows_the_prompts_exactly() -> None:
    told = total_by_ratio([3.0, 5.0], [10, 25], 2, 35)
    assert told == {"estimate": 8.0, "low": 8.0, "high": 8.0}


def test_a_sample_of_one_has_no_interval() -> None:
    assert total([7.0], 10) == {"estimate": 70.0, "low": None, "high": None}
    assert total_by_ratio([7.0], [2], 10, 30)["high"] is None


async def test_one_prompt_at_a_time_takes_as_long_as_all(
    service: FakeService, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeService._answer

    def slow(self: FakeService, request: pb.GenerateRequest) -> pb.GenerateResponse:
        made = answer(self, request)
        made.timings.total_ns = 2_000_000_000
        made.usage.completion_tokens = 30
        return made

    monkeypatch.setattr(FakeService, "_answer", slow)
    for concurrency, seconds in ((1, 80.0), (4, 20.0), (100, 2.0)):
        told = await asyncio.to_thread(dry_run, _file(tmp_path, 40), RUN, target=target, concurrency=concurrency)
        assert told["seconds"]["estimate"] == pytest.approx(seconds)
        assert told["completion_tokens"]["estimate"] == pytest.approx(1200)
