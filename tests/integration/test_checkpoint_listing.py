"""`asympo checkpoint` on a directory that services use: a learner prunes, and readers have copies."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asympo.cli import main
from asympo.common.checkpoints import PolicyStore
from asympo.common.checkpoints.opening import open_policies
from asympo.common.object_store import DeltaOptions
from asympo.common.settings import ServiceSettings
from asympo.ops.checkpoint import listing

from tests.integration.objects.test_deltas import publish as publish_large
from tests.integration.objects.test_policies import flip_a_byte
from tests.integration.test_checkpoint_store import publish

Asympo = Callable[..., tuple[int, str]]


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return open_policies(tmp_path, "run")


@pytest.fixture
def asympo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Asympo:
    """A verb of `asympo checkpoint` on the run; exit code and output."""

    def call(verb: str, *argv: str) -> tuple[int, str]:
        code = main(["checkpoint", verb, "--run", "run", "--checkpoint-root", str(tmp_path), *argv])
        return code, capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("owner", "call"), [(PolicyStore, "manifest"), (listing, "_stored"), (PolicyStore, "look")]
)
def test_policy_that_is_pruned_meanwhile_is_left_out(
    store: PolicyStore, asympo: Asympo, monkeypatch: pytest.MonkeyPatch, owner: Any, call: str
) -> None:
    for step in (1, 2, 3):
        publish(store, step)
    real = getattr(owner, call)

    def prune_before(*arguments: Any, **options: Any) -> Any:
        store.prune(keep=2)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, call, prune_before)
    assert asympo("verify") == (0, "step-00000002-f0001: verified\nstep-00000003-f0001: verified\n")


def test_policy_that_is_damaged_and_still_there_counts(store: PolicyStore, asympo: Asympo) -> None:
    for step in (1, 2):
        ref = publish(store, step)
    (ref.path / "vocab.txt").symlink_to("vocab.txt")
    assert [code for code, _ in (asympo("verify"), asympo("verify", "--step", "1"))] == [1, 0]
    code, out = asympo("list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["state"] == "complete" for row in rows]) == (0, [True, False])


def test_copies_that_services_share_say_nothing_and_stay(
    asympo: Asympo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    learner = open_policies(tmp_path, "run", deltas=DeltaOptions(keyframe_every=8), cached=3)
    for step in range(1, 7):
        newest = publish_large(learner, step)
    copies = {path.name for path in newest.path.parent.glob("step-*")}
    assert len(copies) == 3
    assert asympo("verify")[0] == 0
    assert asympo("diff", "2", "3")[0] == 0
    assert {path.name for path in newest.path.parent.glob("step-*")} == copies
    flip_a_byte(next((learner.path / newest.name).glob("*.from-*")))
    assert asympo("verify", "--step", "6")[0] == 1
    room = newest.path.parent.parent
    assert [path.name for path in room.parent.iterdir()] == [room.name], "nothing of the commands stays"


def test_models_in_a_cache_of_the_hub_are_compared_and_nothing_is_written(
    store: PolicyStore, asympo: Asympo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = []
    for step in (1, 2):
        weights = publish(store, step).path / "model.safetensors"
        snapshots.append(tmp_path / "hub" / "snapshots" / str(step))
        snapshots[-1].mkdir(parents=True)
        (snapshots[-1] / weights.name).symlink_to(weights.rename(tmp_path / "hub" / f"{step}"))
    monkeypatch.setattr(tempfile, "tempdir", "/dev/full")
    code, out = asympo("diff", *map(str, snapshots), "--json")
    found = json.loads(out)
    assert (code, found["changed"], found["values"]) == (0, 64 * 64, 64 * 64 + 3)
    assert 0 < found["delta_ratio"] < 1
    (snapshots[0] / weights.name).unlink()
    (snapshots[0] / weights.name).symlink_to(weights.name)
    assert asympo("diff", *map(str, snapshots))[0] == 1


def test_run_of_services_that_nobody_told_where_is_said_to_be_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    publish(open_policies(ServiceSettings().checkpoint_root, "run"), step=1)
    for argv in (("list",), ("diff", "last", "last"), ("diff", "1", "1")):
        assert main(["checkpoint", *argv, "--run", "run"]) == 2
        said = capsys.readouterr().err
        assert "keep theirs in runs/checkpoints" in said
    assert main(["checkpoint", "list", "--run", "run", "--checkpoint-root", "runs/checkpoints"]) == 0
