"""vLLM on CPU with a tiny tied model: reloads are proven against a reference forward pass."""

import asyncio
import importlib
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio
from asympo.common import errors
from asympo.common.records import FinishReason
from asympo.engines.base import DoorTerms, SamplingSettings
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm import VllmEngine
from asympo.gateway.capture import TurnReader
from asympo.testing.tiny_model import write_tiny_model

from tests.conftest import skip_without
from tests.integration.engines import played
from tests.integration.engines.policies import (
    NUM_PROMPT_TOKENS,
    PROBES,
    manifest_of,
    reference_mean_nll,
)

skip_without("vllm")
openai = pytest.importorskip("openai")
pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

SETTINGS = EngineSettings(
    dtype="float32", max_num_seqs=8, max_model_len=256, kv_cache_gib=0.05, block_size=16, self_test=True
)
OPINIONS = {"repetition_penalty": 1.7, "top_k": 3, "top_p": 0.5, "temperature": 0.2}
"""What the model's own file says of sampling: a run says it better."""
PROMPT = list(range(10, 50))
ROUNDING = 2e-3
"""Between two float32 implementations; policies of different seeds differ by more than 50 times that."""


@pytest.fixture(scope="module")
def policy_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("policy-b"), seed=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    model = shutil.copytree(tiny_model, tmp_path_factory.mktemp("model") / "opinionated")
    (model / "generation_config.json").write_text(json.dumps(OPINIONS))
    engine = VllmEngine(settings=SETTINGS)
    await engine.start(model_path=model)
    yield engine
    await engine.close()


def sampling(num_tokens: int, **changes: Any) -> SamplingSettings:
    """Exactly `num_tokens` tokens: the end-of-sequence id is not allowed earlier."""
    return replace(SamplingSettings(max_tokens=num_tokens, min_tokens=num_tokens), **changes)


async def probe(engine: VllmEngine) -> list[float]:
    return [await engine.mean_nll(ids, num_prompt_tokens=NUM_PROMPT_TOKENS) for ids in PROBES]


async def test_engine_passes_its_self_test_and_scores_as_a_reference_forward_pass(
    engine: VllmEngine, tiny_model: Path
) -> None:
    assert engine.context_length == SETTINGS.max_model_len
    assert engine.stats.num_reloads == 1, "the model itself again, after one perturbed load a kind"
    assert await probe(engine) == pytest.approx(reference_mean_nll(tiny_model), abs=ROUNDING)


async def test_responses_in_flight_continue_across_reloads(
    engine: VllmEngine, tiny_model: Path, policy_b: Path
) -> None:
    groups = [
        asyncio.create_task(
            engine.generate(PROMPT, num_samples=4, sampling=sampling(200), request_id=f"f{i}", cache_salt="1")
        )
        for i in range(3)
    ]
    while len(engine._in_engine) < SETTINGS.max_num_seqs:
        await asyncio.sleep(0.01)
    for directory in (policy_b, tiny_model, policy_b):
        reloaded = await engine.reload(directory, manifest=manifest_of(directory))
        assert reloaded.timing.num_in_flight == SETTINGS.max_num_seqs
        assert not reloaded.readback.wrong
        assert reloaded.readback.num_changed
        assert not any(group.done() for group in groups)
    samples = [sample for group in await asyncio.gather(*groups) for sample in group]
    assert [len(sample.token_ids) for sample in samples] == [200] * 12
    assert {sample.finish_reason for sample in samples} == {FinishReason.LENGTH}
    assert len({sample.token_ids for sample in samples}) == 12
    assert engine.stats.num_in_flight == 0
    assert await probe(engine) == pytest.approx(reference_mean_nll(policy_b), abs=ROUNDING)
    whole = await engine.read_weights_back(policy_b, num_columns=None)
    assert (whole.wrong, whole.uncovered) == ((), ())
    other = await engine.read_weights_back(tiny_model, num_columns=None)
    assert len(other.wrong) > 6, "the first policy is another one"


