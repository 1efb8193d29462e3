"""Verbs that read logs and write training sets: `bon select`."""

from __future__ import annotations

from typing import Annotated

from bon_server.cli.options import AsJson, SkipDamaged
from bon_server.cli.show import on_damage, print_result, progress
from bon_server.config.options import FLAT
from bon_server.offline.select.options import SelectOptions
from bon_server.system.terminal import print_json


def select(
    *, options: Annotated[SelectOptions, FLAT], skip_damaged: SkipDamaged = False, as_json: AsJson = False
) -> None:
    """Choose candidates of a log by their rewards and write them as a training set."""
    from bon_server.offline.select.select import select as run

    with progress("reading records", None) as advance:
        manifest = run(options, advance, on_damage(skip_damaged))
    if as_json:
        print_json(manifest)
        return
    print_result({**manifest["counts"], "training set": str(options.out)}, as_json=False)
