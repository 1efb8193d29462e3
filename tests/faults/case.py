"""What a case is: what happens, and what the caller must see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc

from bon_server.core.errors import BonError
from tests.faults.place import Kind, Place, Seen

OK = grpc.StatusCode.OK
SCRIPTED = Kind()
"""Shared by all that can share one."""


@dataclass(frozen=True)
class Check:
    """What else must be true when all is at rest."""

    words: str
    """For the page."""
    holds: Callable[[Place, Seen], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case, made to happen to a real server through real gRPC."""

    name: str
    """What happens."""
    variant: str = ""
    """To which method, in which form; cases that differ in this alone are one line of the page."""
    happens: Callable[[Place], Awaitable[Seen]]
    """Makes it happen, and returns how it ended."""
    ends: grpc.StatusCode | type[BonError] = grpc.StatusCode.INVALID_ARGUMENT
    """The code that the caller must see; of a start, the error."""
    field: str = ""
    """The field that the refusal must name; empty: none."""
    says: tuple[str, ...] = ()
    """Words of the refusal; where a field is named, of its violation."""
    checks: tuple[Check, ...] = ()
    kind: Kind = SCRIPTED
    """Of the server."""
    ends_server: bool = False
    """The server is of no use afterwards: another one on the same log has to answer."""
    damages: tuple[str, ...] = ()
    """What `bon log verify` must find wrong afterwards, by kind; it may find more that comes of it."""

    def __str__(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name


@dataclass(frozen=True)
class Elsewhere:
    """A case that lives better in a test of its own."""

    name: str
    ends: str
    """What the caller sees."""
    tests: tuple[str, ...]
    """Where: node ids without parameters."""


def in_log(outcome: str, *statuses: str, error: str | None = None) -> Check:
    """The case's request has one record, with candidates of these statuses."""

    def holds(place: Place, seen: Seen) -> None:
        row = place.row()
        assert (row.outcome.value, row.error) == (outcome, error)
        assert [candidate.status.value for candidate in row.candidates] == list(statuses)

    counts = ", ".join(f"{statuses.count(one)} {one}" for one in dict.fromkeys(statuses))
    return Check(f"in the log: {outcome}{f' ({error})' if error else ''}, {counts}", holds)


def only_logged(words: str, *ids: str) -> Check:
    """The log has the records of these requests and no others."""

    def holds(place: Place, seen: Seen) -> None:
        assert [row.request_id for row in place.rows()] == list(ids)

    return Check(words, holds)


def replayed(words: str) -> Check:
    """The answer is an earlier one's."""

    def holds(place: Place, seen: Seen) -> None:
        assert seen.answer.replayed

    return Check(words, holds)


def _nothing_logged(place: Place, seen: Seen) -> None:
    assert place.rows() == []


def _nothing_sampled(place: Place, seen: Seen) -> None:
    assert place.policy.started == []


def _pushback(place: Place, seen: Seen) -> None:
    assert seen.refused is not None and seen.refused.pushback_ms


NOTHING_LOGGED = Check("nothing is logged", _nothing_logged)
NOTHING_SAMPLED = Check("the engine is untouched", _nothing_sampled)
PUSHBACK = Check("with `grpc-retry-pushback-ms`", _pushback)
