"""Adapters through a bucket: a reader fetches the base once, keeps it in a small cache, and merges each."""

from pathlib import Path

import pytest
import torch
from asympo.learner.model.policy import load_model
from asympo.learner.publish.adapter_writer import AdapterWriter
from asympo.tasks.tokenizer import load_tokenizer

from tests.integration.objects.conftest import Opener
from tests.unit.learner.adapters.test_adapter_policies import CPU, move, publish
from tests.unit.learner.adapters.test_lora import adapted


def test_reader_of_a_bucket_merges_every_adapter_with_a_base_that_it_fetched_once(
    open_store: Opener, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = adapted(tiny_model, noise=0.0)
    writer = AdapterWriter(
        store=open_store("learner", keyframe_every=3),
        policy=policy,
        model=str(tiny_model),
        tokenizer=load_tokenizer(str(tiny_model)),
        tolerance=0.05,
        keep=2,
    )
    reader = open_store("reader", cached=2)
    caplog.set_level("INFO")
    for step in range(5):
        publish(writer, policy, step=step)
        writer.prune(is_in_use=lambda ref: False)
        newest = reader.newest(with_digests=True)
        assert newest is not None
        assert newest.step == step
        load_model(newest.path, dtype=torch.float32, device=CPU)
        move(policy, seed=step)
    fetched = [line for line in caplog.messages if "Fetching the policy" in line]
    assert len(fetched) == 5
    assert [ref.step for ref in reader.list()] == [0, 3, 4]

    base = reader.list()[0]
    assert base.path.is_dir()
    open_store("learner").prune(keep=1)
    late = open_store("late")
    last = late.list()[-1]
    assert late.verify(last).base is not None
