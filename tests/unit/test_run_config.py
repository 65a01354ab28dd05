import dataclasses
import json
from typing import Any

import pytest
from asympo.common.errors import BadSetting, RunConfigMismatch, UnknownVersion
from asympo.common.records import MAX_PAYLOAD_BYTES, MAX_RESPONSE_TOKENS
from asympo.common.rollout_log import RunConfig
from asympo.v1 import rollout_pb2

CONFIG = RunConfig(
    run="r",
    group_size=8,
    groups_per_step=4,
    max_groups_per_step=8,
    num_prompts=10,
    model="m",
    task={"name": "a"},
)


def test_run_config_survives_json() -> None:
    assert RunConfig.from_json(CONFIG.to_json()) == CONFIG


def test_config_that_nobody_would_read_is_refused_before_it_is_written() -> None:
    CONFIG.check_size()
    many = dataclasses.replace(CONFIG, task={"left_out": list(range(200_000))})
    with pytest.raises(BadSetting, match="200000 prompts are too long and listed in it"):
        many.check_size()
    with pytest.raises(BadSetting, match="give the task shorter options"):
        dataclasses.replace(CONFIG, task={"system_prompt": "x" * 2**20}).check_size()


@pytest.mark.parametrize(("total", "epochs", "planned"), [(9, 3, 9), (0, 3, 8), (0, 0, 0)])
def test_run_config_plans_what_was_given_or_what_its_epochs_make(
    total: int, epochs: int, planned: int
) -> None:
    assert dataclasses.replace(CONFIG, num_epochs=epochs).planned_steps(total) == planned


@pytest.mark.parametrize(("staleness", "publish_every", "capacity"), [(0, 1, 4), (1, 1, 8), (3, 2, 32)])
def test_run_config_capacity_follows_from_staleness(
    staleness: int, publish_every: int, capacity: int
) -> None:
    config = dataclasses.replace(CONFIG, max_staleness=staleness, publish_every=publish_every)
    assert config.capacity == capacity


def test_record_of_agents_may_have_many_turns_of_the_longest_answer() -> None:
    num = MAX_RESPONSE_TOKENS
    response = rollout_pb2.Response(token_ids=[200_000] * num, trained_token_mask=[True] * num)
    group = rollout_pb2.RolloutGroup(responses=[response] * CONFIG.group_size)
    config = dataclasses.replace(CONFIG, sampling={"max_tokens": 256})
    assert group.ByteSize() <= config.max_record_bytes < MAX_PAYLOAD_BYTES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "a{b"),
        ("run", "../x"),
        ("run", ""),
        ("group_size", 1),
        ("groups_per_step", 0),
        ("max_groups_per_step", 3),
        ("max_staleness", -1),
        ("max_generation_staleness", -1),
        ("lease_seconds", 0.0),
        ("lease_seconds", 1e6),
        ("num_prompts", 0),
    ],
)
def test_run_config_refuses_an_unusable_value(field: str, value: Any) -> None:
    with pytest.raises(BadSetting):
        dataclasses.replace(CONFIG, **{field: value})


def test_run_config_refuses_another_script_version() -> None:
    fields = {**json.loads(CONFIG.to_json()), "script_version": 99}
    with pytest.raises(UnknownVersion, match="script_version 99"):
        RunConfig.from_json(json.dumps(fields))


def test_run_config_refuses_settings_it_does_not_know() -> None:
    fields = {**json.loads(CONFIG.to_json()), "novel": 1}
    with pytest.raises(RunConfigMismatch, match="novel"):
        RunConfig.from_json(json.dumps(fields))


def test_run_config_names_every_difference() -> None:
    other = dataclasses.replace(CONFIG, seed=3, model="n")
    assert CONFIG.differences(other) == ["model: given 'm', stored 'n'", "seed: given 0, stored 3"]
