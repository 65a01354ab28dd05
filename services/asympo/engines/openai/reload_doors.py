"""How servers take new weights from a directory, each in a way of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import openai

from asympo.common.errors import BadSetting
from asympo.engines.settings import OpenAISettings


class ReloadDoor(Protocol):
    """The routes of one kind of server. Every method raises BadSetting when the server has no such route."""

    scores_prompts: bool
    """Whether it gives log-probabilities of prompts."""

    async def freeze(self) -> None:
        """Hold what is being decoded. Idempotent."""

    async def load(self, path: Path) -> None:
        """Swap to the checkpoint in a directory."""

    async def thaw(self) -> None:
        """Go on with what was held. Idempotent."""


def open_reload_door(settings: OpenAISettings, client: openai.AsyncOpenAI) -> ReloadDoor | None:
    """That which the settings name; None where weights stay as they are."""
    root = str(client.base_url).rstrip("/").removesuffix("/v1")
    # The client's own limit is that of a response.
    calls = _Calls(client.with_options(timeout=settings.reload_timeout_seconds, max_retries=0), root)
    if settings.reload == "vllm":
        return _Vllm(calls)
    return _Sglang(calls) if settings.reload == "sglang" else None


class _Calls:
    """Requests beside the protocol, with the same key."""

    def __init__(self, client: openai.AsyncOpenAI, root: str) -> None:
        self._client = client
        self._root = root

    async def post(
        self, route: str, body: Mapping[str, Any], *, remedy: str, query: Mapping[str, str] | None = None
    ) -> Any:
        try:
            return await self._client.post(
                f"{self._root}{route}",
                cast_to=object,
                body=dict(body),
                options={"params": dict(query or {})},
            )
        except openai.NotFoundError as error:
            raise BadSetting(f"{self._root} has no {route}: {remedy}") from error


class _Vllm:
    """vLLM's routes for development; requests are frozen and go on under the new weights.

    Cached prompts stay apart by their salt.
    """

    scores_prompts = True
    _REMEDY = "start vLLM with VLLM_SERVER_DEV_MODE=1, or set openai.reload to none"

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def freeze(self) -> None:
        query = {"mode": "keep", "clear_cache": "false"}
        await self._calls.post("/pause", {}, query=query, remedy=self._REMEDY)

    async def load(self, path: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
        await self._calls.post("/collective_rpc", body, remedy=self._REMEDY)

    async def thaw(self) -> None:
        await self._calls.post("/resume", {}, remedy=self._REMEDY)


class _Sglang:
    """SGLang's routes; requests wait meanwhile, and what was cached of them is computed again."""

    scores_prompts = False
    _REMEDY = "it is no SGLang server, or an old one: set openai.reload to none"

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def freeze(self) -> None:
        await self._calls.post("/pause_generation", {"mode": "retract"}, remedy=self._REMEDY)

    async def load(self, path: Path) -> None:
        body = {"model_path": str(path), "flush_cache": True}
        answer = await self._calls.post("/update_weights_from_disk", body, remedy=self._REMEDY)
        if not isinstance(answer, dict) or not answer.get("success"):
            said = answer.get("message") if isinstance(answer, dict) else answer
            raise BadSetting(f"SGLang refused the weights: {said}")

    async def thaw(self) -> None:
        await self._calls.post("/continue_generation", {}, remedy=self._REMEDY)
