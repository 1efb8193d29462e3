"""Numbers on the command line: the absurd ones are a wrong use, whatever the verb."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from bon_server.cli import app

HUGE = str(10**30)
TEXTS = {float: ["inf", "-inf", "nan", "1e300", "1e12"], int: [HUGE, f"-{HUGE}", "inf", "nan", "1e300"]}


def _verbs(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, one in getattr(command, "commands", {}).items():
        yield from _verbs(one, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


def _numbers() -> Iterator[tuple[tuple[str, ...], Any, str, type]]:
    for words, command in _verbs(typer.main.get_command(app)):
        for option in command.params:
            kind = option.type_descriptor.annotation
            if kind in (int, float):
                yield words, command, option.opts[0], kind


NUMBERS = list(_numbers())


def test_there_are_some() -> None:
    assert len(NUMBERS) > 50
    assert {"--timeout", "--concurrency", "--seed", "-k"} <= {option for _, _, option, _ in NUMBERS}


@pytest.mark.parametrize(
    ("words", "command", "option", "kind"), NUMBERS, ids=[" ".join((*words, option)) for words, _, option, _ in NUMBERS]
)
def test_an_absurd_number_is_a_wrong_use(words: tuple[str, ...], command: Any, option: str, kind: type) -> None:
    needed = [word for one in command.params if one.required for word in _given(one)]
    more = [] if kind is float or "seed" in option else ["999999999999"]
    for text in [*TEXTS[kind], *more]:
        written = f"{option}={text}" if option.startswith("--") else f"{option}{text}"
        with pytest.raises(typer.BadParameter) as caught:
            command.main([*needed, written], standalone_mode=False)
        assert caught.value.exit_code == 2 and option in str(caught.value.format_message()), text


def _given(option: Any) -> list[str]:
    value = __file__ if option.type_descriptor.is_path else str((option.type_descriptor.choices or ("x",))[0])
    return [value] if option.param_type_name == "argument" else [option.opts[0], value]
