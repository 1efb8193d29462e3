"""vLLM's metrics of a real engine, in our own registry, under the names that the dashboard asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY

from bon_server.config.settings import PolicyConfig
from bon_server.core.types import Sampling
from bon_server.serving.telemetry.collectors import of_engines
from tests.deploy.expressions import panels, unknown

if TYPE_CHECKING:
    from bon_server.models.vllm.policy import VllmPolicy

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


async def test_an_engine_tells_its_metrics_and_steps(policy: VllmPolicy) -> None:
    (telemetry,) = policy.engines
    before = generated(policy)
    completion = await policy.sample("metrics", [9, 9], Sampling(temperature=1.0, max_tokens=7))
    assert generated(policy) == before + len(completion.token_ids)
    assert telemetry.stalled_s == 0 and telemetry._stepped_s > 0
    assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("vllm")]


async def test_without_metrics_its_steps_are_still_seen(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bon_server.models.vllm.policy import VllmPolicy

    config = PolicyConfig(
        model=str(model_directory), dtype="float32", kv_cache_memory_bytes=64 << 20, engine_metrics=False
    )
    quiet = await VllmPolicy.start(config)
    try:
        (telemetry,) = quiet.engines
        steps: list[None] = []
        monkeypatch.setattr(telemetry, "stepped", lambda: steps.append(None))
        await quiet.sample("steps", [9, 9], Sampling(temperature=1.0, max_tokens=7, stop_token_ids=()))
        assert len(steps) >= 1
        assert list(telemetry.registry.collect()) == []
        assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("vllm")]
    finally:
        await quiet.close()


async def test_the_dashboard_asks_for_what_there_is(policy: VllmPolicy) -> None:
    exposed = {
        sample.name: set(sample.labels)
        for family in of_engines({"policy": policy.engines})
        for sample in family.samples
    }
    assert exposed["vllm:num_requests_running"] == {"model_name", "engine", "role"}
    asked = {name: query for name, query in panels().items() if "vllm:" in query}
    assert len(asked) >= 5
    assert {name: missing for name, query in asked.items() if (missing := unknown(query, exposed))} == {}


def generated(policy: VllmPolicy) -> float:
    """Tokens that the engine counts."""
    (family,) = (one for one in of_engines({"policy": policy.engines}) if one.name == "vllm:generation_tokens")
    (sample,) = family.samples
    assert (sample.labels["model_name"], sample.labels["role"]) == ("policy", "policy")
    return sample.value
