"""What evaluators leave on the broker: its scripts, called twice as in `test_scripts.py` above."""

import json

import pytest
from asympo.common.errors import BrokerRefused
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.evals.sample import EvalResponse, EvalSample
from asympo.common.rollout_log.keys import key

from ..test_scripts import call, twice


def keeps_in_order(log: RunLog, script: str, noun: str, field: bytes) -> None:
    twice(log, script, noun, '{"eval": "x"}')
    twice(log, script, noun, '{"eval": "y"}')
    entries = log.broker.client.xrange(key(log.run, noun))
    assert [fields[field] for _, fields in entries] == [b'{"eval": "x"}', b'{"eval": "y"}']
    with pytest.raises(BrokerRefused, match="a short result is needed"):
        call(log, script, noun, "x" * 16385)


def goes_on_behind_an_id(log: RunLog, script: str, noun: str, field: str) -> None:
    stream, client = key(log.run, noun), log.broker.client
    first = client.xadd(stream, {"other": "x", field: "a"})
    ids = [client.xadd(stream, {field: value}) for value in ("x" * 16385, "b")] + [
        client.xadd(stream, {"y": 1})
    ]
    listed, again = twice(log, script, noun, "0", 9)
    assert listed == again == [first, b"a", ids[0], b"", ids[1], b"b", ids[2], b""]
    assert call(log, script, noun, first.decode(), 2) == [ids[0], b"", ids[1], b"b"]


def test_add_evaluation_keeps_results_in_order_and_refuses_long_ones(log: RunLog) -> None:
    keeps_in_order(log, "add_evaluation", "evaluations", b"result")


def test_add_eval_sample_keeps_samples_in_order_and_refuses_long_ones(log: RunLog) -> None:
    keeps_in_order(log, "add_eval_sample", "eval_samples", b"sample")


def test_list_evaluations_goes_on_behind_an_id_and_leaves_long_ones_empty(log: RunLog) -> None:
    goes_on_behind_an_id(log, "list_evaluations", "evaluations", "result")


def test_list_eval_samples_goes_on_behind_an_id_and_leaves_long_ones_empty(log: RunLog) -> None:
    goes_on_behind_an_id(log, "list_eval_samples", "eval_samples", "sample")


def test_samples_are_kept_however_long_and_the_newest_few_hundred_of_them(log: RunLog) -> None:
    response = EvalResponse(text="\U0001f600\x00\ud800" * 9000, reward=None, reason="r" * 9000)
    sample = EvalSample(
        eval="e", policy_step=3, prompt="p" * 9000, answer="a", responses=(response,) * 4, at_seconds=1.0
    )
    log.evaluations.add_sample(sample)
    [kept], after = log.evaluations.samples_after()
    assert (kept.eval, kept.policy_step, kept.answer, len(kept.responses)) == ("e", 3, "a", 4)
    assert kept.prompt.startswith("ppp")
    assert kept.responses[0].text.startswith("\U0001f600\x00?\U0001f600")
    for junk in (b"\xff", b"[]", b'{"eval": 1}', b'{"eval": "\\ud800"}', json.dumps({"a": 1}).encode()):
        log.broker.client.xadd(key(log.run, "eval_samples"), {"sample": junk})
    assert log.evaluations.samples_after(after)[0] == []
    assert log.access.unreadable["eval_samples"] == 5
    for number in range(600):
        log.broker.client.xadd(key(log.run, "eval_samples"), {"sample": str(number)})
    log.evaluations.add_sample(sample)
    assert log.broker.command("XLEN", key(log.run, "eval_samples")) == 512
