"""`bon rounds`: harvest, select, train, evaluate, k times over.

    policy 0 ──► evaluate
    policy r-1 ──► harvest ──► select, from the logs of all rounds so far ──► train ──► policy r
    policy r ──► evaluate ──► stop?

Every step is skipped when its result is there, so the same command goes on from wherever it was cut off. Prompts that
are in both files are refused: what was trained on says nothing of what was learned.

Three things end the rounds, looked at in this order:

    diversity   distinct-n or entropy of the held-out samples is below its share of the first policy's
    fell        the held-out reward is below the best before by more than the 95 % interval of their paired difference
    patience    so many rounds in a row without a new best

Which of them holds, and which round is kept, are pure functions of the figures of each round.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bon_server import __version__
from bon_server.core.errors import ConfigError
from bon_server.loop.harvest.lines import line_parts
from bon_server.loop.harvest.prompts import BadPromptLine, Columns, find_prompts
from bon_server.loop.rounds.evaluation import SAMPLED
from bon_server.loop.rounds.folder import OPTIONS_NAME, ROUNDS_NAME, Round, fix_options, link_best, round_of, write_json
from bon_server.loop.rounds.options import RoundsOptions, Stops, check
from bon_server.loop.rounds.steps import Status, evaluate_step, harvest_step, select_step, train_step
from bon_server.system.files import make_folder
from bon_server.system.lock import WriterLock


def refuse_overlap(prompts: Path, held_out: Path, columns: Columns) -> None:
    """Raises `ConfigError` when held-out prompts are trained on as well. Bad lines are left to the harvest."""
    apart = set(_digests(held_out, columns))
    shared = apart.intersection(_digests(prompts, columns))
    if shared:
        raise ConfigError(
            f"held_out: {len(shared)} of {len(apart)} prompts in {held_out} are in {prompts} too; leave them out"
        )


def _digests(prompts: Path, columns: Columns) -> Iterator[bytes]:
    """16 bytes of each prompt's words; a string is a chat of one user message."""
    for line in find_prompts(prompts).lines(columns):
        with suppress(BadPromptLine):
            prompt = line_parts(line.content, columns).get("prompt")
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            yield hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).digest()[:16]


@dataclass(frozen=True, slots=True)
class Point:
    """What one round came to, on held-out prompts; the first is the policy that the rounds began with."""

    reward: float
    """Mean of the samples."""
    below_best: bool = False
    """Whether it is below the best round before by more than the interval of the difference."""
    variety: Mapping[str, float] = field(default_factory=dict)
    """distinct_1, distinct_2, distinct_3 and entropy_nats, as far as they are known."""


def tripped(points: Sequence[Point], number: int, stops: Stops) -> str | None:
    """Which figure of a round's diversity is too low, in words; None: none is."""
    for name, there in points[number].variety.items():
        share = stops.min_entropy if name == "entropy_nats" else stops.min_distinct
        least = share * points[0].variety.get(name, math.nan)
        if there < least:
            return f"{name} fell to {there:.3g}, below {share:g} of the first policy's {points[0].variety[name]:.3g}"
    return None


def best_round(points: Sequence[Point], stops: Stops) -> int:
    """The round with the highest reward of those that are varied enough; of equals the earliest."""
    varied = [number for number in range(len(points)) if tripped(points, number, stops) is None]
    return max(varied, key=lambda number: (points[number].reward, -number))


def why_stop(points: Sequence[Point], stops: Stops) -> str | None:
    """Why the last of these rounds ends it, in words; None: go on."""
    last = len(points) - 1
    if last == 0:
        return None
    too_low = tripped(points, last, stops)
    if too_low is not None:
        return f"diversity: {too_low}"
    if points[last].below_best:
        before = best_round(points[:-1], stops)
        return f"fell: the held-out reward fell to {points[last].reward:.4g} from {points[before].reward:.4g}"
    best = best_round(points, stops)
    if last - best >= stops.patience:
        return f"patience: {last - best} rounds without a held-out reward above {points[best].reward:.4g}"
    return None


