"""`bon report`: what a log shows, as one HTML file that needs nothing else.

The curve and headroom are of the whole log; histogram, length bias, likings and examples are of a sample of its
requests, always the same ones (`sample`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server import __version__
from bon_server.core.errors import ConfigError
from bon_server.core.types import Sampling
from bon_server.evaluate.curve import curve
from bon_server.evaluate.curve_sums import CurveOptions
from bon_server.evaluate.headroom import headroom
from bon_server.evaluate.report import charts, likes, page
from bon_server.evaluate.report.page import interval, number, share, with_interval
from bon_server.evaluate.report.sample import SampledRequest, sample_requests
from bon_server.system.files import whole_file

Document = dict[str, Any]
EXAMPLES = 4


def report(options: CurveOptions, out: Path, with_texts: bool = True) -> Document:
    """Writes the page and returns what it says in figures: the documents of curve and headroom.

    out: the file, replaced when it is there. with_texts: whether prompts, completions and their words are shown.
    Raises `ConfigError` without matplotlib, and as `curve` does.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("bon report draws with matplotlib: install bon-server with its extra [report]")
    at_k, room = curve(options), headroom(options)
    requests = sample_requests(options.source, stopped=at_k["sample"] == "stopped", scores=tuple(at_k["scores"]))
    models = ", ".join(_shortened(name) for name in at_k["reward_models"]) or "(none)"
    title = "Best-of-n report: " + ", ".join(log.resolve().name for log in options.source.logs)
    lead = f"{at_k['prompts']:,} requests · rewards of {models} · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    written = page.page(title, lead, _parts(options, at_k, room, requests, with_texts))
    with whole_file(out) as file:
        file.write(written.encode())
    return {"out": str(out), "curve": at_k, "headroom": room}


def _parts(
    options: CurveOptions, at_k: Document, room: Document, requests: Sequence[SampledRequest], with_texts: bool
) -> Iterator[str]:
    rows, value = [row for row in at_k["curve"] if not row.get("extrapolated")], options.value
    yield _summary(rows, room, value)
    yield from (page.paragraph(f"{warning}.", "note") for warning in at_k["warnings"])
    curves = [*_curves(rows, value, at_k["intervals"])]
    yield page.section("What choosing gains", page.pictures(curves), _fit(at_k["fit"], value))
    yield page.section("Which n is worth it", _which_n(rows, room, value))
    shown = page.pictures(_rewards(requests), first=1 + len(curves))
    yield page.section("The rewards", shown, _quality(room, value))
    if with_texts:
        logged = [request for request in requests if request.content_logged]
        yield page.section("What the reward model seems to like", *_likings(logged))
        examples = [page.example(request, value) for request in logged[:EXAMPLES]]
        note = (
            "The answer with the most reward beside the one with the least, for requests taken without looking: by a"
            " digest of their ids."
        )
        yield page.section("Winners and losers", page.paragraph(note, "soft"), *examples)
        wrong = [page.example(request, value) for request in _misjudged(logged, value)]
        yield page.section(f"Where the winner has less {value} than the loser", *wrong)
    yield page.section("Counts and provenance", _provenance(options, at_k, room, requests))


def _summary(rows: Sequence[Document], room: Document, value: str | None) -> str:
    first, last = rows[0], rows[-1]
    n = last["k"]
    figures = [
        ("reward of one sample", *_both(first, "reward")),
        (f"reward of the best of {n}", *_both(last, "reward")),
    ]
    if value is not None and last.get("value") is not None:
        oracle = room["value_of_oracle"]["value"]
        figures += [
            (f"{value} of one sample", *_both(first, "value")),
            (f"{value} of the best of {n}", *_both(last, "value")),
            (f"{value} of the best possible", number(oracle), "if every choice were right"),
        ]
    if last["kl_nats"] is not None:
        figures.append((f"KL of best-of-{n} to the policy, nats", number(last["kl_nats"]), _KL[last["kl_method"]]))
    return page.cards(figures)


def _both(row: Document, name: str) -> tuple[str, str]:
    around = row[f"{name}_ci"]
    return number(row[name], around), f"95 % interval {interval(around)}" if around else "no interval"


