"""What Prometheus sees. Label sets are bounded: methods, codes and statuses, never ids or content."""

from __future__ import annotations

from collections import Counter as Counts

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from bon_server.log.groups import Group
from bon_server.log.record import Record
from bon_server.types import PolicyRef

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
COMMIT_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
GROUP_RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
REWARDS = (-20, -10, -5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 5, 10, 20)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "bon_requests_total",
            "Calls that ended, by method and gRPC code.",
            ["method", "code"],
            registry=self.registry,
        )
        self._refused = Counter(
            "bon_refused_total",
            "Calls refused for want of a key or a right, by method and gRPC code.",
            ["method", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "bon_request_seconds", "Wall time of calls.", ["method"], buckets=SECONDS, registry=self.registry
        )
        self._candidates = Counter(
            "bon_candidates_total", "Logged candidates, by status.", ["status"], registry=self.registry
        )
        self._rewards = Histogram(
            "bon_reward", "Rewards of scored candidates.", buckets=REWARDS, registry=self.registry
        )
        self._commit_seconds = Histogram(
            "bon_log_commit_seconds",
            "From handing a record to the log to its acknowledgement.",
            buckets=COMMIT_SECONDS,
            registry=self.registry,
        )
        self._group_records = Histogram(
            "bon_log_group_records", "Records in one transaction.", buckets=GROUP_RECORDS, registry=self.registry
        )
        self.in_flight = Gauge("bon_attempts_in_flight", "Attempts running or waiting.", registry=self.registry)
        self.queued = Gauge("bon_candidates_queued", "Candidates waiting for a permit.", registry=self.registry)

        self.policy_changes = Counter(
            "bon_policy_changes_total",
            "Checkpoints found by policy.watch, loaded or refused.",
            ["result"],
            registry=self.registry,
        )
        self._policy = Info("bon_policy", "The policy that new requests are sampled from.", registry=self.registry)

    def policy_in_use(self, ref: PolicyRef) -> None:
        """New requests are sampled from this policy."""
        self._policy.info({"id": ref.id, "revision": ref.revision})

    def ended(self, method: str, code: str, seconds: float) -> None:
        """A call has ended."""
        self._requests.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def refused(self, method: str, code: str) -> None:
        """A call did not come to its handler."""
        self._refused.labels(method, code).inc()

    def committed(self, record: Record) -> None:
        """A record is on disk."""
        for status, count in Counts(candidate.status.value for candidate in record.candidates).items():
            self._candidates.labels(status).inc(count)
        for candidate in record.candidates:
            if candidate.reward is not None:
                self._rewards.observe(candidate.reward)

    def log_group(self, group: Group) -> None:
        """Records were acknowledged together; called on the log's thread."""
        self._group_records.observe(group.records)
        for seconds in group.seconds:
            self._commit_seconds.observe(seconds)
