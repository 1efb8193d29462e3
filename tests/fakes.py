"""A policy and a reward model that do as a test tells them. Fakes exist at these two Protocols and nowhere else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bon_server.core.types import (
    CandidateStatus,
    Completion,
    EncodedPrompt,
    FinishReason,
    Milestone,
    ModelRef,
    PolicyRef,
    Prompt,
    Request,
    Sampling,
    Score,
)
from bon_server.system.telemetry import Telemetry

PARTIAL = "partial "
"""Text of a sample that was aborted."""


async def named_after_index(index: int) -> Completion:
    """Candidate 3 says `answer 3`, at once."""
    return says(f"answer {index}")


async def scored_by_length(text: str) -> Score:
    """The longer the better, at once."""
    return scored(float(len(text)))


def says(text: str) -> Completion:
    """A completion that ended by itself."""
    return Completion(text, tuple(text.encode()), FinishReason.STOP)


def scored(reward: float) -> Score:
    """A finite reward."""
    return Score(CandidateStatus.SCORED, reward, tokens=1)


@dataclass(eq=False)
class ScriptedPolicy:
    """Samples by calling `script` with the candidate's index, which requests made by `a_request` carry as seed."""

    script: Callable[[int], Awaitable[Completion]] = named_after_index
    obeys_abort: bool = True
    unwind_s: float = 0.0
    """How long a cancelled sample takes to free what it holds."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Awaited while a prompt is encoded."""
    ref: PolicyRef = field(default_factory=lambda: PolicyRef("scripted", "1"))
    max_model_len: int = 4096
    slots: int = 4
    healthy: bool = True
    facts: Mapping[str, str | int] = field(default_factory=dict)
    engines: tuple[Telemetry, ...] = ()
    started: list[int] = field(default_factory=list)
    """Indices, in the order in which sampling began."""
    running: int = 0
    """Samples that hold the engine."""
    _aborts: dict[str, asyncio.Event] = field(default_factory=dict)

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Bytes are tokens."""
        if self.prepare is not None:
            await self.prepare()
        return EncodedPrompt(tuple((prompt.text or "prompt").encode()), prompt.text or "prompt")

    async def check(self, sampling: Sampling) -> None:
        """Anything goes."""

    async def sample(
        self, key: str, prompt_token_ids: Sequence[int], sampling: Sampling, milestone: Milestone | None = None
    ) -> Completion:
        """What the script says, or PARTIAL once aborted; a milestone is passed at once with the candidate's index."""
        index = sampling.seed or 0
        if milestone is not None:
            milestone.passed(str(index))
        self.started.append(index)
        self.running += 1
        aborted = self._aborts[key] = asyncio.Event()
        script = asyncio.ensure_future(self.script(index))
        waiting = asyncio.create_task(aborted.wait())
        try:
            await asyncio.wait((script, waiting), return_when=asyncio.FIRST_COMPLETED)
            if script.done():
                return script.result()
            return Completion(PARTIAL, (0,), FinishReason.CANCELLED)
        except asyncio.CancelledError:
            await asyncio.sleep(self.unwind_s)
            raise
        finally:
            self.running -= 1
            script.cancel()
            waiting.cancel()
            del self._aborts[key]

    async def abort(self, keys: Sequence[str]) -> None:
        """Ends these samples, unless the policy does not listen."""
        for key in keys:
            if self.obeys_abort and key in self._aborts:
                self._aborts[key].set()

    async def close(self) -> None:
        """Nothing to release."""


@dataclass
class ScriptedReward:
    """Scores by calling `script` with the completion."""

    script: Callable[[str], Awaitable[Score]] = scored_by_length
    refs: tuple[ModelRef, ...] = field(default_factory=lambda: (ModelRef("default", "scripted", "1"),))
    facts: Mapping[str, str | int] = field(default_factory=dict)
    engines: tuple[Telemetry, ...] = ()
    calls: Counter[str] = field(default_factory=Counter)
    """How often each text was scored."""
    running: int = 0
    """Scores being computed."""
    healthy: bool = True

    async def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Score:
        """What the script says."""
        self.calls[completion] += 1
        self.running += 1
        try:
            return await self.script(completion)
        finally:
            self.running -= 1

    async def close(self) -> None:
        """Nothing to release."""


def a_request(n: int = 4, request_id: str = "a", seed: int | None = 0) -> Request:
    """A question whose candidate i is sampled with the seed i."""
    return Request(
        request_id=request_id,
        principal="",
        digest="d",
        prompt=Prompt(text="q"),
        prompt_token_ids=(1,),
        reward_prompt=Prompt(text="q"),
        n=n,
        sampling=Sampling(temperature=1.0, max_tokens=8, seed=seed),
    )
