"""What a curve is made of: sums over requests, gathered in one pass over the logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bon_server.core.errors import ConfigError, LogError
from bon_server.estimators.clusters import ClusterSums, Floats
from bon_server.estimators.kl_best_of_n import kl_of_ties, kl_untied, kl_winner_probability_at_k, tie_classes
from bon_server.estimators.order_statistics import reward_at_k, reward_beyond, weighted
from bon_server.evaluate.reading import LogSource, ReadCounts, tables
from bon_server.evaluate.table import Table, ascending, blocks, sums_of


class KlMethod(StrEnum):
    """How KL(best-of-k || policy) is put in figures."""

    BOUND = "bound"
    """log k - (k-1)/k: right for rewards without ties."""
    EXACT_PLUGIN = "exact-plugin"
    """Exact for the discrete distribution of each request's own rewards; right where rewards take few values."""
    WINNER_PROBABILITY = "winner-probability"
    """From the log-probabilities of the winners; right for prompts with few likely answers."""


# Sums of each of these at every k, one after the other. The first ones are kept at k = N only and added up from above
# when read.
REQUESTS, TOKENS, COUNTED, LAST, VALUED, VALUE_LAST, WITH_LOGPROB, REWARD, KL, VALUE, WINNER = range(11)
WIDTH = 11
MOST_WAITING = 1 << 20
"""Ranks that wait to be added up: 8 MB."""
ROUNDING = 1e-9
"""Of the KL without ties. Where rewards are all equal, the sums that take it away leave about 1e-16 of it, or less than
nothing, of which the fit would take the root."""


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """What is looked at."""

    source: LogSource
    rank_by: str = "reward"
    """What the best is best in: `reward`, a part of it, `length` or `tokens`."""
    value: str | None = None
    """Also the mean of this, of the best by rank."""
    kl_method: KlMethod | None = None
    """None: `exact-plugin` when rewards are tied anywhere, else `bound`."""
    drop_truncated: bool = False
    """Whether candidates cut at max_tokens are left out."""
    extrapolate: int | None = None
    """Also k beyond the samples there are, in powers of two up to this; labelled, see `reward_beyond`."""
    seed: int = 0
    """Of the bootstrap."""
    intervals: bool = True
    """Whether there are any; without, prompts need not be told apart."""


class Ranked(NamedTuple):
    """m requests with n ranked candidates each."""

    prompt: NDArray[np.uint64]
    """(m,) identities."""
    ordered: Floats
    """(m, n) ranks, each row ascending."""
    tokens: Floats
    """(m,) of all n together; NaN where they were not counted."""


@dataclass(slots=True)
class Sample:
    """Sums over requests whose candidates came about in one way."""

    sums: ClusterSums = field(default_factory=lambda: ClusterSums(WIDTH))
    largest_n: int = 0
    requests: int = 0
    ranked: int = 0
    """Candidates with a rank."""
    tied: int = 0
    """Requests in which two candidates have one rank."""
    tied_for_best: int = 0
    beyond: ClusterSums = field(default_factory=lambda: ClusterSums(1))
    """Sums of the extrapolations and, first, their number."""
    waiting: defaultdict[int, list[Ranked]] = field(default_factory=lambda: defaultdict(list))
    """By n: not added up yet, for adding a few requests takes as long as adding many."""
    waiting_ranks: int = 0

    @property
    def most_n(self) -> int:
        """The largest n there is room for."""
        return int(self.sums.table.shape[1]) // WIDTH

    def columns(self, measure: int, last_k: int) -> slice:
        """Of the table of sums: a measure at k = 1..last_k."""
        return slice(measure * self.most_n, measure * self.most_n + last_k)


def gather(options: CurveOptions) -> tuple[ReadCounts, Sample, bool]:
    """Reads the logs. Returns what was seen, the sums to go by, and whether those are of stopped requests.

    Stopped requests are left out, and counted, where there are others.
    """
    if options.extrapolate is not None and options.extrapolate < 1:
        raise ConfigError(f"extrapolate: {options.extrapolate} given; a number from 1 is needed")
    seen, independent, stopped = ReadCounts(), Sample(), Sample()
    for table in tables(options.source, _numbers(options), seen, with_prompts=options.intervals):
        for sample, requests in ((independent, ~table.stopped), (stopped, table.stopped)):
            if requests.any():
                _add(sample, table.take(requests), options)
    for sample in (independent, stopped):
        _add_waiting(sample, options)
    if independent.requests:
        seen.left_out["stopped"] += stopped.requests
        return seen, independent, False
    if not stopped.requests:
        left_out = ", ".join(f"{count} {reason}" for reason, count in seen.left_out.items() if count) or "nothing"
        raise LogError(f"{options.rank_by}: no candidate has it; {seen.requests} requests read, {left_out} left out")
    return seen, stopped, True


def _numbers(options: CurveOptions) -> Sequence[str]:
    names = [options.rank_by, "tokens"]
    if options.value is not None:
        names.append(options.value)
    if options.drop_truncated:
        names.append("truncated")
    if options.kl_method is KlMethod.WINNER_PROBABILITY:
        names.append("logprob")
    return names


