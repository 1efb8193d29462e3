"""One attempt at one request, from the permit to the committed record. Knows neither gRPC nor protobuf.

An attempt runs in a task of its own, so that a caller who leaves does not take with it what was already scored:
`Attempts.run` only asks it to stop, and the attempt then frees the engine, commits what there is, and ends.

`record_of` makes the record: what was asked, by which models it was answered, and what became of each candidate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from weakref import WeakKeyDictionary

from bon_server.core.best_of_n import Answer, RewardModel, Stop, best_of_n
from bon_server.core.errors import (
    DeadlinePassed,
    QuotaExceeded,
    RequestCancelled,
    RequestIdReused,
    RequestIdRunning,
    Unavailable,
)
from bon_server.core.stopping import NO_PRIOR, RewardPrior
from bon_server.core.types import (
    Budget,
    Candidate,
    CandidateStatus,
    Kind,
    ModelRef,
    Outcome,
    PolicyRef,
    Request,
    SelectionReason,
)
from bon_server.log.record import Record, StageTimes, prompt_hash
from bon_server.log.spool.lookup import Logged
from bon_server.log.spool.spool import Spool
from bon_server.models.starting import RunningPolicy
from bon_server.serving.admission.deadlines import Deadlines
from bon_server.serving.admission.permits import Admission
from bon_server.serving.admission.quotas import Quotas, Reservation
from bon_server.serving.content import Redaction, UsedIds, to_log
from bon_server.serving.policies import Policies, stop_with


@dataclass(frozen=True, slots=True)
class Finished:
    """A record, and how this call came by it."""

    record: Record
    """As it was before anything was left out of the log."""
    replayed: bool
    """True: the record is of an earlier call."""
    log_ns: int
    """Time the commit took; 0 when replayed."""
    total_ns: int
    """Time this call took."""
    logged: bool = True
    """False: the caller asked that nothing is logged."""


@dataclass(frozen=True, slots=True)
class _Times:
    """On the clock of `time.monotonic_ns`."""

    began_ns: int
    stop_ns: int
    """When the best so far has to be taken."""


@dataclass(frozen=True, slots=True)
class _Running:
    task: asyncio.Task[Finished]
    stop: Stop


class Attempts:
    """Runs attempts and knows which are running."""

    def __init__(
        self,
        policies: Policies,
        reward_model: RewardModel,
        spool: Spool,
        admission: Admission,
        deadlines: Deadlines,
        observe: Callable[[Record], None],
        redaction: Redaction | None,
        quotas: Quotas,
    ) -> None:
        self._policies = policies
        self._reward_model = reward_model
        self._spool = spool
        self._admission = admission
        self._deadlines = deadlines
        self._observe = observe
        self._redaction = redaction
        self._quotas = quotas
        self._unlogged = UsedIds()
        # Of the rewards, by the weights that the completions came from; forgotten with these.
        self._reward_priors: WeakKeyDictionary[RunningPolicy, RewardPrior] = WeakKeyDictionary()
        self._running: dict[tuple[str, str], _Running] = {}
        self._refusal: Unavailable | None = None
        self.on_stages: Callable[[Record, int, int, int], None] | None = None
        """Told, where tracing is on, of each record with the times when it began, came to the log, and was in it."""

    @property
    def running(self) -> int:
        """Attempts in flight or waiting for a permit."""
        return len(self._running)

    def check_room(self, principal: str, request_id: str, caller: str, n: int, samples: bool) -> None:
        """Raises `Unavailable` or `QuotaExceeded` when `run` is going to, before the rest of a request is looked at.

        samples: whether the policy is needed. An id that is known is none of its business: a stored answer needs
        neither room nor an engine.
        """
        try:
            if samples:
                self._policies.check()
            self._quotas.check(principal, n)
            self._admission.check(caller, n)
        except (QuotaExceeded, Unavailable):
            key = (principal, request_id)
            if not (request_id and (key in self._running or key in self._unlogged or self._spool.latest(*key))):
                raise

    async def run(
        self,
        request: Request,
        caller: str,
        deadline_s: float,
        on_end: Callable[[Candidate], None] = lambda candidate: None,
    ) -> Finished:
        """The stored answer of an earlier attempt, or a new attempt's once it is committed.

        caller: those whose requests share turns. deadline_s: seconds from now in which the answer has to be committed.
        Raises a `RequestError`.
        """
        began_ns = time.monotonic_ns()
        key = (request.principal, request.request_id)
        if self._refusal is not None:
            raise self._refusal
        if key in self._running:
            raise RequestIdRunning("a request with this request_id is being answered")
        if key in self._unlogged:
            raise RequestIdReused("this request_id was answered and nothing of it logged, so it cannot be replayed")
        prior = None if request.new_id else self._spool.latest(*key)
        if prior is not None and _is_answer_to(prior, request):
            stored = prior.record
            if stored is None:
                stored = await asyncio.to_thread(self._spool.read, prior)
            return Finished(stored, replayed=True, log_ns=0, total_ns=time.monotonic_ns() - began_ns)
        stop_s = deadline_s - self._deadlines.margin_s
        self._check_time(request, stop_s)
        self._check_policy_and_log(request)  # not earlier: a stored answer needs neither
        reserved = self._quotas.reserve(request)
        stop: Stop = asyncio.get_running_loop().create_future()
        times = _Times(began_ns, began_ns + int(stop_s * 1e9))
        task = asyncio.create_task(self._attempt(request, caller, prior, stop, on_end, times, reserved))
        task.add_done_callback(lambda _: reserved.settle())
        self._keep(key, task, stop, stop_s)
        try:
            await asyncio.wait((task,))  # unlike awaiting it, this does not cancel it with the caller
        except asyncio.CancelledError:
            stop_with(stop, RequestCancelled("the caller cancelled"))
            task.add_done_callback(_forget_frames)
            raise
        return task.result()

    def refuse_new(self, refusal: Unavailable) -> None:
        """From now on every call is refused with this; running attempts go on."""
        self._refusal = refusal

    async def drain(self, grace_s: float) -> None:
        """Waits for running attempts; stops those that are not done in `grace_s` seconds, and waits for their log."""
        running = list(self._running.values())
        if not running:
            return
        _, late = await asyncio.wait([one.task for one in running], timeout=grace_s)
        for one in running:
            if one.task in late:
                stop_with(one.stop, Unavailable("the server is shutting down", retry_after_ms=1000))
        if late:
            await asyncio.wait(late)

    def _check_policy_and_log(self, request: Request) -> None:
        if request.sampling is not None:
            self._policies.check()
        self._spool.check()

    def _check_time(self, request: Request, seconds: float) -> None:
        """Refuses to sample for nobody."""
        if seconds <= 0:
            raise DeadlinePassed("the deadline leaves no time to sample anything")
        if request.sampling is not None and self._deadlines.hopeless(seconds, request.sampling.max_tokens):
            raise DeadlinePassed("the deadline leaves less time than a first scored candidate takes")

    def _keep(self, key: tuple[str, str], task: asyncio.Task[Finished], stop: Stop, stop_s: float) -> None:
        self._running[key] = _Running(task, stop)
        passed = DeadlinePassed("the deadline passed before a candidate was scored")
        timer = asyncio.get_running_loop().call_later(stop_s, stop_with, stop, passed)

        def forget(task: asyncio.Task[Finished]) -> None:
            timer.cancel()
            del self._running[key]
            if not task.cancelled():
                task.exception()  # marks it as seen: nobody may be left to look

        task.add_done_callback(forget)

    async def _attempt(
        self,
        request: Request,
        caller: str,
        prior: Logged | None,
        stop: Stop,
        on_end: Callable[[Candidate], None],
        times: _Times,
        reserved: Reservation,
    ) -> Finished:
        created_at = datetime.now(UTC)
        async with self._admission.permit(caller, request.n, stop):
            self._check_policy_and_log(request)  # again: much may have happened while it waited
            permit_ns = time.monotonic_ns()
            self._check_time(request, (times.stop_ns - permit_ns) / 1e9)
            queue_ns = permit_ns - times.began_ns
            # Not earlier: a request that waits for a permit must not keep replaced weights in memory.
            with self._policies.use(stop, samples=request.sampling is not None) as policy:
                reward_prior = self._reward_priors.get(policy, NO_PRIOR)
                share = partial(self._policies.share, policy)
                answer = await best_of_n(
                    request, policy, self._reward_model, stop, on_end, queue_ns, reward_prior, share
                )
            reserved.used(answer.candidates)
            attempt = 1 if prior is None else prior.attempt + 1
            record = record_of(request, answer, policy.ref, self._reward_model.refs, attempt, created_at, queue_ns)
            log_began_ns = time.monotonic_ns()
            logged = await to_log(record, request, self._redaction)
            if logged is not None:
                await self._spool.commit(logged)
            ended_ns = time.monotonic_ns()
        if self.on_stages is not None:
            self.on_stages(record, times.began_ns, log_began_ns, ended_ns)
        self._learn(request, answer, queue_ns, times.stop_ns, log_began_ns, ended_ns)
        if request.sampling is not None:  # completions that a caller brings say nothing of the policy's
            rewards = [one.reward for one in answer.candidates if one.reward is not None]
            self._reward_priors[policy] = self._reward_priors.get(policy, NO_PRIOR).after(rewards)
        if logged is not None:
            self._observe(record)
        if answer.error is not None:
            raise answer.error
        if logged is None:
            self._unlogged.add((request.principal, request.request_id))
        return Finished(
            record,
            replayed=False,
            log_ns=ended_ns - log_began_ns,
            total_ns=ended_ns - times.began_ns,
            logged=logged is not None,
        )

    def _learn(
        self, request: Request, answer: Answer, queue_ns: int, stop_ns: int, chosen_ns: int, ended_ns: int
    ) -> None:
        """What this attempt tells about the deadlines of later ones; nothing of those that failed."""
        stopped = answer.reason is SelectionReason.DEADLINE or isinstance(answer.error, DeadlinePassed)
        if answer.error is None or stopped:
            self._deadlines.answered((ended_ns - (stop_ns if stopped else chosen_ns)) / 1e9, stopped)
        scored = [one for one in answer.candidates if one.status is CandidateStatus.SCORED]
        if request.sampling is not None and scored:
            first = min(scored, key=lambda one: one.scored_ns or 0)
            self._deadlines.first_scored(((first.scored_ns or 0) - queue_ns) / 1e9, first.completion_tokens)


def _forget_frames(task: asyncio.Task[Finished]) -> None:
    """Those that a failure nobody looks at came through: they hold it and the request until garbage is collected."""
    if not task.cancelled() and (failure := task.exception()) is not None:
        failure.__traceback__ = None


def _is_answer_to(prior: Logged, request: Request) -> bool:
    """Whether `prior` can be replayed; raises `RequestIdReused` where the id is taken by something else."""
    answered = prior.outcome in (Outcome.OK, Outcome.PARTIAL)
    if not prior.request_digest and answered:
        raise RequestIdReused("this request_id was answered, but not all of it was logged, so it cannot be replayed")
    if prior.request_digest not in ("", request.digest):
        raise RequestIdReused("this request_id was used for another request")
    return answered


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
