"""The candidates of one request: started, sampled, scored, pruned, ended.

The Protocols `Policy` and `RewardModel` are defined here because here is where they are used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from bon_server.errors import SamplingFailed
from bon_server.pruning import Pruning
from bon_server.scores import Scores, succeeded
from bon_server.stopping import Spread, early_reason, reached, wave, worth_one_more
from bon_server.types import (
    Candidate,
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
    SelectionReason,
)

STOP_GRACE_S = 0.05
"""How long stopped candidates may take to hand over their partial text before their tasks are cancelled. Together with
`UNWIND_S` well below `limits.deadline_margin_ms`: a deadline stops candidates only that long before the caller goes."""
UNWIND_S = 0.02
"""How long cancelled samples and scores may take to release what they hold; a reward function might never."""


class Policy(Protocol):
    """A language model that is sampled."""

    @property
    def ref(self) -> PolicyRef:
        """Which model this is."""

    @property
    def context_tokens(self) -> int:
        """Longest prompt plus completion, in tokens."""

    @property
    def places(self) -> int:
        """Samples that run at once; more wait their turn."""

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tokenises off the event loop. Raises `InvalidRequest` for what cannot be a prompt here."""

    async def check(self, sampling: Sampling) -> None:
        """Raises `UnsupportedOption` or `InvalidRequest` for parameters that this policy must not be given."""

    async def sample(
        self, key: str, prompt_token_ids: Sequence[int], sampling: Sampling, milestone: Milestone | None = None
    ) -> Completion:
        """One sample. `key` is unique; `sampling.seed` is this candidate's own; a `milestone` is told when passed.

        Returns early with finish reason CANCELLED and the partial text after `abort(key)`; cancelling the task frees
        the engine as well. Raises `SamplingFailed` when this sample failed and `Unavailable` when the engine is dead.
        """

    async def abort(self, keys: Sequence[str]) -> None:
        """Ends the samples with these keys; unknown keys are ignored."""


class RewardModel(Protocol):
    """A model or function that scores completions."""

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """Which models score, in order."""

    def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Awaitable[Score]:
        """The reward of one completion. `prompt` is text or messages, never token ids.

        What concerns this completion alone (too long, not finite, its reward function raised) is a `Score` with that
        status; a failure of the model itself raises `RewardFailed`, and `Unavailable` when its engine is dead.
        """


