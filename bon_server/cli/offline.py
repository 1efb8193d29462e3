"""Verbs that read logs and write training sets: `bon select`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bon_server.cli.options import AsJson, SkipDamaged, Snapshot
from bon_server.cli.show import key_value, on_damage, print_result, progress, text
from bon_server.selection import OfflineRule
from bon_server.terminal import print_json

RULE, FILTER, OUTPUT = "The rule", "What is left out before choosing", "What is written, and how"


def select(
    log: Annotated[list[Path], typer.Option("--log", help="Folder of a log; may be repeated.")],
    rule: Annotated[OfflineRule, typer.Option(help="How to choose; each rule has a random control.")],
    out: Annotated[Path, typer.Option(help="Folder for the training set and its manifest.")],
    k: Annotated[
        int | None, typer.Option("-k", "--k", help="How many, for top-k rules and soft draws.", rich_help_panel=RULE)
    ] = None,
    max_per_prompt: Annotated[
        int | None, typer.Option(help="top-k-overall: at most so many of a prompt.", rich_help_panel=RULE)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="threshold: rewards from here on.", rich_help_panel=RULE)
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(help="threshold: rewards from this quantile of their prompt's on, 0 to 1.", rich_help_panel=RULE),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="pairs: least difference in reward. Default 0.", rich_help_panel=RULE)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="pairs: the best against the worst (default) or random.", rich_help_panel=RULE)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="soft: in units of reward. Default 1.", rich_help_panel=RULE)
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="soft: choose all and weigh them.", rich_help_panel=RULE)
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of random draws.", rich_help_panel=RULE)] = 0,
    merge: Annotated[
        bool, typer.Option(help="Whether requests of one prompt count as one.", rich_help_panel=FILTER)
    ] = True,
    keep_truncated: Annotated[
        bool,
        typer.Option("--keep-truncated", help="Also choose from those cut at max_tokens.", rich_help_panel=FILTER),
    ] = False,
    kind: Annotated[
        list[str],
        typer.Option(help="Kinds of records: generate, import, score. May be repeated.", rich_help_panel=FILTER),
    ] = ["generate", "import"],  # noqa: B006 - Typer copies it
    reward: Annotated[
        str | None,
        typer.Option(
            help="Choose by this reward: an added score (bon rescore), or a part of the logged ones.",
            rich_help_panel=RULE,
        ),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option(help="Only rewards of this model count: ID or ID@REVISION.", rich_help_panel=FILTER),
    ] = None,
    normalise: Annotated[
        bool,
        typer.Option(
            "--normalise", help="Compare rewards by their model's mean and deviation.", rich_help_panel=FILTER
        ),
    ] = False,
    since: Annotated[
        datetime | None, typer.Option(help="Only requests from then on; UTC.", rich_help_panel=FILTER)
    ] = None,
    until: Annotated[datetime | None, typer.Option(help="Only requests before; UTC.", rich_help_panel=FILTER)] = None,
    principal: Annotated[
        list[str], typer.Option(help="Only this caller's. May be repeated.", rich_help_panel=FILTER)
    ] = [],  # noqa: B006
    tag: Annotated[
        list[str], typer.Option(help="Only with this tag, KEY=VALUE. May be repeated.", rich_help_panel=FILTER)
    ] = [],  # noqa: B006
    policy: Annotated[
        list[str],
        typer.Option(help="Only of this policy, ID or ID@REVISION. May be repeated.", rich_help_panel=FILTER),
    ] = [],  # noqa: B006
    min_tokens: Annotated[
        int | None, typer.Option(help="Of the completion, as logged.", rich_help_panel=FILTER)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Of the completion, as logged.", rich_help_panel=FILTER)
    ] = None,
    min_chars: Annotated[int | None, typer.Option(help="Of the completion.", rich_help_panel=FILTER)] = None,
    max_chars: Annotated[int | None, typer.Option(help="Of the completion.", rich_help_panel=FILTER)] = None,
    predicate: Annotated[
        str | None,
        typer.Option(help="module:function, called with record and candidate; false: out.", rich_help_panel=FILTER),
    ] = None,
    duplicates: Annotated[
        str, typer.Option(help="Equal texts of a prompt: keep, exact, normalised.", rich_help_panel=FILTER)
    ] = "keep",
    min_n: Annotated[
        int | None, typer.Option(help="Only prompts with so many candidates left.", rich_help_panel=FILTER)
    ] = None,
    min_spread: Annotated[
        float | None,
        typer.Option(help="Only prompts whose rewards are so far apart, best from worst.", rich_help_panel=FILTER),
    ] = None,
    snapshot: Snapshot = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="trl-sft (default), trl-tokens, trl-dpo (default of pairs), trl-kto, messages, openai, openai-dpo,"
            " sharegpt, grouped, parquet.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    compression: Annotated[
        str, typer.Option(help="Of JSONL files: none, gzip, zstd.", rich_help_panel=OUTPUT)
    ] = "none",
    shard_rows: Annotated[int, typer.Option(help="Lines of a file.", rich_help_panel=OUTPUT)] = 50_000,
    max_length: Annotated[
        int | None, typer.Option(help="Count what a trainer would cut at so many tokens.", rich_help_panel=OUTPUT)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of the tokenizer to count with. Default: as logged.", rich_help_panel=OUTPUT),
    ] = None,
    engine: Annotated[str, typer.Option(help="local or ray.", rich_help_panel=OUTPUT)] = "local",
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="How many tasks at a time.", rich_help_panel=OUTPUT)
    ] = 2,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Choose candidates of a log by their rewards and write them as a training set."""
    from bon_server.offline.options import Filters, Written
    from bon_server.offline.select import SelectOptions
    from bon_server.offline.select import select as run_select

    options = SelectOptions(
        logs=tuple(log),
        rule=rule,
        out=out,
        k=k,
        format=file_format,
        seed=seed,
        max_per_prompt=max_per_prompt,
        threshold=threshold,
        quantile=quantile,
        margin=margin,
        against=against,
        temperature=temperature,
        weights=weights,
        snapshot=snapshot,
        filters=Filters(
            keep_truncated=keep_truncated,
            kinds=tuple(sorted(kind)),
            merge=merge,
            reward=reward,
            reward_model=reward_model,
            normalise=normalise,
            since=since and since.replace(tzinfo=UTC),
            until=until and until.replace(tzinfo=UTC),
            principals=tuple(principal),
            tags=tuple(map(key_value, tag)),
            policies=tuple(policy),
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            min_chars=min_chars,
            max_chars=max_chars,
            predicate=predicate,
            duplicates=duplicates,
            min_n=min_n,
            min_spread=min_spread,
        ),
        written=Written(
            compression=compression, shard_rows=shard_rows, max_length=max_length, tokenizer=text(tokenizer)
        ),
        engine=engine,
        threads=threads,
    )
    with progress("reading records", None) as advance:
        manifest = run_select(options, advance, on_damage(skip_damaged))
    if as_json:
        print_json(manifest)
        return
    print_result({**manifest["counts"], "training set": str(out)}, as_json=False)
