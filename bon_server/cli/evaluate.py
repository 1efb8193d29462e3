"""Verbs that read logs and say what they show: `bon evaluate ...` and `bon report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from msgspec import Meta

from bon_server.cli.evaluate_tables import Part, compare_tables, curve_tables, headroom_tables, kl_tables
from bon_server.cli.options import AsJson, RewardModelId, SkipDamaged
from bon_server.cli.show import on_damage, progress
from bon_server.options import Positive
from bon_server.terminal import Terminal, print_json

if TYPE_CHECKING:
    from bon_server.evaluate.curve_sums import CurveOptions
    from bon_server.evaluate.reading import Source

app = App(name="evaluate", help="Show reward against KL, and what more samples are worth, from logs.")

Logs = Annotated[tuple[Path, ...], Parameter(name="--log", help="Read the log in this folder. May be repeated.")]
RankBy = Annotated[
    str,
    Parameter(
        help="Choose the best by this: reward, a name from rewards, an added score (bon rescore), length or tokens."
    ),
]
Value = Annotated[
    str | None,
    Parameter(
        help="Report this of the best too: a name from rewards, an added score, length or tokens. Default: nothing."
    ),
]
Merge = Annotated[bool, Parameter(help="Count the requests of one prompt as one.")]
DropTruncated = Annotated[bool, Parameter(help="Leave out candidates that were cut at max_tokens.")]
BootstrapSeed = Annotated[int, Meta(ge=0, le=2**63 - 1), Parameter(help="Draw the bootstrap from this seed.")]
KlName = Annotated[
    Literal["bound", "exact-plugin", "winner-probability"] | None,
    Parameter(
        name="--kl-method",
        help="Compute the KL by this method. Default: exact-plugin where rewards are tied, else bound.",
    ),
]


@app.command(name="curve")
def evaluate_curve(
    *,
    log: Logs,
    rank_by: RankBy = "reward",
    value: Value = None,
    merge: Merge = False,
    reward_model: RewardModelId = None,
    drop_truncated: DropTruncated = False,
    kl_method: KlName = None,
    extrapolate: Annotated[
        Positive | None, Parameter(help="Extrapolate to k beyond the samples, up to this; labelled. Default: do not.")
    ] = None,
    intervals: Annotated[
        bool, Parameter(negative="--no-intervals", help="Give 95 % intervals; without them it is faster.")
    ] = True,
    seed: BootstrapSeed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Show reward, another value, KL and tokens of the best of k, for all k, with 95 % intervals."""
    from bon_server.evaluate.curve import curve

    options = replace(_options(rank_by, value, drop_truncated, kl_method, extrapolate, seed), intervals=intervals)
    with progress("reading records", None) as advance:
        document = curve(_reading(options, log, merge, reward_model, skip_damaged, advance))
    _show(document, as_json, curve_tables)


@app.command(name="kl")
def evaluate_kl(
    *,
    log: Logs,
    reward_model: RewardModelId = None,
    seed: BootstrapSeed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Show how far the given answers are from the policy, in nats, by every figure that is valid for them."""
    from bon_server.evaluate.kl import kl

    with progress("reading records", None) as advance:
        document = kl(_source(log, False, reward_model, skip_damaged, advance), seed)
    _show(document, as_json, kl_tables)


@app.command(name="headroom")
def evaluate_headroom(
    *,
    log: Logs,
    rank_by: RankBy = "reward",
    value: Value = None,
    merge: Merge = False,
    reward_model: RewardModelId = None,
    drop_truncated: DropTruncated = False,
    price_per_1000_tokens: Annotated[
        float | None,
        Parameter(help="Say which n is worth most at this price of 1000 tokens, in reward. Default: no price."),
    ] = None,
    seed: BootstrapSeed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Show whether choosing gains anything, whether the reward finds it, and how many samples it is worth."""
    from bon_server.evaluate.headroom import headroom

    options = _options(rank_by, value, drop_truncated, None, None, seed)
    with progress("reading records", None) as advance:
        reading = _reading(options, log, merge, reward_model, skip_damaged, advance)
        document = headroom(reading, price_per_1000_tokens)
    _show(document, as_json, headroom_tables)


@app.command(name="compare")
def evaluate_compare(
    a: Annotated[Path, Parameter(help="Take the log in this folder as A.")],
    b: Annotated[Path, Parameter(help="Take the log in this folder as B.")],
    /,
    *,
    rank_by: RankBy = "reward",
    value: Value = None,
    reward_model: RewardModelId = None,
    drop_truncated: DropTruncated = False,
    seed: BootstrapSeed = 0,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Compare two logs: B less A on the prompts that both have, paired, at every k."""
    from bon_server.evaluate.compare import compare

    options = _options(rank_by, value, drop_truncated, None, None, seed)
    with progress("reading records", None) as advance:
        reading = _reading(options, [a, b], True, reward_model, skip_damaged, advance)
        document = compare(reading, a, b)
    _show(document, as_json, compare_tables)


def report(
    *,
    log: Logs,
    out: Annotated[Path, Parameter(help="Write the page to this HTML file.")],
    value: Value = None,
    reward_model: RewardModelId = None,
    kl_method: KlName = None,
    texts: Annotated[bool, Parameter(negative="--no-texts", help="Show prompts and completions.")] = True,
    seed: BootstrapSeed = 0,
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
