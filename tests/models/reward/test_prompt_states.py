"""A prompt that runs once for all its completions gives the rewards that it gave with each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bon_server.config.settings import RewardConfig
from bon_server.core.types import Message, Prompt
from bon_server.models.reward.classifier import Classifier
from bon_server.models.reward.prompt_states import PromptStates

PROMPTS = [
    Prompt(messages=(Message("user", "What is 3 + 4, and why would anyone ask?"),)),
    Prompt(messages=(Message("system", "Be brief."), Message("user", "What is 9 times 9?"))),
    Prompt(text="Once upon a time there was a number"),
    Prompt(text="short"),
]
COMPLETIONS = ["", "7", "seven, of course", "<|im_end|>", "What is 3 + 4, and why would anyone ask?"]


@pytest.fixture
def shared_and_apart(decoder: Path) -> Iterator[tuple[Classifier, Classifier]]:
    yield tuple(Classifier.load(str(decoder), RewardConfig(share_prompts=share)) for share in (True, False))  # type: ignore[misc]


def test_rewards_do_not_depend_on_sharing(shared_and_apart: tuple[Classifier, Classifier]) -> None:
    shared, apart = shared_and_apart
    assert (shared.facts["prompts"], apart.facts["prompts"]) == ("computed once", "computed with each completion")
    pairs = [shared.tokenize(prompt, completion) for completion in COMPLETIONS for prompt in PROMPTS]
    expected = apart.rewards(pairs)
    for _ in range(2):  # the second time, the states are there already
        assert shared.rewards(pairs) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > len(COMPLETIONS), "rewards that are all alike would show nothing"


@pytest.fixture
def passes(shared_and_apart: tuple[Classifier, Classifier], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what the sharing model was given, pass by pass."""
    model, shapes = shared_and_apart[0]._model, list[tuple[int, ...]]()

    def noting(*arguments: object, **named: torch.Tensor) -> object:
        shapes.append(tuple(named["input_ids"].shape))
        return forward(*arguments, **named)

    forward = model.forward
    monkeypatch.setattr(model, "forward", noting)
    return shapes


def test_each_prompt_runs_once(shared_and_apart: tuple[Classifier, Classifier], passes: list[tuple[int, ...]]) -> None:
    shared, _ = shared_and_apart
    pairs = [shared.tokenize(PROMPTS[0], completion) for completion in ("1", "2", "3")]
    assert len({pair.prompt_tokens for pair in pairs}) == 1
    for pair in pairs:
        shared.rewards([pair])
    assert passes == [(1, pairs[0].prompt_tokens), *((1, len(pair.ids) - pair.prompt_tokens) for pair in pairs)]


def test_completions_of_several_prompts_share_a_pass(
    shared_and_apart: tuple[Classifier, Classifier], passes: list[tuple[int, ...]]
) -> None:
    shared, apart = shared_and_apart
    pairs = [shared.tokenize(prompt, completion) for prompt in PROMPTS[:2] for completion in ("1", "two")]
    prompts = {tuple(pair.ids[: pair.prompt_tokens]) for pair in pairs}
    assert len({len(prompt) for prompt in prompts}) == 2, "of one length they would show less"
    assert shared.rewards(pairs) == pytest.approx(apart.rewards(pairs), abs=1e-5)
    longest = max(len(pair.ids) - pair.prompt_tokens for pair in pairs)
    assert sorted(passes[:2]) == sorted((1, len(prompt)) for prompt in prompts)
    assert passes[2:] == [(4, longest)]


def test_the_states_that_were_not_used_for_longest_go_first(decoder: Path) -> None:
    classifier = Classifier.load(str(decoder), RewardConfig(share_prompts=True))
    one_prompt = 2 * 2 * 64 * 4 * 20  # layers, keys and values, width at most, bytes, tokens
    states = PromptStates(classifier._model, room_bytes=one_prompt)
    with torch.inference_mode():
        for prompt in ([5] * 20, [6] * 20, [5] * 20, [7] * 20):
            states.logits([prompt], [[8]], pad_id=0)
    assert len(states._kept) < 3
    assert list(states._kept)[-1] == (7,) * 20
