"""Constraints on the real engine: what comes out conforms, log-probabilities are right, and nothing kills it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bon_server.core.errors import InvalidRequest, SamplingFailed
from bon_server.core.types import Completion, FinishReason, LogprobKind, Milestone, Sampling

if TYPE_CHECKING:
    from bon_server.models.vllm.policy import VllmPolicy

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

PLAIN = Sampling(temperature=1.0, max_tokens=200)
VERDICT = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "grade": {"enum": ["a", "b"]}, "n": {"type": "integer", "maximum": 99,
                                                                                  "minimum": 0}},
    "required": ["ok", "grade", "n"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def engine_is_left_empty(policy: VllmPolicy) -> Any:
    """After every test the engine lives and nothing is left in it."""
    yield
    assert policy.healthy
    assert policy.unfinished_requests() == 0


async def samples(policy: VllmPolicy, sampling: Sampling, count: int) -> list[Completion]:
    return await asyncio.gather(*(policy.sample(f"s{index}", (9, 9), sampling) for index in range(count)))


def is_verdict(text: str) -> bool:
    verdict = json.loads(text)
    return (
        verdict.keys() == {"ok", "grade", "n"}
        and isinstance(verdict["ok"], bool)
        and verdict["grade"] in ("a", "b")
        and 0 <= verdict["n"] <= 99
    )


@pytest.mark.parametrize(
    ("sampling", "conforms"),
    [
        (replace(PLAIN, json_schema=json.dumps(VERDICT)), is_verdict),
        (replace(PLAIN, regex="[A-C]{1,3}-[0-9]{2,5}(é|☃)?"), re.compile("[A-C]{1,3}-[0-9]{2,5}(é|☃)?").fullmatch),
        (replace(PLAIN, choice=("yes", "no", "maybe not", 'a "quoted" \\ one')), None),
    ],
    ids=["json_schema", "regex", "choice"],
)
async def test_all_candidates_conform(
    sampling: Sampling, conforms: Callable[[str], object] | None, policy: VllmPolicy
) -> None:
    """At temperature 1, and weights that never saw any such text."""
    await policy.check(sampling)
    completions = await samples(policy, sampling, 32)
    for completion in completions:
        assert completion.finish_reason is FinishReason.STOP
        fits = completion.text in (sampling.choice or ()) if conforms is None else conforms(completion.text)
        assert fits, repr(completion.text)
    assert len({completion.text for completion in completions}) > 1


async def test_many_candidates_of_a_costly_one(policy: VllmPolicy) -> None:
    """They share one compiled grammar, and with it the states that they have met, which are limited."""
    sampling = replace(PLAIN, regex=r"(\w{0,30} ){0,30}\.", max_tokens=64)
    await policy.check(sampling)
    for completion in await samples(policy, sampling, 160):
        assert completion.finish_reason is FinishReason.LENGTH or completion.text.endswith(".")


async def test_a_text_that_is_cut_off_conforms_as_far_as_it_goes(policy: VllmPolicy) -> None:
    """Also when the schema has no end: the length ends it, as it ends any text."""
    bit = {"enum": ["x", "y"]}
    endless = {"type": "object", "properties": {"b": bit, "a": {"$ref": "#"}}, "required": ["b", "a"]}
    sampling = replace(PLAIN, json_schema=json.dumps(endless | {"additionalProperties": False}), max_tokens=32)
    await policy.check(sampling)
    for completion in await samples(policy, sampling, 4):
        assert completion.finish_reason is FinishReason.LENGTH
        assert re.fullmatch(r'(\{"b": "[xy]", "a": ){2}', completion.text), repr(completion.text)


async def test_a_stop_text_goes_first(policy: VllmPolicy) -> None:
    sampling = replace(PLAIN, regex="[ab]{4}x[ab]{4}", stop=("x",))
    await policy.check(sampling)
    (completion,) = await samples(policy, sampling, 1)
    assert (completion.stop_reason, len(completion.text)) == ("x", 4)


async def test_watched_and_seeded_candidates_conform_too(policy: VllmPolicy) -> None:
    sampling = replace(PLAIN, regex="[ab]{20}", seed=3)
    seen: list[str] = []
    completion = await policy.sample("a", (9, 9), sampling, Milestone(4, seen.append))
    assert re.fullmatch("[ab]{20}", completion.text)
    assert len(seen) == 1 and completion.text.startswith(seen[0])
    again = await policy.sample("a", (9, 9), sampling)
    assert again.token_ids == completion.token_ids


async def test_constrained_and_free_candidates_run_side_by_side(policy: VllmPolicy) -> None:
    free = asyncio.create_task(policy.sample("free", (9, 9), replace(PLAIN, temperature=0.0, max_tokens=40)))
    constrained = await samples(policy, replace(PLAIN, choice=("yes", "no")), 8)
    alone = await policy.sample("alone", (9, 9), replace(PLAIN, temperature=0.0, max_tokens=40))
    assert (await free).text == alone.text
    assert {completion.text for completion in constrained} <= {"yes", "no"}


@pytest.mark.parametrize(
    "sampling",
    [
        replace(PLAIN, regex="[a-h]{12}"),
        replace(PLAIN, regex="[a-h]{12}", temperature=0.7),
        replace(PLAIN, regex="[a-h]{12}", temperature=0.8, top_k=4),
        replace(PLAIN, choice=("abc", "abd", "xyz")),
    ],
    ids=["plain", "temperature", "top-k", "choice"],
)
async def test_logprobs_are_under_the_constrained_distribution(
    sampling: Sampling, policy: VllmPolicy, model_directory: Path
) -> None:
    """First the mask, then temperature and top-k, then the distribution."""
    reference = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    for completion in await samples(policy, sampling, 8):
        expected = logprob_by_transformers(reference, policy, (9, 9), completion.token_ids, sampling)
        assert completion.logprob == pytest.approx(expected, abs=1e-3)
        assert completion.logprob_kind is LogprobKind.SAMPLED


def logprob_by_transformers(
    model: Any, policy: VllmPolicy, prompt: Sequence[int], sampled: Sequence[int], sampling: Sampling
) -> float:
    """Sum over the sampled tokens, end of text included, in nats."""
    import llguidance
    from llguidance.hf import from_tokenizer

    from bon_server.models.vllm.grammar import grammar_of
    from tests.tiny_models import byte_tokenizer

    matcher = llguidance.LLMatcher(from_tokenizer(byte_tokenizer(), 259), str(grammar_of(sampling)))
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0, len(prompt) - 1 : -1].double()
    total = 0.0
    for row, token in zip(logits, sampled, strict=True):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = torch.tensor([bool(mask >> index & 1) for index in range(len(row))])
        row = (row / sampling.temperature).masked_fill(~allowed, -torch.inf)
        if sampling.top_k > 0:
            row = row.masked_fill(row < row.topk(sampling.top_k).values[-1], -torch.inf)
        total += float(row.log_softmax(-1)[token])
        matcher.consume_token(token)
    return total


@pytest.mark.parametrize(
    "bad",
    [
        replace(PLAIN, regex="("),
        replace(PLAIN, json_schema='{"$ref": "#"}'),
        replace(PLAIN, json_schema='{"type": "array", "items": {"type": "string"}, "maxItems": 1000000}'),
        replace(PLAIN, json_schema='{"not": {}}'),
        replace(PLAIN, json_schema='{"type": "strng"}'),
    ],
    ids=["no regex", "circle", "huge", "not", "type"],
)
async def test_bad_ones_are_refused_and_would_not_kill_the_engine(bad: Sampling, policy: VllmPolicy) -> None:
    """Given to the engine nevertheless, they fail alone: a text that merely ends would look as if it conformed."""
    with pytest.raises(InvalidRequest):
        await policy.check(bad)
    good = asyncio.create_task(policy.sample("good", (9, 9), replace(PLAIN, choice=("yes", "no"))))
    with pytest.raises(SamplingFailed):
        await policy.sample("bad", (9, 9), bad)
    assert (await good).text in ("yes", "no")
