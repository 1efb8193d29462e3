"""From answers to figures: is the tuned policy better than the base, and better than its control?

The document: `sampled` and `greedy`, each with `reward` (the proxy that selected) and `gold` (exact). For each of these
the mean of `base`, `tuned` and `control`, and the paired differences `tuned_minus_base`, `control_minus_base` and
`tuned_minus_control`, as `{"value", "ci95"}` over questions with seeds averaged, and `by_seed` the same differences of
each seed alone. `texts` says what else changed: tokens of an answer, the share that was cut, and how different the
answers to one question are. `kl_nats` is the distance of the tuned policies from the base, when sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms.answers import Answers
from benchmarks.arms.intervals import figures, over_seeds
from benchmarks.arms.setting import STRONG

Floats = NDArray[np.float64]
BASE, TUNED, CONTROL = "base", "tuned", "control"
DIFFERENCES = ((TUNED, BASE), (CONTROL, BASE), (TUNED, CONTROL))
BySeed = Mapping[str, Sequence[Answers]]
"""Of each policy, the answers of each seed; the base has one."""


def report(by_mode: Mapping[str, BySeed], kl: Mapping[str, Sequence[Floats]]) -> dict[str, Any]:
    """Everything that was measured; modes are `sampled` and `greedy`, kl has (P,) of each seed."""
    return {
        **{mode: _mode(answers) for mode, answers in by_mode.items()},
        "kl_nats": figures({name: over_seeds(each) for name, each in kl.items()}),
        "seeds": len(next(iter(by_mode.values()))[TUNED]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _mode(answers: BySeed) -> dict[str, Any]:
    return {
        "questions": len(answers[BASE][0].gold),
        "answers_each": answers[BASE][0].gold.shape[1],
        "reward": _measure({name: [one.rewards[STRONG] for one in each] for name, each in answers.items()}),
        "gold": _measure({name: [one.gold for one in each] for name, each in answers.items()}),
        "texts": {name: _texts(each) for name, each in answers.items()},
    }


def _measure(values: Mapping[str, Sequence[Floats]]) -> dict[str, Any]:
    means = {name: over_seeds(each) for name, each in values.items()}
    columns = dict(means)
    columns |= {f"{a}_minus_{b}": means[a] - means[b] for a, b in DIFFERENCES}
    for seed in range(len(values[TUNED])):
        alone = {name: over_seeds([each[seed % len(each)]]) for name, each in values.items()}
        columns |= {f"{a}_minus_{b} {seed}": alone[a] - alone[b] for a, b in DIFFERENCES}
    found = figures(columns)
    by_seed = [
        {f"{a}_minus_{b}": found.pop(f"{a}_minus_{b} {seed}") for a, b in DIFFERENCES}
        for seed in range(len(values[TUNED]))
    ]
    return {**found, "by_seed": by_seed}


def _texts(each: Sequence[Answers]) -> dict[str, float]:
    return {
        "tokens": round(float(np.mean([one.tokens.mean() for one in each])), 2),
        "truncated": round(float(np.mean([one.truncated.mean() for one in each])), 4),
        "distinct": round(float(np.mean([one.distinct for one in each])), 4),
    }


def table(document: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{document['sampled']['questions']} held-out questions ({document['split']} split), "
        f"{document['seeds']} seeds; mean and 95 % interval over questions. {document['date'][:10]}, "
        f"{document['machine']['cpu']}, "
        f"{document['machine']['cores']} cores, {document['seconds']['all'] / 60:.0f} minutes.",
        "",
        "| | sampled: gold | sampled: reward | greedy: gold | greedy: reward |",
        "|---|---|---|---|---|",
    ]
    rows = [
        *((name, name) for name in (BASE, TUNED, CONTROL)),
        *((f"{a} − {b}", f"{a}_minus_{b}") for a, b in DIFFERENCES),
    ]
    for label, key in rows:
        cells = [_shown(document[mode][of][key]) for mode in ("sampled", "greedy") for of in ("gold", "reward")]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| sampled answers | tokens | cut | different | KL to the base, nats |", "|---|---|---|---|---|"]
    for name, texts in document["sampled"]["texts"].items():
        kl = _shown(document["kl_nats"][name]) if name in document["kl_nats"] else ""
        lines.append(f"| {name} | {texts['tokens']:.1f} | {texts['truncated']:.1%} | {texts['distinct']:.1%} | {kl} |")
    return "\n".join(lines) + "\n"


def _shown(figure: Mapping[str, Any]) -> str:
    low, high = figure["ci95"] or (float("nan"), float("nan"))
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"
