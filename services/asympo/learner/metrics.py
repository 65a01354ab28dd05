"""What the learner counts: Prometheus metrics over an injected registry."""

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from asympo.common.records import MAX_FUNCTION_VALUES
from asympo.common.rollout_log import LogStats
from asympo.common.telemetry import DURATION_BUCKETS_SECONDS, LateGauge

_ANSWER_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STALENESS_BUCKETS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)
ROW_GAUGES = {
    "reward_mean": ("reward", "Mean reward of the newest step."),
    "reward_spread": ("reward_spread", "Mean spread of the rewards inside a group, newest step."),
    "loss": ("loss", "Loss of the newest step; about 0 by construction under asympo."),
    "grad_norm": ("gradient_norm", "Raw gradient norm of the newest step."),
    "entropy": ("entropy_nats", "Mean next-token entropy over trained tokens of the newest step."),
    "learning_rate": ("learning_rate", "Learning rate of the newest step."),
    "response_tokens_mean": ("response_tokens", "Mean tokens of a response in the newest step."),
    "truncated_ratio": ("truncated_ratio", "Share of truncated responses in the newest step."),
    "tokens_per_second": (
        "tokens_per_second",
        "Trained response tokens a second, newest step, waits left out.",
    ),
    "flops_per_second": (
        "model_flops_per_second",
        "Operations that the newest step needed, over the time it took; attention counted causally.",
    ),
    "mfu": (
        "mfu_ratio",
        "Model FLOP utilisation: the same over the devices' peak; absent where that is unknown, as on CPUs.",
    ),
    "row_tokens": ("row_tokens", "Most tokens that a row may have; fewer once memory ran out."),
    "is_slow_path": (
        "slow_path",
        "1 while the model is computed in a slower way, since the fastest is wrong for it.",
    ),
    "queue_staleness_mean": ("queue_staleness_policies", "Mean queue staleness of the newest step."),
    "generation_staleness_mean": (
        "generation_staleness_policies",
        "Mean policies published between lease and append.",
    ),
    "wait_ratio": ("wait_ratio", "Share of the newest step's time spent waiting for groups."),
}


