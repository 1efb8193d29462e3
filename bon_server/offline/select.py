"""`bon select`: choose candidates of a log and write them as a training set.

    pass 1   every record, small columns only ──► filters ──► rule, batch by batch ──► what is kept
    pass 2   the records of what is kept, in log order ──► part-*.jsonl, meta.parquet; manifest.json last

The order of the whole log is (writer, ordinal, candidate index), a writer being the position of a folder among those
given. Both passes read the same prefix of each log, the one that was there at the start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bon_server import __version__
from bon_server.errors import ConfigError, LogError
from bon_server.log.reader import LogReader, Where, refuse_damage
from bon_server.log.record import Record
from bon_server.log.snapshot import open_snapshot
from bon_server.log.where import Ordinals
from bon_server.offline.export import FORMATS, Chosen, export
from bon_server.offline.gather import BATCH_CANDIDATES, Gathering, with_writers
from bon_server.offline.manifest import Filters, Manifest, write_manifest
from bon_server.offline.output_folder import prepare
from bon_server.selection import OfflineRule, Pool, choose
from bon_server.types import Kind, ModelRef


@dataclass(frozen=True, slots=True)
class SelectOptions:
    """What to choose, from where, to where."""

    logs: tuple[Path, ...]
    """Log folders; their order is the first key of the log order."""
    rule: OfflineRule
    out: Path
    """Missing, empty, or left by an earlier run of the same selection."""
    k: int | None = None
    """How many, for the rules that need it."""
    format: str = "trl-sft"
    seed: int = 0
    """Of a control's draw; other rules ignore it."""
    merge: bool = True
    """Whether requests of one prompt count as one."""
    keep_truncated: bool = False
    """Whether candidates that ended at `max_tokens` can be chosen."""
    kinds: tuple[Kind, ...] = (Kind.GENERATE, Kind.IMPORT)
    """Kinds of records to choose from. Scored completions came from somewhere else than the policy."""
    reward_model: str | None = None
    """Only rewards of this model count: `ID` or `ID@REVISION`. Needed when a log holds several."""
    snapshot: str | None = None
    """Choose from exactly the segments that the snapshot of this name pins, in each log. None: from all there is."""


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
    _check(options)
    with ExitStack() as stack:
        readers = [stack.enter_context(_open(log, options.snapshot, on_damage)) for log in options.logs]
        manifest, kept = _choose(options, readers, on_records)
        with prepare(options.out, manifest):
            manifest["outputs"] = export(options.out, _chosen(options, readers, kept))
            write_manifest(options.out, manifest)
    return manifest


def _open(log: Path, snapshot: str | None, on_damage: Callable[[LogError], None]) -> LogReader:
    return LogReader(log, on_damage) if snapshot is None else open_snapshot(log, snapshot, on_damage)


def _check(options: SelectOptions) -> None:
    if not options.logs:
        raise ConfigError("log: none given; at least one folder is needed")
    if len({log.resolve() for log in options.logs}) < len(options.logs):
        raise ConfigError(f"log: {', '.join(map(str, options.logs))} given; each folder may be named once")
    if options.format not in FORMATS:
        raise ConfigError(f"format: {options.format!r} given; allowed are {', '.join(FORMATS)}")
    if options.rule.needs_k and (options.k is None or options.k < 1):
        raise ConfigError(f"k: {options.k} given; the rule {options.rule} needs a number from 1")
    if not options.rule.needs_k and options.k is not None:
        raise ConfigError(f"k: {options.k} given; the rule {options.rule} takes none")


def _choose(
    options: SelectOptions, readers: Sequence[LogReader], on_records: Callable[[int], None]
) -> tuple[Manifest, Pool]:
    """The manifest without outputs, and what the rule keeps, best first for the rules over the whole log."""
    filters = Filters(
        keep_truncated=options.keep_truncated,
        kinds=sorted(kind.value for kind in options.kinds),
        merge=options.merge,
        reward_model=options.reward_model,
    )
    seed = options.seed if options.rule.is_random else None
    gathering = Gathering(readers, filters, seed, on_records)
    kept = Pool.of()
    waiting = Pool.of()
    for pool in gathering.pools():
        waiting = waiting.join(pool)
        # Joining again only when as much is new as was kept makes the whole linear, not quadratic, in the log.
        if len(waiting) >= max(BATCH_CANDIDATES, len(kept)):
            kept, waiting = _keep(options, kept.join(waiting)), Pool.of()
    kept = _keep(options, kept.join(waiting))
    manifest = Manifest(
        rule=options.rule.value,
        format=options.format,
        seed=options.seed,
        k=options.k,
        filters=filters,
        counts=gathering.counts(len(kept)),
        inputs=gathering.inputs,
        outputs=[],
        policies=[{"id": policy, "revision": revision} for policy, revision in sorted(gathering.policies)],
        reward_models=_the_reward_models(gathering.reward_models),
        version=__version__,
    )
    if options.snapshot is not None:
        manifest["snapshot"] = options.snapshot
    return manifest, kept


def _keep(options: SelectOptions, pool: Pool) -> Pool:
    return pool.take(choose(options.rule, pool, options.k))


def _the_reward_models(found: Mapping[str, tuple[ModelRef, ...]]) -> list[dict[str, str]]:
    if len(found) > 1:
        names = " and ".join(name or "(not named)" for name in sorted(found))
        raise LogError(
            f"rewards of different reward models cannot be compared: {names};"
            " choose one with --reward-model, or rescore the log"
        )
    models = next(iter(found.values()), ())
    return [{"name": model.name, "id": model.id, "revision": model.revision} for model in models]


def _chosen(options: SelectOptions, readers: Sequence[LogReader], kept: Pool) -> Iterator[Chosen]:
    """The second pass: what was kept with its record, in log order."""
    wanted: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    places = zip(kept.writer.tolist(), kept.ordinal.tolist(), kept.index.tolist(), strict=True)
    for position, (writer, ordinal, index) in enumerate(places):
        wanted[writer, ordinal].append((index, position + 1 if options.rule.needs_k else 1))
    ordinals: dict[int, set[int]] = defaultdict(set)
    for writer, ordinal in wanted:
        ordinals[writer].add(ordinal)
    for log, (first_writer, reader) in zip(options.logs, with_writers(readers), strict=True):
        writers = range(first_writer, first_writer + len(reader.writers))
        here = Where(ordinals=Ordinals(ordinal for writer in writers for ordinal in ordinals[writer]))
        for (writer, ordinal), record in reader.fields(Record, here):
            for index, rank in sorted(wanted.pop((first_writer + writer, ordinal), [])):
                yield Chosen(str(log), first_writer + writer, record, index, rank)
    if wanted:
        raise LogError(f"{len(wanted)} chosen records left the log while it was being read")
