"""The document of `bon log verify --json`."""

from __future__ import annotations

from typing import NotRequired, TypedDict

MAX_PROBLEMS = 10_000


class Problem(TypedDict):
    """One thing that is wrong."""

    kind: str
    file: str
    """Relative to the log folder."""
    row: NotRequired[int]
    """Ordinal of the record."""
    detail: str
    """Without content."""


class Report(TypedDict):
    """The document of `bon log verify --json`."""

    ok: bool
    problems: list[Problem]
    """At most `MAX_PROBLEMS`."""
    unlisted: int
    """Problems beyond those."""
    notes: list[Problem]
    """What is worth knowing but not wrong."""
    records: int
    """Records that were checked."""
    feedback: int
    """Observations that were checked."""
    segments: int
