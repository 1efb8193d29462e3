"""Many prompts through one server: lines in, a log full of scored candidates at the server.

The lines are streamed and a bounded number of requests is in flight, so their number does not matter. A server that is
full, restarting or away is waited for; the ids of `lines` make the same command safe to run again after any
crash: what was answered before comes back as `replayed`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import bon
import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.loop.harvest.lines import BadPromptLine, Occurrences, Run, line_request
from bon_server.loop.harvest.prompts import PromptLine

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0
_ACCEPTED_AFTER_S = 30.0
"""A request that is out for longer has reached a server: connecting fails sooner."""

_WAIT_CODES = (
    grpc.StatusCode.UNAVAILABLE,  # full, warming up, draining, away
    grpc.StatusCode.ABORTED,  # an earlier attempt of the same id is still running
    grpc.StatusCode.CANCELLED,  # cut off by a stopping server; our own would be a CancelledError
)
_HOPELESS_CODES = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""No other line would fare better."""


@dataclass(slots=True)
class Harvest:
    """What came of it. `requests` counts the lines that were tried; `requests - failed` of them have an answer."""

    requests: int = 0
    candidates: int = 0
    """Sampled to their end, over all answers."""
    failed: int = 0
    replayed: int = 0
    """Answered from the server's log: by an earlier run, or by an attempt whose answer got lost."""
    seconds: float = 0.0
    mean_best_reward: float | None = None
    """Over all answers; None: no answer."""
    stopped: str | None = None
    """Why the run ended before the file did; None: it did not."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who hears of each line. Called on the event loop, so quick."""

    on_answer: Callable[[PromptLine, pb.GenerateResponse], None] = lambda line, answer: None
    on_failure: Callable[[PromptLine, str], None] = lambda line, reason: None
    """The reason has nothing of the line's content."""
    on_wait: Callable[[str], None] = lambda reason: None
    """The server has refused a line for now."""


class HarvestStopped(Exception):
    """Going on is of no use; the message says why."""


async def harvest(
    lines: Iterator[PromptLine],
    client: bon.AsyncClient,
    run: Run,
    *,
    concurrency: int,
    patience_s: float,
    timeout_s: float | None = None,
    watcher: Watcher | None = None,
) -> Harvest:
    """Sends lines (see `prompts.Prompts.lines`) and waits for all answers.

    client: best made with `attempts=1`, since the waiting is done here; concurrency: requests in flight; patience_s:
    how long to go on while the server gives no answer at all; timeout_s: deadline of one request (None: none), at
    which the server answers with what it has. Raises what the lines raise.
    """
    began_s = time.monotonic()
    with closing(Occurrences()) as occurrences:
        workers = _Workers(client, run, occurrences, patience_s, timeout_s, watcher or Watcher())
        tasks = [asyncio.create_task(workers.work(lines)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*tasks)
        except HarvestStopped as stop:
            workers.result.stopped = str(stop)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    workers.result.seconds = time.monotonic() - began_s
    return workers.result


class _Workers:
    """What the workers of one harvest share."""

    def __init__(
        self,
        client: bon.AsyncClient,
        run: Run,
        occurrences: Occurrences,
        patience_s: float,
        timeout_s: float | None,
        watcher: Watcher,
    ) -> None:
        self.result = Harvest()
        self._client = client
        self._run = run
        self._occurrences = occurrences
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._watcher = watcher
        self._answered_s = time.monotonic()
        """When the server last answered anything, or the run began."""
        self._sent_s: dict[str, float] = {}
        """When the requests that are out were sent, by id, oldest first."""
        self._answers = 0

    async def work(self, lines: Iterator[PromptLine]) -> None:
        """Takes lines until none is left."""
        for line in lines:
            self.result.requests += 1
            try:
                answer = await self._answer(line_request(line.content, self._run, self._occurrences))
            except BadPromptLine as error:
                self._fail(line, str(error))
            except grpc.RpcError as error:
                self._answered_s = time.monotonic()
                self._fail(line, bon.describe(error))
            except (HarvestStopped, asyncio.CancelledError) as error:
                self._fail(line, str(error) or "the run was stopped before its answer")
                raise
            else:
                self._keep(line, answer)

    async def _answer(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """The answer, however long the server is away. Raises grpc.RpcError for a failure of this line alone."""
        wait_s = _FIRST_WAIT_S
        while True:
            self._sent_s[request.request_id] = time.monotonic()
            try:
                return await self._client.send(request, timeout=self._timeout_s)
            except grpc.RpcError as error:
                pause_s = self._pause_s(error, wait_s)
            finally:
                self._sent_s.pop(request.request_id, None)
            # Spread out, so that a server that is back does not meet everybody at once.
            await asyncio.sleep(pause_s * random.uniform(1.0, 1.5))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _pause_s(self, error: grpc.RpcError, wait_s: float) -> float:
        """How long to wait before the next try; raises when there should be none."""
        code, pushback_s = error.code(), bon.pushback_s(error)
        if code in _HOPELESS_CODES:
            raise HarvestStopped(bon.describe(error))
        # A quota or a full disk invites a retry by its pushback; a message that is too big does not.
        invited = code is grpc.StatusCode.RESOURCE_EXHAUSTED and pushback_s is not None
        if code not in _WAIT_CODES and not invited:
            raise error
        self._check_patience(error)
        self._watcher.on_wait(bon.describe(error))
        return wait_s if pushback_s is None else max(pushback_s, _FIRST_WAIT_S)

    def _check_patience(self, error: grpc.RpcError) -> None:
        now_s = time.monotonic()
        silent_s = now_s - self._answered_s
        oldest_sent_s = next(iter(self._sent_s.values()), now_s)
        if silent_s > self._patience_s and now_s - oldest_sent_s < _ACCEPTED_AFTER_S:
            raise HarvestStopped(f"no answer for {silent_s:.0f} s, and now {bon.describe(error)}")

    def _keep(self, line: PromptLine, answer: pb.GenerateResponse) -> None:
        self._answered_s = time.monotonic()
        result = self.result
        result.candidates += answer.n_generated
        result.replayed += answer.replayed
        self._answers += 1
        mean = result.mean_best_reward or 0.0
        result.mean_best_reward = mean + (answer.best.reward - mean) / self._answers
        self._watcher.on_answer(line, answer)

    def _fail(self, line: PromptLine, reason: str) -> None:
        self.result.failed += 1
        self._watcher.on_failure(line, reason)
