"""What a generator counts: Prometheus metrics, and the same numbers for its status."""

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from asympo.common.records import FinishReason
from asympo.common.telemetry import DURATION_BUCKETS_SECONDS
from asympo.engines.base import EngineStats, ReloadTiming
from asympo.generator.reload.verdict import Judgement, Verdict

GroupOutcome = Literal[
    "appended", "duplicate", "lease_lost", "too_stale", "too_large", "refused", "handed_back", "prompt_failed"
]
GROUP_OUTCOMES: tuple[GroupOutcome, ...] = (
    *(
        "appended",
        "duplicate",
        "lease_lost",
        "too_stale",
        "too_large",
        "refused",
        "handed_back",
        "prompt_failed",
    ),
)


@dataclass(slots=True)
class Tally:
    """Counts since the process started, for `/v1/status` and the presence report."""

    groups_appended: int = 0
    groups_wasted: int = 0
    """Finished or begun, and then refused or overtaken."""
    groups_handed_back: int = 0
    prompt_failures: int = 0
    responses: int = 0
    """Sampled in full for the log."""
    reward_failures: int = 0
    reloads: int = 0
    reload_pause_seconds: float = 0.0
    """Of all reloads."""
    probe_failures: int = 0
    requests_lost: int = 0
    """Responses in flight at a reload that ended without a full result."""
    leases_lost: int = 0
    engine_failures: int = 0


