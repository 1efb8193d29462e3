"""`bon rounds`: harvest, select, train, evaluate, again and again."""

from __future__ import annotations

from typing import Annotated, Any

from rich.table import Table

from bon_server.cli.options import AsJson
from bon_server.config.options import FLAT
from bon_server.loop.rounds.options import RoundsOptions
from bon_server.system.terminal import Terminal, print_json, say


def rounds(*, options: Annotated[RoundsOptions, FLAT], as_json: AsJson = False) -> None:
    """Harvest, select, train and evaluate, round after round; keep the best policy in OUT/best.

    Safe to run again after a crash: the same command does not do again what is done.
    """
    from bon_server.loop.rounds.run import run_rounds

    console = Terminal(stderr=True)
    told = run_rounds(
        options,
        lambda doing: console.print(doing, style="dim"),
        lambda so_far: console.print(_table(so_far)),
    )
    if as_json:
        print_json(told)
        return
    best = told["best"]
    say(f"best: round {best['round']}, {best['policy']}")
    if told["stopped"] is not None:
        say(f"stopped: {told['stopped']}")


def _table(told: dict[str, Any]) -> Table:
    """A row for each round; differences to the first policy have their 95 % interval."""
    table = Table(
        "round", "reward", "against the first", "greedy", "gold", "KL", "tokens", "cut", "distinct-2", box=None
    )
    for one in told["rounds"]:
        evaluation = one["evaluation"]
        sampled, greedy = evaluation["held_out"]["sampled"], evaluation["held_out"]["greedy"]
        against = evaluation.get("against_first", {}).get("sampled", {}).get("reward")
        table.add_row(
            f"{one['round']}{' best' if one['round'] == told['best']['round'] else ''}",
            _number(sampled["reward"]),
            "" if against is None else f"{against['difference']:+.3f} {_between(against['ci'])}",
            _number(greedy["reward"]),
            _number(sampled["gold"]),
            _number(evaluation.get("kl_nats")),
            _number(sampled["tokens"], ".1f"),
            _number(sampled["truncated"], ".0%"),
            _number(sampled["distinct_2"]),
        )
    return table


def _number(figure: dict[str, Any] | None, form: str = ".3f") -> str:
    return "" if figure is None or figure["mean"] is None else format(figure["mean"], form)


def _between(ci: list[float] | None) -> str:
    return "" if ci is None else f"({ci[0]:+.3f} to {ci[1]:+.3f})"
