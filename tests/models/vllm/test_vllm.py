"""The real engine: tokens, log-probabilities, finish reasons, aborts, seeds under load, and what must not kill it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bon_server.core.errors import InvalidRequest, SamplingFailed, UnsupportedOption
from bon_server.core.types import Completion, FinishReason, LogprobKind, Message, Milestone, Prompt, Sampling

if TYPE_CHECKING:
    from bon_server.models.vllm.policy import VllmPolicy

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

PLAIN = Sampling(temperature=1.0, max_tokens=24)
ENDLESS = Sampling(temperature=0.0, max_tokens=2000)
"""From the prompt (9, 9), the likeliest text of these weights goes on for 1,300 tokens."""
END = 2
STREAM_INTERVAL_TOKENS = 4
"""As in `vllm_engine`, which must not be imported before the engine's settings are made."""


@pytest.fixture(autouse=True)
def engine_is_left_empty(policy: VllmPolicy) -> Any:
    """After every test the engine lives and nothing is left in it."""
    yield
    assert policy.healthy
    assert policy.unfinished_requests() == 0


@pytest.fixture(scope="module")
def reference(model_directory: Path) -> Any:
    """The same weights in transformers."""
    return AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()


async def samples(policy: VllmPolicy, prompt: Sequence[int], sampling: Sampling, count: int) -> list[Completion]:
    return await asyncio.gather(*(policy.sample(f"s{index}", prompt, sampling) for index in range(count)))


def logprob_by_transformers(model: Any, prompt: Sequence[int], sampled: Sequence[int], sampling: Sampling) -> float:
    """Sum of the log-probabilities of the sampled tokens under the distribution that they were sampled from, in nats.

    Presence and frequency penalties, which transformers does not have, are subtracted as the OpenAI API defines them.
    """
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0, len(prompt) - 1 : -1].double()
    processors = LogitsProcessorList()
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.min_p > 0:
        processors.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    total = 0.0
    for step, token in enumerate(sampled):
        so_far = torch.tensor([[*prompt, *sampled[:step]]])
        row = logits[step : step + 1].clone()
        row = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(so_far, row)
        counts = torch.bincount(torch.tensor(sampled[:step], dtype=torch.int64), minlength=row.shape[1])
        row -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
        total += float(processors(so_far, row).log_softmax(-1)[0, token])
    return total


@pytest.mark.parametrize(
    "sampling",
    [
        replace(PLAIN, temperature=1.0),
        replace(PLAIN, temperature=0.7, top_p=0.9),
        replace(PLAIN, temperature=0.7, top_p=0.9, top_k=20),
        replace(PLAIN, temperature=1.3, min_p=0.1),
        replace(PLAIN, temperature=0.9, repetition_penalty=1.3),
        replace(PLAIN, temperature=0.9, presence_penalty=0.8, frequency_penalty=0.5),
        replace(PLAIN, temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.2, presence_penalty=-0.5, seed=3),
    ],
    ids=["plain", "top-p", "top-k", "min-p", "repetition", "penalties", "all"],
)
async def test_logprobs_are_those_of_transformers(sampling: Sampling, policy: VllmPolicy, reference: Any) -> None:
    prompt = (
        await policy.encode(Prompt(text="Once upon a time there was a long prompt that all of them share."))
    ).token_ids
    for completion in await samples(policy, prompt, sampling, 8):
        expected = logprob_by_transformers(reference, prompt, completion.token_ids, sampling)
        # A token at the edge of top_p may be in for one and out for the other: about its share of the others' weight.
        assert completion.logprob == pytest.approx(expected, abs=1e-3 if sampling.top_p == 1.0 else 1e-2)
        assert completion.logprob_kind is LogprobKind.SAMPLED


async def test_greedy_reports_the_logprob_at_temperature_1(policy: VllmPolicy, reference: Any) -> None:
    greedy = replace(PLAIN, temperature=0.0)
    # Beside other samples and alone: vLLM computes the two in different ways.
    for others in (0, 3):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(policy.sample("greedy", (5, 6, 7), greedy))
            for index in range(others):
                group.create_task(policy.sample(f"other{index}", (5, 6, 7), PLAIN))
        completion = task.result()
        expected = logprob_by_transformers(reference, (5, 6, 7), completion.token_ids, replace(greedy, temperature=1.0))
        assert completion.logprob == pytest.approx(expected, abs=1e-3)
        assert completion.logprob_kind is LogprobKind.TEMPERATURE_1


