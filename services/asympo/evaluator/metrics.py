"""What an evaluator counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from asympo.common.rollout_log.evals.result import EvalResult


class EvaluatorMetrics:
    """The metrics of one evaluator over a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"asympo_evaluator_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"asympo_evaluator_{name}", text, labels, registry=registry)

        self._mean = gauge("mean_reward", "Mean reward of the newest policy measured, mean@k.", "eval")
        self._low = gauge("mean_reward_low", "Lower end of its 95 % interval.", "eval")
        self._high = gauge("mean_reward_high", "Upper end of its 95 % interval.", "eval")
        self._pass = gauge("pass_at_k", "Chance that one of k responses is right, unbiased.", "eval", "k")
        self._function = gauge("function_mean", "Mean value of a reward function.", "eval", "function")
        self._step = gauge("policy_step", "Step of the newest policy measured.", "eval")
        self._seconds = gauge("seconds", "Duration of the newest evaluation.", "eval")
        self._done = counter("evaluations", "Evaluations done.", "eval")
        self._failed = counter("failures", "Evaluations that could not be done.", "eval")
        self._unscored = counter("unscored", "Responses that could not be scored.", "eval")
        self._broker_errors = counter("broker_errors", "Calls that the broker did not answer.")

    def measured(self, result: EvalResult) -> None:
        """A result is there."""
        name = result.eval
        self._mean.labels(name).set(result.mean.value)
        self._low.labels(name).set(result.mean.low)
        self._high.labels(name).set(result.mean.high)
        for k, each in result.pass_at.items():
            self._pass.labels(name, str(k)).set(each.value)
        for function, value in result.functions.items():
            self._function.labels(name, function).set(value)
        self._step.labels(name).set(result.policy_step or 0)
        self._seconds.labels(name).set(result.seconds)
        self._done.labels(name).inc()
        self._failed.labels(name)
        self._unscored.labels(name).inc(result.unscored)

    def failed(self, name: str) -> None:
        """It could not be done; it is tried again with the next policy, or after a while."""
        self._failed.labels(name).inc()

    def count_broker_error(self) -> None:
        """A call went unanswered."""
        self._broker_errors.inc()
