"""Prompts of the run's task, as producers lease them."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from asympo.common.rollout_log import RunLog
from asympo.gateway import app, work
from asympo.gateway.policy_text import PolicyText
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.conftest import RunningGateway, blocked
from tests.integration.gateway.test_ingest import GROUP, NUM_SUMS, post
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


def test_gateway_takes_and_leases_nothing_for_a_run_that_was_created_anew_and_ends(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
    monkeypatch.setattr(app, "RUN_CHECK_SECONDS", 600.0)
    monkeypatch.setattr(work, "MAX_WAIT_SECONDS", 0.1)
    slow = start_gateway(model=model, slot_wait_seconds=0.1)
    assert post(slow, {}, path="/v1/work").status_code == 200
    monkeypatch.setattr(app, "RUN_CHECK_SECONDS", 0.01)
    gateway = start_gateway(model=model, drain_seconds=60.0)
    for _ in range(7):
        must_lease(log)
    with ThreadPoolExecutor(1) as pool:
        earlier = blocked(log)
        waiting = pool.submit(post, gateway, {"wait_seconds": 20}, path="/v1/work")
        while blocked(log) <= earlier:
            time.sleep(0.01)
        log.state.delete()
        start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
        assert waiting.result().json()["refusal"] == "paused", "it is told to ask another gateway"
    assert post(slow, GROUP).json()["results"][0]["outcome"] == "not_started"
    assert post(slow, {}, path="/v1/work").json()["refusal"] == "not_started"
    assert (log.stats.read().leases_granted, log.stats.read().appended) == (0, 0)
    assert "created anew since this gateway joined it" in str(gateway.error())
