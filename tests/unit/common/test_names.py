"""What a run may be called is one rule for keys, paths, settings and chart."""

from pathlib import Path

import pytest
from asympo.common.checkpoints.opening import open_policies
from asympo.common.errors import BadSetting
from asympo.common.names import MAX_RUN_NAME_CHARS, check_run_name
from asympo.common.rollout_log.keys import key, run_of_key
from asympo.common.settings import ServiceSettings
from asympo.learner.state.open import open_states
from asympo.run.settings import RunSection
from pydantic import ValidationError

LONGEST = "a" * MAX_RUN_NAME_CHARS
REFUSED = ["", "..", "a/b", "{x}", "-x", "a b", "a\n", "é", LONGEST + "a"]


@pytest.mark.parametrize("run", ["a", "0", "a.b_c-D", LONGEST])
def test_run_name_is_taken_everywhere(run: str, tmp_path: Path) -> None:
    assert check_run_name(run) == ServiceSettings(run=run).run == RunSection(name=run).name == run
    assert run_of_key(key(run, "config")) == run
    assert (
        open_policies(tmp_path, run).path.parent == open_states(tmp_path, run).path.parent == tmp_path / run
    )


@pytest.mark.parametrize("run", REFUSED)
def test_run_name_is_refused_everywhere(run: str, tmp_path: Path) -> None:
    assert run_of_key(key(run, "config")) is None
    for refuses in (
        check_run_name,
        lambda name: open_policies(tmp_path, name),
        lambda name: open_states(tmp_path, name),
    ):
        with pytest.raises(BadSetting, match="run name"):
            refuses(run)
    for model, field in ((ServiceSettings, "run"), (RunSection, "name")):
        with pytest.raises(ValidationError):
            model(**{field: run})
