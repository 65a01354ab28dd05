"""Settings that contradict each other are refused in one sentence."""

import subprocess
import sys

import pytest
from asympo.common.errors import BadSetting
from asympo.learner.settings import LearnerSettings


def load(*argv: str) -> LearnerSettings:
    return LearnerSettings.load(argv, environ={})


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("--groups-per-step", "8", "--max-groups-per-step", "4"), "at least groups_per_step"),
        (("--http-port", "9000", "--grpc-port", "9000"), "two different ones"),
        (("--schedule", "cosine"), "needs total_steps"),
        (("--warmup-steps", "8", "--total-steps", "8"), r"warmup_steps \(8\) must be below total_steps"),
        (("--optimizer", "sgd"), "optimizer"),
        (("--muon-momentum", "1.0"), "muon_momentum"),
        (("--sampling.min-tokens", "9", "--sampling.max-tokens", "8"), "above sampling.max_tokens"),
        (("--grpc-host", "0.0.0.0"), "callers must present certificates"),
        (("--objective", "ppo"), "objective"),
        (("--group-size", "1"), "group_size"),
    ],
)
def test_settings_refuse(argv: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(BadSetting, match=sentence):
        load(*argv)


def test_segment_limit_is_four_times_the_step_unless_given() -> None:
    assert load("--groups-per-step", "6").segment_limit == 24
    assert load("--groups-per-step", "6", "--max-groups-per-step", "7").segment_limit == 7


def test_settings_survive_their_own_toml(tmp_path) -> None:  # type: ignore[no-untyped-def]
    settings = load("--task.name", "addition", "--sampling.stop", "###", "--total-steps", "5")
    path = tmp_path / "learner.toml"
    path.write_text(settings.to_toml(redact=False))
    assert load("--config", str(path)) == settings


def test_check_config_imports_no_torch() -> None:
    code = (
        "import sys; from asympo.cli import main; code = main(['learner', '--check-config']);"
        "assert 'torch' not in sys.modules and 'redis' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'objective = "asympo"' in done.stdout