OnRound = Callable[[dict[str, Any]], None]


def run_rounds(
    options: RoundsOptions, status: Status = lambda _: None, on_round: OnRound = lambda _: None
) -> dict[str, Any]:
    """Runs what is still to be run, and returns the content of `rounds.json`.

    on_round: called with it after each round. Raises ConfigError for options that are not allowed, LogError when the
    folder holds another run or another process works there, RoundFailed for a step that cannot be done, and what the
    steps raise.
    """
    check(options)
    make_folder(options.out)
    lock = WriterLock(options.out)
    try:
        if not (options.out / OPTIONS_NAME).exists():
            refuse_overlap(options.prompts, options.held_out, options.asking.columns)
        fix_options(options.out, options.identity())
        return _Run(options, status).go(on_round)
    finally:
        lock.release()


class _Run:
    """The rounds so far."""

    def __init__(self, options: RoundsOptions, status: Status) -> None:
        self._options = options
        self._status = status
        self._rounds: list[Round] = []
        self._told: list[dict[str, Any]] = []
        """Of each round, what rounds.json says."""
        self._points: list[Point] = []

    def go(self, on_round: OnRound) -> dict[str, Any]:
        """Round after round until one says stop."""
        for number in range(self._options.rounds + 1):
            told = self._round(round_of(self._options.out, number))
            self._told.append(told)
            self._points.append(_point(told["evaluation"]))
            stopped = why_stop(self._points, self._options.stops)
            document = self._document(stopped)
            write_json(self._options.out / ROUNDS_NAME, document)
            link_best(self._options.out, document["best"]["policy"])
            on_round(document)
            if stopped is not None:
                break
        return document

    def _round(self, this: Round) -> dict[str, Any]:
        told: dict[str, Any] = {"round": this.number, "policy": self._name(this.number)}
        if this.number == 0:
            told["evaluation"] = evaluate_step(self._options, this, self._path(0), [], self._status)
        else:
            last = self._path(this.number - 1)
            told["harvest"] = harvest_step(self._options, this, last, self._status)["train"]
            told["selected"] = select_step(self._options, this, self._rounds[1:], self._status)
            began = self._options.policy if self._options.start_from == "base" else last
            trained = train_step(self._options, this, began, self._status)
            told["training"] = {"from": began, "metrics": trained.get("metrics")}
            best = best_round(self._points, self._options.stops)
            against = [self._rounds[0], self._rounds[best]]
            told["evaluation"] = evaluate_step(self._options, this, str(this.policy), against, self._status)
        self._rounds.append(this)
        return told

    def _document(self, stopped: str | None) -> dict[str, Any]:
        best = best_round(self._points, self._options.stops)
        return {
            "rounds": self._told,
            "best": {"round": best, "policy": self._name(best)},
            "stopped": stopped,
            "finished": stopped is not None or len(self._told) > self._options.rounds,
            "version": __version__,
        }

    def _name(self, number: int) -> str:
        """A policy as rounds.json names it: the first as it was given, others relative to the folder."""
        if number == 0:
            first = Path(self._options.policy)
            return str(first.resolve()) if first.is_dir() else self._options.policy
        return f"round-{number:02d}/policy"

    def _path(self, number: int) -> str:
        """A policy as a server takes it."""
        return self._options.policy if number == 0 else str(self._rounds[number].policy)


def _point(evaluation: dict[str, Any]) -> Point:
    sampled = evaluation["held_out"][SAMPLED]
    below = (evaluation.get("against_best", {}).get(SAMPLED, {}).get("reward") or {}).get("ci")
    names = ("distinct_1", "distinct_2", "distinct_3", "entropy_nats")
    return Point(
        reward=sampled["reward"]["mean"],
        below_best=below is not None and below[1] < 0,
        variety={name: sampled[name]["mean"] for name in names if sampled[name] is not None},
    )
