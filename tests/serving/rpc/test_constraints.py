"""Constraints over gRPC: kept to, echoed, logged, replayed; and refused as the caller's fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bon
import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Sampling
from bon_server.loop.harvest.lines import Run as HarvestRun
from bon_server.loop.harvest.progress import run_harvest
from bon_server.models.vllm.grammar_gate import GrammarGate
from tests.command import run_bon
from tests.fakes import ScriptedPolicy
from tests.serving.conftest import Run
from tests.serving.running import question
from tests.tiny_models import byte_tokenizer

SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}}'
FORMS: dict[str, dict[str, Any]] = {
    "json_schema": {"json_schema": SCHEMA},
    "regex": {"regex": "answer [0-9]"},
    "choice": {"choice": pb.Choice(choices=["answer 0", "answer 1"])},
}


@dataclass(eq=False)
class GatedPolicy(ScriptedPolicy):
    """Checks constraints as a policy with a model does."""

    gate: GrammarGate | None = None

    async def check(self, sampling: Sampling) -> None:
        """Raises what the gate raises."""
        assert self.gate is not None
        await self.gate.check(sampling)


@pytest.fixture
async def gated() -> AsyncIterator[GatedPolicy]:
    """A policy with a gate of its own."""
    gate = GrammarGate(byte_tokenizer(), 259, trial_ms=400)
    yield GatedPolicy(gate=gate)
    await gate.close()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
async def test_it_is_part_of_the_request_its_answer_and_its_record(
    run: Run, gated: GatedPolicy, form: dict[str, Any]
) -> None:
    running = await run(gated)
    (name,) = form
    sampling = pb.SamplingParams(seed=0, **form)
    answer = await running.ask(request_id="a", sampling=sampling)
    assert getattr(answer.resolved, name) == getattr(sampling, name)
    kept = running.record("a").sampling
    assert kept is not None
    expected = form[name] if name != "choice" else tuple(form[name].choices)
    assert getattr(kept, name) == expected
    replay = await running.ask(request_id="a", sampling=sampling)
    assert replay.replayed and replay.resolved == answer.resolved
    refused = await running.refused(request_id="a", sampling=pb.SamplingParams(seed=0))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "hostile": (
        {"json_schema": '{"type": "array", "items": {"type": "null"}, "maxItems": 1000000}'},
        "sampling.json_schema",
        "too complex",
    ),
    "no regex": ({"regex": "canary("}, "sampling.regex", "unclosed group"),
    "circle": ({"json_schema": '{"$ref": "#"}'}, "sampling.json_schema", "nothing can satisfy it"),
    "foreign": ({"json_schema": '{"$ref": "http://canary/"}'}, "sampling.json_schema", "local"),
    "type": ({"json_schema": '{"type": "canary"}'}, "sampling.json_schema", "none of JSON Schema's"),
    "no JSON": ({"json_schema": "canary"}, "sampling.json_schema", "not JSON"),
    "no choice": ({"choice": pb.Choice()}, "sampling.choice.choices", "at least one"),
}


async def test_bad_ones_are_the_caller_s_fault(run: Run, gated: GatedPolicy) -> None:
    """Nothing is sampled for them, and good calls meanwhile are answered."""
    running = await run(gated)
    for bad, field, said in BAD.values():
        refusing = running.refused(sampling=pb.SamplingParams(seed=0, **bad))
        refused, answer = await asyncio.gather(refusing, running.ask())
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert said in refused.violations[field]
        assert "canary" not in refused.everything_said
        assert answer.n_scored == 4
    assert len(gated.started) == 4 * len(BAD)


async def test_the_synthetic_policy_keeps_to_a_choice(run: Run) -> None:
    running = await run()
    texts = ["yes", "no", "ébène"]
    sampling = pb.SamplingParams(choice=pb.Choice(choices=texts), max_tokens=10)
    answer = await running.ask(n=64, sampling=sampling, include_token_ids=True)
    assert {candidate.text for candidate in answer.candidates} == set(texts)
    assert all(bytes(candidate.token_ids).decode() == candidate.text for candidate in answer.candidates)
    assert all(candidate.finish_reason == pb.FINISH_REASON_STOP for candidate in answer.candidates)
    cut = await running.ask(n=64, sampling=pb.SamplingParams(choice=pb.Choice(choices=texts), max_tokens=1))
    assert {candidate.text for candidate in cut.candidates} == {"y", "n", ""}
    assert all(candidate.finish_reason == pb.FINISH_REASON_LENGTH for candidate in cut.candidates)


async def test_the_command_line_and_the_client_give_them(run: Run, gated: GatedPolicy, tmp_path: Path) -> None:
    running = await run(gated)
    schema = tmp_path / "schema.json"
    schema.write_text(SCHEMA, encoding="utf-8")
    commands = {
        "json_schema": ["--json-schema", str(schema)],
        "regex": ["--regex", "a|b"],
        "choice": ["--choice", "a", "--choice", "b"],
    }
    for name, words in commands.items():
        command = ["ask", "hello", "-n", "1", "--json", "--target", running.server.address, *words]
        said = await asyncio.to_thread(run_bon, *command)
        assert said.exit_code == 0, said.output
        resolved = json.loads(said.stdout)["resolved"]
        assert resolved[name] == {"json_schema": SCHEMA, "regex": "a|b", "choice": {"choices": ["a", "b"]}}[name]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "p", "id": "harvested"}\n', encoding="utf-8")
    asked = HarvestRun({"n": 1, "choice": ["a", "b"]})
    result = await asyncio.to_thread(
        run_harvest, prompts, asked, target=running.server.address, concurrency=1, patience_s=5.0, out=None
    )
    assert (result.requests, result.failed) == (1, 0)
    kept = running.record("harvested").sampling
    assert kept is not None and kept.choice == ("a", "b")
    async with bon.AsyncClient(running.server.address) as client:
        answer = await client.generate("hello", n=1, regex="a|b")
    assert answer.resolved.regex == "a|b"


@pytest.mark.parametrize("verb", [["ask", "hello"], ["harvest", "FILE"]], ids=["ask", "harvest"])
def test_two_constraints_are_a_usage_error(verb: list[str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("")
    words = [word.replace("FILE", str(file)) for word in verb]
    said = run_bon(*words, "--regex", "a", "--choice", "b")
    assert said.exit_code == 2
    assert "at most one of" in said.output


async def test_without_the_content_there_is_no_constraint(run: Run, gated: GatedPolicy) -> None:
    running = await run(gated)
    request = question(
        request_id="a", log_policy=pb.LOG_POLICY_METADATA_ONLY, sampling=pb.SamplingParams(seed=0, regex="canary.*")
    )
    answer = await running.stub.Generate(request, timeout=10)
    assert answer.resolved.regex == "canary.*"
    kept = running.record("a").sampling
    assert kept is not None and kept.regex is None