def _add(sample: Sample, table: Table, options: CurveOptions) -> None:
    ranks = table.numbers[options.rank_by]
    usable = np.isfinite(ranks)
    if options.drop_truncated:
        usable &= table.numbers["truncated"] != 1.0
    tokens = sums_of(table, np.where(usable, table.numbers["tokens"], 0.0))
    for requests, ordered in ascending(table, np.where(usable, ranks, np.nan)):
        sample.waiting[ordered.shape[1]].append(Ranked(table.prompt[requests], ordered, tokens[requests]))
        sample.waiting_ranks += ordered.size
    if sample.waiting_ranks >= MOST_WAITING:
        _add_waiting(sample, options)
    if options.value is not None:
        values = table.numbers[options.value]
        for requests, candidates in blocks(table, usable & np.isfinite(values)):
            at_k = reward_at_k(ranks[candidates], values[candidates])
            last = np.column_stack([np.ones(len(requests)), at_k[:, -1]])
            _add_figures(sample, table.prompt[requests], VALUE, at_k, VALUED, last)
    if options.kl_method is KlMethod.WINNER_PROBABILITY:
        logprobs = table.numbers["logprob"]
        for requests, candidates in blocks(table, usable & np.isfinite(logprobs)):
            at_k = kl_winner_probability_at_k(ranks[candidates], logprobs[candidates])
            _add_figures(sample, table.prompt[requests], WINNER, at_k, WITH_LOGPROB, np.ones((len(requests), 1)))


def _add_waiting(sample: Sample, options: CurveOptions) -> None:
    for some in sample.waiting.values():
        _add_ranks(sample, Ranked(*map(np.concatenate, zip(*some, strict=True))), options)
    sample.waiting.clear()
    sample.waiting_ranks = 0


def _add_ranks(sample: Sample, ranked: Ranked, options: CurveOptions) -> None:
    prompt, ordered, tokens = ranked
    requests, n = ordered.shape
    ties = tie_classes(ordered)
    sample.requests += requests
    sample.ranked += ordered.size
    sample.tied += int(np.count_nonzero(np.diff(ties.rows, prepend=-1)))
    sample.tied_for_best += int(np.count_nonzero(ties.upto == n))
    counted = np.isfinite(tokens)
    at_n = [np.ones(requests), np.where(counted, tokens / n, 0.0), counted, ordered[:, -1]]
    _add_figures(sample, prompt, REWARD, ordered, REQUESTS, np.column_stack(at_n), _best_of_each_k)
    if options.kl_method in (None, KlMethod.EXACT_PLUGIN):
        sample.sums.add(prompt[ties.rows], sample.columns(KL, n), kl_of_ties(ties, n))
    if options.extrapolate is not None:
        ks = extrapolated_ks(options.extrapolate)
        at_k = _best_of_each_k(ordered)
        beyond = np.stack([at_k[:, k - 1] if k <= n else reward_beyond(ordered, k) for k in ks], axis=1)
        sample.beyond.widen(1 + beyond.shape[1])
        sample.beyond.add(prompt, slice(0, 1 + beyond.shape[1]), np.column_stack([np.ones(requests), beyond]))


def _best_of_each_k(ordered: Floats) -> Floats:
    return weighted(ordered, np.arange(1, ordered.shape[1] + 1))


def _add_figures(
    sample: Sample,
    prompt: NDArray[np.uint64],
    measure: int,
    at_k: Floats,
    first_at_n: int,
    at_n: Floats,
    linear: Callable[[Floats], Floats] = np.asarray,
) -> None:
    """Adds `linear` of (m, n) to figures at k = 1..n in one column, and (m, w) others to w columns at k = n."""
    n = at_k.shape[1]
    if n > sample.largest_n:
        sample.largest_n = n
        sample.sums.widen(1 << (n - 1).bit_length(), WIDTH)  # not n: it takes a copy
    sample.sums.add(prompt, sample.columns(measure, n), at_k, linear)
    start, step = sample.columns(first_at_n, n).stop - 1, sample.most_n
    sample.sums.add(prompt, slice(start, start + step * (at_n.shape[1] - 1) + 1, step), at_n)


def extrapolated_ks(last: int) -> list[int]:
    """Powers of two up to a number, and the number."""
    return [1 << power for power in range(last.bit_length()) if 1 << power < last] + [last]


class SumsByK(NamedTuple):
    """(clusters, K, columns) each."""

    by_k: Floats
    """Sums at each k."""
    with_n_from_k: Floats
    """Sums over that k and all above."""


def sums_by_k(sample: Sample) -> SumsByK:
    """The sums of a sample, to form figures of."""
    table = sample.sums.table.reshape(-1, WIDTH, sample.most_n)
    by_k = table[:, :, : sample.largest_n].transpose(0, 2, 1).copy()
    untied = np.zeros(by_k.shape[:2])
    for last in np.flatnonzero(by_k[..., REQUESTS].any(axis=0)).tolist():
        untied[:, : last + 1] += by_k[:, last, REQUESTS, None] * kl_untied(last + 1)
    kl = by_k[..., KL] + untied
    by_k[..., KL] = np.where(kl < ROUNDING * untied, 0.0, kl)
    return SumsByK(by_k, np.cumsum(by_k[:, ::-1], axis=1)[:, ::-1])


def gains(at_k: Floats, at_n: Floats) -> Floats:
    """(clusters, K) sums of what the k-th sample adds, over requests with N >= k; 0 for the first.

    at_n: sums at k = N, which are no part of what the next k is compared with.
    """
    before = at_k[:, :-1] - at_n[:, :-1]
    return np.concatenate([np.zeros_like(at_k[:, :1]), at_k[:, 1:] - before], axis=1)
