"""Responses from whatever speaks OpenAI's protocol: vLLM's own server, SGLang, llama.cpp, a hosted API."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai

from asympo.common.errors import BadModel, BadSetting, PromptRefused
from asympo.common.records import FinishReason
from asympo.engines.base import DoorTerms, Readback, Reloaded, ReloadTiming, Sample, SamplingSettings
from asympo.engines.groups import GroupEngine, ResponseRequest
from asympo.engines.openai.answers import explain, read_answer
from asympo.engines.openai.reload_doors import ReloadDoor, open_reload_door
from asympo.engines.openai.requests import extras_of, prompt_of, sampling_of
from asympo.engines.settings import OpenAISettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from asympo.common.checkpoints import Manifest

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_TRIAL = SamplingSettings(max_tokens=8)
_UNSEEN = Readback(num_values=0, num_changed=None, uncovered=("the server's weights",))


class OpenAIEngine(GroupEngine):
    """Engine on a server; see `base.Engine` for what each method promises.

    Its weights cannot be read back. Unless the server has a way to reload, it keeps those it has.
    """

    def __init__(self, *, settings: OpenAISettings) -> None:
        super().__init__()
        if settings.base_url is None:
            raise BadSetting(
                "engine = 'openai' asks a server: give its address, up to /v1, as openai.base_url"
            )
        self._settings = settings
        self._url = settings.base_url.rstrip("/")
        self._client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=_read_api_key(settings.api_key_file),
            max_retries=settings.max_retries,
            timeout=settings.request_timeout_seconds,
        )
        self._door: ReloadDoor | None = open_reload_door(settings, self._client)
        self._tokenizer: Any = None
        self._model = settings.model or ""
        self._takes_extras = True
        self._gives_token_ids = False
        self._slots = asyncio.Semaphore(settings.max_num_seqs)
        self._swap = asyncio.Lock()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._num_asked = 0

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def can_reload(self) -> bool:
        return self._door is not None

    async def start(self, *, model_path: Path) -> None:
        self._tokenizer = await asyncio.to_thread(_load_tokenizer, model_path)
        try:
            async with asyncio.timeout(self._settings.start_timeout_seconds):
                names = await self._served_models()
                self._model = self._settings.model or self._only_one(names)
                await self._thaw_after_another()
                await self._try_out(names)
        except TimeoutError as error:
            limit = self._settings.start_timeout_seconds
            raise self._broken(f"no server answered at {self._url} within {limit:.0f} s") from error
        if self._door is not None and (model_path / "manifest.json").is_file():
            await self._load(model_path)

    async def mean_nll(self, token_ids: Sequence[int], *, num_prompt_tokens: int) -> float:
        self._require_usable()
        if self._door is None or not self._door.scores_prompts:
            raise PromptRefused("this server scores no prompts")
        body = {"model": self._model, "prompt": list(token_ids), "max_tokens": 1, "prompt_logprobs": 0}
        answer = await self._ask("/completions", body)
        rows = (answer.get("choices") or [{}])[0].get("prompt_logprobs") or []
        if len(rows) != len(token_ids):
            raise PromptRefused("the server gave no log-probabilities of the prompt")
        scored = range(num_prompt_tokens, len(token_ids))
        return -sum(float(rows[i][str(token_ids[i])]["logprob"]) for i in scored) / len(scored)

    async def reload(self, policy_path: Path, *, manifest: Manifest) -> Reloaded:
        self._require_usable()
        async with self._swap:
            num_in_flight, began = self._num_asked, time.monotonic()
            load_seconds = await self._load(policy_path)
        self._num_reloads += 1
        timing = ReloadTiming(
            pause_seconds=time.monotonic() - began,
            reload_seconds=load_seconds,
            readback_seconds=0.0,
            num_in_flight=num_in_flight,
        )
        return Reloaded(timing=timing, readback=_UNSEEN)

    async def read_back(self, policy_path: Path, *, manifest: Manifest) -> Readback:
        return _UNSEEN

    async def abort(self, request_id: str) -> None:
        # The connection goes with the task, and servers end what nobody waits for.
        for task in self._groups.get(request_id, ()):
            task.cancel()

    async def pause(self) -> None:
        self._require_usable()
        self._resumed.clear()
        if self._door is not None:
            await self._door.freeze()

    async def resume(self) -> None:
        self._require_usable()
        if self._door is not None:
            await self._door.thaw()
        self._resumed.set()

    def asleep(self) -> AbstractAsyncContextManager[None]:
        raise BadSetting("the openai engine cannot give its server's memory back: leave gpu_lock out")

    async def build_door(self, terms: DoorTerms) -> FastAPI:
        raise BadSetting("the openai engine has no door: programs may ask its server, so leave door.port out")

    async def close(self) -> None:
        self._failure = self._failure or "it is closed"
        self._cancel_groups()
        await self._client.close()

    async def _load(self, path: Path) -> float:
        """Have the server swap to a policy's directory, which it must see under the same path."""
        assert self._door is not None
        limit_seconds = self._settings.reload_timeout_seconds
        try:
            async with asyncio.timeout(limit_seconds):
                await self._door.freeze()
                began = time.monotonic()
                await self._door.load(path)
                seconds = time.monotonic() - began
                if self._resumed.is_set():
                    await self._door.thaw()
        except BaseException as error:
            said = (
                f"it took more than {limit_seconds:.0f} s" if isinstance(error, TimeoutError) else str(error)
            )
            broken = self._broken(f"{self._url} did not load {path}: {said}")
            if not isinstance(error, Exception):
                raise
            raise broken from error
        return seconds

    async def _sample(self, request: ResponseRequest) -> Sample:
        sampling = request.sampling
        async with self._slots:
            await self._resumed.wait()
            body = self._body(request)
            if sampling.seed is not None:
                body["seed"] = sampling.seed + request.index
            if self._settings.reload == "vllm":
                body["cache_salt"] = request.cache_salt
            self._num_asked += 1
            try:
                answer = await self._ask(self._route, body)
            finally:
                self._num_asked -= 1
        sample = read_answer(
            answer, sampling=sampling, tokenizer=self._tokenizer, with_token_ids=self._gives_token_ids
        )
        if 0 < sample.length < sampling.min_tokens and sample.finish_reason is FinishReason.STOP:
            raise self._broken(
                f"{self._url} ended a response after {sample.length} tokens, so it does not know "
                f"sampling.min_tokens ({sampling.min_tokens}): leave that out of the run"
            )
        return self._count(sample)

    @property
    def _route(self) -> str:
        return "/chat/completions" if self._settings.prompt_as == "messages" else "/completions"

    def _body(self, request: ResponseRequest) -> dict[str, Any]:
        """A request as JSON. Raises PromptRefused for a prompt that cannot be asked like this."""
        asked = prompt_of(self._settings.prompt_as, request.prompt_ids, request.messages, self._tokenizer)
        body = {"model": self._model, **asked, **sampling_of(request.sampling)}
        return body | extras_of(request.sampling) if self._takes_extras else body

    async def _ask(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        self._require_usable()
        try:
            return await self._post(route, body)
        except openai.OpenAIError as error:
            told = explain(error, url=self._url, model=self._model)
            if isinstance(told, BadSetting):
                raise self._broken(str(told)) from error
            raise told from error

    async def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer as it came: the client's own types know nothing of what servers add."""
        answer = await self._client.post(route, cast_to=object, body=body)
        return answer if isinstance(answer, dict) else {}

    async def _served_models(self) -> list[str]:
        """Names of the models there, once the server answers; empty where it does not say."""
        has_warned = False
        while True:
            try:
                listed = await self._client.models.list()
                return [model.id for model in listed.data or ()]
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                if not has_warned:
                    log.warning("Waiting for the server at %s: %s", self._url, error)
                has_warned = True
            except openai.NotFoundError:
                return []
            except openai.OpenAIError as error:
                raise explain(error, url=self._url, model=self._model) from error
            await asyncio.sleep(_POLL_SECONDS)

    async def _thaw_after_another(self) -> None:
        """One that ended in the middle of a reload left the server frozen: it answers, and never samples."""
        if self._door is None:
            return
        try:
            await self._door.thaw()
        except openai.OpenAIError as error:
            raise explain(error, url=self._url, model=self._model) from error

    def _only_one(self, names: Sequence[str]) -> str:
        if len(names) == 1:
            return names[0]
        listed = f"lists {', '.join(names)}" if names else "does not say which models it has"
        raise BadSetting(f"{self._url} {listed}: give one as openai.model")

    async def _try_out(self, names: Sequence[str]) -> None:
        """One short response: what would always fail fails here, and it shows whether there are token ids."""
        prompt = self._tokenizer.encode("Hello", add_special_tokens=False)
        for self._takes_extras in (True, False):
            body = self._body(
                ResponseRequest(
                    name="trial",
                    index=0,
                    prompt_ids=prompt,
                    messages=[{"role": "user", "content": "Hello"}],
                    sampling=_TRIAL,
                    cache_salt="",
                )
            )
            try:
                answer = await self._post(self._route, body)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not self._takes_extras:
                    raise BadSetting(
                        f"{self._url} refuses a plain request with openai.prompt_as = "
                        f"{self._settings.prompt_as!r}: {explain(error)}"
                    ) from error
            except openai.OpenAIError as error:
                raise explain(error, url=self._url, model=self._model, names=names) from error
            else:
                self._learn_from(answer)
                return

    def _learn_from(self, answer: dict[str, Any]) -> None:
        if not self._takes_extras:
            log.warning(
                "%s takes OpenAI's own fields only: its defaults for others, such as top_k, apply", self._url
            )
        choice = (answer.get("choices") or [{}])[0]
        token_ids = choice.get("token_ids")
        if not token_ids:
            log.info("%s gives no token ids: the learner tokenises its texts", self._url)
            return
        try:
            ours = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        except (IndexError, OverflowError, TypeError, ValueError):
            ours = None
        text = choice.get("text") or (choice.get("message") or {}).get("content") or ""
        self._gives_token_ids = ours is not None and _comparable(ours) == _comparable(text)
        if self._gives_token_ids:
            return
        if self._settings.prompt_as == "token_ids":
            raise BadSetting(
                f"{self._url} does not have the run's vocabulary: set openai.prompt_as to messages or text"
            )
        log.warning("%s does not have the run's vocabulary: its texts are taken, not its ids", self._url)


def _comparable(text: str) -> str:
    """Without what servers leave out at the end: parts of a character that was cut off."""
    return text.replace("\N{REPLACEMENT CHARACTER}", "").strip()


def _load_tokenizer(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model_path))
    except (ValueError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadModel(f"the tokenizer in {model_path} cannot be loaded: {reason}") from error


def _read_api_key(path: Path | None) -> str:
    """The key in a file, else in the environment; servers of one's own need none, the client does."""
    if path is None:
        return os.environ.get("OPENAI_API_KEY") or "none"
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"openai.api_key_file {path} cannot be read: {error}") from None
    if not key or not key.isprintable() or " " in key:
        raise BadSetting(f"openai.api_key_file {path} holds no key: write one, alone on its line")
    return key
