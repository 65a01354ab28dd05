"""The learner's view of results: the best policy is kept, however many results come after its own."""

from pathlib import Path

import pytest
from asympo.common.checkpoints import PolicyRef
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.common.rollout_log.keys import key
from asympo.learner import evals
from asympo.learner.evals import EvalHistory


def add(log: RunLog, step: int, mean: float) -> None:
    estimate = Estimate(value=mean, low=mean, high=mean)
    log.evaluations.add(
        EvalResult(
            eval="e", policy_step=step, policy_fence=1, last_policy_step=step, prompts=1, samples=1,
            mean=estimate, pass_at={1: estimate}, at_seconds=float(step),
        )
    )  # fmt: skip


def policy(step: int, digest: str = "") -> PolicyRef:
    return PolicyRef(step=step, fence=1, digest=digest or f"digest of {step}", path=Path("p"))


def history(log: RunLog, folder: Path, *, keep_best: str = "e") -> EvalHistory:
    """That of a learner that has just started, and looked once."""
    found = EvalHistory(keep_best=keep_best, shows_samples=False, best_file=folder / "best_policy.json")
    found.look(log)
    return found


def test_best_policy_is_kept_when_its_result_is_forgotten_here_and_on_the_broker(
    log: RunLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evals, "_MAX_RESULTS", 2)
    add(log, 1, 0.9)
    learner = history(log, tmp_path)
    for step in (2, 3, 4):
        add(log, step, step / 10)
    learner.look(log)
    assert [step for step in range(1, 5) if learner.is_best(policy(step))] == [1]

    log.broker.client.xtrim(key(log.run, "evaluations"), maxlen=3, approximate=False)
    again = history(log, tmp_path)
    # Pruning comes to the newest first, and knows the best once it comes to it.
    assert [step for step in (4, 3, 2, 1) if again.is_best(policy(step))] == [4, 1]
    third = history(log, tmp_path)
    assert [step for step in (1, 2, 3, 4) if third.is_best(policy(step))] == [1]
    add(log, 5, 0.95)
    third.look(log)
    assert [step for step in (1, 5) if third.is_best(policy(step))] == [5]
    assert not history(log, tmp_path).is_best(policy(1))


def test_what_is_written_down_of_another_run_or_evaluation_or_is_damaged_keeps_nothing(
    log: RunLog, tmp_path: Path
) -> None:
    add(log, 1, 0.9)
    assert history(log, tmp_path).is_best(policy(1))
    log.broker.client.delete(key(log.run, "evaluations"))
    assert not history(log, tmp_path).is_best(policy(1, "another's"))
    assert not history(log, tmp_path, keep_best="other").is_best(policy(1))
    (tmp_path / "best_policy.json").write_text('{"digest": ')
    assert not history(log, tmp_path).is_best(policy(1))
