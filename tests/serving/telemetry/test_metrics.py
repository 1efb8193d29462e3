"""What the metrics say of calls, rewards, the log, the event loop and engines, and that callers cannot add labels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bon_server.core.types import CandidateStatus, Score
from bon_server.serving.telemetry.collectors import of_engines
from bon_server.serving.telemetry.metrics import Distribution
from bon_server.system import telemetry as telemetry_module
from bon_server.system.telemetry import Telemetry
from tests.fakes import ScriptedPolicy, ScriptedReward, says, scored
from tests.serving.conftest import Run
from tests.serving.running import Running, question, refusal
from tests.waiting import forever, until

SERVICE = "/bon.v1.BestOfNService/"
KNOWN_LABELS: dict[str, Callable[[str], bool]] = {
    "method": {"Generate", "GenerateStream", "Score", "RecordFeedback", "GetServerInfo"}.__contains__,
    "code": {code.name for code in grpc.StatusCode}.__contains__,
    "outcome": {"ok", "partial", "failed", "cancelled"}.__contains__,
    "reason": {"argmax", "soft", "threshold", "adaptive", "deadline", "single", "none", "full", "slow"}.__contains__,
    "status": {status.value for status in CandidateStatus}.__contains__,
    "kind": {"prompt", "completion", "reward_model"}.__contains__,
    "cause": {"commit", "checkpoint", "background"}.__contains__,
    "result": {"loaded", "refused", "started", "failed"}.__contains__,
    "role": {"policy", "reward"}.__contains__,
    "le": lambda bound: float(bound) is not None,
    "durability": {"fsync"}.__contains__,
    "version": lambda version: version[0].isdigit(),
    "id": {"synthetic"}.__contains__,
    "revision": str.isalnum,
}
"""Every label that may be there, and what its values may be."""


async def test_rewards_gains_and_ties(run: Run) -> None:
    rewards = {"answer 0": 1.0, "answer 1": 3.0, "answer 2": 3.0, "answer 3": -1.0}

    async def score(text: str) -> Score:
        return scored(rewards[text])

    running = await run(ScriptedPolicy(), ScriptedReward(score))
    await running.ask(n=4)
    await running.ask(n=2)
    metrics = await running.metrics()
    assert metrics["bon_reward_count"] == 6
    assert metrics['bon_reward_bucket{le="0.0"}'] == 1
    assert metrics["bon_reward_compared_total"] == 2 and metrics["bon_reward_ties_total"] == 1
    assert metrics["bon_reward_gain_sum"] == pytest.approx((3 - 1.5) + (3 - 2))
    assert metrics['bon_tokens_total{kind="completion"}'] == 6 * len("answer 0")
    assert metrics['bon_tokens_total{kind="prompt"}'] == 2 * len("question")
    assert metrics['bon_tokens_total{kind="reward_model"}'] == 6
    assert metrics['bon_answers_total{outcome="ok",reason="argmax"}'] == 2
    assert metrics["bon_overlap_ratio_count"] == metrics["bon_score_seconds_count"] == 2
    assert metrics["bon_sample_seconds_count"] == metrics["bon_queue_seconds_count"] == 2


async def test_an_answer_at_the_deadline_is_told_apart(run: Run) -> None:
    async def first_only(index: int) -> object:
        return says("a") if index == 0 else await forever()

    running = await run(ScriptedPolicy(first_only))  # type: ignore[arg-type]
    answer = await running.ask(within_s=1.0)
    assert answer.partial
    metrics = await running.metrics()
    assert metrics['bon_answers_total{outcome="partial",reason="deadline"}'] == 1
    assert metrics['bon_candidates_total{status="cancelled"}'] == 3


async def test_started_and_permits_follow_what_runs(run: Run) -> None:
    policy = ScriptedPolicy(lambda index: forever())
    limits = {"max_candidates_in_flight": 8, "max_candidates_queued": 99, "max_n": 8}
    settings = {f"limits.{name}": value for name, value in limits.items()} | {"defaults.n": 8}
    running = await run(policy, settings=settings)
    calls = [running.stub.Generate(question()) for _ in range(3)]
    await until(lambda: policy.running == 8 and running.admission.queued == 4)
    metrics = await running.metrics()
    assert metrics['bon_requests_started_total{method="Generate"}'] == 3
    assert metrics['bon_requests_total{code="OK",method="Generate"}'] == 0
    assert metrics["bon_candidates_in_flight"] == metrics["bon_candidates_in_flight_limit"] == 8
    assert (metrics["bon_candidates_queued"], metrics["bon_candidates_queued_limit"]) == (4, 99)
    for call in calls:
        call.cancel()
    await running.at_rest()
    metrics = await running.metrics()
    assert metrics["bon_candidates_in_flight"] == 0
    assert metrics['bon_requests_total{code="CANCELLED",method="Generate"}'] == 3


async def test_what_is_not_sealed_yet(run: Run) -> None:
    running = await run()
    await running.ask()
    async with asyncio.timeout(30):
        while not (metrics := await running.metrics())["bon_log_unsealed_bytes"]:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert 0 < metrics["bon_log_unsealed_oldest_seconds"] < 60
    assert metrics["bon_log_seal_failures_total"] == metrics["bon_log_sealed_records_total"] == 0


async def test_a_blocked_event_loop_is_seen(run: Run) -> None:
    running = await run()
    time.sleep(1.2)  # noqa: ASYNC251 -- what a bug would do
    async with asyncio.timeout(30):
        while (metrics := await running.metrics())["bon_event_loop_lag_seconds_sum"] < 0.9:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert metrics["bon_event_loop_lag_seconds_count"] > metrics['bon_event_loop_lag_seconds_bucket{le="0.5"}']


async def test_a_dead_model_is_seen(run: Run) -> None:
    policy = ScriptedPolicy()
    running = await run(policy)
    metrics = await running.metrics()
    assert metrics['bon_engine_up{role="policy"}'] == metrics['bon_engine_up{role="reward"}'] == 1
    policy.healthy = False
    assert (await running.metrics())['bon_engine_up{role="policy"}'] == 0


async def test_an_engine_without_progress_is_seen(run: Run) -> None:
    telemetry = Telemetry()
    running = await run(ScriptedPolicy(engines=(telemetry,)))
    name = 'bon_engine_stalled_seconds{role="policy"}'
    assert (await running.metrics())[name] == 0, "there is nothing to do"
    with telemetry.working():
        await asyncio.sleep(0.3)
        before = (await running.metrics())[name]
        assert before >= 0.3
        telemetry.stepped()
        assert (await running.metrics())[name] < before
        with telemetry.working():
            pass
        await asyncio.sleep(0.3)
        assert (await running.metrics())[name] >= 0.3, "a request that comes is no step"
    assert (await running.metrics())[name] == 0


async def test_an_engine_that_is_slow_has_not_hung(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now_s=0.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(telemetry_module, "time", clock)
    telemetry = Telemetry()
    running = await run(ScriptedPolicy(engines=(telemetry,)), settings={"limits.engine_stall_s": 100})
    with telemetry.working():
        for _ in range(3):
            clock.now_s += 99
            assert running.server.broken is None
            telemetry.stepped()
        clock.now_s += 101
        assert running.server.broken == "the policy's engine has work and has made no step for 100 s"
    assert running.server.broken is None, "there is nothing to do"


def test_metrics_of_two_engines_share_families() -> None:
    engines = Telemetry(), Telemetry()
    for number, engine in enumerate(engines, start=1):
        Counter("vllm:tokens", "Tokens.", ["engine"], registry=engine.registry).labels("0").inc(number)
        Gauge("vllm:running", "Running.", registry=engine.registry).set(number)
    families = list(of_engines({"policy": engines[:1], "reward": engines[1:]}))
    assert [family.name for family in families] == ["vllm:tokens", "vllm:running"]
    samples = {(one.name, one.labels["role"]): one.value for family in families for one in family.samples}
    assert samples == {
        ("vllm:tokens_total", "policy"): 1,
        ("vllm:tokens_total", "reward"): 2,
        ("vllm:running", "policy"): 1,
        ("vllm:running", "reward"): 2,
    }


def test_a_distribution_counts_as_prometheus_does() -> None:
    bounds, values = (-1.0, 0.0, 0.5, 10.0), (-5.0, -1.0, -0.999, 0.0, 0.3, 0.5, 0.50001, 10.0, 11.0)
    ours, theirs = Distribution(bounds), Histogram("x", "X.", buckets=bounds, registry=CollectorRegistry())
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    (family,) = theirs.collect()
    assert ours.buckets == [(one.labels["le"], one.value) for one in family.samples if one.name == "x_bucket"]
    assert ours.sum == pytest.approx(sum(values))


async def test_callers_cannot_add_labels(run: Run) -> None:
    running = await run(settings={"reward.models": ["synthetic:nan_rate=0.3,fail_rate=0.1"]})
    await hostile(running)
    series = await families(running)
    assert {label for family in series for sample in family.samples for label in sample.labels} <= KNOWN_LABELS.keys()
    for family in series:
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert KNOWN_LABELS[label](value), sample


async def families(running: Running) -> list[Metric]:
    """What a scrape sees."""
    return list(text_string_to_metric_families(await asyncio.to_thread(running._scrape)))


async def hostile(running: Running) -> None:
    """All methods with what they take and do not take, ids and tags that change, names that are not ours."""
    for number in range(10):
        with suppress(grpc.aio.AioRpcError):  # of some requests no reward is finite
            await running.ask(request_id=f"id-{number}", tags={f"tag{number}": "x"}, text=f"p{number}")
        await refusal(running.stub.Generate(question(request_id="x" * number * 100, n=number << 20)))
        for method in ("Generate", "GenerateStream", "Score", "RecordFeedback", f"Nothing{number}", "x"):
            await running.refused_bytes(f"{SERVICE}{method}", b"\xff\xff\xff" * number or b"\xff")
        await running.refused_bytes(f"/other.Service{number}/Generate", b"")
        await refusal(
            running.stub.RecordFeedback(pb.RecordFeedbackRequest(request_id=f"no{number}", name=f"n{number}"))
        )
        call = running.stub.Generate(question(text=f"cancelled {number}"))
        call.cancel()
    await running.stub.Score(pb.ScoreRequest(text="q", completions=["a", "b"]))
    await running.stub.GetServerInfo(pb.GetServerInfoRequest())
    await running.at_rest()
