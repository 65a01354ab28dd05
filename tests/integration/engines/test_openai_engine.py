"""The engine that is a server: what it asks, what it makes of answers, and what it says of errors."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BadSetting, EngineBroken, EngineUnavailable, PromptRefused
from asympo.common.records import FinishReason
from asympo.engines.base import Sample, SamplingSettings
from asympo.engines.settings import OpenAISettings
from asympo.testing.tiny_model import load_tiny_tokenizer, write_tiny_model

from tests.integration.engines.fake_server import FakeServer

pytest.importorskip("openai")
from asympo.engines.openai.engine import OpenAIEngine

PROMPT = [72, 101, 108, 108, 111]
SAMPLING = SamplingSettings(max_tokens=8, temperature=0.7)
MESSAGES = ({"role": "user", "content": "What is 5 + 7?"},)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def engine_of(server: FakeServer, **settings: Any) -> OpenAIEngine:
    values = {"base_url": server.url, "max_retries": 0, "start_timeout_seconds": 20.0} | settings
    return OpenAIEngine(settings=OpenAISettings(**values))


async def draw(engine: OpenAIEngine, *, num: int = 1, **changes: Any) -> list[Sample]:
    values: dict[str, Any] = {"sampling": SAMPLING, "messages": MESSAGES} | changes
    return await engine.generate(PROMPT, num_samples=num, request_id="r", cache_salt="s", **values)


def run(server: FakeServer, path: Path, *, num: int = 1, sampling: Any = SAMPLING, **settings: Any) -> Any:
    """The samples of one call, the settings and the server being as given."""

    async def work() -> list[Sample]:
        engine = engine_of(server, **settings)
        try:
            await engine.start(model_path=path)
            return await draw(engine, num=num, sampling=sampling)
        finally:
            await engine.close()

    return asyncio.run(work())


def test_engine_asks_for_the_runs_sampling_and_nothing_beside_it(server: FakeServer, model: Path) -> None:
    sampling = SamplingSettings(max_tokens=8, temperature=0.7, top_p=0.9, stop=(".",), seed=5)
    assert len(run(server, model, num=3, sampling=sampling)) == 3
    trial, *asked = server.bodies("v1/completions")
    assert trial["max_tokens"] == 8
    assert sorted(body.pop("seed") for body in asked) == [5, 6, 7]
    for body in asked:
        assert body == {
            **{"model": "only", "prompt": PROMPT, "temperature": 0.7, "top_p": 0.9, "max_tokens": 8},
            **{"stop": ["."], "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
            **{"add_special_tokens": False, "return_token_ids": True},
        }


@pytest.mark.parametrize(
    ("prompt_as", "route", "asked"),
    [
        ("token_ids", "v1/completions", {"prompt": PROMPT}),
        ("text", "v1/completions", {"prompt": "Hello"}),
        ("messages", "v1/chat/completions", {"messages": list(MESSAGES)}),
    ],
)
def test_engine_asks_in_the_form_that_the_server_knows(
    server: FakeServer, model: Path, prompt_as: str, route: str, asked: dict[str, Any]
) -> None:
    prompt = load_tiny_tokenizer(model).encode("Hello", add_special_tokens=False)
    asked = {"prompt": prompt} if prompt_as == "token_ids" else asked

    async def work() -> Sample:
        engine = engine_of(server, prompt_as=prompt_as)
        await engine.start(model_path=model)
        (sample,) = await engine.generate(
            prompt, num_samples=1, sampling=SAMPLING, request_id="r", cache_salt="", messages=MESSAGES
        )
        if prompt_as == "messages":
            with pytest.raises(PromptRefused, match=r"openai\.prompt_as is messages"):
                await draw(engine, messages=None)
        await engine.close()
        return sample

    assert asyncio.run(work()).text == "12"
    assert asked.items() <= server.bodies(route)[-1].items()


def test_answer_without_ids_is_a_text_with_what_the_server_knows(server: FakeServer, model: Path) -> None:
    server.choice = {"finish_reason": "stop", "stop_reason": "."}
    expected = Sample(token_ids=(), text="12", finish_reason=FinishReason.STOP, stop_string=".", num_tokens=2)
    assert run(server, model) == [expected]
    server.choice = {"finish_reason": "length", "matched_stop": 2}
    (sample,) = run(server, model)
    assert (sample.finish_reason, sample.stop_string) == (FinishReason.LENGTH, "")


@pytest.mark.parametrize("reason", ["content_filter", "abort", "tool_calls", None])
def test_answer_that_nobody_finished_is_aborted(server: FakeServer, model: Path, reason: str | None) -> None:
    server.choice = {"finish_reason": reason}
    assert run(server, model)[0].finish_reason is FinishReason.ABORT


def test_ids_of_the_server_are_taken_when_they_are_those_of_the_run(server: FakeServer, model: Path) -> None:
    tokenizer = load_tiny_tokenizer(model)
    ids = [*tokenizer.encode("12", add_special_tokens=False), tokenizer.eos_token_id]
    server.choice = {"finish_reason": "stop", "token_ids": ids}
    expected = Sample(token_ids=tuple(ids), text="12", finish_reason=FinishReason.STOP)
    assert run(server, model) == [expected]


def test_ids_of_another_vocabulary_are_refused_or_left_alone(server: FakeServer, model: Path) -> None:
    server.choice = {"finish_reason": "stop", "token_ids": [9999, 17]}
    with pytest.raises(BadSetting, match=r"not have the run's vocabulary: set openai\.prompt_as to"):
        run(server, model)
    (sample,) = run(server, model, prompt_as="messages")
    assert (sample.token_ids, sample.text) == ((), "12")


def test_server_that_knows_only_openais_fields_is_asked_without_the_others(
    server: FakeServer, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuses_extras = True
    assert run(server, model)[0].text == "12"
    assert set(server.bodies("v1/completions")[-1]) == {
        *("model", "prompt", "temperature", "top_p", "max_tokens")
    }
    assert "its defaults for others, such as top_k, apply" in caplog.text


def test_server_that_ignores_min_tokens_is_found_out(server: FakeServer, model: Path) -> None:
    with pytest.raises(EngineBroken, match=r"after 2 tokens, so it does not know sampling.min_tokens \(4\)"):
        run(server, model, sampling=SamplingSettings(max_tokens=8, min_tokens=4))
    assert server.bodies("v1/completions")[-1]["min_tokens"] == 4


@pytest.mark.parametrize(
    ("failure", "error", "words"),
    [
        ((401, "bad key"), BadSetting, r"refuses the API key \(401\): set OPENAI_API_KEY"),
        ((403, "no"), BadSetting, r"refuses the API key \(403\)"),
        ((404, "no such model"), BadSetting, "has no model 'mine', or no such route: it has only"),
        ((400, "prompt must be a string"), BadSetting, "refuses a plain request.*prompt must be a string"),
        ((500, "out of memory"), EngineUnavailable, "does not answer: .*out of memory"),
        ((429, "quota"), EngineUnavailable, "does not answer: .*quota"),
    ],
)
def test_start_says_what_a_person_has_to_change(
    server: FakeServer, model: Path, failure: tuple[int, str], error: type[Exception], words: str
) -> None:
    async def work() -> None:
        engine = engine_of(server, model="mine")
        listing = engine._served_models

        async def listed() -> list[str]:
            names = await listing()
            server.failures = [failure, failure]
            return names

        engine._served_models = listed  # type: ignore[method-assign]
        await engine.start(model_path=model)

    with pytest.raises(error, match=words):
        asyncio.run(work())


def test_start_waits_for_a_server_that_still_loads(server: FakeServer, model: Path) -> None:
    server.failures = [(503, "loading the model")]
    assert run(server, model)[0].text == "12"


def test_start_gives_up_on_an_address_where_nobody_listens(server: FakeServer, model: Path) -> None:
    server.stop()
    with pytest.raises(EngineBroken, match=r"no server answered at http://127\.0\.0\.1"):
        run(server, model, start_timeout_seconds=0.2)


def test_start_wants_one_model_named_where_there_are_several(server: FakeServer, model: Path) -> None:
    server.models = ["a", "b"]
    with pytest.raises(BadSetting, match=r"lists a, b: give one as openai.model"):
        run(server, model)
    assert run(server, model, model="b")[0].text == "12"
    assert server.bodies("v1/completions")[-1]["model"] == "b"


def test_key_comes_from_a_file_or_the_environment(
    server: FakeServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    run(server, model)
    assert server.keys[-1] == "Bearer of-the-environment"
    key = tmp_path / "key"
    key.write_text("of-the-file\n")
    run(server, model, api_key_file=key)
    assert server.keys[-1] == "Bearer of-the-file"
    key.write_text("\n")
    with pytest.raises(BadSetting, match="holds no key"):
        engine_of(server, api_key_file=key)


def test_error_of_one_request_is_of_its_prompt_or_of_the_server(server: FakeServer, model: Path) -> None:
    async def work() -> None:
        engine = engine_of(server)
        await engine.start(model_path=model)
        server.failures = [(400, "too long")]
        with pytest.raises(PromptRefused, match="too long"):
            await draw(engine)
        server.failures = [(503, "busy")]
        with pytest.raises(EngineUnavailable, match=r"does not answer: .*busy"):
            await draw(engine)
        assert not engine.is_broken
        assert (await draw(engine))[0].text == "12"
        server.failures = [(401, "revoked")]
        with pytest.raises(EngineBroken, match="refuses the API key"):
            await draw(engine)
        assert engine.is_broken

    asyncio.run(work())


def test_reload_goes_through_the_servers_own_door(server: FakeServer, model: Path, tmp_path: Path) -> None:
    async def work(kind: str) -> list[tuple[str, dict[str, Any]]]:
        engine = engine_of(server, reload=kind, request_timeout_seconds=5, reload_timeout_seconds=50)
        assert engine.can_reload
        await engine.start(model_path=model)
        server.asked.clear()
        server.limits.clear()
        manifest: Any = None
        reloaded = await engine.reload(tmp_path, manifest=manifest)
        assert reloaded.readback.uncovered
        assert not reloaded.readback.num_values
        await engine.close()
        assert {*server.limits} == {"50.0"}, "a response's limit would end it"
        return list(server.asked)

    path = str(tmp_path)
    assert asyncio.run(work("vllm")) == [
        ("pause", {"mode": "keep", "clear_cache": "false"}),
        ("collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}}),
        ("resume", {}),
    ]
    assert asyncio.run(work("sglang")) == [
        ("pause_generation", {"mode": "retract"}),
        ("update_weights_from_disk", {"model_path": path, "flush_cache": True}),
        ("continue_generation", {}),
    ]


def test_start_thaws_a_server_that_another_generator_left_frozen(server: FakeServer, model: Path) -> None:
    server.is_frozen = True
    with pytest.raises(EngineBroken, match=r"no server answered at .* within 1 s"):
        run(server, model, start_timeout_seconds=1)
    assert run(server, model, reload="vllm", start_timeout_seconds=20)


def test_reload_that_fails_breaks_the_engine_with_a_sentence(
    server: FakeServer, model: Path, tmp_path: Path
) -> None:
    async def work() -> None:
        engine = engine_of(server, reload="vllm")
        await engine.start(model_path=model)
        server.has_reload = False
        manifest: Any = None
        with pytest.raises(EngineBroken, match=r"has no /pause: start vLLM with VLLM_SERVER_DEV_MODE=1"):
            await engine.reload(tmp_path, manifest=manifest)
        assert engine.is_broken

    asyncio.run(work())


def test_engine_without_an_address_says_so() -> None:
    with pytest.raises(BadSetting, match=r"up to /v1, as openai.base_url"):
        OpenAIEngine(settings=OpenAISettings())
