"""The algorithm: sample N, score each candidate as it arrives, choose the best.

`best_of_n` knows no protobuf, no log and no engine; it needs a `Policy` and a `RewardModel`. It always returns an
`Answer` with every candidate in it, also when the caller left or the models failed, so that the log can keep what was
sampled; `Answer.error` says why nothing was chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bon_server.core.candidates import STOP_GRACE_S as STOP_GRACE_S
from bon_server.core.candidates import UNWIND_S as UNWIND_S
from bon_server.core.candidates import Candidates
from bon_server.core.errors import (
    DeadlinePassed,
    InternalError,
    NothingFinite,
    RequestCancelled,
    RequestError,
    RewardFailed,
    SamplingFailed,
)
from bon_server.core.protocols import Policy as Policy
from bon_server.core.protocols import RewardModel as RewardModel
from bon_server.core.selection import argmax, soft
from bon_server.core.stopping import NO_PRIOR, RewardPrior
from bon_server.core.types import (
    Candidate,
    CandidateStatus,
    FinishReason,
    Outcome,
    Request,
    SelectionReason,
    SelectionRule,
)


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
    reward_prior: RewardPrior = NO_PRIOR,
    share: Callable[[], int] | None = None,
) -> Answer:
    """Samples, scores and chooses.

    on_end: called with each candidate as it ends, in order of arrival. waited_ns: how long ago the request began;
    the candidates' times count from there. reward_prior: from the rewards of earlier prompts, for an adaptive number.
    share: how many of the policy's places it may take by now; None: all.

    A request that brings its completions is only scored: nothing is sampled or chosen, and rewards that are not
    finite are an answer, not a failure.
    """
    run = Candidates(request, policy, reward_model, on_end, waited_ns, reward_prior, share or (lambda: policy.slots))
    run.start()
    if not run.settled.done():
        await asyncio.wait((run.settled, stop), return_when=asyncio.FIRST_COMPLETED)
    stopped = not run.settled.done()
    failure = _failure(stop if stopped else run.settled)
    early = run.settled.result() if run.settled.done() and failure is None else None
    if run.busy:
        await run.stop()
    return _choose(request, run, failure, early, stopped)


def _choose(
    request: Request, run: Candidates, failure: RequestError | None, early: SelectionReason | None, stopped: bool
) -> Answer:
    candidates = run.ends()
    if stopped and all(candidate.status is CandidateStatus.SCORED for candidate in candidates):
        failure = None  # the stop came in the same moment as the last score, and changed nothing
    selected = select(request, [candidate.reward for candidate in candidates])
    reason = early or _reason(request)
    if isinstance(failure, DeadlinePassed) and selected is not None:
        failure, reason = None, SelectionReason.DEADLINE
    elif failure is None and selected is None and not request.given:
        failure = _nothing_scored(candidates)
    chosen = failure is None and not request.given
    last_ns = max((c.sampled_ns for c in candidates if c.sampled_ns is not None), default=run.waited_ns)
    score_ns, overlap_ratio = overlap(run.scores.spans_ns, last_ns)
    return Answer(
        candidates=candidates,
        selected_index=selected if chosen else None,
        reason=reason if chosen else None,
        error=failure,
        outcome=_outcome(candidates, failure),
        sample_ns=last_ns - run.waited_ns,
        score_ns=score_ns,
        overlap_ratio=overlap_ratio,
        reward_model_tokens=run.scores.tokens,
    )


def select(request: Request, rewards: Sequence[float | None]) -> int | None:
    """Index of the winner by the request's rule; None when no reward is finite. rewards: (n,)."""
    if request.rule is SelectionRule.ARGMAX:
        return argmax(rewards)
    assert request.selection_temperature is not None and request.selection_seed is not None
    return soft(rewards, request.selection_temperature, request.selection_seed)


def _reason(request: Request) -> SelectionReason:
    if request.n == 1:
        return SelectionReason.SINGLE
    return SelectionReason.ARGMAX if request.rule is SelectionRule.ARGMAX else SelectionReason.SOFT


def _failure(first_done: asyncio.Future[SelectionReason | None] | Stop) -> RequestError | None:
    """Why the run ended early; an exception that is no `RequestError` is a bug."""
    failure = first_done.exception()
    if failure is None or isinstance(failure, RequestError):
        return failure
    bug = InternalError(type(failure).__name__)
    bug.__cause__ = failure
    return bug


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
