"""Absurd numbers on the command line are a wrong use, before a verb does anything with them.

What a number may mean each verb checks itself; this refuses what no option can mean: infinity, NaN, and what is far
beyond any use, such as a deadline of a thousand years or a million million requests in flight.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

MOST = 1e9
"""Highest absolute value of an option, but for seeds."""
MOST_SEED = 2**63 - 1


class BoundedCommand(TyperCommand):
    """A verb that looks at its numbers before it runs."""

    def invoke(self, ctx: Any) -> Any:
        """Raises `typer.BadParameter`, which exits with code 2, naming option, value and range."""
        options: Any = self.params
        for option in options:
            value = ctx.params.get(option.name)
            most = MOST_SEED if "seed" in str(option.name) else MOST
            # Not `abs(value) > most`, which is False for NaN.
            if isinstance(value, int | float) and not -most <= value <= most:
                raise typer.BadParameter(f"{value} given; allowed is from {-most:.15g} to {most:.15g}", ctx, option)
        return super().invoke(ctx)


def bound(app: typer.Typer) -> None:
    """Makes all verbs, also those of groups, look at their numbers."""
    for command in app.registered_commands:
        command.cls = BoundedCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            bound(group.typer_instance)
