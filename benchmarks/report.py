"""The JSON document of `serving.py`.

Headline keys, each the median over paired repetitions; `null` for what was not measured, with a note that says why:

- `best_of_n_time_ratio` {concurrency: x}: wall time, server ÷ bare engine (the faster form of it).
- `answers_rate_ratio`: answers a second with eight questions in flight, server ÷ vLLM's HTTP server with a reward
  process and argmax. `details` has it for the other numbers too.
- `answers_rate_ratio_early_stop`: the same for requests that may stop early, with the settings that `early_stopping.py`
  chose; null unless their answers' mean reward is as good as that of the HTTP stack's (the interval of the paired
  difference includes 0 or lies above).
- `overlap_time_ratio`, `score_tail_share`: with a reward model of the policy's size, scoring beside sampling ÷ the same
  parts one after the other, and the time after the last token as a share of the answer's; means, see `overlap.py`.
- `synthetic_rate_ratio`: calls a second with models that take no time, server ÷ bare gRPC echo of the same bytes.

`details` has minimum and maximum too, and the same ratios per sampled token, which luck in lengths does not touch.
`checks` says what the figures rest on, `notes` what to keep in mind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from statistics import mean
from typing import Any

from benchmarks.comparison import (
    Passes,
    Spread,
    fastest,
    figures,
    ratio,
    reward_difference,
    seconds,
    seconds_per_token,
    spread,
    tokens_difference,
)
from benchmarks.machine import Quiet
from benchmarks.overlap import Overlap
from benchmarks.side_by_side import SideBySide
from benchmarks.synthetic_rate import SyntheticRates

BASELINES = ("engine_separate", "engine_n")
RATE_CONCURRENCY = 8
"""At which `answers_rate_ratio` is stated."""
EARLY = "server_early_stop"
TOKENS_DIFFERENCE_LIMIT = 0.03
QUIET_LIMIT_PERCENT = 10.0
LATER = {
    "tokens_saved_at_equal_reward": "see early_stopping.py, which measures it on more questions",
}


def report(
    at_start: Quiet, stacks: SideBySide | None, rates: SyntheticRates | None, overlap: Overlap | None
) -> dict[str, Any]:
    """Everything that was measured."""
    headline: dict[str, Any] = {"best_of_n_time_ratio": None, "answers_rate_ratio": None}
    headline |= {"answers_rate_ratio_early_stop": None, "synthetic_rate_ratio": None}
    headline |= {"overlap_time_ratio": None, "score_tail_share": None}
    details: dict[str, Any] = {}
    if stacks is not None:
        _add_stacks(headline, details, stacks)
    if rates is not None:
        details["synthetic"] = _synthetic(rates)
        headline["synthetic_rate_ratio"] = details["synthetic"]["rate_ratio"]["median"]
    if overlap is not None:
        headline["overlap_time_ratio"] = round(mean(overlap.time_ratios), 4)
        headline["score_tail_share"] = round(mean(overlap.tail_shares), 4)
        details["overlap"] = {name: spread(values) for name, values in asdict(overlap).items()}
    return {
        **headline,
        **dict.fromkeys(LATER),
        "notes": _notes(headline, at_start, stacks),
        "checks": {"idle_at_start": at_start.as_json(), **({} if stacks is None else _checks(stacks))},
        "details": details,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _add_stacks(headline: dict[str, Any], details: dict[str, Any], stacks: SideBySide) -> None:
    passes = stacks.passes
    measured = {name for name, _ in passes}
    details["stacks"] = _all_figures(passes)
    if {"server", *BASELINES} <= measured:
        against_engine = {c: _against_engine(passes, c) for c in stacks.concurrencies if (BASELINES[0], c) in passes}
        details["server_over_engine"] = _by_concurrency(against_engine)
        headline["best_of_n_time_ratio"] = {str(c): each["time_ratio"]["median"] for c, each in against_engine.items()}
    if {"server", "http"} <= measured:
        against_http = {c: _against_http(passes, c) for c in stacks.concurrencies}
        details["server_over_http"] = _by_concurrency(against_http)
        if RATE_CONCURRENCY in against_http:
            headline["answers_rate_ratio"] = against_http[RATE_CONCURRENCY]["answers_rate_ratio"]["median"]
    if {EARLY, "http"} <= measured:
        early = {c: _early_against_http(passes, c) for c in stacks.concurrencies}
        details["server_early_stop_over_http"] = _by_concurrency(early)
        chosen = early.get(RATE_CONCURRENCY)
        if chosen is not None and chosen["reward_difference"]["ci95"][1] >= 0:
            headline["answers_rate_ratio_early_stop"] = chosen["answers_rate_ratio"]["median"]


def _against_engine(passes: Passes, concurrency: int) -> dict[str, Any]:
    baseline = fastest(passes, BASELINES, concurrency)
    ours, engine = passes["server", concurrency], passes[baseline, concurrency]
    with_logprobs = passes["engine_separate_logprobs", concurrency]
    return {
        "baseline": baseline,
        "time_ratio": ratio(ours, engine, seconds),
        "time_per_token_ratio": ratio(ours, engine, seconds_per_token),
        "engine_with_logprobs_time_per_token_ratio": ratio(with_logprobs, engine, seconds_per_token),
    }


def _against_http(passes: Passes, concurrency: int) -> dict[str, Spread]:
    """Rates are the inverse of times, so theirs goes above."""
    ours, theirs = passes["server", concurrency], passes["http", concurrency]
    return {
        "answers_rate_ratio": ratio(theirs, ours, seconds),
        "tokens_rate_ratio": ratio(theirs, ours, seconds_per_token),
    }


def _early_against_http(passes: Passes, concurrency: int) -> dict[str, Any]:
    ours, theirs = passes[EARLY, concurrency], passes["http", concurrency]
    return {
        "answers_rate_ratio": ratio(theirs, ours, seconds),
        "tokens_ratio": ratio(ours, theirs, lambda one: one.tokens),
        "reward_difference": reward_difference(ours, theirs),
    }


def _all_figures(passes: Passes) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for (name, concurrency), repeated in passes.items():
        table.setdefault(name, {})[str(concurrency)] = figures(repeated)
    return table


def _by_concurrency(table: dict[int, Any]) -> dict[str, Any]:
    return {str(concurrency): each for concurrency, each in table.items()}


def _synthetic(rates: SyntheticRates) -> dict[str, Any]:
    return {
        "rate_ratio": spread([ours / echo for ours, echo in zip(rates.ours, rates.echo, strict=True)]),
        "server_calls_per_s": spread(rates.ours),
        "echo_calls_per_s": spread(rates.echo),
        "request_bytes": rates.request_bytes,
        "response_bytes": rates.response_bytes,
    }


def _checks(stacks: SideBySide) -> dict[str, Any]:
    return {
        "tokens_difference": tokens_difference(stacks.passes, left_out=EARLY),
        "idle_before": stacks.before.as_json(),
        "idle_after": stacks.after.as_json(),
        "reward_difference": stacks.reward_difference,
    }


def _notes(headline: dict[str, Any], at_start: Quiet, stacks: SideBySide | None) -> list[str]:
    notes = [f"{key}: {reason}" for key, reason in LATER.items()]
    notes += [f"{key}: not among the --parts, or see details" for key, value in headline.items() if value is None]
    if stacks is None:
        return notes + _disturbances([at_start])
    if tokens_difference(stacks.passes, left_out=EARLY) > TOKENS_DIFFERENCE_LIMIT:
        notes.append("the stacks sampled different numbers of tokens: read the ratios per token in details")
    return notes + _disturbances([at_start, stacks.before, stacks.after])


def _disturbances(watched: Sequence[Quiet]) -> list[str]:
    notes = []
    if max(each.others_percent for each in watched) > QUIET_LIMIT_PERCENT:
        notes.append("something else was using the processor: these figures are disturbed")
    if max(each.ours_percent for each in watched) > QUIET_LIMIT_PERCENT:
        notes.append("a stack that waits uses the processor: it slows the others down")
    return notes