_KL = {
    "bound": "bound for rewards without ties",
    "exact-plugin": "exact for the rewards seen",
    "winner-probability": "from the winners' probabilities",
}


def _curves(rows: Sequence[Document], value: str | None, intervals: str) -> Iterator[tuple[str, str]]:
    band = f"Band: 95 % interval for the mean over prompts ({intervals.removeprefix('95 %, ')}), at each k by itself."
    yield (
        charts.over_k(rows, "reward", "reward", charts.BLUE),
        f"Reward of the best of k samples, expected over all ways to draw k of those in the log. {band}",
    )
    valued = [row for row in rows if row.get("value") is not None]
    if value is not None and valued:
        caption = (
            f"Mean {value} of the answer with the most reward among k. Where it falls while reward rises, the reward"
            " is over-optimised. Band as before."
        )
        yield charts.over_k(valued, "value", value, charts.ORANGE), caption
        caption = (
            f"Mean {value} against the mean reward that was optimised, a point for each k. Where it bends down, more"
            f" choosing does harm. Band: 95 % interval of {value}."
        )
        yield charts.value_against_reward(valued, value), caption
    if any(row["kl_nats"] is not None for row in rows):
        method = next(row["kl_method"] for row in rows if row["kl_method"])
        shown = value if valued else None
        caption = (
            "What is gained for how far the answers move from the policy, a point for each k. KL:"
            f" {_KL[method]} ({method}). Bands: 95 % intervals of the means."
        )
        yield charts.frontier(valued if shown else rows, shown), caption


def _fit(fit: Document | None, value: str | None) -> str:
    if fit is None:
        return ""
    turn = fit["turning_point_kl_nats"]
    where = fit["turning_point"] if turn is None else f"it turns at a KL of {turn:.3g} nats"
    alpha, beta = (with_interval(fit[name], fit[f"{name}_ci"]) for name in ("alpha", "beta"))
    return page.paragraph(
        f"Fit of Gao et al. 2022 to the gain in {value}, R(d) = d (α − β d) with d = √KL: α = {alpha}, β = {beta};"
        f" {where}.",
        "soft",
    )


def _which_n(rows: Sequence[Document], room: Document, value: str | None) -> str:
    steps = {step["k"]: step for step in room["which_n"]["steps"]}
    headings = ["n", "prompts", "reward", *([value] if value else []), "KL, nats", "tokens", "gain of the last sample"]
    cells = []
    for row in rows:
        if row["k"] & (row["k"] - 1) and row is not rows[-1]:
            continue
        shown = [str(row["k"]), f"{row['prompts']:,}", _with_interval(row, "reward")]
        shown += [_with_interval(row, "value")] if value else []
        tokens = "–" if row["tokens"] is None else f"{row['tokens']:,.0f}"
        gain = steps.get(row["k"])
        cells.append([*shown, number(row["kl_nats"]), tokens, "–" if gain is None else _with_interval(gain, "gain")])
    enough = room["which_n"]["n_for_90_percent_of_gain"]
    note = f"90 % of the gain in reward is there at n = {enough}. In brackets: 95 % intervals."
    return page.table(headings, cells) + page.paragraph(note)


def _rewards(requests: Sequence[SampledRequest]) -> Iterator[tuple[str, str]]:
    if not requests:
        return
    rewards = np.array([one.reward for request in requests for one in request.scored], dtype=np.float64)
    winners = np.array([request.scored[0].reward for request in requests], dtype=np.float64)
    caption = (
        f"Rewards of all {len(rewards):,} scored candidates of {len(requests):,} requests, and of the best of each."
        " Both areas are 1."
    )
    yield charts.histogram(rewards, winners), caption
    lengths, centred = _within_prompts(requests)
    if len(lengths) and np.ptp(lengths) > 0:
        caption = (
            "Reward against length among answers to the same prompt, in tenths of the lengths. Level: length does not"
            " matter; rising: longer answers get more. Bars: 95 % intervals, candidates taken as independent."
        )
        yield charts.length_bias(lengths, centred), caption