class GeneratorMetrics:
    """The metrics of one generator over a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tally = Tally()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"asympo_generator_{name}", text, labels, registry=registry)

        self._groups = counter("groups", "Leased groups by how they ended.", "outcome")
        self._responses = counter("responses", "Responses sampled.", "finish_reason")
        self._tokens = counter("tokens", "Tokens of sampled responses.")
        self._reward_failures = counter(
            "reward_failures", "Responses whose scoring raised, hung or gave no number."
        )
        self._leases_lost = counter("leases_lost", "Leases that expired while held.")
        self._engine_failures = counter("engine_failures", "Generations that the engine failed.")
        self._broker_errors = counter("broker_errors", "Calls that the broker did not answer.")
        self._unexpected_errors = counter("unexpected_errors", "Groups given up on an error nobody foresaw.")
        self._reloads = counter("reloads", "Reloads by verdict.", "verdict")
        self._requests_lost = counter(
            "requests_lost", "Responses in flight at a reload that ended without a full result."
        )
        self._corrupt_policies = counter("corrupt_policies", "Policies that failed verification.")
        self._spans_lost = counter("spans_lost", "Spans of traces that did not get through.")
        self._preemptions = counter(
            "preemptions", "Requests that the engine took out of its full KV cache and computes again."
        )
        self._num_preemptions = 0
        self._declare_durations(registry)
        self._declare_gauges(registry)
        for outcome in GROUP_OUTCOMES:
            self._groups.labels(outcome)
        for verdict in Verdict:
            self._reloads.labels(verdict.value)
        for reason in FinishReason:
            self._responses.labels(reason.value)

    def _declare_durations(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str) -> Histogram:
            name = f"asympo_generator_{name}_seconds"
            return Histogram(name, text, buckets=DURATION_BUCKETS_SECONDS, registry=registry)

        self.generation_seconds = histogram("generation", "Sampling all responses of a group.")
        self.score_seconds = histogram("score", "Scoring all responses of a group.")
        self.lease_wait_seconds = histogram("lease_wait", "From wanting a lease to having it.")
        self.held_seconds = histogram("held", "Finished groups waiting for the verdict of a reload.")
        self._pause_seconds = histogram("reload_pause", "The engine scheduled nothing during a reload.")
        self._load_seconds = histogram("reload_load", "Loading weights in a pause.")
        self._readback_seconds = histogram("reload_readback", "Reading weights back in a pause.")
        self._swap_seconds = histogram("reload", "From the start of a reload to its verdict.")

    def _declare_gauges(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"asympo_generator_{name}", text, registry=registry)

        self.groups_in_flight = gauge("groups_in_flight", "Leases held now.")
        self.max_groups_in_flight = gauge("max_groups_in_flight", "Most leases it holds at once; 0 for none.")
        self.groups_held = gauge("groups_held", "Finished groups waiting for a verdict now.")
        self.policy_step = gauge(
            "policy_step", "Step of the policy served; -1 for none, and for an engine that keeps its weights."
        )
        self.policy_step.set(-1)
        self.ready = gauge("ready", "1 while it can do useful work.")
        self.probe_error = gauge("probe_error_nats", "How far the newest probe's mean NLL is off, per token.")
        self.probe_noise = gauge(
            "probe_noise_nats", "What the engine's arithmetic explains of the probe's error."
        )
        self.unproven_reloads = gauge("unproven_reloads", "Reloads in a row that proved nothing.")
        self.unproven_alert = gauge("unproven_alert", "1 when too many reloads in a row proved nothing.")
        self._cache_ratio = gauge("cache_ratio", "Share of the engine's KV cache that requests hold.")

    def count_group(self, outcome: GroupOutcome) -> None:
        """One lease ended."""
        self._groups.labels(outcome).inc()
        if outcome in ("appended", "duplicate"):
            self.tally.groups_appended += outcome == "appended"
        elif outcome == "handed_back":
            self.tally.groups_handed_back += 1
        elif outcome == "prompt_failed":
            self.tally.prompt_failures += 1
        else:
            self.tally.groups_wasted += 1

    def count_response(self, finish_reason: FinishReason, *, num_tokens: int) -> None:
        """One response came from the engine."""
        self._responses.labels(finish_reason.value).inc()
        self._tokens.inc(num_tokens)
        if finish_reason is not FinishReason.ABORT:
            self.tally.responses += 1

    def count_reward_failures(self, count: int) -> None:
        """Responses that could not be scored."""
        self._reward_failures.inc(count)
        self.tally.reward_failures += count

    def count_lease_lost(self) -> None:
        """The broker no longer knows one of our leases."""
        self._leases_lost.inc()
        self.tally.leases_lost += 1

    def count_engine_failure(self) -> None:
        """The engine raised instead of sampling."""
        self._engine_failures.inc()
        self.tally.engine_failures += 1

    def count_broker_error(self) -> None:
        """One call of ours stayed without an answer."""
        self._broker_errors.inc()

    def count_unexpected_error(self) -> None:
        """A group met an error that no branch foresaw."""
        self._unexpected_errors.inc()

    def count_requests_lost(self, count: int) -> None:
        """Responses that a reload cost."""
        self._requests_lost.inc(count)
        self.tally.requests_lost += count

    def engine_seen(self, stats: EngineStats) -> None:
        """What the engine says of itself."""
        self._cache_ratio.set(stats.cache_ratio)
        self._preemptions.inc(stats.num_preemptions - self._num_preemptions)
        self._num_preemptions = stats.num_preemptions

    def count_corrupt_policy(self) -> None:
        """A policy directory did not verify."""
        self._corrupt_policies.inc()

    def count_spans_lost(self, count: int) -> None:
        """The collector of traces did not take them."""
        self._spans_lost.inc(count)

    def count_reload(self, judgement: Judgement, timing: ReloadTiming) -> None:
        """One reload has its verdict."""
        self._reloads.labels(judgement.verdict.value).inc()
        self._pause_seconds.observe(timing.pause_seconds)
        self._load_seconds.observe(timing.reload_seconds)
        self._readback_seconds.observe(timing.readback_seconds)
        self.tally.reloads += 1
        self.tally.reload_pause_seconds += timing.pause_seconds
        self.count_judgement(judgement)

    def count_judgement(self, judgement: Judgement) -> None:
        """Weights have their verdict, after a reload or a start."""
        if judgement.nll is not None:
            self.probe_error.set(judgement.nll.error)
            self.probe_noise.set(judgement.nll.noise)
        self.tally.probe_failures += judgement.verdict is Verdict.FAILED

    def observe_swap(self, seconds: float) -> None:
        """A reload and its verdict took this long."""
        self._swap_seconds.observe(seconds)