async def test_samples_follow_the_distribution(policy: VllmPolicy, reference: Any) -> None:
    """Chi-square of 600 first tokens against the exact distribution, cells of at least 5 expected.

    By the Wilson-Hilferty approximation, the bound of 5 standard deviations is passed by chance less than once in 10^6.
    """
    prompt, sampling = (40, 41, 42), replace(PLAIN, max_tokens=1, temperature=0.8, top_k=30)
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt])).logits[0, -1] / sampling.temperature
    top = logits.topk(30)
    expected = dict(zip(top.indices.tolist(), (600 * top.values.softmax(-1)).tolist(), strict=True))
    drawn = [completion.token_ids[0] for completion in await samples(policy, prompt, sampling, 600)]
    assert set(drawn) <= set(expected)
    cells = [token for token, count in expected.items() if count >= 5]
    rest = [token for token in expected if token not in cells]
    chi = sum((drawn.count(token) - expected[token]) ** 2 / expected[token] for token in cells)
    remaining = sum(expected[token] for token in rest)
    if remaining > 0:
        chi += (sum(drawn.count(token) for token in rest) - remaining) ** 2 / remaining
    freedom = len(cells)
    spread = 2 / (9 * freedom)
    assert ((chi / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 5


async def test_chat_text_and_tokens_are_the_same_prompt(policy: VllmPolicy) -> None:
    chat = await policy.encode(Prompt(messages=(Message("user", "1+1?"),)))
    text = await policy.encode(Prompt(text=chat.text))
    tokens = await policy.encode(Prompt(token_ids=chat.token_ids))
    assert chat.text == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert chat == text == tokens


async def test_finish_reasons(policy: VllmPolicy) -> None:
    length = await policy.sample("a", (9, 9), replace(PLAIN, max_tokens=3, temperature=0.0))
    assert (length.finish_reason, length.stop_reason, len(length.token_ids)) == (FinishReason.LENGTH, None, 3)
    token = length.token_ids[1]
    stopped = await policy.sample("b", (9, 9), replace(PLAIN, temperature=0.0, stop_token_ids=(token,)))
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, str(token))
    assert stopped.token_ids[-1] == token


async def test_the_end_of_text_is_a_token_but_no_text(policy: VllmPolicy) -> None:
    ended = next(
        completion
        for completion in await samples(policy, (9, 9), replace(PLAIN, max_tokens=500, temperature=1.5), 16)
        if completion.finish_reason is FinishReason.STOP
    )
    assert ended.token_ids[-1] == END
    assert ended.stop_reason is None
    assert "<|im_end|>" not in ended.text


async def test_stop_texts_are_cut_off_but_their_tokens_stay(policy: VllmPolicy) -> None:
    whole = await policy.sample("a", (9, 9), replace(PLAIN, temperature=0.0))
    stop = whole.text[3:5]
    cut = await policy.sample("b", (9, 9), replace(PLAIN, temperature=0.0, stop=(stop,)))
    assert (cut.finish_reason, cut.stop_reason) == (FinishReason.STOP, stop)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in (await policy.encode(Prompt(token_ids=cut.token_ids))).text


async def test_abort_hands_over_the_partial_text(policy: VllmPolicy) -> None:
    tasks = [asyncio.create_task(policy.sample(key, (9, 9), ENDLESS)) for key in ("a", "b", "c")]
    await asyncio.sleep(0.3)
    await policy.abort(["a", "c", "unknown"])
    first, third = await tasks[0], await tasks[2]
    for partial in (first, third):
        assert partial.finish_reason is FinishReason.CANCELLED
        assert 0 < len(partial.token_ids) < 2000
        assert partial.text
    assert policy.unfinished_requests() == 1
    await policy.abort(["b"])
    await tasks[1]


async def test_a_milestone_is_passed_once_and_changes_nothing(policy: VllmPolicy, reference: Any) -> None:
    """Watched or not, greedy or stopped by a text: the same tokens, text and end, and the log-probability of all."""
    for sampling in (
        replace(PLAIN, temperature=0.0, max_tokens=40),
        replace(PLAIN, temperature=0.0, max_tokens=40, stop=(" ",)),
        replace(PLAIN, temperature=0.8, max_tokens=40, seed=11),
    ):
        seen: list[str] = []
        plain = await policy.sample("plain", (9, 9), sampling)
        watched = await policy.sample("watched", (9, 9), sampling, Milestone(12, seen.append))
        assert (watched.text, watched.token_ids) == (plain.text, plain.token_ids)
        assert (watched.finish_reason, watched.stop_reason) == (plain.finish_reason, plain.stop_reason)
        assert watched.logprob == pytest.approx(plain.logprob, abs=1e-3)
        assert len(seen) == (len(plain.token_ids) > 12 + STREAM_INTERVAL_TOKENS), "a sample that ends early passes none"
        assert all(plain.text.startswith(prefix) and prefix for prefix in seen)
    watched = await policy.sample("long", (9, 9), replace(PLAIN, max_tokens=40), Milestone(12, seen.append))
    expected = logprob_by_transformers(reference, (9, 9), watched.token_ids, PLAIN)
    assert watched.logprob == pytest.approx(expected, abs=1e-3)


async def test_a_watched_sample_can_be_aborted_and_hands_over_its_text(policy: VllmPolicy) -> None:
    passed = asyncio.Event()
    task = asyncio.create_task(policy.sample("a", (9, 9), ENDLESS, Milestone(16, lambda text: passed.set())))
    await passed.wait()
    await policy.abort(["a"])
    partial = await task
    assert partial.finish_reason is FinishReason.CANCELLED
    assert 16 <= len(partial.token_ids) < 2000
    assert partial.text


async def test_abort_before_the_first_token(policy: VllmPolicy) -> None:
    task = asyncio.create_task(policy.sample("a", (9, 9), PLAIN))
    await asyncio.sleep(0)
    await policy.abort(["a"])
    partial = await task
    assert (partial.finish_reason, partial.text, partial.token_ids) == (FinishReason.CANCELLED, "", ())


async def test_cancelling_frees_the_engine(policy: VllmPolicy) -> None:
    tasks = [asyncio.create_task(policy.sample(f"a{index}", (9, 9), ENDLESS)) for index in range(20)]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert policy.unfinished_requests() == 0


async def test_seeds_under_load_with_long_prompts(policy: VllmPolicy) -> None:
    """Two requests of 40 samples, and twelve more prompts, all of 1,500 tokens: more than one step takes, and more
    samples than run at a time. With prefill in chunks the engine died of this."""
    prompts = [tuple(3 + (place * step) % 250 for place in range(1500)) for step in range(7, 21)]
    wanted = [(prompt, seed) for prompt in prompts for seed in range(-2, 38 if prompt in prompts[:2] else -1)]
    sampling = replace(PLAIN, temperature=0.8, top_p=0.9, max_tokens=16)

    async def run() -> list[Completion]:
        seeded = [(prompt, replace(sampling, seed=seed)) for prompt, seed in wanted]
        return await asyncio.gather(*(policy.sample(f"s{i}", *each) for i, each in enumerate(seeded)))

    first, second = await run(), await run()
    assert [completion.seed for completion in first] == [seed for _, seed in wanted]
    same = sum(one.token_ids == other.token_ids for one, other in zip(first, second, strict=True))
    assert same >= 0.9 * len(wanted)  # in 32 bits nearly all are; identical text is not promised


async def test_different_seeds_differ_and_none_is_random(policy: VllmPolicy) -> None:
    seeded = [await policy.sample("a", (9, 9), replace(PLAIN, seed=seed)) for seed in (-1, -1, 1, 2**62)]
    assert seeded[0].token_ids == seeded[1].token_ids
    assert len({completion.token_ids for completion in seeded}) == 3
    unseeded = await samples(policy, (9, 9), PLAIN, 4)
    assert len({completion.token_ids for completion in unseeded}) == 4


@pytest.mark.parametrize(
    "extreme",
    [
        replace(PLAIN, temperature=0.01),
        replace(PLAIN, temperature=2.0),
        replace(PLAIN, top_p=1e-9),
        replace(PLAIN, top_p=5e-324),
        replace(PLAIN, min_p=1.0),
        replace(PLAIN, top_k=1),
        replace(PLAIN, top_k=2**31 - 1),
        replace(PLAIN, repetition_penalty=0.01),
        replace(PLAIN, repetition_penalty=2.0),
        replace(PLAIN, presence_penalty=2.0, frequency_penalty=-2.0),
        replace(PLAIN, temperature=0.01, repetition_penalty=0.01, frequency_penalty=-2.0),
        replace(PLAIN, temperature=0.0, repetition_penalty=0.01, top_p=0.1, top_k=3, min_p=0.5, seed=5),
        replace(PLAIN, max_tokens=2**32 - 1, stop_token_ids=tuple(range(64))),
        replace(PLAIN, stop=("\x00", "é", "👩‍👩‍👧", "x" * 100_000)),
        replace(PLAIN, stop_token_ids=(258, 0)),
    ],
)
async def test_extreme_parameters_do_not_kill_the_engine(extreme: Sampling, policy: VllmPolicy) -> None:
    await policy.check(extreme)
    for index, completion in enumerate(await samples(policy, (9, 9, 9), extreme, 2)):
        assert completion.finish_reason in (FinishReason.STOP, FinishReason.LENGTH), index
        assert all(0 <= token < 259 for token in completion.token_ids)
        assert completion.logprob is None or math.isfinite(completion.logprob)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (replace(PLAIN, temperature=0.001), "sampling.temperature"),
        (replace(PLAIN, temperature=math.nan), "sampling.temperature"),
        (replace(PLAIN, temperature=-0.1), "sampling.temperature"),
        (replace(PLAIN, top_p=1.1), "sampling.top_p"),
        (replace(PLAIN, repetition_penalty=1e-300), "sampling.repetition_penalty"),
        (replace(PLAIN, stop_token_ids=(3, 259)), "sampling.stop_token_ids[1]"),
        (replace(PLAIN, stop_token_ids=(2**32 - 1,)), "sampling.stop_token_ids[0]"),
        (replace(PLAIN, stop=("",)), "sampling"),
    ],
)
async def test_what_the_engine_must_not_get_is_refused(bad: Sampling, field: str, policy: VllmPolicy) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await policy.check(bad)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_seed_where_prefills_come_in_chunks(policy: VllmPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU it would kill the engine."""
    monkeypatch.setattr(policy._vllm_config.scheduler_config, "enable_chunked_prefill", True)
    with pytest.raises(UnsupportedOption, match=r"sampling\.seed"):
        await policy.check(replace(PLAIN, seed=1))
    await policy.check(PLAIN)


@pytest.mark.parametrize("prompt", [(), tuple([5] * 2048), tuple([5] * 3000), (5, 10**6), (5, -1), (5, 2**40)])
async def test_prompts_that_were_not_checked_fail_alone(prompt: tuple[int, ...], policy: VllmPolicy) -> None:
    with pytest.raises(SamplingFailed) as caught:
        await policy.sample("a", prompt, PLAIN)
    assert str(10**6) not in str(caught.value)


async def test_a_prompt_that_fills_the_context_beside_running_samples(policy: VllmPolicy) -> None:
    running = [
        asyncio.create_task(policy.sample(f"r{index}", (9, 9), replace(PLAIN, max_tokens=400, stop_token_ids=())))
        for index in range(30)
    ]
    longest = await policy.sample("long", tuple([7] * (policy.max_model_len - 1)), replace(PLAIN, seed=1))
    assert len(longest.token_ids) == 1
    await asyncio.gather(*running)


async def test_what_the_banner_says(policy: VllmPolicy) -> None:
    assert policy.facts["dtype"] == "float32"
    assert policy.facts["device"] == "cpu"
    assert int(policy.facts["kv_cache_tokens"]) > 2 * policy.max_model_len
    assert policy.ref.chat_template_hash is not None
    assert len(policy.ref.revision) == 64
