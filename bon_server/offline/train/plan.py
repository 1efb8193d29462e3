"""What a run is of, before anything is trained: data, policy and options, by which it is told from other runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from bon_server.core.errors import ConfigError, StartupError, TrainingError
from bon_server.models.tokenizer import load_tokenizer
from bon_server.models.weights import ModelFiles, find_model
from bon_server.offline.train.defaults import parameters_of, resolve
from bon_server.offline.train.encoding import Encoder, stop_ids_of
from bon_server.offline.train.examples import Audit, Example, examples_of, split
from bon_server.offline.train.options import TrainOptions
from bon_server.offline.train.sources import TrainingSource, open_source

_WHERE = ("data", "policy", "out", "eval_data")
"""Options that say where something is; what is there counts, by its digest."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One run."""

    options: TrainOptions
    """Resolved, but for `save_steps`."""
    files: ModelFiles
    tokenizer: Any
    encoder: Encoder
    source: TrainingSource
    eval_source: TrainingSource | None
    run: dict[str, Any]
    """What tells it from other runs, and nothing else."""

    @property
    def base_spec(self) -> str:
        """The policy as others can find it: the directory, or the hub id."""
        return self.files.id if "/" in self.files.id else str(self.files.directory)


def make_plan(options: TrainOptions, processes: int) -> TrainingPlan:
    """Looks at data and policy. processes: devices that train together.

    Raises ConfigError, StartupError or TrainingError, as their looks do.
    """
    source = open_source("data", options.data, options.method)
    eval_source = options.eval_data and open_source("eval_data", options.eval_data, options.method)
    files = find_model(str(options.policy))
    tokenizer = load_tokenizer(files.directory)
    encoder = Encoder(tokenizer, files, stop_ids_of(tokenizer, _generation_config(files), files.config))
    resolved = resolve(options, parameters_of(files), encoder.max_model_len, processes)
    settings = {name: value for name, value in asdict(resolved).items() if name not in _WHERE}
    run = {
        "policy": {"id": files.id, "revision": files.revision},
        "data": {"sha256": source.sha256, "eval_sha256": eval_source and eval_source.sha256},
        "options": settings,
        "processes": processes,
    }
    return TrainingPlan(resolved, files, tokenizer, encoder, source, eval_source or None, run)


def _generation_config(files: ModelFiles) -> dict[str, Any]:
    path = files.directory / "generation_config.json"
    with suppress(FileNotFoundError):
        try:
            return dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise StartupError(
                f"model {files.directory}: {path.name} cannot be read ({type(error).__name__})"
            ) from error
    return {}


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a run."""

    train: list[Example]
    held_out: list[Example]
    audit: Audit
    eval_audit: Audit | None
    """Of `eval_data`."""


def read_rows(plan: TrainingPlan) -> Rows:
    """Raises TrainingError: rows that cannot be used, or none that can."""
    options, audit = plan.options, Audit()
    train, held_out = split(_examples(plan, plan.source, audit), options.eval_share, options.seed)
    _check_some("data", train, audit, plan)
    if plan.eval_source is None:
        if options.eval_share and not held_out:
            raise ConfigError(f"eval_share: {options.eval_share} given, but the data holds only one prompt")
        return Rows(train, held_out, audit, None)
    eval_audit = Audit()
    held_out = list(_examples(plan, plan.eval_source, eval_audit))
    _check_some("eval_data", held_out, eval_audit, plan)
    return Rows(train, held_out, audit, eval_audit)


def _examples(plan: TrainingPlan, source: TrainingSource, audit: Audit) -> Iterator[Example]:
    assert plan.options.max_length is not None
    return examples_of(source, plan.encoder, plan.options.max_length, audit)


def _check_some(name: str, examples: list[Example], audit: Audit, plan: TrainingPlan) -> None:
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in audit.left_out.items()) or "the files are empty"
        given = getattr(plan.options, name)
        raise TrainingError(
            f"{name}: {given} has no row to train on, of {audit.rows} ({reasons}); max_length is"
            f" {plan.options.max_length}"
        )


def warnings_of(plan: TrainingPlan, rows: Rows) -> list[str]:
    """What the user should know before the result surprises them: one sentence each."""
    found = [*_off_policy(plan)]
    audit = rows.audit
    if too_long := audit.left_out["too_long"]:
        found.append(
            f"{too_long} of {audit.rows} rows are longer than max_length {plan.options.max_length} and left out"
            f" (the longest has {audit.longest} tokens)"
        )
    if nothing := audit.left_out["nothing_to_learn"]:
        found.append(f"{nothing} of {audit.rows} rows hold nothing to learn and are left out")
    if audit.truncated:
        found.append(
            f"{audit.truncated} completions were cut at max_tokens: they get no end, and teach the policy not to stop"
        )
    if audit.ended_otherwise:
        found.append(
            f"{audit.ended_otherwise} sampled completions end in another token than the policy's own end, as after a"
            " stop text: they do not teach it to stop"
        )
    return found


def _off_policy(plan: TrainingPlan) -> Iterator[str]:
    manifest = plan.source.manifest
    for sampled in manifest["policies"] if manifest is not None else ():
        if sampled["selected"] and sampled["revision"] != plan.files.revision:
            yield (
                f"off-policy: {sampled['share']:.0%} of the data was sampled by {sampled['id']}@{sampled['revision']},"
                f" and the policy to train is {plan.files.id}@{plan.files.revision}"
            )
