"""What `bon evaluate` prints when it is not asked for JSON."""

from __future__ import annotations

from typing import Any

from rich.table import Table

Part = Table | str


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