async def test_responses_in_flight_wait_while_the_engine_is_asleep_and_go_on(
    engine: VllmEngine, tiny_model: Path
) -> None:
    await engine.reload(tiny_model, manifest=manifest_of(tiny_model))
    greedy = sampling(60, temperature=0.0)

    async def answers(name: str) -> list[tuple[int, ...]]:
        samples = await engine.generate(
            PROMPT, num_samples=8, sampling=greedy, request_id=name, cache_salt="s"
        )
        return [sample.token_ids for sample in samples]

    undisturbed = await answers("undisturbed")
    group = asyncio.create_task(answers("cut"))
    # Answered after the engine has taken what was asked before.
    await probe(engine)
    async with engine.asleep():
        assert not group.done()
        swap = asyncio.create_task(engine.reload(tiny_model, manifest=manifest_of(tiny_model)))
        later = asyncio.create_task(answers("later"))
        # Whoever answers now would answer while the memory is gone.
        done, _ = await asyncio.wait({group, swap, later}, timeout=0.5)
        assert not done
    assert await group == await later == undisturbed
    assert (await swap).readback.wrong == ()


async def test_greedy_answers_follow_the_policy_not_the_cache_of_the_old_one(
    engine: VllmEngine, tiny_model: Path, policy_b: Path
) -> None:
    answers = []
    for step, directory in enumerate((tiny_model, policy_b, tiny_model)):
        await engine.reload(directory, manifest=manifest_of(directory))
        (sample,) = await engine.generate(
            PROMPT,
            num_samples=1,
            sampling=sampling(12, temperature=0.0),
            request_id=f"a{step}",
            cache_salt=str(step),
        )
        answers.append(sample.token_ids)
    assert answers[0] == answers[2] != answers[1]
    # The first 16 of the prompt's tokens are one block of the cache, which another prompt reads too.
    beside = [
        await engine.generate(
            [*PROMPT[:20], 3, 4],
            num_samples=1,
            sampling=sampling(12, temperature=0.0),
            request_id=f"b{salt}",
            cache_salt=salt,
        )
        for salt in ("2", "empty")
    ]
    assert engine._running().vllm_config.cache_config.block_size == SETTINGS.block_size
    assert beside[0][0].token_ids == beside[1][0].token_ids


async def test_sampled_ids_keep_the_end_of_sequence_and_text_does_not(engine: VllmEngine) -> None:
    eos = engine.tokenizer.eos_token_id
    for attempt in range(40):
        samples = await engine.generate(
            PROMPT,
            num_samples=8,
            sampling=SamplingSettings(max_tokens=100, temperature=2.0),
            request_id=f"e{attempt}",
            cache_salt="e",
        )
        ended = [sample for sample in samples if sample.finish_reason is FinishReason.STOP]
        if ended:
            break
    assert ended
    for sample in ended:
        assert sample.token_ids[-1] == eos
        assert eos not in sample.token_ids[:-1]
        assert sample.text == engine.tokenizer.decode(sample.token_ids, skip_special_tokens=True)


async def test_same_seed_gives_the_same_different_responses(engine: VllmEngine) -> None:
    first, second = [
        await engine.generate(
            PROMPT, num_samples=3, sampling=sampling(8, seed=5), request_id=f"s{i}", cache_salt="s"
        )
        for i in range(2)
    ]
    assert first == second
    assert len({sample.token_ids for sample in first}) == 3


async def test_abort_ends_running_and_waiting_responses(engine: VllmEngine) -> None:
    group = asyncio.create_task(
        engine.generate(PROMPT, num_samples=10, sampling=sampling(200), request_id="x", cache_salt="x")
    )
    while engine.stats.num_in_flight < 10 or not engine.stats.cache_ratio:
        await asyncio.sleep(0.01)
    assert 0 < engine.stats.cache_ratio < 1
    await engine.abort("x")
    assert {sample.finish_reason for sample in await group} == {FinishReason.ABORT}
    assert engine.stats.num_in_flight == 0


