"""A reward asked of a server: NeMo Gym's `POST /verify`, or one plain JSON object."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from asympo.common.errors import BadSetting
from asympo.rewards.conventions.base import Asked

_MAX_CONNECTIONS = 512


class HttpOptions(BaseModel):
    """Which server, and in which form it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://")
    shape: Literal["plain", "nemo-gym"] = "plain"
    headers: dict[str, str] = Field(default_factory=dict)


def http_reward(options: HttpOptions) -> Callable[[Asked], Awaitable[Any]]:
    """An async function with one client for all calls of the process."""
    try:
        import httpx
    except ImportError as error:
        raise BadSetting("reward http needs the httpx library: pip install 'asympo[tasks]'") from error
    limits = httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS)
    # The function's own time limit ends a call.
    client = httpx.AsyncClient(limits=limits, timeout=None, headers=options.headers)
    body = _nemo_gym if options.shape == "nemo-gym" else _plain

    async def score(asked: Asked) -> Any:
        answer = await client.post(options.url, json=body(asked))
        answer.raise_for_status()
        found = answer.json()
        if not isinstance(found, dict) or not {"reward", "reward_components"} & found.keys():
            raise ValueError(f"{options.url} answered without reward: {answer.text[:100]}")
        parts = found.get("reward_components") or {}
        return {
            **parts,
            "reward": found["reward"] if found.get("reward") is not None else sum(parts.values()),
        }

    return score


def _plain(asked: Asked) -> dict[str, Any]:
    return {"prompt": _messages(asked), "response": asked.texts[0], "columns": dict(asked.columns)}


def _nemo_gym(asked: Asked) -> dict[str, Any]:
    """The row's fields beside the request and the response, as a verify request has them."""
    text = {"type": "output_text", "text": asked.texts[0], "annotations": []}
    message = {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [text]}
    response = {
        "id": "resp",
        "object": "response",
        "created_at": 0,
        "model": "policy",
        "output": [message],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }
    own = asked.columns.get("responses_create_params")
    return {
        **asked.columns,
        "responses_create_params": own or {"input": _messages(asked)},
        "response": response,
    }


def _messages(asked: Asked) -> list[dict[str, Any]]:
    if asked.prompt.messages is not None:
        return asked.messages
    return [{"role": "user", "content": asked.prompt_text}]
