"""How much of a request the log keeps is the caller's choice, within what the operator allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import SamplingFailed
from bon_server.core.selection import OfflineRule
from bon_server.core.types import CandidateStatus, Completion, Outcome
from bon_server.log.read.stats import log_stats
from bon_server.offline.select.select import SelectOptions, select
from bon_server.serving import content
from tests.fakes import ScriptedPolicy, says
from tests.serving.conftest import Run
from tests.serving.running import Running, question, refusal

CANARY = "canary"
METADATA_ONLY, NONE = pb.LOG_POLICY_METADATA_ONLY, pb.LOG_POLICY_NONE
PROMPTS: dict[str, dict[str, Any]] = {
    "text": {"text": CANARY},
    "chat": {"chat": pb.Chat(messages=[pb.ChatMessage(role="user", content=CANARY)])},
    "tokens": {"tokens": pb.Tokens(ids=list(CANARY.encode()))},
}
CONTENT: dict[str, Any] = {"reward_context": {"answer": CANARY}, "sampling": pb.SamplingParams(seed=0, stop=[CANARY])}


async def canaries(index: int) -> Completion:
    return says(f"{CANARY} {index}")


def on_disk(running: Running) -> bytes:
    """Every byte of the log, deleted ones too."""
    return b"".join(file.read_bytes() for file in running.log.rglob("*") if file.is_file())


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
async def test_metadata_only(run: Run, prompt: dict[str, Any]) -> None:
    policy = ScriptedPolicy()
    running = await run(policy)
    full = await running.ask(request_id="full", text="another question")
    policy.script = canaries
    answer = await running.ask(
        request_id="a", log_policy=METADATA_ONLY, include_token_ids=True, tags={"k": "v"}, **prompt, **CONTENT
    )
    assert [c.text for c in answer.candidates] == [f"{CANARY} {i}" for i in range(4)]
    assert all(c.token_ids for c in answer.candidates) and answer.usage.prompt_tokens > 0
    assert answer.durability == full.durability == pb.DURABILITY_FSYNC
    record = running.record("a")
    assert not record.content_logged and record.outcome is Outcome.OK
    assert (record.prompt_text, record.prompt_messages, record.prompt_token_ids) == (None, None, None)
    assert (record.reward_context, record.tags, record.n) == ({}, {"k": "v"}, 4)
    assert [(c.text, c.token_ids, c.reward) for c in record.candidates] == [
        ("", (), c.reward) for c in answer.candidates
    ]
    assert all(c.completion_tokens and c.status is CandidateStatus.SCORED for c in record.candidates)
    assert record.selected_index == answer.best.index
    assert b"another question" in on_disk(running)
    assert CANARY.encode() not in on_disk(running)


async def test_no_digest_of_the_content_is_left(run: Run) -> None:
    """A short prompt could be found by trying prompts until their digest fits."""
    running = await run()
    for number in range(2):
        await running.ask(request_id=f"full{number}", text="same")
        await running.ask(request_id=f"a{number}", text="same", log_policy=METADATA_ONLY)
    first, one, second, other = running.records()
    assert first.prompt_hash == second.prompt_hash
    assert len({first.prompt_hash, one.prompt_hash, other.prompt_hash}) == 3
    assert one.request_digest == other.request_digest == ""


async def test_nothing(run: Run) -> None:
    running = await run(ScriptedPolicy(canaries))
    answer = await running.ask(request_id="secret-id", log_policy=NONE, text=CANARY, **CONTENT)
    assert answer.best.text.startswith(CANARY) and len(answer.candidates) == 4
    assert answer.durability == pb.DURABILITY_UNSPECIFIED
    assert running.records() == []
    assert CANARY.encode() not in on_disk(running) and b"secret-id" not in on_disk(running)
    assert log_stats(running.log)["requests"] == 0
    counted = await running.metrics()
    assert not sum(value for name, value in counted.items() if name.startswith(("bon_candidates_total", "bon_tokens")))
    feedback = pb.RecordFeedbackRequest(request_id="secret-id", name="good", bool_value=True)
    assert (await refusal(running.stub.RecordFeedback(feedback))).code is grpc.StatusCode.NOT_FOUND


async def test_scores_too(run: Run) -> None:
    running = await run()
    for log_policy in (METADATA_ONLY, NONE):
        request = pb.ScoreRequest(
            request_id=f"s{log_policy}", text=CANARY, completions=[CANARY, "x"], log_policy=log_policy
        )
        answer = await running.stub.Score(request)
        assert [c.text for c in answer.candidates] == [CANARY, "x"]
        assert (await refusal(running.stub.Score(request))).code is grpc.StatusCode.ALREADY_EXISTS
    assert [record.request_id for record in running.records()] == ["s2"]
    assert CANARY.encode() not in on_disk(running)


@pytest.mark.parametrize("log_policy", [METADATA_ONLY, NONE])
async def test_a_repeated_id_is_refused(run: Run, log_policy: pb.LogPolicy.ValueType) -> None:
    running = await run()
    await running.ask(request_id="a", log_policy=log_policy)
    for again in ({"log_policy": log_policy}, {}, {"text": "another", "log_policy": log_policy}):
        assert (await running.refused(request_id="a", **again)).code is grpc.StatusCode.ALREADY_EXISTS
    await running.ask(request_id="b")
    assert (await running.refused(request_id="b", log_policy=log_policy)).code is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("log_policy", [METADATA_ONLY, NONE])
async def test_a_failed_attempt_may_be_tried_again(run: Run, log_policy: pb.LogPolicy.ValueType) -> None:
    async def fail(index: int) -> Completion:
        raise SamplingFailed("engine error")

    policy = ScriptedPolicy(fail)
    running = await run(policy)
    assert (await running.refused(request_id="a", log_policy=log_policy)).code is grpc.StatusCode.INTERNAL
    policy.script = ScriptedPolicy().script
    assert not (await running.ask(request_id="a", log_policy=log_policy)).replayed
    logged = [(record.attempt, record.outcome) for record in running.records()]
    assert logged == ([] if log_policy == NONE else [(1, Outcome.FAILED), (2, Outcome.OK)])


async def test_the_memory_of_unlogged_ids_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "REMEMBERED_IDS", 2)
    running = await run()
    for request_id in "abc":
        await running.ask(request_id=request_id, log_policy=NONE)
    assert (await running.refused(request_id="c", log_policy=NONE)).code is grpc.StatusCode.ALREADY_EXISTS
    assert not (await running.ask(request_id="a", log_policy=NONE)).replayed


@pytest.mark.parametrize(("setting", "log_policy"), [("allow_metadata_only", METADATA_ONLY), ("allow_none", NONE)])
async def test_what_the_operator_forbids(run: Run, setting: str, log_policy: pb.LogPolicy.ValueType) -> None:
    policy = ScriptedPolicy()
    running = await run(policy, settings={f"log.{setting}": "false"})
    request = question(text=CANARY, log_policy=log_policy)
    refused = await refusal(running.stub.Generate(request))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "log_policy" in refused.details and f"log.{setting}" in refused.details
    assert CANARY not in refused.everything_said
    score = pb.ScoreRequest(text=CANARY, completions=["x"], log_policy=log_policy)
    assert (await refusal(running.stub.Score(score))).code is grpc.StatusCode.FAILED_PRECONDITION
    assert policy.started == [] and running.records() == []
    other = METADATA_ONLY + NONE - log_policy
    assert (await running.ask(log_policy=other)).n_scored == 4
    assert (await running.ask(log_policy=pb.LOG_POLICY_FULL)).n_scored == 4


async def test_selection_leaves_out_what_has_no_content(run: Run, tmp_path: Path) -> None:
    running = await run()
    await running.ask(request_id="a")
    await running.ask(request_id="b", log_policy=METADATA_ONLY)
    options = SelectOptions(logs=(running.log,), rule=OfflineRule.BEST_PER_PROMPT, out=tmp_path / "out")
    counts = select(options)["counts"]
    assert (counts["selected"], counts["dropped"]) == (1, {"no_content": 4})
