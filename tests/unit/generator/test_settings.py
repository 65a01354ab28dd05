"""Settings of a generator: what is refused, and how."""

import pytest
from asympo.common.errors import BadSetting
from asympo.engines.choice import build_engine
from asympo.engines.settings import EngineSettings, SimulatedSettings
from asympo.engines.simulated import SimulatedEngine
from asympo.generator.settings import GeneratorSettings


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


def test_settings_reach_the_engine_that_they_choose() -> None:
    engine = build_engine(load("--engine", "simulated", "--simulated.last-accuracy", "0.5"))
    assert isinstance(engine, SimulatedEngine)
    assert engine._settings == SimulatedSettings(last_accuracy=0.5)
    assert load("--vllm.max-num-seqs", "3").vllm == EngineSettings(max_num_seqs=3)
    assert load("--simulated.faults.stale-steps", "3").simulated.faults.stale_steps == {3}
