"""A transformers reward model in a thread of its own, with batches formed across all requests.

`next_batch` decides which waiting sequences share a forward pass.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import torch

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import RewardFailed
from bon_server.core.types import ModelRef, Prompt, Score
from bon_server.models.reward.classifier import Classifier, is_out_of_memory
from bon_server.models.reward.pairs import TokenPair, Unreadable, read_pair, scored
from bon_server.system.supervision import start_thread
from bon_server.system.telemetry import Telemetry

logger = logging.getLogger(__name__)

CLOSE_S = 5.0
"""How long `close` waits for the forward pass that is running."""
NICENESS = 5
"""On a CPU: of the thread that computes, and of torch's threads with it. The engine's threads wait for one another at
each step, so all of them wait while one of their cores computes rewards. Like this rewards take what is idle, and a
quarter where nothing is; 15 gained less, since the last scores of a request come later then."""


@dataclass(slots=True)
class _Job:
    """One completion that waits for its score."""

    future: asyncio.Future[Score]
    prompt: Prompt
    completion: str
    pair: TokenPair | None = None


class TransformersReward:
    """A `RewardModel`: raw logits of a sequence classifier with one label, computed in 32 bits unless set otherwise.

    One thread tokenises and computes. Whatever has arrived by the time it is free goes into its batches, whoever asked;
    what nobody waits for any more is dropped first. What is asked in one turn of the event loop arrives together, so
    that the batches of a job which asks for much at once are the same each time. Made by `start`.
    """

    def __init__(self, classifier: Classifier, name: str, config: RewardConfig) -> None:
        self._classifier = classifier
        self._batch_tokens = config.batch_tokens
        self._threads = config.threads
        self.refs = (ModelRef(name, classifier.files.id, classifier.files.revision),)
        self._asked: list[_Job] = []
        """In this turn of the event loop."""
        self._arrivals: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._waiting: list[_Job] = []
        self._failure: str | None = None
        self.engines = (Telemetry(),)
        """Written by the thread: a forward pass that does not return makes no step."""
        self._thread = start_thread(f"reward-{name}", self._run, self._died)

    @classmethod
    async def start(cls, model: str, name: str, config: RewardConfig) -> TransformersReward:
        """Loads a directory or hub id, off the event loop. Raises StartupError."""
        return cls(await asyncio.to_thread(Classifier.load, model, config), name, config)

    @property
    def facts(self) -> Mapping[str, str | int]:
        """What the start-up banner says of the model."""
        return self._classifier.facts

    @property
    def healthy(self) -> bool:
        """Whether scores can still be had."""
        return self._failure is None

    def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> asyncio.Future[Score]:
        """The reward of one completion; the context is not used. Cancel the future to withdraw the question.

        Raises (through the future) RewardFailed: the forward pass failed, or the model was closed.
        """
        future: asyncio.Future[Score] = asyncio.get_running_loop().create_future()
        if self._failure is None:
            loop = future.get_loop()
            if not self._asked or self._asked[-1].future.get_loop() is not loop:  # one that was closed runs nothing
                loop.call_soon(self._hand_over)
            self._asked.append(_Job(future, prompt, completion))
        else:
            future.set_exception(RewardFailed(self._failure))
        return future

    async def close(self) -> None:
        """Ends the thread after the batch it is at; what still waits fails."""
        self._failure = self._failure or "the reward model was closed"
        self._arrivals.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_S)

    def _hand_over(self) -> None:
        jobs, self._asked = self._asked, []
        if self._failure is None:
            self._arrivals.put(jobs)
        else:
            _deliver([(job, RewardFailed(self._failure)) for job in jobs])

    def _run(self) -> None:
        """The thread: works until closed."""
        if self._threads:
            torch.set_num_threads(self._threads)
        if self._classifier.on_cpu and sys.platform == "linux":
            os.nice(NICENESS)  # on Linux of this thread alone, and of those it starts
        while self._take_arrivals():
            with self.engines[0].working():
                self._work()
        self._fail_waiting()

    def _died(self, why: str) -> None:
        """A bug fails what waits instead of leaving it waiting."""
        self._failure = "the reward thread ended"
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        self._drain()
        _settle(self._waiting, [RewardFailed(self._failure or "") for _ in self._waiting])

    def _take_arrivals(self) -> bool:
        """Moves what has arrived to `waiting`, waiting for something if there is nothing; False: closed."""
        if not self._waiting:
            jobs = self._arrivals.get()
            if jobs is None:
                return False
            self._waiting += jobs
        self._drain()
        return self._failure is None

    def _drain(self) -> None:
        while True:
            try:
                self._waiting += self._arrivals.get_nowait() or ()
            except Empty:
                return

    def _work(self) -> None:
        """Drops what is abandoned, tokenises what is new, and runs one batch."""
        jobs, self._waiting = [job for job in self._waiting if not job.future.cancelled()], []
        self._waiting = [job for job in jobs if job.pair is not None or self._tokenize(job)]
        if not self._waiting:
            return
        pairs = [job.pair for job in self._waiting if job.pair is not None]
        batch = next_batch([len(pair.ids) for pair in pairs], self._batch_tokens)
        chosen = [self._waiting[index] for index in batch]
        left = set(range(len(self._waiting))) - set(batch)
        self._waiting = [self._waiting[index] for index in sorted(left)]
        _settle(chosen, self._outcomes([pairs[index] for index in batch]))

    def _tokenize(self, job: _Job) -> bool:
        """Whether there is something to compute; otherwise the job is settled."""
        classifier = self._classifier
        try:
            job.pair = read_pair(
                classifier.tokenize, job.prompt, job.completion, classifier.max_model_len, classifier.vocabulary_size
            )
        except Unreadable as unreadable:
            _settle([job], [unreadable.score])
            return False
        return True

    def _outcomes(self, pairs: Sequence[TokenPair]) -> list[Score | RewardFailed]:
        try:
            rewards = self._classifier.rewards(pairs)
        except Exception as error:  # the forward pass of an unknown model
            kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
            logger.exception("scoring a batch of %d failed", len(pairs))
            if not self._classifier.device_works():
                self._failure = "its device computes no more"
            return [RewardFailed(f"the forward pass failed: {kind}") for _ in pairs]
        return [scored(reward, len(pair.ids)) for reward, pair in zip(rewards, pairs, strict=True)]


def _settle(jobs: Sequence[_Job], outcomes: Sequence[Score | RewardFailed]) -> None:
    """Hands outcomes to their event loops, waking each loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Score | RewardFailed]]] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        by_loop.setdefault(job.future.get_loop(), []).append((job, outcome))
    for loop, settled in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_deliver, settled)


def _deliver(settled: Sequence[tuple[_Job, Score | RewardFailed]]) -> None:
    for job, outcome in settled:
        if job.future.done():
            continue
        if isinstance(outcome, Score):
            job.future.set_result(outcome)
        else:
            job.future.set_exception(outcome)


def next_batch(lengths: Sequence[int], budget_tokens: int) -> list[int]:
    """Indices of the sequences to run next, in order of length.

    lengths: (n,) tokens, in order of arrival, n ≥ 1. Sequences of similar length are put together, so that little is
    padding; number × longest stays within the budget, except for a single sequence that is longer by itself. Of these
    batches the one with the sequence that waits longest is returned, so none waits forever.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[index] > budget_tokens:
            if 0 in batch:
                break
            batch = []
        batch.append(index)
    return batch