class LearnerMetrics:
    """The metrics of one learner."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"asympo_learner_{name}", text, labels, registry=registry)

        def late_gauge(name: str, text: str) -> LateGauge:
            return LateGauge(f"asympo_learner_{name}", text, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"asympo_learner_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            name = f"asympo_learner_{name}_seconds"
            return Histogram(name, text, buckets=DURATION_BUCKETS_SECONDS, registry=registry)

        self._declare_newest_step(gauge, late_gauge)
        self._staleness = Histogram(
            "asympo_learner_group_queue_staleness_policies",
            "Policies published between append and training, by group.",
            buckets=_STALENESS_BUCKETS,
            registry=registry,
        )
        self._total_steps = gauge("total_steps", "Steps after which the run ends; 0 if it has no end.")
        self._steps = counter("steps", "Optimizer steps made by this process.")
        self._skipped = counter("skipped_steps", "Steps skipped for a gradient that was not finite.")
        self._empty = counter("empty_segments", "Segments of the log without any signal.")
        self._empty_run = gauge("empty_segments_in_a_row", "Segments without signal since the last step.")
        self._groups = counter("groups", "Groups consumed.", ("kind",))
        self._tokens = counter("trained_tokens", "Response tokens trained.")
        self._computed = counter("computed_tokens", "Tokens that went through the model.")
        self._step_seconds = seconds("step", "Forward, backward and optimizer of one step.")
        self._wait_seconds = seconds("wait", "Waiting for the groups of one step.")
        self._waited = counter(
            "waited_seconds", "Time spent waiting for groups; grows during a wait as well."
        )
        self._publish_seconds = seconds("publish", "Publishing one policy.")
        self._save_seconds = seconds("save", "Saving and committing one training state.")
        self._publish_failures = counter("publish_failures", "Policies that could not be published.")
        self._save_failures = counter("save_failures", "Training states that could not be saved.")
        self._published_at = late_gauge(
            "last_publish_timestamp_seconds", "When the newest policy was published."
        )
        self._committed_at = late_gauge(
            "last_commit_timestamp_seconds", "Last commit, or when training began."
        )
        self._tracker_failures = counter(
            "tracker_failures", "Rows that did not reach a tracker.", ("tracker",)
        )
        self._spans_lost = counter("spans_lost", "Spans of traces that did not get through.")
        self._is_paused = gauge("paused", "1 while paused.")
        self._is_finished = gauge("finished", "1 once the run has ended and the learner only answers.")
        self._declare_watched(gauge, counter)
        for kind in ("trained", "without_signal", "invalid"):
            self._groups.labels(kind=kind)

    def _declare_newest_step(self, gauge: Callable[..., Gauge], late_gauge: Callable[..., Gauge]) -> None:
        """What is known once the run's newest step is, made by this process or by one before it."""
        self._gauges = {key: late_gauge(name, text) for key, (name, text) in ROW_GAUGES.items()}
        self._nll = gauge("nll_nats", "Mean NLL by sign of the advantage, newest step.", ("sign",))
        self._functions: set[str] = set()
        self._function = gauge(
            "reward_function", "Mean value of each reward function, newest step.", ("function",)
        )
        self._function_spread = gauge(
            "reward_function_spread", "Mean spread of its values inside a group, newest step.", ("function",)
        )
        self._nll_ratio = late_gauge("nll_ratio", "Negative over positive mean NLL of the newest step.")
        self._step = late_gauge("step", "Optimizer steps of the run.")

    def _declare_watched(self, gauge: Callable[..., Gauge], counter: Callable[..., Counter]) -> None:
        """What is not the learner's own: log, storage, broker."""
        self._backlog = gauge("backlog_groups", "Groups appended and not yet trained.")
        self._slots = gauge("slots", "Slots of the rollout log.", ("state",))
        self._fence = gauge("fence", "Number of this learner's ownership.")
        self._bytes = gauge("log_bytes", "Memory that the run's log takes in the broker.")
        self._since_start = {
            "appended": counter("appended_groups", "Groups that joined the log."),
            "lease_expiries": counter(
                "lease_expiries", "Leases that ran out: their holder died or stood still."
            ),
            "wasted_appends": counter(
                "wasted_groups", "Groups refused because their lease was lost or stale."
            ),
            "prompt_failures": counter("prompt_failures", "Leases handed back because of their prompt."),
        }
        self._unreadable = counter(
            "unreadable_values",
            "What somebody wrote on the broker and nobody can read, by its key.",
            ("key",),
        )
        for key in ("log", "presence"):
            self._unreadable.labels(key=key)
        self._totals: dict[str, int] = {}
        self._storage_free = gauge("storage_free_bytes", "Room on the storage of checkpoints.")
        self._storage_total = gauge("storage_total_bytes", "Size of the storage of checkpoints.")
        self._broker_up = gauge("broker_up", "1 while the broker answers the learner.")
        self._broker_up.set(1)
        self._broker_seconds = Histogram(
            "asympo_learner_broker_seconds",
            "One question to the broker, asked three times a minute.",
            buckets=_ANSWER_BUCKETS,
            registry=self._registry,
        )
        self._broker_used = gauge("broker_used_bytes", "Memory that the broker uses.")
        self._broker_max = gauge("broker_max_bytes", "Memory that the broker may use; 0 without a limit.")
        self._broker_durable = LateGauge(
            "asympo_learner_broker_durable",
            "1 while the broker syncs its append-only file before it acknowledges; absent if unknown.",
            registry=self._registry,
        )

    def resumed(self, *, step: int, row: Mapping[str, Any] | None) -> None:
        """Where the run stands, and the row of its newest step if it has made one."""
        self._step.set(step)
        if row is not None:
            self._show(row)

    def step_done(self, row: Mapping[str, Any], *, computed_tokens: int, is_applied: bool) -> None:
        """One step from its row."""
        self._show(row)
        self._step.set(row["step"])
        self._steps.inc()
        if not is_applied:
            self._skipped.inc()
        self._empty_run.set(0)
        self._tokens.inc(row["tokens_trained"])
        self._computed.inc(computed_tokens)
        self._step_seconds.observe(row["train_seconds"])
        self._wait_seconds.observe(row["wait_seconds"])

    def _show(self, row: Mapping[str, Any]) -> None:
        for key, gauge in self._gauges.items():
            if row.get(key) is not None:
                gauge.set(row[key])
        for key, value in row.items():
            # Read from a file, what is not finite is None.
            if key.startswith("reward/") and value is not None:
                name, _, kind = key.removeprefix("reward/").rpartition("/")
                self._set_function(name, kind, value)
        for sign in ("positive", "negative"):
            if row.get(f"nll_{sign}") is not None:
                self._nll.labels(sign=sign).set(row[f"nll_{sign}"])
        if row.get("nll_ratio") is not None:
            self._nll_ratio.set(row["nll_ratio"])

    def _set_function(self, name: str, kind: str, value: float) -> None:
        # Foreign producers may name their functions anew in every record.
        if name in self._functions or len(self._functions) < MAX_FUNCTION_VALUES:
            self._functions.add(name)
            (self._function if kind == "mean" else self._function_spread).labels(function=name).set(value)

    def ends_after(self, total_steps: int | None) -> None:
        """How long the run is."""
        self._total_steps.set(total_steps or 0)

    def waited(self, seconds: float) -> None:
        """Some of a wait for groups has passed."""
        self._waited.inc(seconds)

    def groups_consumed(self, *, trained: int, without_signal: int, staleness: list[int]) -> None:
        """The valid groups of one segment."""
        self._groups.labels(kind="trained").inc(trained)
        self._groups.labels(kind="without_signal").inc(without_signal)
        for value in staleness:
            self._staleness.observe(value)

    def group_invalid(self, _: str) -> None:
        """A record went to the dead letters."""
        self._groups.labels(kind="invalid").inc()

    def segment_empty(self, *, in_a_row: int) -> None:
        """A segment without signal."""
        self._empty.inc()
        self._empty_run.set(in_a_row)

    def published(self, *, seconds: float, at_seconds: float) -> None:
        """A policy became visible."""
        self._publish_seconds.observe(seconds)
        self._published_at.set(at_seconds)

    def policy_adopted(self, *, published_at_seconds: float) -> None:
        """A learner before this one has published its policy."""
        self._published_at.set(published_at_seconds)

    def publish_failed(self) -> None:
        self._publish_failures.inc()

    def training_begins(self, *, at_seconds: float) -> None:
        """From here on a restart costs what was trained since."""
        self._committed_at.set(at_seconds)

    def committed(self, *, seconds: float, at_seconds: float) -> None:
        """A training state became durable and was committed."""
        self._save_seconds.observe(seconds)
        self._committed_at.set(at_seconds)

    def save_failed(self) -> None:
        self._save_failures.inc()

    def tracker_failed(self, tracker: str) -> None:
        self._tracker_failures.labels(tracker=tracker).inc()

    def spans_lost(self, count: int) -> None:
        """The collector of traces did not take them."""
        self._spans_lost.inc(count)

    def unreadable(self, counts: Mapping[str, int]) -> None:
        """Values set aside since this process began, by key."""
        for key, now in dict(counts).items():
            self._unreadable.labels(key=key).inc(now - self._totals.get(f"unreadable/{key}", 0))
            self._totals[f"unreadable/{key}"] = now

    def watched(self, stats: LogStats, *, fence: int, is_paused: bool, is_finished: bool) -> None:
        """What the broker says, read every second or so."""
        self._backlog.set(stats.backlog)
        self._slots.labels(state="open").set(stats.open)
        self._slots.labels(state="leased").set(stats.leases)
        self._slots.labels(state="capacity").set(stats.capacity)
        self._bytes.set(stats.bytes_used)
        for name, total in self._since_start.items():
            # The broker counts for the life of the run; a process counts from its own start.
            now = getattr(stats, name)
            total.inc(max(0, now - self._totals.get(name, now)))
            self._totals[name] = now
        self._fence.set(fence)
        self._is_paused.set(is_paused)
        self._is_finished.set(is_finished)

    def storage_seen(self, *, free_bytes: int, total_bytes: int) -> None:
        """Room for checkpoints."""
        self._storage_free.set(free_bytes)
        self._storage_total.set(total_bytes)

    def broker_seen(
        self, *, seconds: float, used_bytes: int, max_bytes: int, is_durable: bool | None
    ) -> None:
        """What the broker says about itself, and after how long; `is_durable` is None if unknown."""
        self._broker_seconds.observe(seconds)
        self._broker_up.set(1)
        self._broker_used.set(used_bytes)
        self._broker_max.set(max_bytes)
        if is_durable is None:
            self._broker_durable.unset()
        else:
            self._broker_durable.set(is_durable)

    def broker_lost(self) -> None:
        """It does not answer."""
        self._broker_up.set(0)
