"""How far the learner may go while the accuracy before training is measured: never to its first policy."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.run.held_out.measurements import HeldOutMeasurements


@pytest.mark.parametrize(
    ("publish_every", "total_steps", "num_epochs", "after_step"),
    [
        (1, 40, 0, 0),
        (3, 39, 0, 2),
        (3, None, 0, 2),
        # The last step is published whatever its number.
        (10, 4, 0, 3),
        (10, 1, 0, 0),
        # Prompts may run out at any step.
        (10, 400, 1, 0),
    ],
)
def test_learner_is_held_before_the_step_that_publishes(
    publish_every: int,
    total_steps: int | None,
    num_epochs: int,
    after_step: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = SimpleNamespace(
        publish_every=publish_every, total_steps=total_steps, num_epochs=num_epochs, groups_per_step=8
    )
    held_out = HeldOutMeasurements(
        directory=tmp_path,
        learner_settings=tmp_path / "learner.toml",
        settings=settings,
        generator_address="",
        max_prompts=8,
    )
    asked: list[tuple[str, Any]] = []

    def call_learner(method: str, request: Any) -> bool:
        asked.append((method, request))
        return True

    monkeypatch.setattr(held_out, "_call_learner", call_learner)
    held_out.hold_learner()
    [(method, request)] = asked
    assert (method, request.after_step) == ("Pause", after_step)
    assert held_out.is_holding_learner
    assert held_out.measure_baseline(step=after_step, backlog=0) is None
    said = held_out.measure_baseline(step=after_step + 1, backlog=8)
    assert said is not None
    assert "had already trained" in said
