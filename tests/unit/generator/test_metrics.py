"""What is counted as what; the names themselves are pinned in tests/golden/metrics.txt."""

from asympo.common.records import FinishReason
from asympo.engines.base import Readback, ReloadTiming
from asympo.generator.metrics import GROUP_OUTCOMES, GeneratorMetrics
from asympo.generator.reload.verdict import judge
from prometheus_client import CollectorRegistry


def test_outcomes_are_tallied_as_what_they_are() -> None:
    metrics = GeneratorMetrics(CollectorRegistry())
    for outcome in GROUP_OUTCOMES:
        metrics.count_group(outcome)
    tally = metrics.tally
    assert (tally.groups_appended, tally.groups_wasted) == (1, 4)
    assert (tally.groups_handed_back, tally.prompt_failures) == (1, 1)


def test_aborted_responses_and_failed_reloads_are_told_apart() -> None:
    metrics = GeneratorMetrics(CollectorRegistry())
    metrics.count_response(FinishReason.STOP, num_tokens=3)
    metrics.count_response(FinishReason.ABORT, num_tokens=1)
    timing = ReloadTiming(pause_seconds=0.1, reload_seconds=0.05, readback_seconds=0.01, num_in_flight=0)
    for wrong in ((), ("head",)):
        metrics.count_reload(judge(Readback(num_values=1, num_changed=1, wrong=wrong), None), timing)
    assert (metrics.tally.responses, metrics.tally.reloads, metrics.tally.probe_failures) == (1, 2, 1)
