"""Prompts of the run's task, as producers lease them."""

import json
from collections.abc import Callable
from pathlib import Path

from asympo.common.rollout_log import RunLog
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
