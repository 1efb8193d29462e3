"""What the logged records say: candidates, rewards, times, tokens. Nothing of requests that ask not to be logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from bon_server.log.record import Record
from bon_server.serving.call_metrics import SECONDS
from bon_server.serving.distribution import Distribution
from bon_server.types import CandidateStatus, Outcome, SelectionReason

REWARDS = (-20, -10, -5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 5, 10, 20)
GAINS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
SHARES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
NOT_CHOSEN = "none"
"""In place of a reason where nothing was chosen."""


class AnswerMetrics(Collector):
    """Written on the event loop."""

    def __init__(self) -> None:
        self._answers = Counter({(Outcome.OK.value, reason.value): 0 for reason in SelectionReason})
        self._candidates: dict[CandidateStatus, int] = dict.fromkeys(CandidateStatus, 0)
        self._rewards = Distribution(REWARDS)
        self._gains = Distribution(GAINS)
        self._compared = self._tied = 0
        self._queue, self._sample, self._score = Distribution(SECONDS), Distribution(SECONDS), Distribution(SECONDS)
        self._overlap = Distribution(SHARES)
        self._tokens = {"prompt": 0, "completion": 0, "reward_model": 0}

    def committed(self, record: Record) -> None:
        """A record is on disk."""
        reason = record.selection_reason
        self._answers[record.outcome.value, NOT_CHOSEN if reason is None else reason.value] += 1
        rewards, tokens = [], 0
        for candidate in record.candidates:
            self._candidates[candidate.status] += 1
            tokens += candidate.completion_tokens
            if candidate.reward is not None:
                rewards.append(candidate.reward)
        self._note_rewards(rewards)
        self._tokens["prompt"] += len(record.prompt_token_ids or ())
        self._tokens["completion"] += tokens
        self._tokens["reward_model"] += record.reward_model_tokens
        times = record.timings
        if record.sampling is not None:
            self._queue.observe(times.queue / 1e9)
            self._sample.observe(times.sample / 1e9)
        if times.score:
            self._score.observe(times.score / 1e9)
            self._overlap.observe(times.overlap_ratio)

    def _note_rewards(self, rewards: list[float]) -> None:
        for reward in rewards:
            self._rewards.observe(reward)
        if len(rewards) > 1:
            best = max(rewards)
            self._compared += 1
            self._tied += rewards.count(best) > 1
            self._gains.observe(best - sum(rewards) / len(rewards))

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        answers = CounterMetricFamily(
            "bon_answers", "Logged attempts, by outcome and why the answer was chosen.", labels=["outcome", "reason"]
        )
        for labels, count in list(self._answers.items()):
            answers.add_metric(labels, count)
        yield answers
        yield _by("bon_candidates", "Logged candidates, by status.", "status", self._candidates)
        yield _by("bon_tokens", "Tokens of logged requests; prompts count once a request.", "kind", self._tokens)
        yield CounterMetricFamily("bon_reward_compared", "Logged requests with several rewards.", self._compared)
        yield CounterMetricFamily("bon_reward_ties", "Those of them whose best reward is not alone.", self._tied)
        yield _histogram("bon_reward", "Rewards of scored candidates.", self._rewards)
        yield _histogram("bon_reward_gain", "Best reward minus the mean one of a request.", self._gains)
        yield _histogram("bon_queue_seconds", "Time that requests waited for a permit.", self._queue)
        yield _histogram("bon_sample_seconds", "From the permit to the last sampled token.", self._sample)
        yield _histogram("bon_score_seconds", "Time in which a request had something being scored.", self._score)
        yield _histogram("bon_overlap_ratio", "Share of that time in which sampling still ran.", self._overlap)


def _by(name: str, meaning: str, label: str, counts: dict[str, int] | dict[CandidateStatus, int]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for value, count in counts.items():
        family.add_metric([str(value)], count)
    return family


def _histogram(name: str, meaning: str, values: Distribution) -> Metric:
    buckets = values.buckets
    family = HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=values.sum)
    if not any(sample.name.endswith("_count") for sample in family.samples):  # left out with the sum of negative values
        family.add_sample(f"{name}_count", {}, buckets[-1][1])
    return family
