"""Verbs that read logs and say what they show: `bon evaluate ...` and `bon report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bon_server.cli.evaluate_tables import Part, compare_tables, curve_tables, headroom_tables, kl_tables
from bon_server.cli.options import AsJson, SkipDamaged
from bon_server.cli.show import on_damage, progress
from bon_server.errors import ConfigError
from bon_server.terminal import Terminal, print_json

if TYPE_CHECKING:
    from bon_server.evaluate.curve_sums import CurveOptions
    from bon_server.evaluate.reading import Source

app = typer.Typer(help="Reward against KL, and what more samples are worth, from logs.", no_args_is_help=True)

Logs = Annotated[list[Path], typer.Option("--log", help="Folder of a log; may be repeated.")]
RankBy = Annotated[
    str, typer.Option(help="What the best is best in: reward, a name from rewards, an added score, length, tokens.")
]
Value = Annotated[
    str | None, typer.Option(help="Also report this of the best: a name from rewards, an added score, length, tokens.")
]
Merge = Annotated[bool, typer.Option("--merge", help="Requests of one prompt count as one.")]
OneRewardModel = Annotated[str | None, typer.Option(help="Only rewards of this model count: ID or ID@REVISION.")]
DropTruncated = Annotated[bool, typer.Option("--drop-truncated", help="Leave out candidates cut at max_tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
KlName = Annotated[
    str | None,
    typer.Option(
        "--kl-method",
        help="bound, exact-plugin or winner-probability. Default: exact-plugin where rewards are tied, else bound.",
    ),
]


@app.command("curve")
def evaluate_curve(
    log: Logs,
    rank_by: RankBy = "reward",
    value: Value = None,
    merge: Merge = False,
    reward_model: OneRewardModel = None,
    drop_truncated: DropTruncated = False,
    kl_method: KlName = None,
    extrapolate: Annotated[int | None, typer.Option(help="Also k beyond the samples, up to this; labelled.")] = None,
    intervals: Annotated[bool, typer.Option(help="Whether 95 % intervals are given; faster without.")] = True,
    seed: Seed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Reward, another value, KL and tokens of the best of k, for all k, with 95 % intervals."""
    from bon_server.evaluate.curve import curve

    options = replace(_options(rank_by, value, drop_truncated, kl_method, extrapolate, seed), intervals=intervals)
    with progress("reading records", None) as advance:
        document = curve(_reading(options, log, merge, reward_model, skip_damaged, advance))
    _show(document, as_json, curve_tables)


@app.command("kl")
def evaluate_kl(
    log: Logs,
    reward_model: OneRewardModel = None,
    seed: Seed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """How far the answers given are from the policy, in nats, by every figure that is valid for them."""
    from bon_server.evaluate.kl import kl

    with progress("reading records", None) as advance:
        document = kl(_source(log, False, reward_model, skip_damaged, advance), seed)
    _show(document, as_json, kl_tables)


@app.command("headroom")
def evaluate_headroom(
    log: Logs,
    rank_by: RankBy = "reward",
    value: Value = None,
    merge: Merge = False,
    reward_model: OneRewardModel = None,
    drop_truncated: DropTruncated = False,
    price_per_1000_tokens: Annotated[float | None, typer.Option(help="In reward: says which n is worth most.")] = None,
    seed: Seed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Is there anything to gain from choosing, does the reward find it, and how many samples is it worth?"""
    from bon_server.evaluate.headroom import headroom

    options = _options(rank_by, value, drop_truncated, None, None, seed)
    with progress("reading records", None) as advance:
        reading = _reading(options, log, merge, reward_model, skip_damaged, advance)
        document = headroom(reading, price_per_1000_tokens)
    _show(document, as_json, headroom_tables)


@app.command("compare")
def evaluate_compare(
    a: Annotated[Path, typer.Argument(help="Folder of a log.")],
    b: Annotated[Path, typer.Argument(help="Folder of another.")],
    rank_by: RankBy = "reward",
    value: Value = None,
    reward_model: OneRewardModel = None,
    drop_truncated: DropTruncated = False,
    seed: Seed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """B less A on the prompts that both have, paired, at every k."""
    from bon_server.evaluate.compare import compare

    options = _options(rank_by, value, drop_truncated, None, None, seed)
    with progress("reading records", None) as advance:
        reading = _reading(options, [a, b], True, reward_model, skip_damaged, advance)
        document = compare(reading, a, b)
    _show(document, as_json, compare_tables)


def report(
    log: Logs,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    value: Value = None,
    reward_model: OneRewardModel = None,
    kl_method: KlName = None,
    texts: Annotated[bool, typer.Option(help="Whether prompts and completions are shown.")] = True,
    seed: Seed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page that shows what a log holds: gains, KL, length bias, examples, counts."""
    from bon_server.evaluate.report import report as write

    options = _options("reward", value, False, kl_method, None, seed)
    with progress("reading records", None) as advance:
        document = write(_reading(options, log, False, reward_model, skip_damaged, advance), out, texts)
    _show(document, as_json, lambda document: [f"{document['out']} written."])


def _options(
    rank_by: str, value: str | None, drop_truncated: bool, kl_method: str | None, extrapolate: int | None, seed: int
) -> CurveOptions:
    from bon_server.evaluate.curve_sums import CurveOptions, KlMethod
    from bon_server.evaluate.reading import Source

    allowed = [method.value for method in KlMethod]
    if kl_method is not None and kl_method not in allowed:
        raise ConfigError(f"kl-method: {kl_method!r} given; allowed are {', '.join(allowed)}")
    return CurveOptions(
        source=Source(()),
        rank_by=rank_by,
        value=value,
        kl_method=None if kl_method is None else KlMethod(kl_method),
        drop_truncated=drop_truncated,
        extrapolate=extrapolate,
        seed=seed,
    )


def _reading(
    options: CurveOptions, log: Sequence[Path], merge: bool, reward_model: str | None, skip_damaged: bool, advance: Any
) -> CurveOptions:
    return replace(options, source=_source(log, merge, reward_model, skip_damaged, advance))


def _source(log: Sequence[Path], merge: bool, reward_model: str | None, skip_damaged: bool, advance: Any) -> Source:
    from bon_server.evaluate.reading import Source

    return Source(tuple(log), merge, reward_model, advance, on_damage(skip_damaged))


def _show(document: dict[str, Any], as_json: bool, as_tables: Callable[[dict[str, Any]], list[Part]]) -> None:
    if as_json:
        print_json(document)
        return
    console = Terminal()
    for part in as_tables(document):
        console.print(part)
    for warning in document.get("warnings", []):
        console.print(f"Note: {warning}.", style="yellow")