async def test_pause_holds_responses_and_a_reload_does_not_undo_it(
    engine: VllmEngine, tiny_model: Path
) -> None:
    await engine.pause()
    group = asyncio.create_task(
        engine.generate(PROMPT, num_samples=1, sampling=sampling(2), request_id="p", cache_salt="p")
    )
    await engine.reload(tiny_model, manifest=manifest_of(tiny_model))
    await asyncio.sleep(0.3)
    assert not group.done()
    await engine.resume()
    assert len((await group)[0].token_ids) == 2


@pytest.mark.parametrize("prompt", [list(range(300)), [3, 100_000], []])
async def test_impossible_prompt_is_refused_and_the_engine_lives(
    engine: VllmEngine, prompt: list[int]
) -> None:
    with pytest.raises(errors.PromptRefused):
        await engine.generate(
            prompt, num_samples=2, sampling=SamplingSettings(max_tokens=16), request_id="r", cache_salt="r"
        )
    assert not engine.is_broken
    assert len(await probe(engine)) == len(PROBES)


class Generator:
    """What a generator says to its door, by hand."""

    def __init__(self) -> None:
        self.is_open, self.is_proven, self.salt = asyncio.Event(), True, "1"
        self.num_failed = 0
        self.is_open.set()

    async def opened(self) -> int:
        await self.is_open.wait()
        return self.num_failed

    async def passes(self, opened: int) -> bool:
        return self.is_proven and opened == self.num_failed


def terms_of(generator: Generator) -> DoorTerms:
    return DoorTerms(
        model_name="policy",
        tool_call_parser="hermes",
        opened=generator.opened,
        passes=generator.passes,
        cache_salt=lambda: generator.salt,
        policy_step=lambda: 7,
    )


CHAT: Any = {"model": "policy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12}


async def test_door_serves_the_openai_package_from_the_engine_of_the_log(engine: VllmEngine) -> None:
    generator = Generator()
    transport = httpx.ASGITransport(app=await engine.build_door(terms_of(generator)))
    http = httpx.AsyncClient(transport=transport, base_url="http://door", timeout=60)
    client = openai.AsyncOpenAI(base_url="http://door/v1", api_key="any", http_client=http, max_retries=0)

    answer = await client.chat.completions.with_raw_response.create(**CHAT)
    assert answer.headers["x-asympo-policy-step"] == "7"
    chat: Any = answer.parse()
    assert len(chat.choices[0].token_ids) == 12
    decoded = engine.tokenizer.decode(chat.choices[0].token_ids, skip_special_tokens=True)
    assert decoded.startswith(chat.choices[0].message.content), (
        "the text of these ids, whole characters of it"
    )
    stream = await client.chat.completions.create(**CHAT, stream=True, n=2)
    streamed: dict[int, list[int]] = {0: [], 1: []}
    async for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += getattr(choice, "token_ids", None) or []
    assert [len(ids) for ids in streamed.values()] == [12, 12]
    text: Any = await client.completions.create(model="policy", prompt="hi", max_tokens=3)
    assert text.choices[0].prompt_token_ids == engine.tokenizer.encode("hi")
    assert (await client.responses.create(model="policy", input="hi", max_output_tokens=16)).output
    ask = {"model": "policy", "input": "hi", "max_output_tokens": 12, "enable_response_messages": True}
    for is_streamed in (False, True):
        reader = TurnReader()
        found = await http.post("/v1/responses", json=ask | {"stream": is_streamed})
        events = [line[5:] for line in found.text.splitlines() if line.startswith("data:")]
        for body in events if is_streamed else [found.text]:
            assert reader.turn is None
            reader.read(json.loads(body))
        assert reader.turn is not None
        assert list(reader.turn.prompt_ids) == chat.prompt_token_ids
        assert (len(reader.turn.answer_ids), reader.turn.finish_reason) == (12, "length")
    assert [model.id for model in (await client.models.list()).data] == ["policy"]
    for path in ("/metrics", "/tokenize", "/invocations", "/v1/embeddings", "/version", "/docs"):
        assert (await http.post(path, json={})).status_code == 404
        assert (await http.get(path)).status_code == 404
    for wrong in ({"prompt_logprobs": 1}, {"n": 9}):
        refused = await http.post("/v1/completions", json={"model": "policy", "prompt": "hi", **wrong})
        assert refused.status_code == 400
    assert (await http.post("/v1/chat/completions", content=b"{")).status_code == 400


async def test_door_takes_slots_waits_for_verdicts_and_lets_probes_by(engine: VllmEngine) -> None:
    generator = Generator()
    transport = httpx.ASGITransport(app=await engine.build_door(terms_of(generator)))
    async with httpx.AsyncClient(transport=transport, base_url="http://door", timeout=120) as http:
        many = [
            asyncio.create_task(
                http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 60, "ignore_eos": True})
            )
            for _ in range(3 * SETTINGS.max_num_seqs)
        ]
        while len(engine._in_engine) < SETTINGS.max_num_seqs:
            await asyncio.sleep(0.01)
        await engine.mean_nll(PROBES[0], num_prompt_tokens=NUM_PROMPT_TOKENS)
        assert not all(request.done() for request in many), "a probe overtakes what waits for a slot"
        assert {answer.status_code for answer in await asyncio.gather(*many)} == {200}
        assert not engine._in_engine

        generator.is_open.clear()
        waiting = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        assert not (await asyncio.wait({waiting}, timeout=0.2))[0], "unproven weights answer nobody"
        generator.is_open.set()
        assert (await waiting).status_code == 200
        await engine.pause()
        spanning = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        while not engine._in_engine:
            await asyncio.sleep(0.01)
        generator.num_failed += 1
        await engine.resume()
        assert (await spanning).status_code == 503, "some of its tokens may be of the policy that failed"
        generator.is_proven = False
        failed = await http.post("/v1/chat/completions", json=CHAT)
        assert failed.status_code == 503
        assert "failed its proof" in failed.text


