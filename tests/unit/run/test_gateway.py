"""`[gateway]` in a run file: what is planned for it, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from asympo.cli import main
from asympo.common.errors import BadSetting
from asympo.gateway.settings import GatewaySettings
from asympo.generator.settings import DoorOptions, GeneratorSettings
from asympo.run.prepare.gateway import check_producers, gateway_defaults, gateway_note
from asympo.run.prepare.machine import Machine
from asympo.run.prepare.plan import Plan, make_plan
from asympo.run.settings import read_run_file, take_apart
from asympo.testing.tiny_model import write_tiny_model


def plan(directory: Path, **sections: dict[str, Any]) -> Plan:
    model = write_tiny_model(directory / "model")
    sections = {"run": {"name": "r", "directory": str(directory), "model": str(model)}, **sections}
    machine = Machine(cores=tuple(range(8)), memory_bytes=2**34, gpus=())
    return make_plan(take_apart(sections, source="run.toml"), machine)


def test_run_without_the_section_has_neither_gateway_nor_doors(tmp_path: Path) -> None:
    planned = plan(tmp_path)
    assert planned.gateway is None
    assert planned.generators[0].settings.door.port is None


def test_empty_section_opens_a_gateway_whose_sessions_ask_every_generator(tmp_path: Path) -> None:
    planned = plan(tmp_path, gateway={}, generator={"count": 2})
    assert planned.gateway is not None
    settings: GatewaySettings = planned.gateway.settings
    doors: list[DoorOptions] = [each.settings.door for each in planned.generators]
    assert settings.doors == tuple(f"http://127.0.0.1:{door.port}/v1" for door in doors)
    services: list[GeneratorSettings] = [each.settings for each in planned.generators]
    ports = [port for each in services for port in (each.http_port, each.grpc_port, each.door.port)]
    ports += [settings.http_port, settings.grpc_port, planned.learner.settings.http_port]
    assert len(set(ports)) == len(ports)
    assert settings.run == "r"
    assert any(f":{settings.http_port} " in note for note in planned.notes)


def test_engine_without_a_door_leaves_the_gateway_to_finished_groups(tmp_path: Path) -> None:
    planned = plan(tmp_path, gateway={}, generator={"engine": "simulated"})
    assert planned.gateway is not None
    assert planned.gateway.settings.doors == ()
    assert "no sessions" in gateway_note(planned.gateway.settings)


@pytest.mark.parametrize("key", ["run", "redis_url"])
def test_what_other_sections_decide_is_refused(key: str) -> None:
    with pytest.raises(BadSetting, match=f"{key} in .gateway. of run.toml"):
        gateway_defaults({key: "x"}, doors=(), taken=set(), source="run.toml")


def test_producers_and_the_players_token_are_looked_at_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "producers.toml"
    settings = GatewaySettings(run="r", producers=path)
    path.write_text('[[producers]]\nname = "env"\ntoken = "0123456789abcdef"\nscopes = ["submit"]\n')
    check_producers(settings, is_played=False)
    monkeypatch.delenv("ASYMPO_TOKEN", raising=False)
    with pytest.raises(BadSetting, match=r"in ASYMPO_TOKEN: .*present a valid token"):
        check_producers(settings, is_played=True)
    monkeypatch.setenv("ASYMPO_TOKEN", "0123456789abcdef")
    with pytest.raises(BadSetting, match="for submit, not for sessions"):
        check_producers(settings, is_played=True)
    path.write_text(path.read_text().replace("submit", "sessions"))
    check_producers(settings, is_played=True)
    check_producers(GatewaySettings(run="r"), is_played=True)
    path.write_text('[[producers]]\nname = "env"\ntoken = "short"\n')
    with pytest.raises(BadSetting, match="16"):
        plan(tmp_path, gateway={"producers": str(path)})


def test_section_is_checked_and_shown_with_what_it_leaves_open_left_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "r"\nmodel = "m"\n[run.task]\nname = "addition"\n[gateway]\n')
    assert main(["run", str(path), "--gateway.http-portt=3", "--check-config"]) != 0
    assert "did you mean http_port?" in capsys.readouterr().err
    assert main(["run", str(path), "--check-config"]) == 0
    path.write_text(capsys.readouterr().out)
    file = read_run_file(path)
    assert file.gateway_values is not None
    assert file.gateway_values["session_seconds"] == 600
    assert not {"http_port", "grpc_port", "doors", "model_name"} & file.gateway_values.keys()


def test_port_of_one_door_cannot_be_that_of_several(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"generator\.door\.port is given for 2 generators"):
        plan(tmp_path, generator={"count": 2, "door": {"port": 8000}})


def test_token_of_the_doors_is_passed_on(tmp_path: Path) -> None:
    door = DoorOptions(port=8000, tokens=tmp_path / "tokens", model_name="m")
    values = gateway_defaults({}, doors=[door], taken=set(), source="run.toml")
    assert (values["doors_token"], values["model_name"]) == (str(tmp_path / "tokens"), "m")
    assert "doors" not in gateway_defaults({"doors": ["http://a:1/v1"]}, doors=[door], taken=set(), source="")
