"""`asympo demo --seeds`: what is the same for all demos, and what is told about them."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from asympo.demo import seeds
from asympo.demo.command import _is_as_it_is, main

DEMO = """
import json, os, pathlib, sys
said = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:] if "=" in flag)
print("what a demo shows", flush=True)
seed = int(said["learner.seed"])
room = pathlib.Path(said["run.directory"], said["run.name"])
if seed == 2:
    sys.exit(3)
if seed == 3:
    os.kill(os.getpid(), 9)
room.mkdir()
summary = {"held_out_accuracy_after": 0.5 + seed / 10, "remarks": sys.argv[1:]}
(room / "summary.json").write_text(json.dumps(summary))
sys.exit(seed)
"""


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a demo: what it writes, shows and returns."""

    def launched(command: list[str]) -> list[str]:
        return [sys.executable, "-c", DEMO, *command[3:]]

    monkeypatch.setattr(seeds, "launched", launched)


@pytest.mark.usefixtures("demo")
def test_each_demo_has_a_seed_and_a_run_of_its_own_and_standard_output_is_json(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # What an earlier one left there is not the result of one that came to no end.
    old = tmp_path / "demo-seed-2" / "summary.json"
    old.parent.mkdir()
    old.write_text('{"held_out_accuracy_after": 0.9}')
    os.utime(old, (1, 1))
    given = [f"--run.directory={tmp_path}", "--learner.total-steps=2", "--seeds", "4", "--json", "--lora"]
    assert main(given) == 128 + 9
    said = capfd.readouterr()
    found = json.loads(said.out)["seeds"]
    assert [each["seed"] for each in found] == [0, 1, 2, 3]
    assert [each["exit_code"] for each in found] == [0, 1, 3, 137]
    assert [each.get("held_out_accuracy_after") for each in found] == [0.5, 0.6, None, None]
    assert said.err.count("what a demo shows") == 4
    flags = found[1]["remarks"]
    assert flags[:2] == ["demo", "--fresh"]
    assert {"--lora", "--learner.total-steps=2", "--generator.vllm.seed=1"} <= set(flags)


def test_a_stop_ends_the_demo_that_runs_and_begins_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    asks = f"os.kill({os.getpid()}, {int(signal.SIGTERM)})"
    waits = f"import os, signal; open({str(begun)!r}, 'a').write('.'); {asks}; signal.pause()"
    monkeypatch.setattr(seeds, "launched", lambda command: [sys.executable, "-c", waits])
    assert seeds.run_seeds(3, (), directory=tmp_path, is_json=True) == 130
    assert begun.read_text() == "."


@pytest.mark.parametrize(
    ("overrides", "is_as_it_is"),
    [
        ({}, True),
        ({"view": {"kind": "plain"}, "run": {"name": "a"}}, True),
        ({"learner": {"seed": 1}, "generator": {"vllm": {"seed": 1}}}, True),
        ({"run": {"name": "a", "model": "b"}}, False),
        ({"learner": {"seed": 1, "total_steps": 2}}, False),
        ({"generator": {"engine": "simulated"}}, False),
    ],
)
def test_targets_hold_for_demos_that_differ_in_name_and_seed_alone(
    overrides: dict[str, Any], is_as_it_is: bool
) -> None:
    assert _is_as_it_is(overrides) is is_as_it_is
