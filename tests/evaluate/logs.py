"""Logs to evaluate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bon_server.log.record import Record
from bon_server.log.seal.sealing import seal
from bon_server.log.spool.spool import Spool
from tests.offline.grouped_files import import_lines, line

ODD_LINES = [
    line("ties", [1.0, 1.0, 0.0, 1.0], scores={"gold": [1.0, 0.0, 0.0, 1.0]}),
    line("nulls", [None, 2.0, float("nan"), 3.0, 0.5], scores={"gold": [1.0, 0.0, 1.0, 1.0, None]}),
    line("nothing scored", [None, None], scores={"gold": [1.0, 0.0]}),
    line("one", [0.25], scores={"gold": [0.0]}),
    line(
        "cut",
        [0.5, 1.5, 1.0],
        scores={"gold": [0.0, 0.0, 1.0]},
        finish_reasons=["stop", "length", None],
        responses=["same", "same", "other"],
    ),
]
"""Ties, null and non-finite rewards, a missing score, different numbers of candidates, truncated and equal texts."""


def made_lines(prompts: int, n: int = 6, seed: int = 0, gain: float = 0.0) -> list[dict[str, Any]]:
    """Prompts with a verifiable score and a noisy reward; `gain` is added to the chance of a right answer."""
    draw = random.Random(seed)
    lines = []
    for number in range(prompts):
        chance = min(1.0, 0.15 + 0.5 * (number % 10) / 10 + gain)
        gold = [float(draw.random() < chance) for _ in range(n)]
        lines.append(line(str(number), [one + draw.gauss(0, 0.7) for one in gold], scores={"gold": gold}))
    return lines


def imported(folder: Path, lines: Sequence[dict[str, Any]], name: str = "log", reward_model: str = "rm") -> Path:
    """A log of import lines."""
    import_lines(folder, lines, log=name, reward_model=reward_model)
    return folder / name


def written(folder: Path, records: Sequence[Record], name: str = "log", sealed: bool = True) -> Path:
    """A log of records."""
    with closing(Spool.open(folder / name)) as spool:
        spool.append(records)
        if sealed:
            seal(spool, seal_bytes=1 << 20, replay_window_s=0)
    return folder / name
