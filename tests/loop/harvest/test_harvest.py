"""Harvests against the fake server: restarts, refusals, bad lines, running again."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import bon
import grpc
import pytest
from bon.requests import GenerateOptions

from bon_server.loop.harvest.lines import Run
from bon_server.loop.harvest.loop import Harvest, Watcher, harvest
from bon_server.loop.harvest.progress import run_harvest
from bon_server.loop.harvest.prompts import find_prompts
from tests.client.fake_server import FakeService, Refusal, serving

RUN = Run(GenerateOptions(n=3))


def _file(folder: Path, *lines: object) -> Path:
    """Objects become JSON; bytes stay as they are."""
    path = folder / "prompts.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def _prompts(folder: Path, count: int) -> Path:
    return _file(folder, *({"prompt": f"p{i}"} for i in range(count)))


async def _harvest(file: Path, target: str, concurrency: int = 4, patience_s: float = 5.0) -> tuple[Harvest, list[str]]:
    """The result, and the failures as `number: reason`."""
    failures: list[str] = []
    watcher = Watcher(on_failure=lambda line, reason: failures.append(f"{line.number}: {reason}"))
    async with bon.AsyncClient(target, attempts=1) as client:
        result = await harvest(
            find_prompts(file).lines(RUN.columns),
            client,
            RUN,
            concurrency=concurrency,
            patience_s=patience_s,
            watcher=watcher,
        )
    return result, failures


async def test_every_line_is_answered_once(service: FakeService, target: str, tmp_path: Path) -> None:
    service.delay_s = 0.01
    result, failures = await _harvest(_prompts(tmp_path, 20), target, concurrency=3)
    assert (result.requests, result.candidates, result.failed, result.replayed) == (20, 60, 0, 0)
    assert len({request.request_id for request in service.requests}) == 20
    assert service.most_in_flight == 3
    assert failures == []
    bests = [answer.best.reward for answer in service.answers.values()]
    assert result.mean_best_reward == pytest.approx(sum(bests) / len(bests))


async def test_running_again_replays(service: FakeService, target: str, tmp_path: Path) -> None:
    file = _file(tmp_path, {"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "id": "mine"})
    first, _ = await _harvest(file, target)
    again, _ = await _harvest(file, target)
    assert (first.replayed, again.replayed, again.candidates) == (0, 4, first.candidates)
    assert len(service.answers) == 4
    assert "mine" in service.answers


async def test_a_half_done_harvest_goes_on(service: FakeService, target: str, tmp_path: Path) -> None:
    service.delay_s = 0.02
    file = _prompts(tmp_path, 30)
    running = asyncio.create_task(_harvest(file, target))
    await service.has_seen(answers=10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result, _ = await _harvest(file, target)
    assert result.requests == len(service.answers) == 30
    assert 10 <= result.replayed < 30


async def test_bad_lines_are_counted_and_named_and_the_rest_goes_on(
    service: FakeService, target: str, tmp_path: Path
) -> None:
    file = _file(tmp_path, {"prompt": "a"}, b"", b"not json", {"no": "prompt"}, b"   ", {"prompt": "b"})
    result, failures = await _harvest(file, target, concurrency=1)
    assert (result.requests, result.failed, result.candidates) == (4, 2, 6)
    assert failures[0].startswith("3: not JSON")
    assert failures[1].startswith("4: prompt:")


async def test_a_refused_request_fails_its_line_alone(service: FakeService, target: str, tmp_path: Path) -> None:
    service.refusal_by_prompt["bad"] = Refusal(grpc.StatusCode.INVALID_ARGUMENT)
    service.refusal_by_prompt["broken"] = Refusal(grpc.StatusCode.INTERNAL)
    service.refusal_by_prompt["big"] = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED)
    file = _file(tmp_path, *({"prompt": prompt} for prompt in ("a", "bad", "broken", "big", "b")))
    result, failures = await _harvest(file, target, concurrency=1)
    assert (result.requests, result.failed, result.stopped) == (5, 3, None)
    assert failures == [
        "2: INVALID_ARGUMENT: as scripted",
        "3: INTERNAL: as scripted",
        "4: RESOURCE_EXHAUSTED: as scripted",
    ]


async def test_a_busy_server_is_waited_for(service: FakeService, target: str, tmp_path: Path) -> None:
    waits = [
        Refusal(grpc.StatusCode.UNAVAILABLE, pushback_ms=200),
        Refusal(grpc.StatusCode.ABORTED),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=200),
    ]
    service.refusals.extend(waits)
    began_s = time.monotonic()
    result, _ = await _harvest(_prompts(tmp_path, 1), target)
    assert (result.failed, result.candidates) == (0, 3)
    assert time.monotonic() - began_s >= 0.6
    assert len({request.request_id for request in service.requests}) == 1


async def test_a_restart_in_the_middle_is_waited_for(service: FakeService, tmp_path: Path) -> None:
    service.delay_s = 0.02
    async with serving(service) as port:
        running = asyncio.create_task(_harvest(_prompts(tmp_path, 30), f"127.0.0.1:{port}"))
        await service.has_seen(answers=10)
    await asyncio.sleep(0.5)
    async with serving(service, port):
        result, failures = await running
    assert (result.requests, result.failed, failures) == (30, 0, [])
    assert len(service.answers) == 30


async def test_patience_ends(tmp_path: Path) -> None:
    async with serving(FakeService()) as free_port:
        pass
    result, failures = await _harvest(_prompts(tmp_path, 50), f"127.0.0.1:{free_port}", patience_s=0.5)
    assert result.stopped is not None
    assert "UNAVAILABLE" in result.stopped
    assert result.requests == result.failed == len(failures) == 4
    assert result.seconds < 5


async def test_a_wrong_key_stops_at_once(service: FakeService, target: str, tmp_path: Path) -> None:
    service.refusals.extend([Refusal(grpc.StatusCode.UNAUTHENTICATED)] * 9)
    result, _ = await _harvest(_prompts(tmp_path, 50), target)
    assert result.stopped == "UNAUTHENTICATED: as scripted"
    assert result.requests == 4


async def test_the_command_writes_answers_and_names_failures(
    service: FakeService, target: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, out = _file(tmp_path, {"prompt": "a"}, b"[bold]", {"prompt": "b"}), tmp_path / "answers.jsonl"
    result = await asyncio.to_thread(run_harvest, file, RUN, target=target, out=out)
    assert (result.requests, result.failed) == (3, 1)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(answer["line"] for answer in answers) == [1, 3]
    for answer in answers:
        best = service.answers[answer["request_id"]].best
        assert (answer["text"], answer["reward"], answer["replayed"]) == (best.text, best.reward, False)
    printed = capfd.readouterr()
    assert "line 2: not JSON" in printed.err
    assert printed.out == ""