def _within_prompts(requests: Sequence[SampledRequest]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lengths and rewards of all candidates, each less the mean of its request."""
    lengths, rewards = [np.empty(0)], [np.empty(0)]
    for request in requests:
        if request.content_logged:
            length = np.array([len(one.text) for one in request.scored], dtype=np.float64)
            reward = np.array([one.reward for one in request.scored], dtype=np.float64)
            lengths.append(length - length.mean())
            rewards.append(reward - reward.mean())
    return np.concatenate(lengths), np.concatenate(rewards)


def _quality(room: Document, value: str | None) -> str:
    names = {
        "prompts_with_spread": "prompts whose answers differ in reward",
        "reward_length_correlation": "correlation of reward and length within prompts",
        "prompts_tied_for_best": "prompts in which several answers share the best reward",
        "duplicates": "answers that repeat an earlier one of their prompt",
        "truncated": "answers cut at max_tokens",
        "winners_truncated": "winners cut at max_tokens",
    }
    if value is not None:
        names |= {
            "pair_accuracy": f"pairs with different {value} that the reward puts in the right order",
            "prompts_where_it_matters": f"prompts whose answers differ in {value}",
            "right_where_it_matters": f"there, the winner has the highest {value}",
            "random_right_where_it_matters": "there, a random answer has it",
        }
    rows = [
        (what, (with_interval if name in _NO_SHARES else share)(room[name]["value"], room[name]["ci"]))
        for name, what in names.items()
    ]
    return page.table(["", "figure [95 % interval]"], [row for row in rows if row[1] != "–"])


_NO_SHARES = ("reward_length_correlation",)


def _likings(requests: Sequence[SampledRequest]) -> Iterator[str]:
    shapes, words = likes.features(requests), likes.words(requests)
    if not shapes and not words:
        yield page.paragraph("Nothing stands out: winners and the other answers to their prompts look alike.")
        return
    yield page.paragraph(
        "What winners have more or less often than the other answers to the same prompts, by three standard errors."
        " Many things are compared, so look for what a person would not reward.",
        "soft",
    )
    both = page.likings("Form", shapes, quoted=False) + page.likings("Words", words, quoted=True)
    yield f'<div class="grid">{both}</div>'


def _misjudged(requests: Sequence[SampledRequest], value: str | None) -> list[SampledRequest]:
    """Some requests whose winner is worse in value than the answer with the least reward."""
    if value is None:
        return []
    found = [
        request
        for request in requests
        if request.scored[0].rewards.get(value, np.inf) < request.scored[-1].rewards.get(value, -np.inf)
    ]
    return found[: EXAMPLES // 2]


def _provenance(options: CurveOptions, at_k: Document, room: Document, requests: Sequence[SampledRequest]) -> str:
    counts = at_k["counts"]
    policies = sorted({f"{one.policy.id}@{one.policy.revision[:12]}" for one in requests if one.policy is not None})
    settings = sorted({_settings(one.sampling) for one in requests if one.sampling is not None})
    weeks = [week["week_of"] for week in room["weeks"]]
    pairs: list[tuple[str, object]] = [
        ("logs", ", ".join(str(log) for log in options.source.logs)),
        ("requests read", f"{counts['requests']:,}, of them used {at_k['prompts']:,}"),
        ("candidates", f"{counts['candidates']:,}, of them with a reward {counts['ranked']:,}"),
        *((f"left out: {reason}", f"{count:,} requests") for reason, count in counts["left_out"].items() if count),
        ("reward models", ", ".join(name or "(not named)" for name in at_k["reward_models"])),
        *((f"added score: {name}", model) for name, model in at_k["scores"].items()),
        ("policies", ", ".join(policies) or "not in the log"),
        ("sampling", "; ".join(settings) or "not in the log"),
        ("weeks of", f"{weeks[0]} to {weeks[-1]}" if len(weeks) > 1 else "".join(weeks)),
        ("intervals", at_k["intervals"]),
        ("made by", f"bon-server {__version__}"),
    ]
    return page.definitions(pairs)


def _settings(sampling: Sampling) -> str:
    return f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, at most {sampling.max_tokens} tokens"


def _shortened(model: str) -> str:
    """The name of a reward model with no more than the start of a digest."""
    name, at, revision = model.partition("@")
    return f"{name}{at}{revision[:12]}" or "(not named)"


def _with_interval(row: Document, name: str) -> str:
    return with_interval(row[name], row[f"{name}_ci"])
