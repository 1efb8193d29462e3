"""What the verbs print, and how."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bon_server.errors import BonError, ConfigError
from bon_server.terminal import Terminal, print_json, warn


@contextmanager
def progress(doing: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields what to call with how far it has come."""
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn() if total is None else TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda completed: bar.update(task, completed=completed)


def on_damage(skip: bool) -> Callable[[BonError], None]:
    """What a reader does with what it cannot read."""

    def report(error: BonError) -> None:
        if not skip:
            raise error
        warn(f"left out: {error}")

    return report


def given(**options: Any) -> Any:
    """Only the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def key_value(option: str) -> tuple[str, str]:
    """The two halves of a tag. Raises `ConfigError`."""
    key, separator, value = option.partition("=")
    if not separator:
        raise ConfigError(f"tag: {option!r} given; expected KEY=VALUE")
    return key, value


def print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    table = Table(box=None, show_header=False)
    for name, value in result.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    Terminal().print(table)


def fail(message: str, code: int) -> NoReturn:
    warn(message)
    sys.exit(code)
