"""Through a gateway's HTTP."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterable, Iterable
from typing import Any
from urllib.parse import urlsplit

from asympo.client.ways import (
    RETRIED,
    Outcome,
    Patience,
    ProducerRefused,
    Unreachable,
    checked,
    each,
)
from asympo.common.records import RolloutGroup

TIMEOUT_SECONDS = 90.0
"""Of one request: longer than any gateway waits for a slot."""
MAX_GROUPS = 64
"""Of one request of `submit_many`."""


class HttpWay:
    """One connection, kept open; the standard library's client in a thread."""

    def __init__(self, address: str, *, token: str) -> None:
        parts = urlsplit(address)
        self._path = parts.path.rstrip("/")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
        self._headers = {"content-type": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._lock = asyncio.Lock()

    async def submit(self, group: RolloutGroup, *, max_wait_seconds: float) -> Outcome:
        """One group, sent until it has a final answer."""
        return checked((await self._send([group], Patience(max_wait_seconds)))[0])

    async def submit_many(
        self, groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup], *, max_wait_seconds: float
    ) -> list[Outcome]:
        """Many groups, some of them a request."""
        refused: list[Outcome] = []
        batch: list[RolloutGroup] = []

        async def flush() -> None:
            answers = await self._send(batch, Patience(max_wait_seconds)) if batch else []
            refused.extend(answer for answer in answers if not answer.is_in_log)
            batch.clear()

        async for group in each(groups):
            batch.append(group)
            if len(batch) == MAX_GROUPS:
                await flush()
        await flush()
        return refused

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of one answer; raises Unreachable."""
        payload = None if body is None else json.dumps(body).encode()
        async with self._lock:
            return await asyncio.to_thread(self._request, method, self._path + path, payload)

    async def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    async def _send(self, groups: list[RolloutGroup], patience: Patience) -> list[Outcome]:
        """Sends until every group has a final answer; answers in the order of groups."""
        answers: dict[str, Outcome] = {}
        left = list(groups)
        while True:
            why = ""
            try:
                status, body = await self.request(
                    "POST", "/v1/rollouts", {"groups": [_as_json(group) for group in left]}
                )
            except Unreachable as error:
                why = str(error)
            else:
                if status in (200, 429):
                    found = [Outcome(**result) for result in body["results"]]
                    answers |= {group.group_id: answer for group, answer in zip(left, found, strict=True)}
                elif status < 500:
                    raise ProducerRefused(f"the gateway answers {status}: {body['error']['message']}")
                else:
                    why = str(body)
            left = [group for group in left if _is_open(answers.get(group.group_id))]
            if not left:
                return [answers[group.group_id] for group in groups]
            await patience.pause(why or answers[left[0].group_id].outcome)

    def _request(self, method: str, path: str, payload: bytes | None) -> tuple[int, Any]:
        try:
            self._connection.request(method, path, body=payload, headers=self._headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            # The next request connects anew.
            self._connection.close()
            raise Unreachable(
                f"{self._connection.host}:{self._connection.port} does not answer: {error}"
            ) from error
        try:
            return response.status, json.loads(content or b"null")
        except ValueError:
            return response.status, {"error": {"message": content[:200].decode("utf-8", "replace")}}


def _is_open(answer: Outcome | None) -> bool:
    return answer is None or answer.outcome in RETRIED


def _as_json(group: RolloutGroup) -> dict[str, Any]:
    return {
        "group_id": group.group_id,
        "prompt": {"text": group.prompt.text, "token_ids": group.prompt.token_ids},
        "responses": [
            {
                "text": response.text,
                "token_ids": response.token_ids,
                "reward": response.reward,
                "finish_reason": response.finish_reason.value,
                "trained_token_mask": response.trained_token_mask or (),
                "stop_string": response.stop_string,
                "segments": [
                    {
                        "context_ids": each.context_ids,
                        "token_ids": each.token_ids,
                        "trained_token_mask": each.trained_token_mask or (),
                    }
                    for each in response.segments
                ],
            }
            for response in group.responses
        ],
    }
