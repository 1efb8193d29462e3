"""What is in an answer, streamed or not, and that the log has the same."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server import __version__
from bon_server.core.types import Completion, Kind, Outcome
from tests.fakes import ScriptedPolicy, ScriptedReward, named_after_index, says, scored
from tests.serving.conftest import Run
from tests.serving.running import Running, question
from tests.waiting import until


async def streamed(running: Running, **fields: Any) -> list[pb.GenerateStreamResponse]:
    """All events of a streamed answer."""
    request = pb.GenerateStreamRequest(request=question(**fields))
    return [event async for event in running.stub.GenerateStream(request, timeout=15)]


async def test_the_best_of_all_and_what_it_cost(run: Run) -> None:
    running = await run()
    answer = await running.ask(request_id="a", n=8, tags={"k": "v"}, reward_context={"answer": "42"})
    rewards = [candidate.reward for candidate in answer.candidates]
    assert [candidate.index for candidate in answer.candidates] == list(range(8))
    assert answer.best == answer.candidates[rewards.index(max(rewards))]
    assert (answer.n_requested, answer.n_generated, answer.n_scored, answer.partial) == (8, 8, 8, False)
    assert answer.selection_reason == pb.SELECTION_REASON_ARGMAX
    assert answer.usage.prompt_tokens == len("question")
    assert answer.usage.completion_tokens == sum(candidate.completion_tokens for candidate in answer.candidates)
    assert answer.usage.reward_model_tokens > 0
    assert answer.kl.bound_nats == pytest.approx(math.log(8) - 7 / 8)
    assert answer.durability == pb.DURABILITY_FSYNC
    assert (answer.policy.name, answer.policy.id) == ("policy", "synthetic")
    assert [(model.name, model.id) for model in answer.reward_models] == [("default", "synthetic")]
    assert all(candidate.policy_revision == answer.policy.revision for candidate in answer.candidates)
    assert answer.timings.total_ns >= answer.timings.log_ns > 0
    record = running.record("a")
    assert (record.kind, record.outcome, record.n, record.selected_index) == (
        Kind.GENERATE,
        Outcome.OK,
        8,
        answer.best.index,
    )
    assert (dict(record.tags), dict(record.reward_context)) == ({"k": "v"}, {"answer": "42"})
    assert [(c.text, c.reward, c.seed) for c in record.candidates] == [
        (c.text, c.reward, c.seed) for c in answer.candidates
    ]


async def test_only_the_winner_unless_all_are_asked_for(run: Run) -> None:
    running = await run()
    for view in (pb.CANDIDATE_VIEW_UNSPECIFIED, pb.CANDIDATE_VIEW_WINNER):
        answer = await running.ask(view=view, include_token_ids=True)
        assert len(answer.candidates) == 0
        assert len(answer.best.token_ids) == answer.best.completion_tokens > 0
    assert len((await running.ask(include_token_ids=False)).best.token_ids) == 0


async def test_defaults_are_filled_in_and_echoed(run: Run) -> None:
    running = await run(settings={"defaults.n": 5, "defaults.temperature": 0.7, "defaults.max_tokens": 9})
    answer = await running.stub.Generate(pb.GenerateRequest(text="question"))
    assert answer.n_requested == 5
    resolved = answer.resolved
    assert (resolved.temperature, resolved.max_tokens, resolved.top_p, resolved.top_k) == (0.7, 9, 1.0, -1)
    assert not resolved.HasField("seed")
    greedy = pb.GenerateRequest(text="question", sampling=pb.SamplingParams(temperature=0.0))
    assert (await running.stub.Generate(greedy)).n_requested == 1
    long = pb.GenerateRequest(text="x" * 32_765)
    assert (await running.stub.Generate(long)).resolved.max_tokens == 3, "what the prompt leaves"


async def test_every_parameter_is_echoed_and_logged(run: Run) -> None:
    running = await run()
    asked = pb.SamplingParams(
        temperature=1.5,
        top_p=0.9,
        min_p=0.1,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        repetition_penalty=1.5,
        top_k=40,
        max_tokens=7,
        seed=5,
        stop=["a", "é"],
        stop_token_ids=[3, 1],
    )
    answer = await running.ask(request_id="a", sampling=asked)
    assert answer.resolved == asked
    assert [candidate.seed for candidate in answer.candidates] == [5, 6, 7, 8]
    logged = running.record("a").sampling
    assert logged is not None
    assert (logged.temperature, logged.top_k, logged.stop, logged.seed) == (1.5, 40, ("a", "é"), 5)


# Streams


async def test_each_candidate_once_and_last_the_unary_answer(run: Run) -> None:
    running = await run(settings={"policy.model": "synthetic:tokens_per_s=2000,tokens=20"})
    events = await streamed(running, request_id="a", n=16)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[-1] == "final" and kinds.count("final") == 1
    final = events[-1].final
    sent = [event.candidate for event in events if event.WhichOneof("event") == "candidate"]
    assert sorted(sent, key=lambda candidate: candidate.index) == list(final.candidates)
    assert Counter(candidate.index for candidate in sent) == Counter(range(16))
    assert running.record("a").selected_index == final.best.index
    unary = await running.ask(request_id="a", n=16)
    assert unary.best == final.best and unary.replayed


async def test_candidates_come_while_others_are_still_sampled(run: Run) -> None:
    released = asyncio.Event()

    async def last_one_waits(index: int) -> Completion:
        if index == 3:
            await released.wait()
        return await named_after_index(index)

    running = await run(ScriptedPolicy(last_one_waits), ScriptedReward())
    stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(request_id="a")))
    early = []
    async for event in stream:
        if event.WhichOneof("event") == "candidate":
            early.append(event.candidate.index)
        if len(early) == 3:
            assert running.records() == []
            released.set()
    assert sorted(early) == [0, 1, 2, 3]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
async def test_the_last_best_so_far_is_the_best(run: Run, order: list[int]) -> None:
    """Also among equals, whatever the order of arrival: the lowest index wins in the end, so it must lead then."""

    async def in_order(index: int) -> Completion:
        await until(lambda: ended == order[: order.index(index)])
        ended.append(index)
        return says("equal" if index != 2 else "lower")

    ended: list[int] = []
    running = await run(ScriptedPolicy(in_order), ScriptedReward())
    events = await streamed(running)
    best_so_far = [event.best_so_far for event in events if event.WhichOneof("event") == "best_so_far"]
    assert best_so_far[-1] == events[-1].final.best
    assert events[-1].final.best.index == 0
    before = [e.candidate for e in events[: events.index(pb.GenerateStreamResponse(best_so_far=best_so_far[0]))]]
    assert before[-1] == best_so_far[0], "it follows the candidate itself"


async def test_a_stream_view_of_the_winner_keeps_the_final_message_small(run: Run) -> None:
    running = await run()
    events = await streamed(running, view=pb.CANDIDATE_VIEW_WINNER)
    assert len(events[-1].final.candidates) == 0
    assert len([e for e in events if e.WhichOneof("event") == "candidate"]) == 4


# Score


async def test_given_completions_are_scored_in_order_and_logged(run: Run) -> None:
    running = await run()
    request = pb.ScoreRequest(request_id="a", text="question", completions=["b", "", "b", "a\0"])
    answer = await running.stub.Score(request)
    assert [(c.index, c.text) for c in answer.candidates] == [(0, "b"), (1, ""), (2, "b"), (3, "a\0")]
    assert all(c.status == pb.CANDIDATE_STATUS_SCORED and c.HasField("reward") for c in answer.candidates)
    assert answer.candidates[0].reward == answer.candidates[2].reward
    assert (answer.request_id, answer.replayed, answer.durability) == ("a", False, pb.DURABILITY_FSYNC)
    record = running.record("a")
    assert (record.kind, record.outcome, record.policy, record.sampling) == (Kind.SCORE, Outcome.OK, None, None)
    assert (record.rule, record.selected_index) == (None, None)
    assert [candidate.text for candidate in record.candidates] == ["b", "", "b", "a\0"]
    again = await running.stub.Score(request)
    assert again.replayed and again.candidates == answer.candidates


async def test_score_and_generate_agree(run: Run) -> None:
    running = await run()
    answer = await running.ask()
    texts = [candidate.text for candidate in answer.candidates]
    rescored = await running.stub.Score(pb.ScoreRequest(text="question", completions=texts))
    assert [c.reward for c in rescored.candidates] == [c.reward for c in answer.candidates]


async def test_scores_that_are_not_finite_are_an_answer(run: Run) -> None:
    running = await run(settings={"reward.models": ["synthetic:nan_rate=1"]})
    answer = await running.stub.Score(pb.ScoreRequest(request_id="a", text="question", completions=["x"]))
    assert answer.candidates[0].status == pb.CANDIDATE_STATUS_NON_FINITE
    assert not answer.candidates[0].HasField("reward")
    assert running.record("a").outcome is Outcome.PARTIAL


async def test_token_prompts_are_decoded_for_the_reward_model(run: Run) -> None:
    seen: list[str] = []

    class Noting(ScriptedReward):
        async def score(self, prompt: Any, completion: str, context: Any) -> Any:
            seen.append(prompt.text)
            return scored(1.0)

    running = await run(None, Noting())
    tokens = pb.Tokens(ids=list("héllo".encode()))
    await running.ask(tokens=tokens, n=1)
    await running.stub.Score(pb.ScoreRequest(tokens=tokens, completions=["x"]))
    assert seen == ["héllo", "héllo"]


# GetServerInfo


async def test_server_info_is_what_holds(run: Run) -> None:
    running = await run(settings={"limits.max_n": 7, "defaults.n": 3, "limits.max_prompt_tokens": 11})
    info = await running.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.version, info.default_n) == (__version__, 3)
    assert (info.limits.max_n, info.limits.max_prompt_tokens) == (7, 11)
    assert info.durability == pb.DURABILITY_FSYNC
    answer = await running.stub.Generate(pb.GenerateRequest(text="x" * info.limits.max_prompt_tokens))
    assert answer.policy == info.policy
    assert list(answer.reward_models) == list(info.reward_models)
    assert answer.n_requested == info.default_n
    assert answer.resolved.temperature == info.default_sampling.temperature
    assert (await running.refused(text="x" * 12)).code is grpc.StatusCode.INVALID_ARGUMENT
    assert (await running.ask(n=7)).n_requested == 7
    assert (await running.refused(n=8)).code is grpc.StatusCode.INVALID_ARGUMENT
