"""Several ranks are one learner: the same arithmetic, the same promises."""

import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from asympo.common.checkpoints.opening import open_policies
from asympo.common.errors import SequenceGap
from asympo.common.jsonl import read_steps
from asympo.common.rollout_log import RunLog, RunState
from asympo.learner.rank_worker import _fetch
from asympo.local.ports import free_port
from asympo.local.process import import_path

from tests.forked import ForkedPython
from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer
from tests.integration.rollout_log.conftest import must_append, must_lease, start_run
from tests.unit.learner.test_policy_files import FAMILIES, make_model
from tests.unit.learner.test_segment import group_reader, make_entry

LORA = ("--lora.rank", "4", "--lora.alpha", "8", "--compute-dtype", "bfloat16")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def world_of_two() -> dict[str, str]:
    """As torchrun sets it, whose other promises are tried at the end."""
    return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def test_two_ranks_have_the_loss_gradient_and_metrics_of_one(tiny_model: Path, tmp_path: Path) -> None:
    experts = make_model(tmp_path / "experts", FAMILIES["experts in one tensor"]())
    command = [sys.executable, "-m", "tests.integration.learner.sharded_steps", str(tiny_model), str(experts)]
    common = world_of_two()
    log = tmp_path / "ranks.log"
    ranks = [
        ForkedPython(
            command,
            output=log,
            errors=log,
            environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": import_path()},
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0], log.read_text()[-6000:]
    finally:
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)


def test_rank_trains_no_other_group_than_the_first_rank_has_read_under_that_number(run_log: RunLog) -> None:
    start_run(run_log)
    lease = must_lease(run_log)
    # After a broker went back in time: the same number, and the same prompt sampled once more.
    lost, kept = (make_entry(1, rewards, group_id=lease.group_id) for rewards in ((1.0, 0.0), (0.0, 1.0)))
    must_append(run_log, lease, kept.payload)
    reader = group_reader(SimpleNamespace(eos_token_id=0))
    (group,) = _fetch(run_log, reader, [(1, kept.payload_digest, [1])])
    assert [response.advantage for response in group.responses] == [0.5]
    with pytest.raises(SequenceGap, match="entry 1 is another group than the first rank has read"):
        _fetch(run_log, reader, [(1, lost.payload_digest, [1])])


@pytest.mark.timeout(400)
def test_adapter_of_two_ranks_is_published_and_one_goes_on_with_it(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    learner = partial(LearnerProcess, url=broker_url, run=run_name, root=tmp_path, model=tiny_model)
    common = world_of_two()
    ranks = [
        learner(
            launcher=("-m", "asympo.learner", "--"),
            environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            flags=(*LORA, "--total-steps", "3", "--keep-policies", "9"),
        )
        for rank in range(2)
    ]
    alone = learner(flags=(*LORA, "--total-steps", "5", "--keep-policies", "9"))
    with Producer(url=broker_url, run=run_name):
        for rank in ranks:
            rank.start()
        assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log
        assert alone.start().wait() == 0, alone.log
    assert [row["step"] for row in alone.rows] == list(range(1, 6))
    store = open_policies(tmp_path, run_name)
    kinds = {policy.step: policy.kind for policy in (store.verify(ref) for ref in store.list())}
    assert kinds == {0: "full", **dict.fromkeys(range(1, 6), "adapter")}


@pytest.mark.timeout(400)
def test_rank_that_has_no_memory_or_is_killed_takes_all_along_and_the_run_goes_on_with_fewer(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, run_log: RunLog
) -> None:
    learner = partial(LearnerProcess, url=broker_url, run=run_name, root=tmp_path, model=tiny_model)
    flags = ("--heartbeat-seconds", "2")
    launcher = (*TORCHRUN, "--max-restarts", "2", "-m", "tests.integration.learner.small_first_rank", "--")
    ranks = learner(launcher=launcher, flags=(*flags, "--total-steps", "9"))
    with Producer(url=broker_url, run=run_name) as producer:
        producer.hold_at_step = 4
        ranks.start()
        ranks.until(lambda: ranks.reached(4))
        assert ranks.count("asympo: a row of") == 1
        # Once more, at once, where a publish that is under way delays the end.
        assert ranks.count("does not fit into memory") <= 2
        ranks.kill_rank(1)
        producer.hold_at_step = None
        assert ranks.wait() == 0, ranks.log
        finished = run_log.commits.last()
        assert finished is not None
        assert finished.step == 9
        assert finished.fence > 1, "the ranks that went on are not those that began"
        states = list((tmp_path / run_name / "train" / finished.state_name).glob("rank-*.safetensors"))
        assert len(states) == 2
        alone = learner(flags=(*flags, "--total-steps", "11"))
        assert alone.start().wait() == 0, alone.log
    assert [row["step"] for row in alone.rows] == list(range(1, 12))
    trained = [
        group_id for row in read_steps(tmp_path / run_name / "trained.jsonl") for group_id in row["group_ids"]
    ]
    commit, policy = run_log.commits.last(), open_policies(tmp_path, run_name).newest(with_digests=True)
    assert commit is not None
    assert policy is not None
    assert commit.step == policy.step == 11
    assert len(trained) == len(set(trained)) == commit.sequence
    assert run_log.stats.read().state is RunState.FINISHED
