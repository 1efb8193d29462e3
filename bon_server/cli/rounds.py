"""`bon rounds`: harvest, select, train, evaluate, again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from bon_server.cli.options import (
    AsJson,
    Candidates,
    Concurrency,
    MaxTokens,
    Raw,
    Settings,
    System,
    Temperature,
    TopP,
)
from bon_server.cli.show import key_value
from bon_server.selection import OfflineRule
from bon_server.terminal import Terminal, print_json, say

ASKING, SELECTION, TRAINING, ENDING = "Asking", "Selecting", "Training", "Evaluating, and when to stop"


def rounds(
    policy: Annotated[str, typer.Option(help="Directory or hub id of the first policy.")],
    reward: Annotated[list[str], typer.Option(help="As for bon serve; may be repeated.")],
    prompts: Annotated[Path, typer.Option(exists=True, help="To train on; in the forms that bon harvest takes.")],
    held_out: Annotated[Path, typer.Option(exists=True, help="To evaluate on; never trained on.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on from what is there.")],
    number: Annotated[int, typer.Option("--rounds", help="How many in all; can be raised later.")] = 3,
    n: Candidates = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    system: System = None,
    raw: Raw = False,
    column: Annotated[
        list[str], typer.Option(help="PART=COLUMN, as for bon harvest; of both files.", rich_help_panel=ASKING)
    ] = [],  # noqa: B006 - Typer copies it
    concurrency: Concurrency = 8,
    patience_s: Annotated[
        float, typer.Option("--server-patience", help="Seconds to wait for a silent server.", rich_help_panel=ASKING)
    ] = 300.0,
    config: Annotated[
        Path | None, typer.Option(help="TOML file for the server.", exists=True, rich_help_panel=ASKING)
    ] = None,
    settings: Settings = [],  # noqa: B006
    rule: Annotated[
        OfflineRule | None,
        typer.Option(help="Default: best-per-prompt; with dpo: pairs.", rich_help_panel=SELECTION),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="Of top-k rules.", rich_help_panel=SELECTION)] = None,
    threshold: Annotated[float | None, typer.Option(help="Of threshold.", rich_help_panel=SELECTION)] = None,
    quantile: Annotated[float | None, typer.Option(help="Of threshold.", rich_help_panel=SELECTION)] = None,
    margin: Annotated[float | None, typer.Option(help="Of pairs.", rich_help_panel=SELECTION)] = None,
    min_spread: Annotated[
        float | None, typer.Option(help="Only prompts whose rewards are so far apart.", rich_help_panel=SELECTION)
    ] = None,
    merge_rounds: Annotated[
        bool, typer.Option(help="Select from all rounds so far, or the last alone.", rich_help_panel=SELECTION)
    ] = True,
    method: Annotated[
        Literal["sft", "dpo"],
        typer.Option(help="sft: on completions; dpo: on pairs.", rich_help_panel=TRAINING),
    ] = "sft",
    start_from: Annotated[
        Literal["base", "last"],
        typer.Option("--from", help="Train the first policy anew, or the last one on.", rich_help_panel=TRAINING),
    ] = "base",
    train: Annotated[
        list[str],
        typer.Option(
            help="NAME=VALUE, any option of bon train: learning_rate=1e-5, epochs=1, lora=false. May be repeated.",
            rich_help_panel=TRAINING,
        ),
    ] = [],  # noqa: B006
    seed: Annotated[
        int | None,
        typer.Option(help="Of sampling, selection, training. Default: random samples, 0.", rich_help_panel=TRAINING),
    ] = None,
    held_out_n: Annotated[
        int, typer.Option(help="Samples of a held-out prompt, beside a greedy one.", rich_help_panel=ENDING)
    ] = 4,
    gold: Annotated[
        str | None,
        typer.Option(help="function:module:name that judges held-out texts; only reported.", rich_help_panel=ENDING),
    ] = None,
    kl_texts: Annotated[int, typer.Option(help="Texts to measure the KL on; 0: none.", rich_help_panel=ENDING)] = 200,
    patience: Annotated[
        int, typer.Option(help="Stop after so many rounds without a new best reward.", rich_help_panel=ENDING)
    ] = 2,
    min_distinct: Annotated[
        float, typer.Option(help="Stop below this share of the first distinct-n.", rich_help_panel=ENDING)
    ] = 0.5,
    min_entropy: Annotated[
        float, typer.Option(help="Stop below this share of the first entropy.", rich_help_panel=ENDING)
    ] = 0.2,
    as_json: AsJson = False,
) -> None:
    """Harvest, select, train and evaluate, round after round; keeps the best policy in OUT/best.

    Safe to run again after a crash: what is done is not done again.
    """
    from bon_server.harvest.columns import parse_columns
    from bon_server.rounds.options import Asking, RoundsOptions, Stops
    from bon_server.rounds.run import run_rounds

    options = RoundsOptions(
        policy=policy,
        rewards=tuple(reward),
        prompts=prompts,
        held_out=held_out,
        out=out,
        rounds=number,
        asking=Asking(
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            system=system,
            raw=raw,
            columns=parse_columns(column),
        ),
        held_out_n=held_out_n,
        method=method,
        rule=rule,
        k=k,
        threshold=threshold,
        quantile=quantile,
        margin=margin,
        min_spread=min_spread,
        merge_rounds=merge_rounds,
        start_from=start_from,
        training=dict(map(key_value, train)),
        gold=gold,
        stops=Stops(patience=patience, min_distinct=min_distinct, min_entropy=min_entropy),
        kl_texts=kl_texts,
        seed=seed,
        concurrency=concurrency,
        patience_s=patience_s,
        config=config,
        settings=tuple(settings),
    )
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
