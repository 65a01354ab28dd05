"""The whole path on real vLLM: a policy is published, swapped in flight, and proved against transformers."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from asympo.common.checkpoints import PolicyRef, Probe, ProbeSequence
from asympo.local.ports import free_port
from asympo.tasks.tokenizer_digest import tokenizer_digest
from asympo.testing.tiny_model import write_tiny_model

from tests.conftest import skip_without
from tests.integration.engines.policies import NUM_PROMPT_TOKENS, PROBES, reference_mean_nll
from tests.integration.generator.harness import LearnerSide
from tests.integration.generator.processes import Processes, until

skip_without("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TOKEN = "door-token-0123456789"
VLLM = {"dtype": "float32", "max_num_seqs": 8, "max_model_len": 512, "kv_cache_gib": 0.05}


def publish(learner: LearnerSide, model: Path, *, step: int, nlls: list[float]) -> PolicyRef:
    def fill(directory: Path) -> None:
        shutil.copytree(model, directory, dirs_exist_ok=True)

    sequences = tuple(
        ProbeSequence(token_ids=ids, num_prompt_tokens=NUM_PROMPT_TOKENS, mean_nll=nll)
        for ids, nll in zip(PROBES, nlls, strict=True)
    )
    ref = learner.store.publish(
        step=step,
        fence=learner.fence.number,
        fill=fill,
        probe=Probe(sequences=sequences, tolerance=0.02),
    )
    learner.announce(ref)
    return ref


def test_vllm_generator_swaps_in_flight_and_proves_it(
    make_learner: Callable[..., LearnerSide], tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    child = write_tiny_model(tmp_path / "child", seed=1)
    learner = make_learner(
        model=str(tiny_model),
        tokenizer_digest=tokenizer_digest(AutoTokenizer.from_pretrained(tiny_model)),
        sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 300, "min_tokens": 300, "stop": []},
    )
    nlls = {policy: reference_mean_nll(policy) for policy in (tiny_model, child)}
    learner.create()
    processes = Processes(learner=learner, directory=tmp_path)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    port = free_port()
    process = processes.start("one", engine="vllm", vllm=VLLM, door={"port": port, "tokens": str(tokens)})
    try:

        def status() -> dict[str, Any]:
            assert process.is_running, process.last_words()
            return next(iter(learner.run_log.presence.generators()), {})

        def swapped_to(policy: Path, *, step: int) -> dict[str, Any]:
            publish(learner, policy, step=step, nlls=nlls[policy])
            until(lambda: status().get("policy_step") == step, timeout_seconds=60)
            learner.free_all()
            return dict(status()["last_reload"])

        until(lambda: status().get("state") == "waiting_for_policy", timeout_seconds=300)
        assert swapped_to(tiny_model, step=0)["verdict"] == "unchanged", "the model itself was published"
        for step in range(1, 50):
            until(lambda: status()["groups_in_flight"] > 0, timeout_seconds=60)
            swap = swapped_to((tiny_model, child)[step % 2], step=step)
            assert swap["verdict"] == "proved"
            if swap["in_flight"]:
                break
        assert swap["in_flight"], "not one of many swaps met a response"
        door = f"http://127.0.0.1:{port}/v1/chat/completions"
        question = {"model": "policy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        assert httpx.post(door, json=question).status_code == 401
        asked = httpx.post(door, json=question, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)
        assert asked.headers["x-asympo-policy-step"] == str(step)
        assert len(asked.json()["choices"][0]["token_ids"]) == 5
        groups = until(learner.groups, timeout_seconds=120)
        assert all(len(response.token_ids) == 300 for group in groups for response in group.responses)
        assert status()["requests_lost"] == 0
        assert process.end(signal.SIGTERM) == 0
        assert learner.run_log.stats.read().leases == 0
    finally:
        processes.close()
