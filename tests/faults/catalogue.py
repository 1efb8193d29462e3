"""All sections of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults import (
    bad_bytes,
    bad_fields,
    bad_options,
    deadlines,
    leaving,
    lifecycle,
    load,
    log,
    models,
    odd_texts,
    transport,
)
from tests.faults.case import Case, Elsewhere


@dataclass(frozen=True)
class Section:
    """What belongs together."""

    name: str
    cases: Sequence[Case]
    elsewhere: Sequence[Elsewhere]


CATALOGUE = [
    Section("bad input", [*bad_fields.CASES, *bad_options.CASES, *bad_bytes.CASES, *odd_texts.CASES], ()),
    Section("transport", transport.CASES, ()),
    Section("cancellation and deadlines", [*leaving.CASES, *deadlines.CASES], ()),
    Section("lifecycle", lifecycle.CASES, ()),
    Section("models", models.CASES, ()),
    Section("log", log.CASES, ()),
    Section("load", load.CASES, ()),
]
