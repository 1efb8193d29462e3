"""What the verbs print, and how."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, NoReturn

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bon_server.core.errors import BonError
from bon_server.system.terminal import Terminal, print_json, warn


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


def as_default(default: Any) -> str | None:
    """How the help says a default."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple | list):
        return ", ".join(map(str, default)) or None
    if default is None or default == "":
        return None
    return str(default.value if isinstance(default, Enum) else default)


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
