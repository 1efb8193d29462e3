"""A policy without a model: instant or paced text from a seed, for client developers, load tests and unit tests.

Its pace is each sample's own, or one that running samples share equally (`SharedPace`), as those of one engine do: the
more of them, the slower each.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count
from typing import Annotated

from msgspec import Meta, structs

from bon_server.config.settings import PolicyConfig
from bon_server.config.specs import parse_options
from bon_server.core.errors import FieldViolation, InvalidRequest, SamplingFailed, UnsupportedOption
from bon_server.core.types import Completion, EncodedPrompt, FinishReason, Milestone, PolicyRef, Prompt, Sampling
from bon_server.system.telemetry import Telemetry


class SharedPace:
    """So many tokens a second for all together. Exact to the event loop's timers, without a step per token."""

    def __init__(self, tokens_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens_per_s = tokens_per_s
        self._clock = clock
        self._each = 0.0
        """Tokens that a sample would have by now which had run since the beginning."""
        self._told = clock()
        self._running: dict[int, tuple[float, asyncio.Event]] = {}
        """Number → value of `_each` at which the sample is complete, and whom to tell."""
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    async def produce(self, tokens: int, aborted: asyncio.Event) -> int:
        """Returns as many once they are sampled, or how many there were when `aborted` was set."""
        self._advance()
        number, began, ended = next(self._numbers), self._each, asyncio.Event()
        self._running[number] = (began + tokens, ended)
        self._schedule()
        waits = [asyncio.create_task(ended.wait()), asyncio.create_task(aborted.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._advance()
            self._running.pop(number, None)
            self._schedule()
        return tokens if ended.is_set() else min(tokens - 1, int(self._each - began))

    def _advance(self) -> None:
        """Brings `_each` up to now."""
        now = self._clock()
        if self._running:
            self._each += (now - self._told) * self._tokens_per_s / len(self._running)
        self._told = now

    def _schedule(self) -> None:
        """Sets the timer to when the next sample is complete."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            missing = min(complete for complete, _ in self._running.values()) - self._each
            seconds = max(0.0, missing) * len(self._running) / self._tokens_per_s
            self._timer = asyncio.get_running_loop().call_later(seconds, self._complete)

    def _complete(self) -> None:
        self._timer = None
        self._advance()
        done = [number for number, (complete, _) in self._running.items() if complete <= self._each + 1e-6]
        for number in done:
            self._running.pop(number)[1].set()
        self._schedule()


BYTE_TOKENS = 256
"""Token ids below this are the bytes of a prompt; those above are words of the tape."""
CONTEXT_TOKENS = 32_768
WORDS = """a about after all and any are as at be because best but by can candidate could day do each even first for
from get give good have he her how if in into is it just know last like look make many may more most new no not now
of on one only or other our out over own people reward right say score see she so some than that the their them then
there these they think this time to two up use was way we well what when which who will with work would year you"""

Share = Annotated[float, Meta(ge=0, le=1)]
Pace = Annotated[float, Meta(ge=0, le=1e9)]
_Drawn = tuple[int, Callable[[int], tuple[str, tuple[int, ...]]]]
"""Tokens of a whole completion; text and token ids of its first so many."""


@dataclass(frozen=True)
class SyntheticPolicyOptions:
    """Options of `--policy synthetic:...`."""

    tokens_per_s: Pace = 0.0
    """Pace of each candidate; 0: no delay."""
    total_tokens_per_s: Pace = 0.0
    """Pace of all running candidates together, shared equally; 0: no limit. Replaces `tokens_per_s`."""
    tokens: Annotated[int, Meta(ge=1, le=CONTEXT_TOKENS)] = 40
    """Mean length of a completion, in tokens."""
    fail_rate: Share = 0.0
    """Share of candidates whose sampling fails."""
    hang_rate: Share = 0.0
    """Share of candidates that never end."""


class _Tape:
    """A long fixed sequence of words; completions are slices of it, so that they cost next to nothing."""

    def __init__(self, words: Sequence[str], length: int) -> None:
        dice = random.Random(0)
        drawn = [dice.randrange(len(words)) for _ in range(length)]
        self.token_ids = tuple(BYTE_TOKENS + word for word in drawn)
        pieces = [words[word] + " " for word in drawn]
        self.text = "".join(pieces)
        self.starts = (0, *accumulate(len(piece) for piece in pieces))

    def slice(self, start: int, tokens: int) -> tuple[str, tuple[int, ...]]:
        """Text and ids of `tokens` words from word `start` on."""
        end = start + tokens
        return self.text[self.starts[start] : self.starts[end]].rstrip(), self.token_ids[start:end]


class SyntheticPolicy:
    """Same seed, prompt and parameters: same text. Without a seed: a new draw each time. A choice is kept to.

    Lengths are exponential around the mean, so that candidates end at different times as those of a model do.
    """

    def __init__(self, options: SyntheticPolicyOptions) -> None:
        self._options = options
        self._shared = SharedPace(options.total_tokens_per_s) if options.total_tokens_per_s else None
        self._paced = bool(options.tokens_per_s or options.total_tokens_per_s)
        self._dice = random.Random()
        self._words = WORDS.split()
        self._tape = _Tape(self._words, 1 << 16)
        self._aborts: dict[str, asyncio.Event] = {}
        self.ref = PolicyRef(id="synthetic", revision=f"{zlib.crc32(repr(options).encode()):08x}")
        self.max_model_len = CONTEXT_TOKENS
        self.slots = PolicyConfig.max_num_seqs  # there is no limit; this is what engines have
        self.healthy = True
        self.facts: dict[str, str | int] = {"model": "none", "tokens": options.tokens}
        self._telemetry = Telemetry()
        self.engines = (self._telemetry,)

    @classmethod
    def from_spec(cls, spec: str) -> SyntheticPolicy:
        """From `synthetic[:key=value,...]`; raises `ConfigError`."""
        return cls(parse_options(spec, SyntheticPolicyOptions))

    @property
    def running(self) -> int:
        """Samples in flight."""
        return len(self._aborts)

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Bytes are tokens; a conversation is one line per message."""
        if prompt.token_ids is not None:
            return EncodedPrompt(prompt.token_ids, self._decode(prompt.token_ids))
        text = prompt.text
        if text is None:
            text = "".join(f"{message.role}: {message.content}\n" for message in prompt.messages or ())
        return EncodedPrompt(tuple(text.encode()), text)

    async def check(self, sampling: Sampling) -> None:
        """Constraints need a model, but for a choice."""
        for name in ("json_schema", "regex"):
            if getattr(sampling, name) is not None:
                raise UnsupportedOption(f"sampling.{name}: the synthetic policy has no constrained decoding")

    def sample(
        self, key: str, prompt_token_ids: Sequence[int], sampling: Sampling, milestone: Milestone | None = None
    ) -> Awaitable[Completion]:
        """See `Policy.sample`. Without a delay the sample is there at once, and no task is made for it."""
        dice = self._dice
        if sampling.seed is not None:
            dice = random.Random(hash((sampling.seed, tuple(prompt_token_ids), sampling.temperature)))
        if dice.random() < self._options.fail_rate:
            raise SamplingFailed("synthetic failure")
        hangs = dice.random() < self._options.hang_rate
        drawn = self._from_tape(sampling, dice) if sampling.choice is None else _from_choices(sampling.choice, dice)
        if self._paced or hangs or milestone is not None:
            return self._sample_in_time(key, sampling, drawn, hangs, milestone)
        sample: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        sample.set_result(self._completion(sampling, drawn, min(drawn[0], sampling.max_tokens)))
        return sample

    async def abort(self, keys: Sequence[str]) -> None:
        """See `Policy.abort`."""
        for key in keys:
            if key in self._aborts:
                self._aborts[key].set()

    async def close(self) -> None:
        """Nothing to release."""

    async def _sample_in_time(
        self, key: str, sampling: Sampling, drawn: _Drawn, hangs: bool, milestone: Milestone | None
    ) -> Completion:
        wanted, text_of = drawn
        tokens = min(wanted, sampling.max_tokens)
        first = tokens if milestone is None else min(tokens, milestone.tokens)
        produced = await self._wait(key, first, hangs and first == tokens)
        if milestone is not None and produced == first < tokens:
            milestone.passed(text_of(produced)[0])
            produced += await self._wait(key, tokens - produced, hangs)
        return self._completion(sampling, drawn, produced)

    def _completion(self, sampling: Sampling, drawn: _Drawn, produced: int) -> Completion:
        """Of so many tokens."""
        wanted, text_of = drawn
        text, token_ids = text_of(produced)
        self._telemetry.stepped()
        reason = self._finish_reason(produced, min(wanted, sampling.max_tokens), wanted)
        return _cut_at_stop(Completion(text, token_ids, reason, seed=sampling.seed), sampling.stop)

    def _from_tape(self, sampling: Sampling, dice: random.Random) -> _Drawn:
        wanted = 1 + int(-math.log(1.0 - dice.random()) * (self._options.tokens - 1))
        start = dice.randrange(len(self._tape.token_ids) - sampling.max_tokens)
        return wanted, partial(self._tape.slice, start)

    async def _wait(self, key: str, tokens: int, hangs: bool) -> int:
        """Sleeps as long as `tokens` take; returns how many were produced before an abort."""
        if not self._paced and not hangs:
            await asyncio.sleep(0)
            return tokens
        pace = self._options.tokens_per_s
        aborted = self._aborts[key] = asyncio.Event()
        began = time.monotonic()
        try:
            if self._shared is not None and not hangs:
                return await self._shared.produce(tokens, aborted)
            # What hangs is work without progress; what is slow makes its steps.
            with self._telemetry.working() if hangs else nullcontext():
                await asyncio.wait_for(aborted.wait(), None if hangs else tokens / pace)
        except TimeoutError:
            return tokens
        finally:
            del self._aborts[key]
        return min(tokens - 1, int((time.monotonic() - began) * pace))

    def _decode(self, token_ids: Sequence[int]) -> str:
        if len(token_ids) > CONTEXT_TOKENS:
            raise InvalidRequest(
                FieldViolation("tokens.ids", f"{len(token_ids)} given; the context is {CONTEXT_TOKENS} tokens")
            )
        if max(token_ids) >= BYTE_TOKENS + len(self._words):
            raise InvalidRequest(
                FieldViolation(
                    "tokens.ids", f"{max(token_ids)} is outside the vocabulary of {BYTE_TOKENS + len(self._words)}"
                )
            )
        pieces = [
            bytes([token]) if token < BYTE_TOKENS else f"{self._words[token - BYTE_TOKENS]} ".encode()
            for token in token_ids
        ]
        return b"".join(pieces).decode(errors="replace")

    @staticmethod
    def _finish_reason(produced: int, tokens: int, wanted: int) -> FinishReason:
        if produced < tokens:
            return FinishReason.CANCELLED
        return FinishReason.STOP if tokens == wanted else FinishReason.LENGTH


def _from_choices(choices: Sequence[str], dice: random.Random) -> _Drawn:
    spelled = dice.choice(choices).encode()  # its bytes are its tokens
    return len(spelled), lambda tokens: (spelled[:tokens].decode(errors="ignore"), tuple(spelled[:tokens]))


def _cut_at_stop(completion: Completion, stops: Sequence[str]) -> Completion:
    found = [(position, stop) for stop in stops if (position := completion.text.find(stop)) >= 0]
    if not found:
        return completion
    position, stop = min(found)
    return structs.replace(
        completion, text=completion.text[:position], finish_reason=FinishReason.STOP, stop_reason=stop
    )
