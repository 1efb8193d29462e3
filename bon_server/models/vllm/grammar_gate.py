"""Constraints are tried out before an engine sees them, in a process of its own, and what came out is remembered."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from bon_server.core.errors import Unavailable, UnsupportedOption
from bon_server.core.types import Sampling
from bon_server.models.policy.prompts import invalid
from bon_server.models.vllm.grammar import grammar_of

logger = logging.getLogger(__name__)

REMEMBERED = 1024
MAX_WAITING = 32
"""New constraints that wait to be tried; beyond this a request is refused at once."""
RETRY_MS = 500
CLOCK_S = 30.0
"""By then a trial has ended, whatever else runs: what it may take is counted in processor time."""
FIELDS = ("json_schema", "regex", "choice")


class GrammarGate:
    """Says which constraints an engine may be given. The process is started with the first constraint.

    tokenizer: of transformers, with one of `tokenizers` behind it; None: constraints are not available.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int, trial_ms: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._trial_ms = trial_ms
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._trials: OrderedDict[str, asyncio.Task[str | None]] = OrderedDict()

    @property
    def available(self) -> bool:
        """Whether there can be constraints at all."""
        return hasattr(self._tokenizer, "backend_tokenizer")

    async def check(self, sampling: Sampling) -> None:
        """Raises `InvalidRequest` for one that is wrong or costs too much, `Unavailable` when too many wait."""
        field = next((name for name in FIELDS if getattr(sampling, name) is not None), None)
        if field is None:
            return
        if not self.available:
            raise UnsupportedOption(f"sampling.{field} is not available with the tokenizer of this policy")
        try:
            grammar = grammar_of(sampling)
        except ValueError:
            raise invalid(f"sampling.{field}", "it cannot be read") from None
        assert grammar is not None
        # A caller who leaves must not end the trial that others wait for, nor lose its place in the conversation.
        problem = await asyncio.shield(self._trial(grammar))
        if problem is not None:
            raise invalid(f"sampling.{field}", problem)

    async def close(self) -> None:
        """Ends the process."""
        for trial in self._trials.values():
            trial.cancel()
        await self._end()

    def _trial(self, grammar: str) -> asyncio.Task[str | None]:
        """The trial of a grammar, which ended before, runs, or starts now."""
        known = self._trials.get(grammar)
        if known is not None:
            self._trials.move_to_end(grammar)
            return known
        if sum(not trial.done() for trial in self._trials.values()) >= MAX_WAITING:
            raise Unavailable("too many new constraints at once", RETRY_MS)
        trial = self._trials[grammar] = asyncio.create_task(self._try(grammar))
        trial.add_done_callback(lambda done: self._forget(grammar, done))
        return trial

    def _forget(self, grammar: str, trial: asyncio.Task[str | None]) -> None:
        """A trial that failed, and the oldest ones."""
        if trial.cancelled() or trial.exception() is not None:
            self._trials.pop(grammar, None)
        while len(self._trials) > REMEMBERED and next(iter(self._trials.values())).done():
            self._trials.popitem(last=False)

    async def _try(self, grammar: str) -> str | None:
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(CLOCK_S):
                    process = self._process = self._process or await self._start()
                    assert process.stdin is not None and process.stdout is not None
                    process.stdin.write(json.dumps(grammar).encode() + b"\n")
                    answer = await process.stdout.readline()
                    problem: str | None = json.loads(answer)
                    return problem
            except (OSError, ValueError) as error:  # it ended, hangs (TimeoutError), or there is no room to start it
                logger.warning("the process that tries constraints does not answer (%s)", type(error).__name__)
                await self._end()
                raise Unavailable("constraints cannot be checked at the moment", RETRY_MS) from error
            except asyncio.CancelledError:
                await self._end()
                raise

    async def _start(self) -> Process:
        settings = await asyncio.to_thread(self._settings)  # 0.15 s for 150,000 tokens
        program = "bon_server.models.vllm.grammar_trial"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", program, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
        assert process.stdin is not None
        process.stdin.write(settings)
        return process

    def _settings(self) -> bytes:
        """The first line that the process reads."""
        backend = copy.copy(self._tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        settings = {
            "tokenizer": backend.to_str(),
            "vocabulary_size": max(self._vocabulary_size, len(self._tokenizer)),
            "end_token": self._tokenizer.eos_token_id,
            "cpu_s": self._trial_ms / 1e3,
            "clock_s": CLOCK_S,
        }
        return json.dumps(settings).encode() + b"\n"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