class Candidates:
    """The moving parts of one request."""

    def __init__(
        self,
        request: Request,
        policy: Policy,
        reward_model: RewardModel,
        on_end: Callable[[Candidate], None],
        waited_ns: int,
        spread: Spread,
        share: Callable[[], int],
    ) -> None:
        self._request = request
        self._policy = policy
        self._on_end = on_end
        self._spread = spread
        self._share = share
        self._key = uuid4().hex
        self.waited_ns = waited_ns
        self._began_ns = time.monotonic_ns() - waited_ns
        self._tasks: list[asyncio.Task[Candidate]] = []
        self._running = 0
        self._sampled: dict[int, Candidate] = {}
        self._rewards: list[float] = []
        self._first_wave = range(self._wave())
        self._stopped = False
        self.scores = Scores(
            lambda text: reward_model.score(request.reward_prompt, text, request.reward_context), self._elapsed_ns
        )
        fraction = request.budget.prune_fraction or 0.0  # without one nothing is watched, so nothing is compared
        self._pruning = Pruning(fraction, self._first_wave, self.scores.of, self._abort, self._fail)
        self.settled: asyncio.Future[SelectionReason | None] = asyncio.get_running_loop().create_future()
        """Done when no more candidates are wanted: with the reason where fewer than n were, or with what failed."""

    def start(self) -> None:
        """Starts the candidates, all or the first wave."""
        for _ in self._first_wave:
            self._start_one()

    def ends(self) -> tuple[Candidate, ...]:
        """What became of each of the n candidates, in index order. Call once, after `settled` or `stop`."""
        return tuple(self._end(index) for index in range(self._request.n))

    @property
    def busy(self) -> bool:
        """Whether something still runs."""
        return self._running > 0 or bool(self._pruning.tasks)

    async def stop(self) -> None:
        """Frees the engine, keeping partial texts, and drops scores that nobody waits for."""
        self._stopped = True
        tasks = self._tasks
        if scored := [tasks[index] for index, each in self._sampled.items() if self.scores.known(each.text)]:
            await asyncio.wait(scored)  # their scores came in the same moment: they end within it
        sampling = [index for index, task in enumerate(tasks) if not task.done() and index not in self._sampled]
        for index in self._sampled:
            tasks[index].cancel()
        self.scores.cancel()
        aborting = asyncio.create_task(self._abort(sampling))
        await asyncio.wait((aborting, *(tasks[index] for index in sampling)), timeout=STOP_GRACE_S)
        last: list[asyncio.Future[Any]] = [aborting, *self._pruning.tasks, *tasks, *self.scores.cancel()]
        for one in last:
            one.cancel()
            one.add_done_callback(_mark_seen)
        await asyncio.wait(last, timeout=UNWIND_S)

    def _start_one(self) -> None:
        task = asyncio.create_task(self._candidate(len(self._tasks)))
        self._tasks.append(task)
        self._running += 1
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Candidate]) -> None:
        """Starts another candidate, or settles the request, or waits for the others."""
        self._running -= 1
        if self.settled.done() or self._stopped:
            return
        if not succeeded(task):
            self._fail(asyncio.CancelledError() if task.cancelled() else task.exception())
            return
        request, reward = self._request, task.result().reward
        if reward is not None:
            self._rewards.append(reward)
        if reached(request.budget, reward):
            self.settled.set_result(SelectionReason.THRESHOLD)
        else:
            self._fill_the_wave()
            if self._running == 0:
                self.settled.set_result(early_reason(request.budget, len(self._tasks), request.n))

    def _fill_the_wave(self) -> None:
        """Starts what may take the places of those that have ended."""
        while self._running < self._wave() and len(self._tasks) < self._request.n and self._worth_one_more():
            self._start_one()

    def _wave(self) -> int:
        return wave(self._request.budget, self._request.n, self._share())

    def _worth_one_more(self) -> bool:
        pruned = len(self._pruning.pruned)
        return worth_one_more(self._request.budget, self._rewards, self._spread, self._running, pruned)

    def _fail(self, failure: BaseException | None) -> None:
        if failure is not None and not self.settled.done() and not self._stopped:
            self.settled.set_exception(failure)

    async def _candidate(self, index: int) -> Candidate:
        candidate = await self._sample(index)
        self._sampled[index] = candidate
        if not self._stopped:
            self._pruning.ended(index)
        if candidate.status is CandidateStatus.UNSCORED:
            candidate = await self._score(candidate)
        self._on_end(candidate)
        return candidate

    def _end(self, index: int) -> Candidate:
        """As its task says, else FAILED or CANCELLED with what was sampled."""
        task = self._tasks[index] if index < len(self._tasks) else None
        if task is not None and succeeded(task):
            return task.result()
        failure = task.exception() if task is not None and task.done() and not task.cancelled() else None
        blank = Candidate(
            index,
            CandidateStatus.CANCELLED,
            finish_reason=FinishReason.CANCELLED if failure is None else FinishReason.ERROR,
            policy_revision=self._policy.ref.revision,
        )
        candidate = replace(
            self._sampled.get(index, blank),
            status=CandidateStatus.CANCELLED if failure is None else CandidateStatus.FAILED,
            error=None if failure is None else type(failure).__name__,
        )
        self._on_end(candidate)
        return candidate

    async def _sample(self, index: int) -> Candidate:
        request, sampling = self._request, self._request.sampling
        if sampling is None:
            return Candidate(index, CandidateStatus.UNSCORED, text=request.given[index])
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)
        try:
            completion = await self._policy.sample(
                self._sample_key(index), request.prompt_token_ids, sampling, self._milestone(index)
            )
        except SamplingFailed as failure:
            completion = Completion("", (), FinishReason.ERROR)
            return self._as_candidate(index, completion, CandidateStatus.FAILED, error=str(failure))
        if completion.finish_reason is not FinishReason.CANCELLED:
            return self._as_candidate(index, completion, CandidateStatus.UNSCORED)
        if index in self._pruning.pruned:
            completion = replace(completion, finish_reason=FinishReason.PRUNED)
            return self._as_candidate(index, completion, CandidateStatus.PRUNED)
        return self._as_candidate(index, completion, CandidateStatus.CANCELLED)

    async def _score(self, candidate: Candidate) -> Candidate:
        """Waits for the completion's score."""
        if self._stopped:
            return replace(candidate, status=CandidateStatus.CANCELLED)
        score = await self.scores.of(candidate.text)
        return replace(
            candidate,
            status=score.status,
            reward=score.reward,
            rewards=score.rewards,
            error=score.error,
            scored_ns=self._elapsed_ns(),
        )

    def _milestone(self, index: int) -> Milestone | None:
        tokens = self._request.budget.prune_after_tokens
        return None if tokens is None else Milestone(tokens, partial(self._passed, index))

    def _passed(self, index: int, prefix: str) -> None:
        if not self._stopped:
            self._pruning.passed(index, prefix)

    async def _abort(self, indices: Collection[int]) -> None:
        await self._policy.abort([self._sample_key(index) for index in indices])

    def _as_candidate(
        self, index: int, completion: Completion, status: CandidateStatus, error: str | None = None
    ) -> Candidate:
        return Candidate(
            index=index,
            status=status,
            text=completion.text,
            token_ids=completion.token_ids,
            logprob=completion.logprob,
            logprob_kind=completion.logprob_kind,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            completion_tokens=len(completion.token_ids),
            seed=completion.seed,
            error=error,
            policy_revision=self._policy.ref.revision,
            sampled_ns=self._elapsed_ns() if status is CandidateStatus.UNSCORED else None,
        )

    def _sample_key(self, index: int) -> str:
        return f"{self._key}-{index}"

    def _elapsed_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns


def _mark_seen(future: asyncio.Future[Any]) -> None:
    """What fails while it is being stopped is nobody's error, and its message must not reach the event loop's log."""
    if not future.cancelled():
        future.exception()
