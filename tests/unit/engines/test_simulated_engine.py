"""The simulated engine keeps the same promises as the real one, and breaks on order."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest
from asympo.common import errors
from asympo.common.checkpoints import Manifest, Probe, ProbeSequence
from asympo.common.checkpoints.manifest import encode_manifest
from asympo.common.records import FinishReason
from asympo.engines.base import Engine, Sample, SamplingSettings
from asympo.engines.settings import SimulatedFaults, SimulatedSettings
from asympo.engines.simulated import SimulatedEngine
from asympo.engines.simulated_answers import ByteTokenizer, ResponseLength, answer_addition

pytestmark = pytest.mark.asyncio

PROBE_IDS = (1, 2, 3, 4)


def manifest(step: int, mean_nll: float = 2.0) -> Manifest:
    sequence = ProbeSequence(token_ids=PROBE_IDS, num_prompt_tokens=1, mean_nll=mean_nll)
    return Manifest(
        step=step,
        fence=1,
        files=(),
        tensors=(),
        probe=Probe(sequences=(sequence,), tolerance=0.05),
        digest=f"{step:064d}",
    )


def fast(**changes: Any) -> SimulatedSettings:
    return SimulatedSettings(**{"seconds_per_token": 0.0, "reload_seconds": 0.0, **changes})


async def started(tmp_path: Path, settings: SimulatedSettings | None = None) -> SimulatedEngine:
    engine = SimulatedEngine(settings=settings or fast())
    await engine.start(model_path=tmp_path)
    return engine


async def ask(
    engine: Engine, name: str, *, num_samples: int = 1, max_tokens: int = 64, temperature: float = 1.0
) -> list[Sample]:
    return await engine.generate(
        engine.tokenizer.encode("What is 3 + 14?"),
        num_samples=num_samples,
        sampling=SamplingSettings(max_tokens=max_tokens, temperature=temperature),
        request_id=name,
        cache_salt="0",
    )


async def share_of_right_answers(engine: SimulatedEngine, name: str) -> float:
    samples = await ask(engine, name, num_samples=400)
    return sum(sample.text.endswith("17") for sample in samples) / len(samples)


async def in_flight(engine: SimulatedEngine, number: int) -> None:
    """Until so many responses are being sampled or wait for that."""
    while engine.stats.num_in_flight < number:
        await asyncio.sleep(0)


async def test_accuracy_grows_with_the_policy_step(tmp_path: Path) -> None:
    engine = await started(tmp_path, fast(first_accuracy=0.1, accuracy_per_step=0.01))
    before = await share_of_right_answers(engine, "before")
    await engine.reload(tmp_path, manifest=manifest(70))
    after = await share_of_right_answers(engine, "after")
    assert before == pytest.approx(0.1, abs=0.06)
    assert after == pytest.approx(0.8, abs=0.06)


async def test_responses_depend_on_seed_and_request_alone(tmp_path: Path) -> None:
    first, second = await started(tmp_path), await started(tmp_path)
    backwards = [await ask(second, f"r{i}", num_samples=4) for i in reversed(range(5))]
    assert [await ask(first, f"r{i}", num_samples=4) for i in range(5)] == backwards[::-1]
    other = await started(tmp_path, fast(seed=1))
    assert [await ask(other, f"r{i}", num_samples=4) for i in range(5)] != backwards[::-1]


async def test_finished_response_ends_with_eos_and_a_cut_one_does_not(tmp_path: Path) -> None:
    engine = await started(tmp_path, fast(length_kind="fixed", length_mean_tokens=30))
    (whole,), (cut,) = await ask(engine, "whole"), await ask(engine, "cut", max_tokens=10)
    assert (whole.finish_reason, whole.token_ids[-1]) == (FinishReason.STOP, 0)
    assert (cut.finish_reason, len(cut.token_ids)) == (FinishReason.LENGTH, 10)
    assert 0 not in cut.token_ids
    assert "<|end|>" not in whole.text


async def test_greedy_answer_is_the_same_for_every_request(tmp_path: Path) -> None:
    engine = await started(tmp_path)
    answers = [await ask(engine, f"g{i}", temperature=0.0) for i in range(10)]
    assert all(answer == answers[0] for answer in answers)


async def test_frozen_time_does_not_count_and_no_response_is_lost(tmp_path: Path) -> None:
    engine = await started(
        tmp_path,
        SimulatedSettings(
            seconds_per_token=0.05,
            reload_seconds=0.3,
            length_kind="fixed",
            length_mean_tokens=20,
        ),
    )
    began = time.monotonic()
    group = asyncio.create_task(ask(engine, "r", num_samples=4))
    while engine._num_decoding < 4:
        await asyncio.sleep(0)
    timing = (await engine.reload(tmp_path, manifest=manifest(1))).timing
    assert not group.done()
    assert timing.num_in_flight == 4
    assert timing.pause_seconds >= 0.3
    assert len(await group) == 4
    assert time.monotonic() - began >= 0.3 + 0.9


async def test_probe_answers_for_the_policy_that_is_loaded(tmp_path: Path) -> None:
    engine = await started(tmp_path, fast(faults=SimulatedFaults(stale_steps=frozenset({2}))))
    bare = await engine.mean_nll(PROBE_IDS, num_prompt_tokens=1)
    values = [bare]
    for step in (1, 2, 3):
        await engine.reload(tmp_path, manifest=manifest(step, mean_nll=2.0 + step))
        values.append(await engine.mean_nll(PROBE_IDS, num_prompt_tokens=1))
    assert values == [bare, 3.0, 3.0, 5.0]
    assert 1.0 <= bare < 2.0


async def test_start_on_a_policy_directory_serves_that_policy(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(encode_manifest(manifest(9, mean_nll=4.5)))
    engine = await started(tmp_path)
    assert await engine.mean_nll(PROBE_IDS, num_prompt_tokens=1) == 4.5


@pytest.mark.parametrize(
    "faults",
    [SimulatedFaults(raising_steps=frozenset({1})), SimulatedFaults(hanging_steps=frozenset({1}))],
    ids=["raises", "hangs"],
)
async def test_failed_reload_breaks_the_engine_and_ends_what_is_in_flight(
    tmp_path: Path, faults: SimulatedFaults
) -> None:
    settings = fast(seconds_per_token=1.0, reload_timeout_seconds=0.1, faults=faults)
    engine = await started(tmp_path, settings)
    group = asyncio.create_task(ask(engine, "r"))
    await in_flight(engine, 1)
    with pytest.raises(errors.EngineBroken):
        await engine.reload(tmp_path, manifest=manifest(1))
    with pytest.raises(errors.EngineBroken):
        await group
    with pytest.raises(errors.EngineBroken):
        await engine.resume()
    assert engine.is_broken


async def test_engine_dies_after_the_ordered_number_of_responses(tmp_path: Path) -> None:
    engine = await started(tmp_path, fast(faults=SimulatedFaults(die_after_responses=6)))
    assert len(await ask(engine, "first", num_samples=4)) == 4
    with pytest.raises(errors.EngineBroken):
        await ask(engine, "second", num_samples=4)


async def test_abort_ends_waiting_and_running_responses(tmp_path: Path) -> None:
    engine = await started(tmp_path, fast(seconds_per_token=1.0, max_num_seqs=2))
    group = asyncio.create_task(ask(engine, "r", num_samples=5))
    await in_flight(engine, 5)
    await engine.abort("r")
    assert {sample.finish_reason for sample in await group} == {FinishReason.ABORT}
    assert engine.stats.num_in_flight == 0


async def test_paused_engine_stays_paused_across_a_reload(tmp_path: Path) -> None:
    engine = await started(tmp_path)
    await engine.pause()
    group = asyncio.create_task(ask(engine, "r"))
    await engine.reload(tmp_path, manifest=manifest(1))
    await asyncio.sleep(0.05)
    assert not group.done()
    await engine.resume()
    assert len(await group) == 1


async def test_lognormal_lengths_keep_their_mean_and_have_a_long_tail() -> None:
    rng = random.Random(0)
    length = ResponseLength(kind="lognormal", mean_tokens=100, sigma=1.0)
    lengths = sorted(length.draw(rng) for _ in range(4000))
    assert sum(lengths) / len(lengths) == pytest.approx(100, rel=0.1)
    assert lengths[-40] > 5 * lengths[2000]


@pytest.mark.parametrize("text", ["What is 3 + 4?", "äöü 漢字", ""])
async def test_byte_tokenizer_round_trips(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    assert tokenizer.decode(prompt, skip_special_tokens=True) == text + "\n"
    assert max(prompt) < len(tokenizer) == len(tokenizer.get_vocab())


async def test_addition_answers_offer_one_right_and_several_wrong() -> None:
    right, wrong = answer_addition("Answer with only the number.\nWhat is 12 + 9?")
    assert right == "21"
    assert right not in wrong
