"""Numbers on the command line: the absurd ones are a wrong use, whatever the verb."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest
from cyclopts import App
from cyclopts.argument import Argument

from bon_server.cli import app
from bon_server.core.selection import OfflineRule
from tests.command import run_bon

HUGE = str(10**30)
TEXTS = {float: ["inf", "-inf", "nan", "1e300", "1e12"], int: [HUGE, f"-{HUGE}", "inf", "nan", "1e300"]}


class Option(NamedTuple):
    """One that takes a number."""

    verb: tuple[str, ...]
    name: str
    kind: type
    needed: tuple[str, ...]
    """What else the verb must be given."""


def _verbs(place: App, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    if place.default_command is not None:
        yield words, place
    for name in place:
        if not name.startswith("-"):
            yield from _verbs(place[name], (*words, name))


def _numbers() -> Iterator[Option]:
    for verb, command in _verbs(app):
        arguments = [one for one in command.assemble_argument_collection() if not one.children]
        needed = tuple(word for one in arguments if one.required for word in _given(one))
        for one in arguments:
            for kind in _kinds(one.hint) & {int, float}:
                yield Option(verb, one.name, kind, needed)


def _kinds(hint: Any) -> set[Any]:
    """A type, or those that a union or tuple is of."""
    return set().union(*map(_kinds, get_args(hint))) if get_args(hint) and get_origin(hint) is not Literal else {hint}


def _given(argument: Argument) -> tuple[str, ...]:
    kinds = _kinds(argument.hint)
    value = __file__ if Path in kinds else OfflineRule.PAIRS.value if OfflineRule in kinds else "x"
    return (value,) if argument.index is not None else (argument.name, value)


NUMBERS = list(_numbers())


def test_there_are_some() -> None:
    assert len(NUMBERS) > 50
    assert {"--timeout", "--concurrency", "--seed", "--port", "-n", "--k"} <= {option.name for option in NUMBERS}


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: " ".join((*option.verb, option.name)))
def test_an_absurd_number_is_a_wrong_use(option: Option) -> None:
    more = [] if option.kind is float or "seed" in option.name else ["999999999999"]
    for text in [*TEXTS[option.kind], *more]:
        ended = run_bon(*option.verb, *option.needed, f"{option.name}={text}")
        assert ended.exit_code == 2 and ended.stdout == "", text
        assert ended.stderr.startswith(f"bon: {option.name}: {text!r} given; allowed are "), ended.stderr


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_a_seed_may_be_any_of_64_bits(seed: int) -> None:
    ended = run_bon("ask", "x", f"--seed={seed}", "--target", "127.0.0.1:1", "--timeout", "0.001")
    assert ended.exit_code == 1, ended.stderr
