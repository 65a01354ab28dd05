"""What a learner says when it goes on with other settings than those of the last step."""

import json

import pytest
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.step_settings import step_settings, warn_of_changes

SETTINGS = LearnerSettings(run="r", learning_rate=1e-5, schedule="cosine", total_steps=100)


def said(caplog: pytest.LogCaptureFixture, *, step: int = 100, **changes: object) -> list[str]:
    stored = json.loads(json.dumps(step_settings(SETTINGS)))
    warn_of_changes(stored, SETTINGS.model_copy(update=changes), step=step)
    return caplog.messages


def test_every_changed_setting_is_named_with_both_values(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, learning_rate=2e-5, objective="spo", save_every=3) == [
        "The run goes on with other settings than those of step 100: objective asympo to spo; "
        "learning_rate 1e-05 to 2e-05"
    ]


def test_more_steps_of_a_schedule_are_said_with_what_they_make_of_the_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert said(caplog, total_steps=200)[1:] == [
        "The cosine schedule is laid out over total_steps: the learning rate of step 100 was 1e-06, and that "
        "of step 101 is 5.43e-06"
    ]


def test_nothing_is_said_of_equal_settings_of_more_steps_at_a_constant_rate_or_of_what_was_not_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    constant = LearnerSettings(run="r", total_steps=100)
    assert said(caplog) == []
    warn_of_changes(step_settings(constant), constant.model_copy(update={"total_steps": 200}), step=100)
    warn_of_changes({}, constant, step=100)
    assert caplog.messages == []
