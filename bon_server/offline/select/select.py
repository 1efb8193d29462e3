"""`bon select`: choose candidates of a log and write them as a training set.

    gather   files of the log      ──► candidates without texts, shuffled by prompt
    choose   prompts               ──► picks, shuffled by place in the log
    export   picks in log order    ──► part-*, meta.parquet; manifest.json last

The order of the whole log is (writer, ordinal, candidate index), writers being counted through the folders as they are
given; the training set has first what is for chats, then texts, each in log order. Every stage reads the same prefix of
each log, the one that was there at the start. What a stage holds in memory does not grow with the log.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bon_server import __version__
from bon_server.core.errors import LogError
from bon_server.log.read.reader import LogReader, refuse_damage
from bon_server.log.read.snapshot import open_snapshot
from bon_server.offline.select.choosing import choose_prompts, merge
from bon_server.offline.select.eligible import exact_name, load_predicate
from bon_server.offline.select.executors import Executor
from bon_server.offline.select.exporting import Export, divide_lines, merged_audit, write_shard
from bon_server.offline.select.gathering import answers, gather, measure, repeated, scales
from bon_server.offline.select.inputs import Inputs, all_inputs, make_plan, manifest_inputs
from bon_server.offline.select.manifest import (
    Counts,
    Manifest,
    ManifestPolicy,
    ManifestRewardModel,
    Output,
    write_manifest,
)
from bon_server.offline.select.options import SelectOptions as SelectOptions
from bon_server.offline.select.options import check
from bon_server.offline.select.output_folder import check_same, finished, is_intact, sweep, working
from bon_server.offline.select.plan import SelectionPlan
from bon_server.offline.select.writing import META_NAME, MetaWriter
from bon_server.system.files import sha256_of, whole_file

Summaries = Sequence[dict[str, Any]]


def select(
    options: SelectOptions,
    on_records: Callable[[int], None] = lambda records: None,
    on_damage: Callable[[LogError], None] = refuse_damage,
) -> Manifest:
    """Writes the training set and returns its manifest; the same options and logs give the same bytes.

    on_records: called with the number of records read so far, for a progress bar. on_damage: called with what cannot
    be read, which is left out when it returns.

    Raises `ConfigError` for options that do not go together and `LogError` when a log cannot be read, its rewards are
    of different models, or `out` holds something else.
    """
    check(options)
    if options.filters.predicate is not None:
        load_predicate(options.filters.predicate)
    there = finished(options.out)
    with ExitStack() as stack:
        readers = [stack.enter_context(_open(log, options.snapshot, on_damage)) for log in options.logs]
        inputs = all_inputs(readers, options.filters.reward)
        asked = _asked(options)
        if there is not None:
            check_same(options.out, there, asked | {"inputs": manifest_inputs(inputs, {})})
            if there["version"] == __version__ and is_intact(options.out, there):
                sweep(options.out)
                return there
        identity = asked | {"inputs": [one.identity() for one in inputs], "version": __version__}
        with working(options.out, there, identity) as work:
            manifest = _Selection(options, asked, inputs, work).run(on_records, on_damage)
            write_manifest(options.out, manifest)
    return manifest


def _open(log: Path, snapshot: str | None, on_damage: Callable[[LogError], None]) -> LogReader:
    return LogReader(log, on_damage) if snapshot is None else open_snapshot(log, snapshot, on_damage)


def _asked(options: SelectOptions) -> dict[str, Any]:
    """What was asked for, as the manifest says it."""
    parameters = asdict(options.the_rule())
    asked = {
        "rule": parameters.pop("name").value,
        "format": options.the_format,
        "seed": options.seed,
        "k": parameters.pop("k"),
        "parameters": parameters,
        "filters": options.filters.as_json(),
        "written": asdict(options.written),
    }
    if options.snapshot is not None:
        asked["snapshot"] = options.snapshot
    as_written: dict[str, Any] = json.loads(json.dumps(asked))
    return as_written


class _Selection:
    """One run, stage by stage."""

    def __init__(self, options: SelectOptions, asked: dict[str, Any], inputs: tuple[Inputs, ...], work: Path) -> None:
        self._asked = asked
        self._inputs = inputs
        self._options = options
        self._executor = Executor(options.engine, options.threads, work)
        self._work = work

    def run(self, on_records: Callable[[int], None], on_damage: Callable[[LogError], None]) -> Manifest:
        """Returns the manifest; all other files are written."""
        plan = self._plan()
        gathered = list(_told(self._run("gather", gather, plan, len(plan.tasks)), on_records, on_damage))
        models = _reward_models(plan, gathered)
        _check_reward(plan, models)
        chosen = list(self._run("choose", choose_prompts, plan, plan.bucket_tasks))
        picked = list(self._run("merge", merge, plan, 1)) if plan.rule.is_overall else chosen
        export = Export(plan, divide_lines(plan, (one["lines"] for one in picked)))
        exported, meta = self._export(export)
        digests: dict[str, list[Any]] = {}
        for one in gathered:
            digests |= one["digests"]
        manifest: Manifest = self._asked | {  # type: ignore[assignment]
            "counts": _counts(gathered, chosen, exported),
            "inputs": manifest_inputs(self._inputs, digests),
            "outputs": [*map(_output, exported), meta],
            "policies": _policies(gathered, exported),
            "reward_models": models,
            "audit": merged_audit(plan, (one["lengths"] for one in exported)),
            "version": __version__,
        }
        return manifest

    def _run(self, stage: str, task: Any, context: Any, count: int) -> Iterator[dict[str, Any]]:
        return self._executor.run(stage, task, context, count)

    def _plan(self) -> SelectionPlan:
        plan = make_plan(self._options, self._inputs, self._work)
        if plan.repeated:
            list(self._run("answers", answers, plan, len(plan.tasks)))
            list(self._run("repeated", repeated, plan, plan.bucket_tasks))
        if plan.filters.normalise:
            measured = self._run("measure", measure, plan, len(plan.tasks))
            plan = replace(plan, scales=scales(measured))
        return plan

    def _export(self, export: Export) -> tuple[Summaries, Output]:
        """The sidecar grows while files are written."""
        path, exported, rows = export.plan.out / META_NAME, [], 0
        with whole_file(path) as file, closing(MetaWriter(file, self._work)) as meta:
            for number, one in enumerate(self._run("export", write_shard, export, len(export.shards))):
                meta.add(number)
                exported.append(one)
                rows += one["selected"]
        return exported, Output(file=META_NAME, role="meta", rows=rows, sha256=sha256_of(path))


def _told(
    summaries: Iterator[dict[str, Any]],
    on_records: Callable[[int], None],
    on_damage: Callable[[LogError], None],
) -> Iterator[dict[str, Any]]:
    """The summaries of the first stage, telling of progress and damage."""
    requests, told = 0, set[str]()
    for one in summaries:
        for text in one["damage"]:  # a file of scores is met again with each segment that it is of
            if text not in told:
                told.add(text)
                on_damage(LogError(text))
        requests += one["requests"]
        on_records(requests)
        yield one


def _reward_models(plan: SelectionPlan, gathered: Summaries) -> list[ManifestRewardModel]:
    """Whose rewards were compared. Raises `LogError` for several, unless they were normalised."""
    found: dict[str, list[list[str]]] = {}
    for one in gathered:
        for refs, count in one["models"]:
            if count:
                found.setdefault(exact_name(tuple((ref[0], ref[1], ref[2]) for ref in refs)), refs)
    if len(found) > 1 and not plan.filters.normalise:
        names = " and ".join(name or "(not named)" for name in sorted(found))
        raise LogError(
            f"rewards of different reward models cannot be compared: {names}; choose one with --reward-model, rescore"
            " the log, or compare how far each is from the mean of its model with --normalise"
        )
    models: list[ManifestRewardModel] = []
    measured = {name: (mean, deviation) for name, mean, deviation in plan.scales}
    for exact, refs in sorted(found.items()):
        for name, model, revision in refs:
            told = ManifestRewardModel(name=name, id=model, revision=revision)
            if exact in measured:
                told["mean"], told["deviation"] = measured[exact]
            models.append(told)
    return models


def _check_reward(plan: SelectionPlan, models: Sequence[ManifestRewardModel]) -> None:
    """Raises `LogError` when no candidate has the reward to choose by."""
    name = plan.filters.reward
    if name is not None and not models and all(log.scorers is None for log in plan.logs):
        raise LogError(
            f"reward: {name!r} given; no log has an added score of this name (bon rescore), and no candidate that could"
            " be chosen has a part of its reward of this name"
        )


def _counts(gathered: Summaries, chosen: Summaries, exported: Summaries) -> Counts:
    dropped: Counter[str] = Counter()
    for one in (*gathered, *chosen):
        dropped.update(one["dropped"])
    candidates = sum(one["candidates"] for one in gathered)
    return Counts(
        requests=sum(one["requests"] for one in gathered),
        prompts=sum(one["prompts"] for one in chosen),
        candidates=candidates,
        eligible=candidates - dropped.total(),
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        selected=sum(one["selected"] for one in exported),
    )


def _policies(gathered: Summaries, exported: Summaries) -> list[ManifestPolicy]:
    candidates: Counter[tuple[str, str]] = Counter()
    selected: Counter[tuple[str, str]] = Counter()
    for summaries, counted in ((gathered, candidates), (exported, selected)):
        for one in summaries:
            for name, revision, count in one["policies"]:
                counted[name, revision] += count
    total = sum(one["selected"] for one in exported)
    return [
        ManifestPolicy(
            id=name,
            revision=revision,
            candidates=candidates[name, revision],
            selected=selected[name, revision],
            share=selected[name, revision] / total if total else 0.0,
        )
        for name, revision in sorted(candidates)
    ]


def _output(exported: dict[str, Any]) -> Output:
    output = Output(file=exported["file"], role="data", rows=exported["rows"], sha256=exported["sha256"])
    if exported["prompts"] is not None:
        output["prompts"] = exported["prompts"]
    return output
