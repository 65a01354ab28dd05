"""What a run says in its last lines, and when that is a failure."""

from dataclasses import replace
from typing import Any

import pytest
from asympo.demo import command
from asympo.demo.command import IN_FLOAT32, LORA, PRESET, STEPS_OF_LORA
from asympo.run.prepare.machine import Gpu, look_at_machine
from asympo.run.report.promises import broken_promises, remarks
from asympo.run.report.summary import print_promises
from asympo.run.settings import RunFile, TargetsSection, read_run_file

KEPT: dict[str, Any] = {
    "is_finished": True,
    "held_out_accuracy_before": 0.152,
    "held_out_accuracy_after": 0.861,
    "held_out_policy_step_after": 32,
    "held_out_problem": None,
    "wall_seconds": 331.0,
    "reloads": 33,
    "probe_failures": 0,
    "requests_lost": 0,
    "groups_trained": 256,
    "groups_trained_twice": 0,
    "peak_rss_bytes_total": 6.6e9,
    "last_policy_step": 32,
    "last_policy_served": True,
    "last_policy_wait_seconds": 2.0,
}


@pytest.fixture(scope="module")
def targets() -> TargetsSection:
    found = read_run_file(PRESET).run.targets
    assert found is not None
    return found


def test_demo_is_shorter_where_products_are_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = look_at_machine()
    for is_native, gpus, settings, of_lora in (
        (True, (), {}, LORA | STEPS_OF_LORA),
        (False, (), IN_FLOAT32, LORA),
        (False, (Gpu(index="0", name="a", memory_bytes=1),), {}, LORA | STEPS_OF_LORA),
    ):
        monkeypatch.setattr(command, "has_native_bfloat16", lambda is_native=is_native: is_native)
        monkeypatch.setattr(command, "look_at_machine", lambda gpus=gpus: replace(machine, gpus=gpus))
        assert command.suited_to_this_machine(is_lora=False) == settings
        assert command.suited_to_this_machine(is_lora=True) == of_lora


def test_run_that_kept_everything_has_nothing_to_say(targets: TargetsSection) -> None:
    assert broken_promises(KEPT, targets) == remarks(KEPT, targets) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"probe_failures": 7}, "7 of 33 swaps failed"),
        ({"requests_lost": 320}, "320 responses were lost"),
        ({"groups_trained_twice": 1}, "1 of 256 groups were trained twice"),
        (
            {
                "last_policy_served": False,
                "last_policy_wait_seconds": 180.0,
                "held_out_policy_step_after": 31,
            },
            "last policy (step 32) was not served after 3:00 of waiting, step 31 was measured instead",
        ),
        ({"held_out_accuracy_after": 0.759}, "accuracy is 0.759, and should be 0.8 or more"),
        ({"held_out_accuracy_before": 0.4}, "rose by 0.461, and should by 0.6 or more"),
        ({"held_out_accuracy_before": None}, "what was gained is not known"),
        (
            {"held_out_accuracy_after": None, "held_out_problem": "accuracy is unknown: no answer in time"},
            "no answer in time",
        ),
        ({"held_out_accuracy_after": None}, "was not measured"),
        ({"held_out_accuracy_after": None, "last_policy_served": None}, "set run.evaluate"),
    ],
)
def test_each_broken_promise_is_told(targets: TargetsSection, changes: dict[str, Any], told: str) -> None:
    [text] = broken_promises({**KEPT, **changes}, targets)
    assert told in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"wall_seconds": 452.0}, "took 7:32, and should take 6:00"),
        ({"peak_rss_bytes_total": 7.7e9}, "took 7.7 GB of memory, and should take 7 GB"),
        ({"last_policy_wait_seconds": 180.0}, "3:00 were spent waiting for the last policy"),
    ],
)
def test_what_a_slow_machine_does_is_told_and_breaks_nothing(
    targets: TargetsSection, changes: dict[str, Any], told: str
) -> None:
    summary = {**KEPT, **changes}
    assert broken_promises(summary, targets) == []
    [text] = remarks(summary, targets)
    assert told in text


def test_run_without_targets_or_evaluation_still_tells_what_was_lost() -> None:
    unmeasured = dict.fromkeys(name for name in KEPT if name.startswith(("held_out", "last_policy")))
    assert broken_promises({**KEPT, **unmeasured}, None) == []
    assert len(broken_promises({**KEPT, **unmeasured, "requests_lost": 1, "probe_failures": 1}, None)) == 2


def test_last_lines_are_what_went_wrong(targets: TargetsSection, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {**KEPT, "probe_failures": 7, "wall_seconds": 452.0}
    told = {"broken_promises": broken_promises(summary, targets), "remarks": remarks(summary, targets)}
    print_promises(summary | told)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("went wrong: 7 of 33 swaps failed")
    assert "7:32" in lines[-2]
    print_promises({**KEPT, "broken_promises": [], "remarks": []})
    assert capsys.readouterr().out == "nothing was lost, failed or trained twice\n"


@pytest.mark.parametrize(
    ("flags", "is_own"),
    [
        ([], True),
        (["--view.kind=plain"], True),
        (["--learner.total-steps=3"], False),
        (["--model=/elsewhere"], False),
        (["--run.sampling.max_tokens=4"], False),
    ],
)
def test_demo_has_targets_only_as_it_was_made(
    flags: list[str], is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asympo.demo import command

    seen: list[TargetsSection | None] = []
    monkeypatch.setattr(command, "check_learner_values", lambda file: None)

    def note(file: RunFile, _: object) -> int:
        seen.append(file.run.targets)
        return 0

    monkeypatch.setattr(command, "run_file", note)
    assert command.main(["--check-config", *flags]) == 0
    [targets] = seen
    assert targets is not None, "what was lost or failed is a failure of any demo"
    assert (targets.min_accuracy is not None) is is_own
