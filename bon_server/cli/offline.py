"""Verbs that read logs and write training sets: `bon select`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bon_server.cli.options import AsJson, SkipDamaged, Snapshot
from bon_server.cli.show import on_damage, print_result, progress
from bon_server.selection import OfflineRule


def select(
    log: Annotated[list[Path], typer.Option("--log", help="Folder of a log; may be repeated.")],
    rule: Annotated[OfflineRule, typer.Option(help="How to choose; each rule has a random control.")],
    out: Annotated[Path, typer.Option(help="Folder for the training set and its manifest.")],
    k: Annotated[int | None, typer.Option("-k", "--k", help="How many, for the rules that need it.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="Format of the training set.")] = "trl-sft",
    seed: Annotated[int, typer.Option(help="Seed of a control's draw.")] = 0,
    merge: Annotated[bool, typer.Option(help="Whether requests of one prompt count as one.")] = True,
    keep_truncated: Annotated[
        bool, typer.Option("--keep-truncated", help="Also choose from those cut at max_tokens.")
    ] = False,
    reward_model: Annotated[
        str | None, typer.Option(help="Only rewards of this model count: ID or ID@REVISION.")
    ] = None,
    snapshot: Snapshot = None,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Choose candidates of a log by their rewards and write them as a training set."""
    from bon_server.offline.select import SelectOptions
    from bon_server.offline.select import select as run_select

    options = SelectOptions(
        logs=tuple(log),
        rule=rule,
        out=out,
        k=k,
        format=file_format,
        seed=seed,
        merge=merge,
        keep_truncated=keep_truncated,
        reward_model=reward_model,
        snapshot=snapshot,
    )
    with progress("reading records", None) as advance:
        manifest = run_select(options, advance, on_damage(skip_damaged))
    if as_json:
        print(json.dumps(manifest))  # noqa: T201
        return
    print_result({**manifest["counts"], "training set": str(out)}, as_json=False)
