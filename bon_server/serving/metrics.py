"""What Prometheus sees. Label sets are bounded: methods, codes and statuses, never ids or content."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from bon_server import __version__
from bon_server.log.groups import Group
from bon_server.serving.answer_metrics import AnswerMetrics
from bon_server.serving.call_metrics import CallMetrics
from bon_server.types import PolicyRef

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
