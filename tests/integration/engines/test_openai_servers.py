"""The openai engine with servers as they are: llama.cpp's over a quantised model, and vLLM's own."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import EngineBroken, PromptRefused
from asympo.common.records import FinishReason
from asympo.demo.model import find_gguf
from asympo.engines.base import SamplingSettings
from asympo.engines.settings import OpenAISettings
from asympo.local.ports import free_port
from asympo.local.process import kill_group
from asympo.testing.tiny_model import write_tiny_model

from tests.conftest import require

pytest.importorskip("openai")
from asympo.engines.openai.engine import OpenAIEngine

ROOT = Path(__file__).parents[3]
LLAMA_CPP = ROOT / ".cache" / "llama-cpp-tools" / "bin" / "python"
GREEDY = SamplingSettings(max_tokens=4, temperature=0.0)


@contextmanager
def process(*command: object, **environment: str) -> Iterator[None]:
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen([str(word) for word in command], env=os.environ | environment, **quiet) as started:
        try:
            yield
        finally:
            # vLLM's engine is a process of its own, which outlives its server.
            kill_group(started.pid)


@pytest.fixture(scope="module")
def quantised_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer that belongs to the demo's 4-bit weights; the server has these."""
    from transformers import AutoTokenizer

    gguf, directory = find_gguf(), tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
    return directory


def test_llama_cpp_reads_our_ids_and_answers_in_text(quantised_model: Path) -> None:
    require(LLAMA_CPP.exists(), "a llama.cpp server (make llama-cpp-tools)")
    port = free_port()
    script = Path(__file__).with_name("llama_cpp_server.py")

    async def work() -> None:
        engine = OpenAIEngine(settings=OpenAISettings(base_url=f"http://127.0.0.1:{port}/v1"))
        await engine.start(model_path=quantised_model)
        assert not engine.can_reload
        prompt = engine.tokenizer.encode("The capital of France is", add_special_tokens=False)
        drawn = await engine.generate(prompt, num_samples=4, sampling=GREEDY, request_id="a", cache_salt="")
        assert {sample.text for sample in drawn} == {drawn[0].text}
        assert drawn[0].text.startswith(" Paris")
        assert (drawn[0].token_ids, drawn[0].finish_reason) == ((), FinishReason.LENGTH)
        assert engine.stats.num_tokens_generated == sum(sample.length for sample in drawn) == 16
        with pytest.raises(PromptRefused, match="invalid tokens"):
            await engine.generate([10**6], num_samples=1, sampling=GREEDY, request_id="b", cache_salt="")
        with pytest.raises(PromptRefused, match="scores no prompts"):
            await engine.mean_nll(prompt, num_prompt_tokens=1)
        long = SamplingSettings(max_tokens=1500)
        ended = asyncio.create_task(
            engine.generate(prompt, num_samples=2, sampling=long, request_id="c", cache_salt="")
        )
        while not engine._num_asked:
            await asyncio.sleep(0)
        await engine.abort("c")
        assert {sample.finish_reason for sample in await ended} == {FinishReason.ABORT}
        await engine.close()

    with process(LLAMA_CPP, script, find_gguf(), port):
        asyncio.run(work())


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllms_own_server_gives_ids_and_takes_new_weights_while_it_answers(tmp_path: Path) -> None:
    port = free_port()
    first, second = write_tiny_model(tmp_path / "a"), write_tiny_model(tmp_path / "b", seed=1)
    settings = OpenAISettings(
        base_url=f"http://127.0.0.1:{port}/v1", reload="vllm", start_timeout_seconds=500.0
    )

    async def work() -> None:
        engine = OpenAIEngine(settings=settings)
        await engine.start(model_path=first)
        prompt = engine.tokenizer.encode("Hello", add_special_tokens=False)
        drawn = await engine.generate(
            prompt, num_samples=3, sampling=SamplingSettings(max_tokens=16), request_id="a", cache_salt="0"
        )
        for sample in drawn:
            assert 0 < len(sample.token_ids) <= 16
            assert sample.text == engine.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        before = await engine.mean_nll([*prompt, 40, 41], num_prompt_tokens=len(prompt))
        long = SamplingSettings(max_tokens=600, min_tokens=600)
        answering = asyncio.create_task(
            engine.generate(prompt, num_samples=2, sampling=long, request_id="b", cache_salt="0")
        )
        while engine._num_asked < 2:
            await asyncio.sleep(0)
        manifest: Any = None
        assert (await engine.reload(second, manifest=manifest)).timing.num_in_flight == 2
        assert [len(sample.token_ids) for sample in await answering] == [600, 600]
        after = await engine.mean_nll([*prompt, 40, 41], num_prompt_tokens=len(prompt))
        assert abs(after - before) > 1e-3
        with pytest.raises(EngineBroken, match=f"did not load {tmp_path / 'none'}"):
            await engine.reload(tmp_path / "none", manifest=manifest)
        await engine.close()

    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", first]
    flags = ["--host", "127.0.0.1", "--port", port, "--enforce-eager", "--max-model-len", 1024]
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with process(*server, *flags, **environment, VLLM_CPU_OMP_THREADS_BIND="nobind"):
        asyncio.run(work())
