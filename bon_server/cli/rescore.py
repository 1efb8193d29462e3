"""`bon rescore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bon_server.cli.options import AsJson, ConfigFile, LogDir, Settings, SkipDamaged
from bon_server.cli.settings import given, settings_flags
from bon_server.cli.show import on_damage, print_result, progress
from bon_server.config.options import FLAT
from bon_server.config.settings import load, parse_assignments

if TYPE_CHECKING:
    RewardFlags = object
else:
    RewardFlags = settings_flags({"reward.models": "--reward"})


def rescore(
    *,
    log: LogDir,
    flags: Annotated[RewardFlags, FLAT] = RewardFlags(),
    name: Annotated[
        str | None,
        Parameter(help="Give the added score this name. Default: the model's name, or one made of its id."),
    ] = None,
    config: ConfigFile = None,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
    settings: Settings = (),
) -> None:
    """Score logged candidates with another reward model, beside the scores they have; also while a server writes.

    The same command goes on with a run that was cut off, and scores what came since. Choose by the new scores with
    bon select --reward NAME, look at them with bon evaluate curve --rank-by NAME.
    """
    from bon_server.offline.rescore.rescore import RescoreOptions, count_candidates
    from bon_server.offline.rescore.rescore import rescore as run

    chosen = load(config, flags={**given(flags), **parse_assignments(settings)}).reward
    report = on_damage(skip_damaged)
    with progress("scoring candidates", count_candidates(log)) as advance:
        result = run(RescoreOptions(log, chosen, name), advance, report)
    print_result(dict(result), as_json)
