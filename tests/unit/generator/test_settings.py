"""Settings of a generator: what is refused, and how."""

import dataclasses

import pytest
from asympo.common.errors import BadSetting
from asympo.engines.base import EngineSettings
from asympo.engines.simulated import SimulatedEngine, SimulatedFaults, SimulatedSettings
from asympo.generator.engine_choice import build_engine
from asympo.generator.settings import FaultOptions, GeneratorSettings, VllmOptions


def load(*argv: str, **environ: str) -> GeneratorSettings:
    return GeneratorSettings.load(argv, environ=environ)


def test_settings_take_flags_over_environment() -> None:
    settings = load("--max-groups-in-flight", "3", ASYMPO_GENERATOR_MAX_GROUPS_IN_FLIGHT="5")
    assert settings.max_groups_in_flight == 3
    assert settings.grpc_address == "127.0.0.1:50052"


def test_settings_name_the_nearest_valid_key() -> None:
    with pytest.raises(BadSetting, match="did you mean --max-groups-in-flight"):
        load("--max-group-in-flight", "3")


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "generator-0.example", "::"])
def test_settings_refuse_control_beyond_this_machine(host: str) -> None:
    with pytest.raises(BadSetting, match="give a loopback address or unix:PATH"):
        load("--grpc-host", host)


@pytest.mark.parametrize(
    ("host", "address"),
    [("::1", "[::1]:50052"), ("localhost", "localhost:50052"), ("unix:/run/a.sock", "unix:/run/a.sock")],
)
def test_settings_give_grpc_what_it_binds(host: str, address: str) -> None:
    assert load("--grpc-host", host).grpc_address == address


def test_settings_refuse_one_port_for_two_servers() -> None:
    with pytest.raises(BadSetting, match="http_port and grpc_port are both 9000"):
        load("--http-port", "9000", "--grpc-port", "9000")


def test_vllm_options_are_the_engine_settings() -> None:
    options = VllmOptions()
    assert EngineSettings(**options.model_dump()) == EngineSettings()
    assert {field.name for field in dataclasses.fields(EngineSettings)} == set(VllmOptions.model_fields)


def test_simulated_options_are_the_engine_settings() -> None:
    engine = build_engine(GeneratorSettings(engine="simulated"))
    assert isinstance(engine, SimulatedEngine)
    assert engine._settings == SimulatedSettings()
    assert set(FaultOptions.model_fields) == {field.name for field in dataclasses.fields(SimulatedFaults)}
    assert load("--simulated.faults.stale-steps", "3").simulated.faults.stale_steps == {3}
