"""`bon rescore`."""

from __future__ import annotations

from typing import Annotated

import typer

from bon_server.cli.options import AsJson, ConfigFile, LogDir, Settings, SkipDamaged
from bon_server.cli.show import on_damage, print_result, progress
from bon_server.config import load, parse_assignments


def rescore(
    log: LogDir,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="Reward model, as for bon serve; name=... in front names it. Several score together."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the added score. Default: the model's name, or one made of its id.")
    ] = None,
    config: ConfigFile = None,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
    settings: Settings = [],  # noqa: B006 -- typer copies it
) -> None:
    """Score logged candidates with another reward model, beside the scores they have; also while a server writes.

    The same command goes on with a run that was cut off, and scores what came since. Choose by the new scores with
    bon select --reward NAME, look at them with bon evaluate curve --rank-by NAME.
    """
    from bon_server.offline.rescore import RescoreOptions, count_candidates
    from bon_server.offline.rescore import rescore as run_rescore

    chosen = load(config, flags={"reward.models": reward or None, **parse_assignments(settings)}).reward
    report = on_damage(skip_damaged)
    with progress("scoring candidates", count_candidates(log)) as advance:
        result = run_rescore(RescoreOptions(log, chosen, name), advance, report)
    print_result(dict(result), as_json)
