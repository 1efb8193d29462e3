"""Verbs that read logs and say what they show: `bon evaluate ...` and `bon report`.

The tables are what is printed unless JSON is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from msgspec import Meta
from rich.table import Table

from bon_server.cli.options import AsJson, RewardModelId, SkipDamaged
from bon_server.cli.show import on_damage, progress
from bon_server.config.options import Positive
from bon_server.system.terminal import Terminal, print_json

if TYPE_CHECKING:
    from bon_server.evaluate.curve_sums import CurveOptions
    from bon_server.evaluate.reading import LogSource


Part = Table | str


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
    from bon_server.evaluate.report.report import report as write

    options = _options("reward", value, False, kl_method, None, seed)
    with progress("reading records", None) as advance:
        document = write(_reading(options, log, False, reward_model, skip_damaged, advance), out, texts)
    _show(document, as_json, lambda document: [f"{document['out']} written."])


def _options(
    rank_by: str, value: str | None, drop_truncated: bool, kl_method: str | None, extrapolate: int | None, seed: int
) -> CurveOptions:
    from bon_server.evaluate.curve_sums import CurveOptions, KlMethod
    from bon_server.evaluate.reading import LogSource

    return CurveOptions(
        source=LogSource(()),
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


def _source(log: Sequence[Path], merge: bool, reward_model: str | None, skip_damaged: bool, advance: Any) -> LogSource:
    from bon_server.evaluate.reading import LogSource

    return LogSource(tuple(log), merge, reward_model, advance, on_damage(skip_damaged))


def _show(document: dict[str, Any], as_json: bool, as_tables: Callable[[dict[str, Any]], list[Part]]) -> None:
    if as_json:
        print_json(document)
        return
    console = Terminal()
    for part in as_tables(document):
        console.print(part)
    for warning in document.get("warnings", []):
        console.print(f"Note: {warning}.", style="yellow")


def curve_tables(document: dict[str, Any]) -> list[Part]:
    """The curve, a row for each k."""
    value = document["value"]
    of_value = [f"{value} of the best"] if value else []
    tokens = ["tokens"] if any(row["tokens"] for row in document["curve"]) else []
    table = _table("k", "prompts", f"{document['rank_by']} of the best", *of_value, "KL, nats", "bound", *tokens)
    for row in document["curve"]:
        cells = [f"{row['k']}{' *' if row.get('extrapolated') else ''}", str(row["prompts"]), _figure(row, "reward")]
        cells += [_figure(row, "value")] if value else []
        cells += [_number(row["kl_nats"]), _number(row["kl_bound_nats"])]
        cells += [_number(row["tokens"], ".0f")] if tokens else []
        table.add_row(*cells)
    method = next((row["kl_method"] for row in document["curve"] if row["kl_method"]), "none is valid")
    lines: list[Part] = [table, f"\nIntervals: {document['intervals']}. KL: {method}. {_counts(document)}"]
    if any(row.get("extrapolated") for row in document["curve"]):
        lines.append("* extrapolated: samples drawn again from those there are; too low for k far beyond them.")
    return lines


def kl_tables(document: dict[str, Any]) -> list[Part]:
    """KL by way of choosing and n."""
    names = {
        "bound": "bound",
        "exact_plugin": "plug-in",
        "winner_probability": "winner's probability",
        "soft_bound": "bound, soft",
        "any_selection_bound": "log n",
    }
    table = _table("answers", "n", "requests", *names.values())
    for row in document["answers"]:
        figures = [_with_interval(row.get(f"kl_{name}_nats"), row.get(f"kl_{name}_ci")) for name in names]
        table.add_row(row["how"], str(row["n"]), str(row["requests"]), *figures)
    return [table, f"\nKL in nats; reference: {document['reference']}."]


def headroom_tables(document: dict[str, Any]) -> list[Part]:
    """Figures, what each further sample gains, and weeks."""
    table = Table(box=None, show_header=False)
    for name, figure in document.items():
        if isinstance(figure, dict) and "ci" in figure and figure["value"] is not None:
            table.add_row(name.replace("_", " "), _with_interval(figure["value"], figure["ci"]))
    steps = _table("n", "gain of the last sample", "its tokens", "gain per 1000 tokens")
    for step in document["which_n"]["steps"]:
        per_token = _number(step["gain_per_1000_tokens"])
        steps.add_row(str(step["k"]), _figure(step, "gain"), _number(step["tokens"], ".0f"), per_token)
    weeks = _table("week of", "requests", "mean reward")
    for week in document["weeks"]:
        weeks.add_row(week["week_of"], str(week["requests"]), _figure(week, "mean_reward"))
    answers = [f"{name.replace('_', ' ')}: {answer}" for name, answer in document["which_n"].items() if name != "steps"]
    return [table, "", steps, "\n".join(answers), "", weeks, _counts(document)]


def compare_tables(document: dict[str, Any]) -> list[Part]:
    """The difference at each k."""
    value = document["value"]
    of_value = [f"{value}, B - A"] if value else []
    table = _table("k", "prompts", "A", "B", "B - A", *of_value, "B's best beats one of A")
    for row in document["curve"]:
        cells = [str(row["k"]), str(row["prompts"]), _number(row["a"]), _number(row["b"]), _figure(row, "difference")]
        cells += [_figure(row, "value_difference")] if value else []
        table.add_row(*cells, _figure(row, "win_rate"))
    shared = f"{document['prompts']} prompts in both, {document['only_a']} only in A, {document['only_b']} only in B."
    return [table, f"\n{shared} Intervals: 95 %, paired bootstrap over prompts."]


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _counts(document: dict[str, Any]) -> str:
    counts = document["counts"]
    left_out = ", ".join(f"{count} {reason}" for reason, count in counts["left_out"].items() if count)
    unranked = counts["candidates"] - counts["ranked"]
    parts = [f"{counts['requests']} requests", f"{counts['candidates']} candidates"]
    parts += [f"{unranked} of them not used"] if unranked else []
    parts += [f"left out: {left_out}"] if left_out else []
    return ", ".join(parts) + "."


def _figure(row: dict[str, Any], name: str) -> str:
    return _with_interval(row.get(name), row.get(f"{name}_ci"))


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "-"
    return _number(value) if interval is None else f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)
