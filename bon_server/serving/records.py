"""The record of an attempt: what was asked, by which models it was answered, and what became of each candidate."""

from __future__ import annotations

from datetime import datetime

from bon_server.best_of_n import Answer
from bon_server.log.record import Record, StageTimes, prompt_hash
from bon_server.types import Budget, Kind, ModelRef, PolicyRef, Request


def record_of(
    request: Request,
    answer: Answer,
    policy: PolicyRef,
    reward_models: tuple[ModelRef, ...],
    attempt: int,
    created_at: datetime,
    queue_ns: int,
) -> Record:
    """attempt: from 1, how often this id has been tried. queue_ns: how long it waited for its permit."""
    sampled = request.sampling is not None
    return Record(
        request_id=request.request_id,
        request_digest=request.digest,
        attempt=attempt,
        principal=request.principal,
        kind=Kind.GENERATE if sampled else Kind.SCORE,
        outcome=answer.outcome,
        created_at=created_at,
        prompt_hash=prompt_hash(request.prompt, request.reward_context),
        prompt_text=request.prompt.text,
        prompt_messages=request.prompt.messages,
        prompt_token_ids=request.prompt_token_ids or None,
        policy=policy if sampled else None,
        reward_models=reward_models,
        sampling=request.sampling,
        n=request.n,
        budget=None if request.budget == Budget() else request.budget,
        rule=request.rule if sampled else None,
        selection_temperature=request.selection_temperature,
        selection_seed=request.selection_seed,
        selection_reason=answer.reason,
        selected_index=answer.selected_index,
        reward_context=request.reward_context,
        tags=request.tags,
        timings=StageTimes(queue_ns, answer.sample_ns, answer.score_ns, answer.overlap_ratio),
        reward_model_tokens=answer.reward_model_tokens,
        candidates=answer.candidates,
        error=None if answer.error is None else type(answer.error).__name__,
    )
