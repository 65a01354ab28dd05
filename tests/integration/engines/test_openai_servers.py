"""The openai engine with servers as they are: llama.cpp's over a quantised model, and vLLM's own."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import PromptRefused
from asympo.common.records import FinishReason
from asympo.demo.model import find_gguf
from asympo.engines.base import SamplingSettings
from asympo.engines.settings import OpenAISettings
from asympo.local.ports import free_port

from tests.conftest import require

pytest.importorskip("openai")
from asympo.engines.openai.engine import OpenAIEngine

ROOT = Path(__file__).parents[3]
LLAMA_CPP = ROOT / ".cache" / "llama-cpp-tools" / "bin" / "python"
GREEDY = SamplingSettings(max_tokens=4, temperature=0.0)


@contextmanager
def process(*command: object, **environment: str) -> Iterator[None]:
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([str(word) for word in command], env=os.environ | environment, **quiet) as started:
        try:
            yield
        finally:
            started.kill()


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
