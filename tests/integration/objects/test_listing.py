"""`asympo checkpoint list|verify|best` on policies in a bucket, from a machine that has none of them."""

import json
from pathlib import Path

import pytest
from asympo.cli import main
from asympo.common.checkpoints.bucket import Bucket
from asympo.common.object_store import ObjectStoreOptions

from tests.integration.objects.conftest import Opener
from tests.integration.objects.test_policies import keys_of, publish
from tests.integration.run.test_checkpoints import result_of


def test_policies_of_a_bucket_are_listed_verified_and_the_best_is_named(
    open_store: Opener,
    bucket: Bucket,
    options: ObjectStoreOptions,
    run_name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    learner = open_store("learner", keyframe_every=2)
    learner.take_over(1)
    _, second = publish(learner, 1), publish(learner, 2)
    store = ("--object-store.url", str(options.url), "--object-store.endpoint", str(options.endpoint))
    place = ("--run", run_name, "--checkpoint-root", str(tmp_path / "reader"), *store)

    def asympo(verb: str, *flags: str) -> tuple[int, str]:
        code = main(["checkpoint", verb, *place, *flags])
        return code, capsys.readouterr().out

    code, out = asympo("list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [(row["step"], row["kind"], row["state"]) for row in rows]) == (
        *(0, [(1, "full", "complete"), (2, "full", "complete")]),
    )
    assert "stored" not in asympo("list")[1]
    assert asympo("verify") == (0, "step-00000001-f0001: verified\nstep-00000002-f0001: verified\n")
    results = tmp_path / "evals.jsonl"
    results.write_text(json.dumps(result_of(2, 0.5).to_dict()) + "\n")
    code, out = asympo("best", "--results", str(results))
    assert (code, out.count(second.name)) == (0, 1), out
    assert "in the object store: `asympo checkpoint export best` brings it" in out

    broken = next(key for key in keys_of(learner, bucket) if second.name in key and "safetensors" in key)
    bucket.delete([broken])
    code, out = asympo("list", "--json")
    assert [json.loads(line)["state"] == "complete" for line in out.splitlines()] == [True, False]
    assert asympo("verify")[0] == 1
