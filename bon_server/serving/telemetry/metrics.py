"""What Prometheus sees. Label sets are bounded: methods, codes and statuses, never ids or content.

    CallMetrics     calls: begun, ended by code, how long they took
    AnswerMetrics   what the logged records say: candidates, rewards, times, tokens; nothing of requests that ask not
                    to be logged
    Metrics         all metrics of one server, with those two

What happens with every request goes into a `Distribution`, where to observe is a bisection. A histogram of
prometheus_client takes two locks and walks the bounds: with 16 rewards a request, three times as long.
"""

from __future__ import annotations

import collections
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from bon_server import __version__
from bon_server.core.types import CandidateStatus, Outcome, PolicyRef, SelectionReason
from bon_server.log.record import Record
from bon_server.log.spool.spool import Group


class Distribution:
    """Counts by bucket, and their sum. Observed by one thread only; may be read from any."""

    __slots__ = ("_bounds", "_counts", "_names", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: upper ones, inclusive, in ascending order; that of the last bucket, infinity, is added."""
        self._bounds = tuple(map(float, bounds))
        self._counts = [0] * (len(bounds) + 1)
        name: Callable[[float], str] = floatToGoString
        self._names = [name(bound) for bound in (*self._bounds, math.inf)]
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, int]]:
        """Bound and the number of values up to it, as `HistogramMetricFamily` takes them."""
        total, cumulative = 0, []
        for name, count in zip(self._names, self._counts, strict=True):
            total += count
            cumulative.append((name, total))
        return cumulative


METHODS = ("Generate", "GenerateStream", "Score", "RecordFeedback", "GetServerInfo")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class CallMetrics(Collector):
    """Label values are the names of our methods and of gRPC's codes, whatever callers send."""

    def __init__(self) -> None:
        self._started = dict.fromkeys(METHODS, 0)
        self._ended = collections.Counter(
            {(method, "OK"): 0 for method in METHODS}
        )  # a rate needs to see the 0 before the 1
        self._seconds = {method: Distribution(SECONDS) for method in METHODS}

    def started(self, method: str) -> None:
        """A call has come to its handler."""
        self._started[method] += 1

    def ended(self, method: str, code: str, seconds: float) -> None:
        """Its handler is done."""
        self._ended[method, code] += 1
        self._seconds[method].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        started = CounterMetricFamily("bon_requests_started", "Calls that came to a handler.", labels=["method"])
        for method, count in self._started.items():
            started.add_metric([method], count)
        yield started
        ended = CounterMetricFamily(
            "bon_requests", "Calls that ended, by method and gRPC code.", labels=["method", "code"]
        )
        for labels, count in list(self._ended.items()):
            ended.add_metric(labels, count)
        yield ended
        seconds = HistogramMetricFamily("bon_request_seconds", "Wall time of calls.", labels=["method"])
        for method, taken in self._seconds.items():
            seconds.add_metric([method], taken.buckets, taken.sum)
        yield seconds


REWARDS = (-20, -10, -5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 5, 10, 20)
GAINS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
SHARES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
NOT_CHOSEN = "none"
"""In place of a reason where nothing was chosen."""


class AnswerMetrics(Collector):
    """Written on the event loop."""

    def __init__(self) -> None:
        self._answers = collections.Counter({(Outcome.OK.value, reason.value): 0 for reason in SelectionReason})
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


COMMIT_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
GROUP_RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls, self._answers = CallMetrics(), AnswerMetrics()
        self.registry.register(self._calls)
        self.registry.register(self._answers)
        ProcessCollector(registry=self.registry)
        self._refused = Counter(
            "bon_refused_total",
            "Calls refused for want of a key or a right, by method and gRPC code.",
            ["method", "code"],
            registry=self.registry,
        )
        self.message_bytes = Gauge(
            "bon_message_bytes_in_flight",
            "Bytes of requests in memory, or reserved for those that are arriving.",
            registry=self.registry,
        )
        self.message_bytes_limit = Gauge(
            "bon_message_bytes_in_flight_limit", "How many there may be.", registry=self.registry
        )
        self._messages_refused = Counter(
            "bon_messages_refused_total",
            "Calls refused before their message was read: no room (full), or it did not arrive in time (slow).",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("full", "slow"):
            self._messages_refused.labels(reason)
        self._commit_seconds = Histogram(
            "bon_log_commit_seconds",
            "From handing a record to the log to its acknowledgement.",
            buckets=COMMIT_SECONDS,
            registry=self.registry,
        )
        self._group_records = Histogram(
            "bon_log_group_records", "Records in one transaction.", buckets=GROUP_RECORDS, registry=self.registry
        )
        self._loop_lag = Histogram(
            "bon_event_loop_lag_seconds",
            "How much later than asked for the event loop called back.",
            buckets=LAG_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("bon_attempts_in_flight", "Attempts running or waiting.", registry=self.registry)
        self.tasks = Gauge("bon_event_loop_tasks", "Tasks of the event loop.", registry=self.registry)
        self.queued = Gauge("bon_candidates_queued", "Candidates waiting for a permit.", registry=self.registry)

        self.policy_changes = Counter(
            "bon_policy_changes_total",
            "Checkpoints found by policy.watch, loaded or refused.",
            ["result"],
            registry=self.registry,
        )
        for result in ("loaded", "refused"):
            self.policy_changes.labels(result)
        self.engine_restarts = Counter(
            "bon_engine_restarts_total",
            "Starts of another engine in the place of one that died or hung, see policy.restarts.",
            ["role", "result"],
            registry=self.registry,
        )
        for result in ("started", "failed"):
            self.engine_restarts.labels("policy", result)
        self.listener_restarts = Counter(
            "bon_listener_restarts_total",
            "Times that the gRPC port was opened again because the server behind it had ended.",
            registry=self.registry,
        )
        self._policy = Info("bon_policy", "The policy that new requests are sampled from.", registry=self.registry)
        Info("bon_build", "The server's version.", registry=self.registry).info({"version": __version__})
        self.started = self._calls.started
        self.ended = self._calls.ended
        self.committed = self._answers.committed
        self.lagged = self._loop_lag.observe

    def policy_in_use(self, ref: PolicyRef) -> None:
        """New requests are sampled from this policy."""
        self._policy.info({"id": ref.id, "revision": ref.revision})

    def refused(self, method: str, code: str) -> None:
        """A call did not come to its handler."""
        self._refused.labels(method, code).inc()

    def message_refused(self, reason: str) -> None:
        """`full` or `slow`."""
        self._messages_refused.labels(reason).inc()

    def log_group(self, group: Group) -> None:
        """Records were acknowledged together; called on the log's thread."""
        self._group_records.observe(group.records)
        for seconds in group.seconds:
            self._commit_seconds.observe(seconds)
