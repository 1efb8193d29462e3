"""The KL of a tiny policy to another against the sum over all texts, and the distributions that it is of."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from bon_server.loop.rounds.evaluation import SampledText
from bon_server.loop.rounds.kl import kl_of_texts, sampled_logprobs
from tests.tiny_models import save_policy

PROMPT = (1, 5, 9)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two tiny policies that differ."""
    folder = tmp_path_factory.mktemp("policies")
    return tuple(str(save_policy(folder / str(seed), weights_seed=seed)) for seed in (0, 1))  # type: ignore[return-value]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_expected_kl_is_that_of_whole_texts(policies: tuple[str, str], temperature: float) -> None:
    """Expectation over the second token of the per-position sum = KL of the joint distribution of two tokens.

    The first token is summed over its likeliest values, whose share is known, so nothing is sampled.
    """
    logprobs = []
    for policy in policies:
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
        with torch.inference_mode():
            first = sampled_logprobs(model(torch.tensor([PROMPT])).logits[0, -1:], temperature, 1.0)[0]
            grid = torch.tensor([[*PROMPT, token] for token in range(259)])
            second = sampled_logprobs(model(grid).logits[:, -1], temperature, 1.0)
        logprobs.append((first[:, None] + second).numpy())
    joint_kl = float((np.exp(logprobs[0]) * (logprobs[0] - logprobs[1])).sum())
    weights = np.exp(logprobs[0]).sum(axis=1)
    texts = [SampledText(PROMPT, (token, 7), temperature, 1.0) for token in range(259)]
    done: list[int] = []
    values = kl_of_texts(*policies, texts, done.append)
    assert float(weights @ np.array(values)) == pytest.approx(joint_kl, rel=1e-4)
    assert joint_kl > 0.1
    assert done == list(range(1, 260))


def test_long_texts_are_summed_in_pieces(policies: tuple[str, str]) -> None:
    completion = tuple(itertools.islice(itertools.cycle(range(3, 100)), 75))
    (whole,) = kl_of_texts(*policies, [SampledText(PROMPT, completion, 1.0, 1.0)], lambda _: None)
    parts = [SampledText(PROMPT + completion[:end], completion[end : end + 1], 1.0, 1.0) for end in range(75)]
    assert whole == pytest.approx(sum(kl_of_texts(*policies, parts, lambda _: None)), rel=1e-4)


def test_logits_of_the_prompt_are_left_out_where_the_model_can(
    policies: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of a model that always computes all give the same KL."""
    texts = [SampledText(PROMPT, (4, 5), 0.8, 1.0), SampledText(PROMPT, (4,), 0.8, 1.0)]
    forward, rows = LlamaForCausalLM.forward, []

    def watched(self: LlamaForCausalLM, input_ids: torch.Tensor, logits_to_keep: int = 0) -> Any:
        output = forward(self, input_ids, logits_to_keep=logits_to_keep)
        rows.append(output.logits.shape[1])
        return output

    def always_all(self: LlamaForCausalLM, input_ids: torch.Tensor) -> Any:
        return forward(self, input_ids)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    values = kl_of_texts(*policies, texts, lambda _: None)
    assert rows == [3, 3, 2, 2]  # of the completion, and one that predicts what comes after it
    monkeypatch.setattr(LlamaForCausalLM, "forward", always_all)
    assert kl_of_texts(*policies, texts, lambda _: None) == pytest.approx(values, rel=1e-5)


def test_a_policy_is_no_distance_from_itself(policies: tuple[str, str]) -> None:
    assert kl_of_texts(policies[0], policies[0], [SampledText(PROMPT, (4, 5), 0.8, 0.9)], lambda _: None) == [0.0]


def test_top_p_can_make_it_infinite(policies: tuple[str, str]) -> None:
    assert kl_of_texts(*policies, [SampledText(PROMPT, (4, 5), 1.0, 0.1)], lambda _: None) == [np.inf]


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1]]))
    kept = sampled_logprobs(logits, 1.0, 0.6).exp()[0]
    assert kept.tolist() == pytest.approx([5 / 7, 2 / 7, 0.0, 0.0])
    assert sampled_logprobs(logits, 1.0, 0.01).exp()[0].tolist() == [1.0, 0.0, 0.0, 0.0]
