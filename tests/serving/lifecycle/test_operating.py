"""What an operator looks at: health, metrics, the banner, reflection."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import ConfigError, StartupError
from bon_server.serving.lifecycle.server import Server, write_ready_file
from bon_server.serving.lifecycle.signals import banner
from bon_server.serving.rpc.service import SERVICE
from tests.conftest import StartServer, synthetic_config
from tests.fakes import ScriptedPolicy
from tests.serving.conftest import Run
from tests.serving.guarded import Guard
from tests.serving.running import question, refusal
from tests.waiting import forever, until


async def test_health_of_the_server_and_of_the_service(run: Run) -> None:
    running = await run()
    assert await running.health("") == "SERVING"
    assert await running.health(SERVICE) == "SERVING"
    refused = await running.refused_bytes("/grpc.health.v1.Health/Check", b"\x0a\x04nope")
    assert refused.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", ["Check", "List", "Watch"])
async def test_malformed_health_checks_are_never_unknown(run: Run, method: str) -> None:
    running = await run()
    refused = await running.refused_bytes(f"/grpc.health.v1.Health/{method}", b"\xff\xff")
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_malformed_reflection_is_never_unknown(run: Run) -> None:
    running = await run()

    async def talk() -> list[bytes]:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        call: Any = running.channel.stream_stream(method)
        return [answer async for answer in call(iter([b"\xff\xff"]))]

    assert (await refusal(talk())).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_metrics_count_calls_and_candidates(run: Run) -> None:
    running = await run(settings={"policy.model": "synthetic:fail_rate=0.3"})
    answers = [await running.ask(n=8) for _ in range(3)]
    await running.refused(n=0)
    await running.stub.Score(pb.ScoreRequest(text="question", completions=["x", "y"]))
    stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question()))
    events = [event async for event in stream]
    answers.append(events[-1].final)
    scores = sum(answer.n_scored for answer in answers) + 2
    failed = sum(answer.n_requested - answer.n_scored for answer in answers)
    await running.at_rest()
    metrics = await running.metrics()
    assert metrics['bon_requests_total{code="OK",method="Generate"}'] == 3
    assert metrics['bon_requests_total{code="INVALID_ARGUMENT",method="Generate"}'] == 1
    assert metrics['bon_requests_total{code="OK",method="Score"}'] == 1
    assert metrics['bon_requests_total{code="OK",method="GenerateStream"}'] == 1
    assert metrics['bon_candidates_total{status="scored"}'] == scores
    assert metrics.get('bon_candidates_total{status="failed"}', 0) == failed
    assert metrics["bon_reward_count"] == scores
    assert metrics['bon_request_seconds_count{method="Generate"}'] == 4
    assert metrics["bon_attempts_in_flight"] == 0


async def test_the_gauge_follows_what_is_in_flight(run: Run) -> None:
    policy = ScriptedPolicy(lambda index: _never())
    running = await run(policy)
    tasks = (await running.metrics())["bon_event_loop_tasks"]
    calls = [running.stub.Generate(question()) for _ in range(3)]
    await until(lambda: policy.running == 12)
    metrics = await running.metrics()
    assert metrics["bon_attempts_in_flight"] == 3
    assert metrics["bon_event_loop_tasks"] >= tasks + 12, "each candidate has one"
    for call in calls:
        call.cancel()
    await running.at_rest()
    assert (await running.metrics())["bon_attempts_in_flight"] == 0


async def _never() -> Any:
    await forever()


async def test_metrics_have_no_content_and_few_series(run: Run) -> None:
    running = await run()
    for number in range(20):
        await running.ask(text=f"canary {number}", tags={"canary": f"canary-{number}"}, request_id=f"canary-{number}")
    metrics = await running.metrics()
    assert "canary" not in str(metrics)
    assert len([name for name in metrics if not name.startswith("bon_") or "_bucket" not in name]) < 150


async def test_the_banner_says_what_is_running(run: Run, tmp_path: Path) -> None:
    running = await run()
    await running.ask()
    text = banner(running.server)
    for expected in ("synthetic", "fsync", running.server.address, running.server.metrics_address, str(tmp_path)):
        assert expected in text
    assert text.splitlines()[-1].endswith(f"--target {running.server.address}")
    assert "reachable from this machine only" in text


async def test_the_banner_says_who_may_call(start_server: StartServer, tmp_path: Path) -> None:
    guard = Guard.of(tmp_path)
    guard.key()
    text = banner(await start_server(**guard.settings, **{"security.tls_client_ca": str(guard.authority.file)}))
    assert f"mutual TLS, keys of {guard.keys}, reachable from this machine only" in text
    assert "--tls-ca CA.pem --tls-cert MINE.pem --tls-key MINE.key --api-key-file KEY --target" in text
    settings = {"listen.host": "0.0.0.0", "security.allow_insecure": True, "log.directory": str(tmp_path / "other")}
    text = banner(await start_server(**settings))
    assert "plain text, no keys, reachable from other machines, SO SOMETHING THAT AUTHENTICATES" in text


async def test_the_ready_file_appears_whole(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "ready"
    server = await start_server(**{"listen.ready_file": str(path)})
    assert not path.exists()
    write_ready_file(server)
    facts = json.loads(path.read_bytes())
    assert facts["address"] == server.address
    assert [name for name in os.listdir(tmp_path) if "ready" in name] == ["ready"]  # noqa: PTH208


# Starts that fail leave nothing behind

BAD_STARTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no policy": ({"policy.model": ""}, ConfigError, "policy.model"),
    "policy option": ({"policy.model": "synthetic:nope=1"}, ConfigError, "nope"),
    "policy option value": ({"policy.model": "synthetic:fail_rate=2"}, ConfigError, "fail_rate"),
    "no such policy": ({"policy.model": "/no/such/model"}, StartupError, "/no/such/model"),
    "no reward": ({"reward.models": []}, ConfigError, "reward.models"),
    "two rewards of one name": ({"reward.models": ["synthetic", "synthetic"]}, ConfigError, "'default'"),
    "combination": ({"reward.models": ["a=synthetic", "synthetic"], "reward.combine": "max"}, ConfigError, "'max'"),
    "no such pooling model": ({"reward.models": ["vllm:/no/such/model"]}, StartupError, "/no/such/model"),
    "no such function": ({"reward.models": ["function:nowhere:f"]}, StartupError, "nowhere"),
    "no log": ({"log.directory": ""}, ConfigError, "log.directory"),
    "port of nobody": ({"listen.host": "203.0.113.1", "security.allow_insecure": True}, StartupError, "203.0.113.1"),
}


@pytest.mark.parametrize(("settings", "error", "named"), BAD_STARTS.values(), ids=BAD_STARTS.keys())
async def test_bad_starts_say_why_and_leave_nothing(
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    error: type[Exception],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=named) as raised:
        await start_server(**settings)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "spool.sqlite").exists(), "no log where nobody asked for one"
    server = await start_server()
    assert server.broken is None, "log, ports and threads were let go"


async def test_one_after_the_other_may(start_server: StartServer, tmp_path: Path) -> None:
    for _ in range(3):
        server = await Server.start(synthetic_config(tmp_path / "log"))
        await server.drain(0)
        await server.stop()
