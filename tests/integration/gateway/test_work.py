"""Prompts of the run's task, as producers lease them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from asympo.common.rollout_log import RunLog
from asympo.gateway import app
from asympo.gateway.policy_text import PolicyText
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.conftest import RunningGateway
from tests.integration.gateway.test_ingest import NUM_SUMS, post
from tests.integration.rollout_log.conftest import must_lease, start_run

StartGateway = Callable[..., RunningGateway]


def test_prompt_that_the_template_refuses_is_set_aside_and_others_are_leased(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path
) -> None:
    start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"}, max_prompt_failures=1)
    assert post(start_gateway(model=str(tmp_path / "none")), {}, path="/v1/work").status_code == 500
    assert log.stats.read().prompts_set_aside == 0, "without a model no prompt can be rendered"
    model = write_tiny_model(tmp_path / "model")
    lease = must_lease(log)
    config = log.state.config()
    assert config is not None
    refused = PolicyText(config=config, model=str(model), task_path=None).task.prompt(lease.index).messages
    assert refused is not None
    file = model / "tokenizer_config.json"
    written = json.loads(file.read_text())
    condition = f"{{% if messages[-1].content == {json.dumps(refused[-1]['content'])} %}}"
    written["chat_template"] = (
        f"{condition}{{{{ raise_exception('no') }}}}{{% endif %}}{written['chat_template']}"
    )
    file.write_text(json.dumps(written))
    log.leases.hand_back(lease, reason="test")
    gateway = start_gateway(model=str(model))
    answer = post(gateway, {}, path="/v1/work")
    assert (answer.status_code, f"refuses prompt {lease.index}" in answer.text) == (500, True)
    assert log.stats.read().prompts_set_aside == 1
    assert post(gateway, {}, path="/v1/work").json()["group_id"] != lease.group_id


def test_gateway_leases_nothing_of_a_run_that_was_created_anew_and_ends(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
    monkeypatch.setattr(app, "RUN_CHECK_SECONDS", 600.0)
    slow = start_gateway(model=model)
    assert post(slow, {}, path="/v1/work").status_code == 200
    monkeypatch.setattr(app, "RUN_CHECK_SECONDS", 0.01)
    gateway = start_gateway(model=model)
    log.state.delete()
    start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
    assert post(slow, {}, path="/v1/work").json()["refusal"] == "not_started"
    assert log.stats.read().leases_granted == 0
    assert "created anew since this gateway joined it" in str(gateway.error())
