"""The candidates of one request: started, sampled, scored, pruned, ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from bon_server.core.errors import SamplingFailed
from bon_server.core.protocols import Policy, RewardModel
from bon_server.core.pruning import Pruning
from bon_server.core.scores import Scores, asked
from bon_server.core.stopping import RewardPrior, early_reason, reached, wave, worth_one_more
from bon_server.core.types import (
    Candidate,
    CandidateStatus,
    Completion,
    FinishReason,
    Milestone,
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
Result = TypeVar("Result")


class Candidates:
    """The moving parts of one request.

    No candidate has a task of its own: each is taken a step further by what it waits for, its sample and then its
    score, so that models which have several ready at once, or answer at once, cost little more than the models.
    """

    def __init__(
        self,
        request: Request,
        policy: Policy,
        reward_model: RewardModel,
        on_end: Callable[[Candidate], None],
        waited_ns: int,
        reward_prior: RewardPrior,
        share: Callable[[], int],
    ) -> None:
        self._request = request
        self._policy = policy
        self._on_end = on_end
        self._reward_prior = reward_prior
        self._share = share
        self._key = uuid4().hex
        self.waited_ns = waited_ns
        self._began_ns = time.monotonic_ns() - waited_ns
        self._samples: list[asyncio.Future[Completion]] = []
        self._started = 0
        self._sampled: dict[int, Callable[..., Candidate]] = {}
        """Those with a sample: called with the other fields, gives the candidate."""
        self._ended: dict[int, Candidate] = {}
        self._running = 0
        self._starting = False
        self._rewards: list[float] = []
        self._first_wave = range(self._wave())
        self._stopped = False
        self.scores = Scores(
            lambda text: reward_model.score(request.reward_prompt, text, request.reward_context), self._began_ns
        )
        fraction = request.budget.prune_fraction or 0.0  # without one nothing is watched, so nothing is compared
        self._pruning = Pruning(fraction, self._first_wave, self.scores.of, self._abort, self._fail)
        self.settled: asyncio.Future[SelectionReason | None] = asyncio.get_running_loop().create_future()
        """Done when no more candidates are wanted: with the reason where fewer than n were, or with what failed."""

    def start(self) -> None:
        """Starts what may run now, at first all or the first wave; settles the request when nothing runs."""
        if self._starting:
            return  # asked by a candidate that has ended at once: the loop below goes on
        self._starting = True
        while self._wants_one_more():
            self._start_one()
        self._starting = False
        if self._running == 0 and not self.settled.done():
            self.settled.set_result(early_reason(self._request.budget, self._started, self._request.n))

    def ends(self) -> tuple[Candidate, ...]:
        """What became of each of the n candidates, in index order. Call once, after `settled` or `stop`."""
        for index in range(self._request.n):
            if index not in self._ended:
                self._ended[index] = self._unscored(index)
                self._on_end(self._ended[index])
        del self._pruning  # a cycle: all that was said would stay until the garbage collector looks
        return tuple(self._ended[index] for index in range(self._request.n))

    @property
    def busy(self) -> bool:
        """Whether something still runs."""
        return self._running > 0 or bool(self._pruning.tasks)

    async def stop(self) -> None:
        """Frees the engine, keeping partial texts, and drops scores that nobody waits for."""
        self._stopped = True
        sampling = [index for index, sample in enumerate(self._samples) if not sample.done()]
        self.scores.cancel()
        # Scores and samples that came in the same moment are taken while this waits.
        aborting = asyncio.create_task(self._abort(sampling))
        stopped: list[asyncio.Future[Any]] = [aborting, *(self._samples[index] for index in sampling)]
        await asyncio.wait(stopped, timeout=STOP_GRACE_S)
        last: list[asyncio.Future[Any]] = [aborting, *self._pruning.tasks, *self._samples, *self.scores.cancel()]
        for one in last:
            one.cancel()
            one.add_done_callback(_mark_seen)
        await asyncio.wait(last, timeout=UNWIND_S)

    def _wants_one_more(self) -> bool:
        request, started = self._request, self._started
        if started == request.n or self.settled.done():
            return False
        if started < len(self._first_wave):
            return True
        pruned = len(self._pruning.pruned)
        room = self._running < self._wave()
        return room and worth_one_more(request.budget, self._rewards, self._reward_prior, self._running, pruned)

    def _wave(self) -> int:
        return wave(self._request.budget, self._request.n, self._share())

    def _start_one(self) -> None:
        index, sampling = self._started, self._request.sampling
        self._started += 1
        self._running += 1
        if sampling is None:
            text = self._request.given[index]
            self._sampled[index] = partial(Candidate, index, text=text)
            self._then(self._score_came, index, self.scores.of(text))
        else:
            sample = asked(self._sample, index, sampling)
            self._samples.append(sample)
            self._then(self._sample_came, index, sample)

    def _then(
        self, step: Callable[[int, asyncio.Future[Result]], None], index: int, awaited: asyncio.Future[Result]
    ) -> None:
        """The candidate's next step, once it has what it waits for."""
        if awaited.done():
            self._step(step, index, awaited)
        else:
            awaited.add_done_callback(partial(self._step, step, index))

    def _step(
        self, step: Callable[[int, asyncio.Future[Result]], None], index: int, came: asyncio.Future[Result]
    ) -> None:
        """A candidate's next step. What fails it, a model or a bug, fails the request: nobody else would hear of it."""
        try:
            step(index, came)
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001 -- see above
            self._fail(failure)
            cancelled = isinstance(failure, asyncio.CancelledError)
            self._end(self._unscored(index, None if cancelled else type(failure).__name__))

    def _sample_came(self, index: int, sample: asyncio.Future[Completion]) -> None:
        """Ends the candidate, or asks for its score."""
        if not self._stopped:
            self._pruning.ended(index)
        failure = sample.exception()
        if isinstance(failure, SamplingFailed):
            self._end(self._unscored(index, str(failure)))
            return
        completion = sample.result()
        candidate = self._sampled[index] = self._with(index, completion)
        if completion.finish_reason is FinishReason.CANCELLED and index in self._pruning.pruned:
            self._end(candidate(status=CandidateStatus.PRUNED, finish_reason=FinishReason.PRUNED))
        elif completion.finish_reason is FinishReason.CANCELLED or self._stopped:
            self._end(self._unscored(index))
        else:
            self._then(self._score_came, index, self.scores.of(completion.text))

    def _score_came(self, index: int, score: asyncio.Future[Score]) -> None:
        said = score.result()
        scored = self._sampled[index]
        self._end(
            scored(
                status=said.status,
                reward=said.reward,
                rewards=said.rewards,
                error=said.error,
                scored_ns=self._elapsed_ns(),
            )
        )

    def _end(self, candidate: Candidate) -> None:
        """Starts others, or settles the request, or waits for those that run."""
        if candidate.index in self._ended:
            return  # `ends` did not wait any longer
        self._ended[candidate.index] = candidate
        self._running -= 1
        self._on_end(candidate)
        if self.settled.done() or self._stopped:
            return
        request, reward = self._request, candidate.reward
        if reward is not None:
            self._rewards.append(reward)
        if reached(request.budget, reward):
            self.settled.set_result(SelectionReason.THRESHOLD)
        else:
            self.start()

    def _fail(self, failure: BaseException | None) -> None:
        if failure is not None and not self.settled.done() and not self._stopped:
            self.settled.set_exception(failure)

    def _sample(self, index: int, sampling: Sampling) -> Awaitable[Completion]:
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)
        prompt_token_ids = self._request.prompt_token_ids
        return self._policy.sample(self._sample_key(index), prompt_token_ids, sampling, self._milestone(index))

    def _milestone(self, index: int) -> Milestone | None:
        tokens = self._request.budget.prune_after_tokens
        return None if tokens is None else Milestone(tokens, partial(self._passed, index))

    def _passed(self, index: int, prefix: str) -> None:
        if not self._stopped:
            self._pruning.passed(index, prefix)

    async def _abort(self, indices: Collection[int]) -> None:
        await self._policy.abort([self._sample_key(index) for index in indices])

    def _with(self, index: int, completion: Completion) -> Callable[..., Candidate]:
        """A candidate but for its end, so that it is made once."""
        whole = completion.finish_reason is not FinishReason.CANCELLED
        return partial(
            Candidate,
            index=index,
            text=completion.text,
            token_ids=completion.token_ids,
            logprob=completion.logprob,
            logprob_kind=completion.logprob_kind,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            completion_tokens=len(completion.token_ids),
            seed=completion.seed,
            policy_revision=self._policy.ref.revision,
            sampled_ns=self._elapsed_ns() if whole else None,
        )

    def _unscored(self, index: int, error: str | None = None) -> Candidate:
        """FAILED with an error, else CANCELLED; with its sample, if it has one."""
        failed = error is not None
        finish_reason = FinishReason.ERROR if failed else FinishReason.CANCELLED
        blank = partial(Candidate, index, finish_reason=finish_reason, policy_revision=self._policy.ref.revision)
        unfinished = self._sampled.get(index, blank)
        return unfinished(status=CandidateStatus.FAILED if failed else CandidateStatus.CANCELLED, error=error)

    def _sample_key(self, index: int) -> str:
        return f"{self._key}-{index}"

    def _elapsed_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns


def _mark_seen(future: asyncio.Future[Any]) -> None:
    """What fails while it is being stopped is nobody's error, and its message must not reach the event loop's log."""
    if not future.cancelled():
        future.exception()
