"""An environment of the `verifiers` package as it is, in a virtual environment that holds nothing of ours."""

import os
import re
import subprocess
from pathlib import Path

from asympo.common.codec import WireLimits, decode_group
from asympo.common.rollout_log import RunLog

from tests.conftest import require
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import StartGateway
from tests.integration.rollout_log.conftest import start_run

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".cache" / "verifiers-tools" / "bin" / "python"
ENVIRONMENT = """
import verifiers.legacy as vf
from datasets import Dataset

class TwoTurns(vf.MultiTurnEnv):
    async def env_response(self, messages, state):
        return [vf.UserMessage(content="again")]

def is_even(completion):
    return float(int(completion[-1].content) % 2 == 0)

def length(completion):
    return float(len(completion))

def load_environment():
    rows = Dataset.from_list([{"question": "a number?", "answer": ""}])
    rubric = vf.Rubric(funcs=[is_even, length], weights=[1.0, 0.0])
    return TwoTurns(dataset=rows, rubric=rubric, max_turns=2, system_prompt="Count.")
"""


def test_example_of_a_verifiers_environment_is_rewarded_by_its_rubric(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path
) -> None:
    require(PYTHON.exists(), "verifiers (make verifiers-tools)")
    (tmp_path / "two_turns.py").write_text(ENVIRONMENT)
    learner = start_run(log)
    door = FakeDoor()
    gateway = start_gateway(producers=None, doors=(door.address,))
    script = ROOT / "examples" / "producers" / "verifiers_env.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [PYTHON, script, "two-turns", gateway.http], env=environment, capture_output=True, text=True
        )
    finally:
        door.stop()
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"row 0 earns \d: .*'is_even': .*'length': 3", done.stdout)) == 4
    (entry,) = learner.consume(10, block_seconds=20)
    group = decode_group(entry.payload, limits=WireLimits())
    assert bytes(group.prompt.token_ids) == b"system:Count.;user:a number?;assistant:"
    assert len(group.responses) == 4
    for each in group.responses:
        said = re.fullmatch(rb"(\d+;)user:again;assistant:((\d+);)", bytes(each.token_ids))
        assert said is not None
        assert each.reward == float(int(said[3]) % 2 == 0)
        assert sum(each.trained_token_mask or ()) == len(said[1]) + len(said[2])
