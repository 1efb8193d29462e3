"""The scores of one request, of completions and of prefixes; identical texts share one, so the first of them pays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ParamSpec, TypeVar

from bon_server.core.types import Score

Question = ParamSpec("Question")
Answer = TypeVar("Answer")


class Scores:
    """Asked for and arrived."""

    def __init__(self, score: Callable[[str], Awaitable[Score]], began_ns: int) -> None:
        """began_ns: what times count from, on the clock of `time.monotonic_ns`."""
        self._score = score
        self._began_ns = began_ns
        self._of: dict[str, asyncio.Future[Score]] = {}
        self.spans_ns: list[tuple[int, int]] = []
        """Start and end of the wait for each score that arrived."""
        self.tokens = 0
        """What the reward model read for the scores that arrived."""

    def of(self, text: str) -> asyncio.Future[Score]:
        """Has what the reward model says or raises. Others may wait for it too: never cancel it."""
        score = self._of.get(text)
        if score is None:
            score = self._of[text] = asked(self._score, text)
            came = partial(self._came, self._elapsed_ns())
            if score.done():
                came(score)
            else:
                score.add_done_callback(came)
        return score

    def cancel(self) -> list[asyncio.Future[Score]]:
        """Drops those that have not arrived; returns all."""
        for each in self._of.values():
            each.cancel()
        return list(self._of.values())

    def _came(self, began_ns: int, score: asyncio.Future[Score]) -> None:
        if not score.cancelled() and score.exception() is None:
            self.spans_ns.append((began_ns, self._elapsed_ns()))
            self.tokens += score.result().tokens

    def _elapsed_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns


def asked(
    model: Callable[Question, Awaitable[Answer]], *what: Question.args, **how: Question.kwargs
) -> asyncio.Future[Answer]:
    """What a model is going to answer; raises nothing, also where the call itself does."""
    try:
        answer = model(*what, **how)
        return answer if isinstance(answer, asyncio.Future) else asyncio.ensure_future(answer)
    except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001 -- kept for who waits
        refused: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        refused.set_exception(failure)
        return refused
