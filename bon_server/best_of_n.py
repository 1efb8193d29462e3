"""The algorithm: sample N, score each candidate as it arrives, choose the best.

`best_of_n` knows no protobuf, no log and no engine; it needs a `Policy` and a `RewardModel`, which are defined here
because here is where they are used. It always returns an `Answer` with every candidate in it, also when the caller
left or the models failed, so that the log can keep what was sampled; `Answer.error` says why nothing was chosen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import uuid4

from bon_server.errors import (
    DeadlinePassed,
    InternalError,
    NothingFinite,
    RequestCancelled,
    RequestError,
    RewardFailed,
    SamplingFailed,
)
from bon_server.selection import argmax
from bon_server.types import (
    Candidate,
    CandidateStatus,
    Completion,
    EncodedPrompt,
    FinishReason,
    ModelRef,
    Outcome,
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

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tokenises off the event loop. Raises `InvalidRequest` for what cannot be a prompt here."""

    def check(self, sampling: Sampling) -> None:
        """Raises `UnsupportedOption` or `InvalidRequest` for parameters that this policy must not be given."""

    async def sample(self, key: str, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """One sample. `key` is unique; `sampling.seed` is this candidate's own.

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
        status; a failure of the model itself raises `RewardFailed`.
        """


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. Times are durations in nanoseconds."""

    candidates: tuple[Candidate, ...]
    """All n, in index order."""
    selected_index: int | None
    reason: SelectionReason | None
    error: RequestError | None
    """Why nothing was chosen; None when something was."""
    outcome: Outcome
    sample_ns: int
    """From the start of sampling to the last sampled token."""
    score_ns: int
    """Time during which at least one candidate was being scored."""
    overlap_ratio: float
    """Share of `score_ns` during which sampling still ran, 0 to 1."""
    reward_model_tokens: int


Stop = asyncio.Future[None]
"""Completed from outside with `DeadlinePassed` or `RequestCancelled` as its exception: no more samples are wanted."""


async def best_of_n(
    request: Request,
    policy: Policy,
    reward_model: RewardModel,
    stop: Stop,
    on_end: Callable[[Candidate], None] = lambda candidate: None,
    waited_ns: int = 0,
) -> Answer:
    """Samples, scores and chooses.

    on_end: called with each candidate as it ends, in order of arrival. waited_ns: how long ago the request began;
    the candidates' times count from there.

    A request that brings its completions is only scored: nothing is sampled or chosen, and rewards that are not
    finite are an answer, not a failure.
    """
    run = _Run(request, policy, reward_model, on_end, waited_ns)
    tasks = [asyncio.create_task(run.candidate(index)) for index in range(request.n)]
    everything = asyncio.gather(*tasks)
    await asyncio.wait((everything, stop), return_when=asyncio.FIRST_COMPLETED)
    failure = _failure(everything if everything.done() else stop)
    if failure is not None:
        await run.stop(tasks)
        await asyncio.gather(everything, return_exceptions=True)
    candidates = tuple(run.end(index, task) for index, task in enumerate(tasks))
    return _choose(request, candidates, failure, run)


class _Run:
    """The moving parts of one request."""

    def __init__(
        self,
        request: Request,
        policy: Policy,
        reward_model: RewardModel,
        on_end: Callable[[Candidate], None],
        waited_ns: int,
    ) -> None:
        self._request = request
        self._policy = policy
        self._reward_model = reward_model
        self._on_end = on_end
        self._key = uuid4().hex
        self.waited_ns = waited_ns
        self._began_ns = time.monotonic_ns() - waited_ns
        self._sampled: dict[int, Candidate] = {}
        self._scores: dict[str, asyncio.Future[Score]] = {}
        self._stopped = False
        self.scoring_spans_ns: list[tuple[int, int]] = []

    async def candidate(self, index: int) -> Candidate:
        """Samples and scores one candidate."""
        candidate = await self._sample(index)
        self._sampled[index] = candidate
        if candidate.status is CandidateStatus.UNSCORED:
            candidate = await self._score(candidate)
        self._on_end(candidate)
        return candidate

    def end(self, index: int, task: asyncio.Task[Candidate]) -> Candidate:
        """What became of a candidate: as its task says, else FAILED or CANCELLED with what was sampled."""
        if _succeeded(task):
            return task.result()
        failure = task.exception() if task.done() and not task.cancelled() else None
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

    def reward_model_tokens(self) -> int:
        """Tokens the reward model read for the scores that arrived."""
        return sum(score.result().tokens for score in self._scores.values() if _succeeded(score))

    async def stop(self, tasks: Sequence[asyncio.Task[Candidate]]) -> None:
        """Frees the engine, keeping partial texts, and drops scores that nobody waits for."""
        self._stopped = True
        sampling = [index for index, task in enumerate(tasks) if not task.done() and index not in self._sampled]
        for index in self._sampled:
            tasks[index].cancel()
        for score in self._scores.values():
            score.cancel()
        aborting = asyncio.create_task(self._policy.abort([self._sample_key(index) for index in sampling]))
        await asyncio.wait((aborting, *(tasks[index] for index in sampling)), timeout=STOP_GRACE_S)
        last: list[asyncio.Future[Any]] = [aborting, *tasks, *self._scores.values()]
        for one in last:
            one.cancel()
            one.add_done_callback(_mark_seen)
        await asyncio.wait(last, timeout=UNWIND_S)

    async def _sample(self, index: int) -> Candidate:
        request, sampling = self._request, self._request.sampling
        if sampling is None:
            return Candidate(index, CandidateStatus.UNSCORED, text=request.given[index])
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)
        try:
            completion = await self._policy.sample(self._sample_key(index), request.prompt_token_ids, sampling)
        except SamplingFailed as failure:
            completion = Completion("", (), FinishReason.ERROR)
            return self._as_candidate(index, completion, CandidateStatus.FAILED, error=str(failure))
        cancelled = completion.finish_reason is FinishReason.CANCELLED
        return self._as_candidate(
            index, completion, CandidateStatus.CANCELLED if cancelled else CandidateStatus.UNSCORED
        )

    async def _score(self, candidate: Candidate) -> Candidate:
        """Identical completions share one score, so the first of them pays."""
        if self._stopped:
            return replace(candidate, status=CandidateStatus.CANCELLED)
        pending = self._scores.get(candidate.text)
        if pending is None:
            scoring = self._reward_model.score(
                self._request.reward_prompt, candidate.text, self._request.reward_context
            )
            pending = self._scores[candidate.text] = asyncio.ensure_future(scoring)
        began_ns = self._elapsed_ns()
        await asyncio.wait((pending,))  # cancels nothing when this candidate is cancelled: others may wait for it too
        score = pending.result()
        scored_ns = self._elapsed_ns()
        self.scoring_spans_ns.append((began_ns, scored_ns))
        return replace(
            candidate,
            status=score.status,
            reward=score.reward,
            rewards=score.rewards,
            error=score.error,
            scored_ns=scored_ns,
        )

    def _as_candidate(
        self, index: int, completion: Completion, status: CandidateStatus, error: str | None = None
    ) -> Candidate:
        unfinished = status in (CandidateStatus.CANCELLED, CandidateStatus.FAILED)
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
            sampled_ns=None if unfinished else self._elapsed_ns(),
        )

    def _sample_key(self, index: int) -> str:
        return f"{self._key}-{index}"

    def _elapsed_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns


def _succeeded(future: asyncio.Future[Candidate] | asyncio.Future[Score]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _mark_seen(future: asyncio.Future[Any]) -> None:
    """What fails while it is being stopped is nobody's error, and its message must not reach the event loop's log."""
    if not future.cancelled():
        future.exception()


def _failure(first_done: asyncio.Future[list[Candidate]] | Stop) -> RequestError | None:
    """Why the run ended early; an exception that is no `RequestError` is a bug."""
    failure = first_done.exception()
    if failure is None or isinstance(failure, RequestError):
        return failure
    bug = InternalError(type(failure).__name__)
    bug.__cause__ = failure
    return bug


def _choose(request: Request, candidates: tuple[Candidate, ...], failure: RequestError | None, run: _Run) -> Answer:
    selected = argmax([candidate.reward for candidate in candidates])
    reason = SelectionReason.SINGLE if request.n == 1 else SelectionReason.ARGMAX
    if isinstance(failure, DeadlinePassed) and selected is not None:
        failure, reason = None, SelectionReason.DEADLINE
    elif failure is None and selected is None and not request.given:
        failure = _nothing_scored(candidates)
    chosen = failure is None and not request.given
    last_ns = max((c.sampled_ns for c in candidates if c.sampled_ns is not None), default=run.waited_ns)
    score_ns, overlap_ratio = overlap(run.scoring_spans_ns, last_ns)
    return Answer(
        candidates=candidates,
        selected_index=selected if chosen else None,
        reason=reason if chosen else None,
        error=failure,
        outcome=_outcome(candidates, failure),
        sample_ns=last_ns - run.waited_ns,
        score_ns=score_ns,
        overlap_ratio=overlap_ratio,
        reward_model_tokens=run.reward_model_tokens(),
    )


def _nothing_scored(candidates: Sequence[Candidate]) -> RequestError:
    statuses = {candidate.status for candidate in candidates}
    counts = ", ".join(f"{sum(c.status is s for c in candidates)} {s}" for s in sorted(statuses))
    if statuses == {CandidateStatus.NON_FINITE}:
        return NothingFinite(f"no candidate has a finite reward: {counts}")
    if all(candidate.finish_reason is FinishReason.ERROR for candidate in candidates):
        return SamplingFailed(f"no candidate could be sampled: {counts}")
    return RewardFailed(f"no candidate has a reward: {counts}")


def _outcome(candidates: Sequence[Candidate], failure: RequestError | None) -> Outcome:
    if isinstance(failure, RequestCancelled):
        return Outcome.CANCELLED
    if failure is not None:
        return Outcome.FAILED
    complete = all(candidate.status is CandidateStatus.SCORED for candidate in candidates)
    return Outcome.OK if complete else Outcome.PARTIAL


def overlap(spans_ns: Sequence[tuple[int, int]], sample_ns: int) -> tuple[int, float]:
    """Length of the union of the scoring spans, and the share of it before sampling ended.

    spans_ns: (start, end) of each scoring, on one clock, in nanoseconds; sample_ns: when the last token was
    sampled. Returns (0, 0.0) for no spans.
    """
    total_ns = overlapped_ns = covered_until_ns = 0
    for start_ns, end_ns in sorted(spans_ns):
        start_ns = max(start_ns, covered_until_ns)
        if end_ns <= start_ns:
            continue
        total_ns += end_ns - start_ns
        overlapped_ns += max(0, min(end_ns, sample_ns) - start_ns)
        covered_until_ns = end_ns
    return total_ns, overlapped_ns / total_ns if total_ns else 0.0
