"""Records → protobuf answers. A live answer and a replayed one are built here from the same record."""

from __future__ import annotations

from collections.abc import Iterable

from bon.v1 import bon_pb2 as pb

from bon_server.core.types import (
    Candidate,
    CandidateStatus,
    Durability,
    FinishReason,
    LogprobKind,
    ModelRef,
    PolicyRef,
    Sampling,
    SelectionReason,
    SelectionRule,
)
from bon_server.estimators import kl_bound, kl_winner_probability
from bon_server.log.record import Record
from bon_server.serving.attempt import Finished

STATUS = {status: pb.CandidateStatus.Value(f"CANDIDATE_STATUS_{status.name}") for status in CandidateStatus}
FINISH_REASON: dict[FinishReason | None, pb.FinishReason.ValueType] = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    **{reason: pb.FinishReason.Value(f"FINISH_REASON_{reason.name}") for reason in FinishReason},
}
SELECTION_REASON: dict[SelectionReason | None, pb.SelectionReason.ValueType] = {
    None: pb.SELECTION_REASON_UNSPECIFIED,
    **{reason: pb.SelectionReason.Value(f"SELECTION_REASON_{reason.name}") for reason in SelectionReason},
}
DURABILITY = {kind: pb.Durability.Value(f"DURABILITY_{kind.name}") for kind in Durability}


def generate_response(
    finished: Finished, view: pb.CandidateView.ValueType, include_token_ids: bool, durability: Durability
) -> pb.GenerateResponse:
    """The answer to Generate. The record has a winner and sampling parameters."""
    record = finished.record
    assert record.selected_index is not None and record.sampling is not None and record.policy is not None
    shown = record.candidates if view == pb.CANDIDATE_VIEW_ALL else ()
    n_scored = count(record.candidates, CandidateStatus.SCORED)
    return pb.GenerateResponse(
        request_id=record.request_id,
        best=to_candidate(record.candidates[record.selected_index], include_token_ids),
        candidates=[to_candidate(candidate, include_token_ids) for candidate in shown],
        n_requested=record.n,
        n_generated=sum(candidate.sampled_ns is not None for candidate in record.candidates),
        n_scored=n_scored,
        partial=n_scored < record.n,
        selection_reason=SELECTION_REASON[record.selection_reason],
        kl=_kl(record),
        usage=_usage(record),
        timings=_timings(finished),
        policy=policy_model(record.policy),
        reward_models=[to_model(ref) for ref in record.reward_models],
        resolved=to_sampling(record.sampling),
        durability=DURABILITY[durability] if finished.logged else pb.DURABILITY_UNSPECIFIED,
        replayed=finished.replayed,
    )


def score_response(finished: Finished, durability: Durability) -> pb.ScoreResponse:
    """The answer to Score."""
    record = finished.record
    return pb.ScoreResponse(
        request_id=record.request_id,
        candidates=[to_candidate(candidate, include_token_ids=False) for candidate in record.candidates],
        reward_models=[to_model(ref) for ref in record.reward_models],
        usage=_usage(record),
        timings=_timings(finished),
        durability=DURABILITY[durability] if finished.logged else pb.DURABILITY_UNSPECIFIED,
        replayed=finished.replayed,
    )


def to_candidate(candidate: Candidate, include_token_ids: bool) -> pb.Candidate:
    """One candidate; token ids only where asked for."""
    return pb.Candidate(
        index=candidate.index,
        text=candidate.text,
        token_ids=candidate.token_ids if include_token_ids else None,
        finish_reason=FINISH_REASON[candidate.finish_reason],
        completion_tokens=candidate.completion_tokens,
        logprob=candidate.logprob,
        reward=candidate.reward,
        rewards=candidate.rewards or None,  # an empty mapping is no cheaper than a full one
        status=STATUS[candidate.status],
        seed=candidate.seed,
        policy_revision=candidate.policy_revision,
        sampled_ns=candidate.sampled_ns or 0,
        scored_ns=candidate.scored_ns or 0,
    )


def to_model(ref: ModelRef) -> pb.Model:
    """A reward model's name, id and revision."""
    return pb.Model(name=ref.name, id=ref.id, revision=ref.revision)


def policy_model(ref: PolicyRef) -> pb.Model:
    """The policy's id and revision."""
    return pb.Model(name="policy", id=ref.id, revision=ref.revision)


def to_sampling(sampling: Sampling) -> pb.SamplingParams:
    """Every parameter that was in force."""
    resolved = pb.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
    )
    if sampling.json_schema is not None:
        resolved.json_schema = sampling.json_schema
    elif sampling.regex is not None:
        resolved.regex = sampling.regex
    elif sampling.choice is not None:
        resolved.choice.choices.extend(sampling.choice)
    return resolved


def count(candidates: Iterable[Candidate], status: CandidateStatus) -> int:
    """How many candidates have this status."""
    return sum(candidate.status is status for candidate in candidates)


def _kl(record: Record) -> pb.Kl | None:
    """Only for a plain argmax over n scored samples; stopped, partial and soft answers have another distribution."""
    if record.selection_reason not in (SelectionReason.ARGMAX, SelectionReason.SINGLE) or record.budget is not None:
        return None
    if record.rule is not SelectionRule.ARGMAX or count(record.candidates, CandidateStatus.SCORED) < record.n:
        return None
    assert record.selected_index is not None
    winner = record.candidates[record.selected_index]
    if winner.logprob is None or winner.logprob_kind is not LogprobKind.SAMPLED:
        return pb.Kl(bound_nats=kl_bound(record.n), method=pb.KL_METHOD_BOUND)
    return pb.Kl(
        bound_nats=kl_bound(record.n),
        estimate_nats=kl_winner_probability(record.n, min(0.0, winner.logprob)),
        method=pb.KL_METHOD_WINNER_PROBABILITY,
    )


def _usage(record: Record) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=len(record.prompt_token_ids or ()),
        completion_tokens=sum(candidate.completion_tokens for candidate in record.candidates),
        reward_model_tokens=record.reward_model_tokens,
    )


def _timings(finished: Finished) -> pb.Timings:
    times = finished.record.timings
    return pb.Timings(
        queue_ns=times.queue,
        sample_ns=times.sample,
        score_ns=times.score,
        log_ns=finished.log_ns,
        total_ns=finished.total_ns,
        overlap_ratio=times.overlap_ratio,
    )