@pytest.mark.parametrize("kind", played.REWARDS)
async def test_environment_is_played_at_the_door_as_evaluations_do(
    kind: str, engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = await played.at_door(await engine.build_door(terms_of(Generator())), kind, tmp_path)
    assert [each.get("reward") for each in told] == played.REWARDS[kind], told


async def test_door_samples_as_it_is_asked_and_reads_no_prompt_of_another_policy_from_the_cache(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, cached = Generator(), []
    sampled_with: list[Any] = []
    generate = engine._running().generate

    async def watched(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        sampled_with.append(arguments[1])
        async for output in generate(*arguments, **options):
            if output.finished:
                cached.append(output.num_cached_tokens)
            yield output

    monkeypatch.setattr(engine._running(), "generate", watched)
    transport = httpx.ASGITransport(app=await engine.build_door(terms_of(generator)))
    question = {
        "model": "policy",
        "prompt": "many tokens " * 10,
        "max_tokens": 1,
        "cache_salt": "1",
    }
    async with httpx.AsyncClient(transport=transport, base_url="http://door", timeout=60) as http:
        for generator.salt in ("x", "x", "y"):
            assert (await http.post("/v1/completions", json=question)).status_code == 200
    assert [bool(tokens) for tokens in cached] == [False, True, False]
    neutral = importlib.import_module("vllm").SamplingParams()
    for each, name in itertools.product(sampled_with, OPINIONS):
        assert getattr(each, name) == getattr(neutral, name)


async def test_killed_engine_is_noticed(engine: VllmEngine) -> None:
    group = asyncio.create_task(
        engine.generate(PROMPT, num_samples=2, sampling=sampling(200), request_id="k", cache_salt="k")
    )
    while not engine.stats.num_in_flight:
        await asyncio.sleep(0.01)
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()):
            os.kill(child.pid, 9)
    with pytest.raises(errors.EngineBroken):
        await group
    assert engine.is_broken
