"""`bon rounds`: harvest, select, train, evaluate, k times over.

    policy 0 ──► evaluate
    policy r-1 ──► harvest ──► select, from the logs of all rounds so far ──► train ──► policy r
    policy r ──► evaluate ──► stop?

Every step is skipped when its result is there, so the same command goes on from wherever it was cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bon_server import __version__
from bon_server.log.lock import WriterLock
from bon_server.log.whole_file import make_folder
from bon_server.rounds.folder import OPTIONS_NAME, ROUNDS_NAME, Round, fix_options, link_best, round_of, write_json
from bon_server.rounds.held_out import SAMPLED
from bon_server.rounds.options import RoundsOptions, check
from bon_server.rounds.overlap import refuse_overlap
from bon_server.rounds.steps import Status, evaluate_step, harvest_step, select_step, train_step
from bon_server.rounds.stopping import Point, best_round, why_stop

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
