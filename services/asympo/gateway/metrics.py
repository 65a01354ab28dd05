"""What a gateway counts."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from asympo.common.telemetry import DURATION_BUCKETS_SECONDS

OUTCOMES = (
    *("appended", "duplicate", "too_old", "no_capacity", "over_share", "run_ended", "paused", "not_started"),
    *("invalid", "lease_lost", "too_stale", "too_large"),
)
"""Ends of a submission."""


SESSION_OUTCOMES = (
    *("rewarded", "no_reward", "no_turns", "no_token_ids", "history_rewritten", "too_long", "unknown_end"),
)
"""What becomes of a session: its response is trained, or why not."""


class GatewayMetrics:
    """The metrics of one gateway over a registry of its own."""

    def __init__(self, registry: CollectorRegistry, *, producers: Iterable[str] = ()) -> None:
        self._groups = Counter(
            "asympo_gateway_groups",
            "Submitted groups by producer and how it ended.",
            ["producer", "outcome"],
            registry=registry,
        )
        self._refused_calls = Counter(
            "asympo_gateway_refused_calls", "Calls without a token that allows them.", registry=registry
        )
        self._broker_errors = Counter(
            "asympo_gateway_broker_errors",
            "Calls that the broker did not answer, or refused.",
            registry=registry,
        )
        self.submit_seconds = Histogram(
            "asympo_gateway_submit_seconds",
            "From a group's arrival to its end, waiting for a slot included.",
            buckets=DURATION_BUCKETS_SECONDS,
            registry=registry,
        )
        self.queued_groups = Gauge(
            "asympo_gateway_queued_groups", "Groups that wait for a slot.", registry=registry
        )
        self.leases = Gauge("asympo_gateway_leases", "Prompts leased to producers.", registry=registry)
        self.open_sessions = Gauge(
            "asympo_gateway_open_sessions", "Sessions of groups that have not ended.", registry=registry
        )
        self._sessions = Counter(
            "asympo_gateway_sessions",
            "Ended sessions by what became of them.",
            ["outcome"],
            registry=registry,
        )
        self._session_groups = Counter(
            "asympo_gateway_session_groups",
            "Groups of sessions by how they ended.",
            ["outcome"],
            registry=registry,
        )
        for outcome in SESSION_OUTCOMES:
            self._sessions.labels(outcome)
        for outcome in (*OUTCOMES, "not_enough", "abandoned", "failed"):
            self._session_groups.labels(outcome)
        for producer in producers:
            for outcome in OUTCOMES:
                self._groups.labels(producer, outcome)

    def count_group(self, producer: str, outcome: str) -> None:
        """One submission has ended."""
        self._groups.labels(producer, outcome).inc()

    def count_session(self, outcome: str) -> None:
        """A session has ended."""
        self._sessions.labels(outcome).inc()

    def count_session_group(self, outcome: str) -> None:
        """All sessions of a group have ended."""
        self._session_groups.labels(outcome).inc()

    def count_refused_call(self) -> None:
        """A caller was turned away."""
        self._refused_calls.inc()

    def count_broker_error(self) -> None:
        """The broker did not answer."""
        self._broker_errors.inc()
