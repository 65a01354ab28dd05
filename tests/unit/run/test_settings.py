"""Flags over environment over TOML, and sentences for whatever is wrong."""

import tomllib
from pathlib import Path
from typing import ClassVar

import pytest
from asympo.common.errors import BadSetting
from asympo.common.settings import ServiceSettings, dump_toml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field


class Sampling(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    max_tokens: int = Field(default=16, ge=1)
    stop: tuple[str, ...] = ()


class LearnerLike(ServiceSettings):
    service: ClassVar[str] = "learner"
    max_staleness: int = Field(default=1, ge=0)
    sampling: Sampling = Sampling()
    model: str | None = None
    show_samples: bool = False
    port: int = 1
    api_key: str = ""


def load(*argv: str, **environ: str) -> LearnerLike:
    return LearnerLike.load(argv, environ=environ)


def test_flags_override_environment_which_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "learner.toml"
    file.write_text("max_staleness = 1\nport = 1\n[sampling]\nmax_tokens = 1\nstop = ['a']\n")
    environ = {"ASYMPO_LEARNER_PORT": "2", "ASYMPO_LEARNER_SAMPLING__MAX_TOKENS": "2"}
    settings = load("--config", str(file), "--sampling.max-tokens", "3", **environ)
    assert (settings.max_staleness, settings.port) == (1, 2)
    assert settings.sampling == Sampling(max_tokens=3, stop=("a",))


def test_redis_url_comes_from_its_common_variable_unless_ours_is_set() -> None:
    assert load(REDIS_URL="redis://a").redis_url == "redis://a"
    assert load(REDIS_URL="redis://a", ASYMPO_LEARNER_REDIS_URL="redis://b").redis_url == "redis://b"


def test_settings_built_in_code_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYMPO_LEARNER_PORT", "2")
    assert LearnerLike().port == 1


def test_switches_lists_and_none_can_be_written_as_flags() -> None:
    settings = load("--show-samples", "--model", "none", "--sampling.stop", "a,b", "--sampling.stop", "c")
    assert (settings.show_samples, settings.model, settings.sampling.stop) == (True, None, ("a,b", "c"))
    assert load(ASYMPO_LEARNER_SAMPLING__STOP="a,b").sampling.stop == ("a", "b")
    assert load(ASYMPO_LEARNER_SAMPLING__STOP='["a,b"]').sampling.stop == ("a,b",)


@pytest.mark.parametrize(
    ("argv", "environ", "file", "expected"),
    [
        (["--max-stalenes", "1"], {}, "", ["--max-stalenes", "did you mean --max-staleness?"]),
        (["--max-staleness", "many"], {}, "", ["max_staleness", "'many'", "--max-staleness", "integer"]),
        (["--sampling.max-tokens", "0"], {}, "", ["sampling.max_tokens", "greater than or equal to 1"]),
        ([], {"ASYMPO_LEARNER_PROT": "1"}, "", ["ASYMPO_LEARNER_PROT", "ASYMPO_LEARNER_PORT?"]),
        ([], {"ASYMPO_LEARNER_PORT": "x"}, "", ["port", "'x'", "ASYMPO_LEARNER_PORT"]),
        ([], {}, "max_stalenes = 1", ["max_stalenes", "settings.toml", "did you mean max_staleness?"]),
        ([], {}, "[sampling]\nmax_token = 1", ["sampling.max_token", "did you mean sampling.max_tokens?"]),
        ([], {}, "port = [", ["settings.toml", "is not TOML"]),
        (["--run", "a{b}"], {}, "", ["run", "'a{b}'"]),
    ],
)
def test_wrong_setting_gets_one_sentence(
    argv: list[str], environ: dict[str, str], file: str, expected: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(file)
    with pytest.raises(BadSetting) as caught:
        load("--config", str(path), *argv, **environ)
    text = str(caught.value)
    assert "\n" not in text
    for part in expected:
        assert part in text


def test_absent_settings_file_is_named() -> None:
    with pytest.raises(BadSetting, match=r"/nowhere\.toml: No such file"):
        load("--config", "/nowhere.toml")


def test_kubernetes_service_links_are_not_taken_for_settings() -> None:
    links = {
        "ASYMPO_LEARNER_PORT": "3",
        "ASYMPO_LEARNER_SERVICE_HOST": "10.0.0.1",
        "ASYMPO_LEARNER_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load(**links).port == 3
    assert load(**{**links, "ASYMPO_LEARNER_PORT": "tcp://10.0.0.1:8080"}).port == 1


def test_check_config_prints_what_config_reads_and_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--check-config", "--port", "7", "--api-key", "k", "--redis-url", "redis://u:secret@h:1/0"]
    with pytest.raises(SystemExit) as exit_:
        load(*argv, "--sampling.stop", 'a"\n\\')
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "secret" not in printed
    assert tomllib.loads(printed)["api_key"] == "***"
    file = tmp_path / "again.toml"
    file.write_text(printed)
    again = load("--config", str(file))
    assert (again.port, again.sampling.stop) == (7, ('a"\n\\',))
    assert again.redis_url == "redis://u:***@h:1/0"


scalars = st.one_of(
    st.text(), st.integers(-(2**60), 2**60), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
)
tables = st.recursive(
    st.one_of(scalars, st.lists(scalars)),
    lambda inner: st.dictionaries(st.text(min_size=1), inner, min_size=1),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1), tables))
def test_toml_text_is_read_back_unchanged(values: dict[str, object]) -> None:
    assert tomllib.loads(dump_toml(values)) == values
