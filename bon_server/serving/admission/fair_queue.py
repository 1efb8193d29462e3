"""Whose turn it is: a queue that is fair between callers, measured in candidates. Pure: no clock, no event loop.

Self-clocked fair queueing (Golestani, INFOCOM 1994). Each caller's oldest request has a mark: where the caller stood
when it was last served, or where the queue stands if the caller had nothing waiting, plus the request's candidates.
The lowest mark is next, and the queue then stands there. So callers who keep requests waiting get equal numbers of
candidates, whatever the size of their requests, and a caller with nothing waiting neither saves up turns nor owes any.

Nobody waits for ever: a mark stays where it is, and everyone who is served or comes later gets a higher one than the
queue's, which rises with each turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True, slots=True)
class Turn:
    """One waiting request."""

    caller: str
    ticket: int
    """Rises with each arrival."""
    n: int
    """Candidates."""


@dataclass(slots=True)
class _Caller:
    """A caller with something waiting."""

    stands_at: int
    candidates: int = 0
    """Waiting."""
    turns: dict[int, Turn] = field(default_factory=dict)
    """By ticket, oldest first."""

    @property
    def oldest(self) -> Turn:
        return next(iter(self.turns.values()))

    @property
    def mark(self) -> tuple[int, int]:
        return self.stands_at + self.oldest.n, self.oldest.ticket


class FairQueue:
    """Waiting requests of all callers. Holds nothing about callers who have none."""

    def __init__(self) -> None:
        self._stands_at = 0
        self._tickets = count()
        self._callers: dict[str, _Caller] = {}
        self.candidates = 0
        """Waiting, over all callers."""

    def __bool__(self) -> bool:
        return bool(self._callers)

    def of(self, caller: str) -> int:
        """Candidates of one caller that wait."""
        found = self._callers.get(caller)
        return 0 if found is None else found.candidates

    def ahead(self, caller: str, n: int) -> int:
        """Candidates that would be served before a new request for n is: all of its caller's, and as many of others.

        An estimate, out by the size of one request for each caller.
        """
        own = self.of(caller)
        return own + sum(min(one.candidates, own + n) for name, one in self._callers.items() if name != caller)

    def join(self, caller: str, n: int) -> Turn:
        """Puts a request behind the others of its caller."""
        turn = Turn(caller, next(self._tickets), n)
        found = self._callers.setdefault(caller, _Caller(self._stands_at))
        found.turns[turn.ticket] = turn
        found.candidates += n
        self.candidates += n
        return turn

    def next(self) -> Turn:
        """Whose turn it is; the queue must not be empty. Takes time in proportion to the number of callers."""
        return min(self._callers.values(), key=lambda caller: caller.mark).oldest

    def serve(self, turn: Turn) -> None:
        """Takes out what `next` gave, and its caller moves back by its candidates."""
        caller = self._callers[turn.caller]
        caller.stands_at += turn.n
        self._stands_at = max(self._stands_at, caller.stands_at)
        self.leave(turn)

    def leave(self, turn: Turn) -> None:
        """Takes a request out without serving it: it costs its caller nothing."""
        caller = self._callers[turn.caller]
        del caller.turns[turn.ticket]
        caller.candidates -= turn.n
        self.candidates -= turn.n
        if not caller.turns:
            del self._callers[turn.caller]
