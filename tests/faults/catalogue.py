"""All sections of the catalogue, and the tables of its page, docs/faults.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from tests.faults import (
    bad_bytes,
    bad_fields,
    bad_options,
    deadlines,
    elsewhere,
    leaving,
    lifecycle,
    load,
    log,
    log_damage,
    models,
    models_broken,
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
    Section(
        "bad input",
        [*bad_fields.CASES, *bad_options.CASES, *bad_bytes.CASES, *odd_texts.CASES],
        elsewhere.BAD_INPUT,
    ),
    Section("transport", transport.CASES, [*elsewhere.TRANSPORT, *elsewhere.ODD_CONNECTIONS]),
    Section("cancellation and deadlines", [*leaving.CASES, *deadlines.CASES], elsewhere.CANCELLATION),
    Section("lifecycle", lifecycle.CASES, elsewhere.LIFECYCLE),
    Section("models", [*models.CASES, *models_broken.CASES], elsewhere.MODELS),
    Section("log", [*log.CASES, *log_damage.CASES], elsewhere.LOG_FAULTS),
    Section("load", load.CASES, elsewhere.LOAD),
]


def tables() -> str:
    """A table for each section, in Markdown."""
    return "\n".join(line for section in CATALOGUE for line in _table(section))


def _table(section: Section) -> Iterator[str]:
    names = list(dict.fromkeys(case.name for case in section.cases))
    yield f"## {section.name.capitalize()}\n"
    yield f"{len(section.cases)} cases in the table, {len(section.elsewhere)} elsewhere.\n"
    yield "| what happens | what the caller sees | cases |"
    yield "|---|---|---|"
    for name in names:
        cases = [case for case in section.cases if case.name == name]
        yield f"| {name} | {_sees(cases)} | {len(cases)} |"
    yield "\n| what happens | what is seen | tested by |"
    yield "|---|---|---|"
    for one in section.elsewhere:
        yield f"| {one.name} | {one.ends} | {', '.join(f'`{test}`' for test in one.tests)} |"
    yield ""


def _sees(cases: Sequence[Case]) -> str:
    """Code, field or words, and checks, of cases of one name."""
    case, fields = cases[0], {case.field for case in cases}
    ends = case.ends
    parts = [ends.name if isinstance(ends, grpc.StatusCode) else f"no start ({ends.__name__})"]
    if fields != {""}:
        parts.append(f"names `{case.field}`" if len(fields) == 1 else "names the field")
    elif case.says:
        parts.append(f"“{' … '.join(words.strip(' ;') for words in case.says)}”")
    parts += [check.words for check in case.checks]
    if case.damages:
        parts.append("`bon log verify` reports " + ", ".join(f"`{kind}`" for kind in case.damages))
    return "; ".join(parts).replace("|", "\\|")
