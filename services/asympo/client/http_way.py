"""Through a gateway's HTTP."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterable, Iterable
from typing import Any
from urllib.parse import urlsplit

from asympo.client.outbox import send_all
from asympo.client.ways import (
    CALL_SECONDS,
    RETRIED,
    Outcome,
    Patience,
    ProducerRefused,
    Unreachable,
    checked,
    refusal,
)
from asympo.common.codec import FINISH_REASON_FROM_WIRE, to_message
from asympo.common.errors import InvalidRecord
from asympo.common.records import RolloutGroup
from asympo.v1 import rollout_pb2

MAX_GROUPS = 64
"""Of one request of `submit_many`."""


class HttpWay:
    """One connection, kept open; the standard library's client in a thread."""

    def __init__(self, address: str, *, token: str) -> None:
        parts = urlsplit(address)
        self._path = parts.path.rstrip("/")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=CALL_SECONDS)
        self._headers = {"content-type": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._lock = asyncio.Lock()
        self._max_groups = MAX_GROUPS
        """Of one request; fewer where the gateway finds a request too large."""

    async def submit(self, group: RolloutGroup, *, max_wait_seconds: float) -> Outcome:
        """One group, sent until it has a final answer."""
        try:
            encoded = _encoded(group)
        except InvalidRecord as error:
            return checked(refusal(group, error))
        return checked((await self._send([encoded], Patience(max_wait_seconds)))[0])

    async def submit_many(
        self, groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup], *, max_wait_seconds: float
    ) -> list[Outcome]:
        """Many groups, some of them a request."""

        async def send(batch: list[bytes]) -> list[Outcome]:
            return await self._send(batch, Patience(max_wait_seconds))

        return await send_all(groups, encode=_encoded, send=send, num_bytes=len, max_groups=MAX_GROUPS)

    async def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    async def _send(self, groups: list[bytes], patience: Patience) -> list[Outcome]:
        """Sends until every group has a final answer; answers in the order of groups."""
        answers: dict[int, Outcome] = {}
        while left := [number for number in range(len(groups)) if _is_open(answers.get(number))]:
            part = left[: self._max_groups]
            try:
                status, body = await self._post(b",".join(groups[number] for number in part))
            except Unreachable as error:
                await patience.pause(str(error))
                continue
            if status == 413 and len(part) > 1:
                self._max_groups = len(part) // 2
            elif status in (200, 429):
                answers |= zip(part, _outcomes(body, len(part)), strict=True)
                waiting = [number for number in part if _is_open(answers[number])]
                if len(waiting) < len(part):
                    patience.renew()
                if waiting:
                    await patience.pause(answers[waiting[0]].outcome)
            elif status < 500:
                raise ProducerRefused(f"the gateway answers {status}: {_message(body)}")
            else:
                await patience.pause(_message(body))
        return [answers[number] for number in range(len(groups))]

    async def _post(self, groups: bytes) -> tuple[int, Any]:
        """Status and body of one answer; raises Unreachable."""
        payload = b'{"groups":[' + groups + b"]}"
        async with self._lock:
            return await asyncio.to_thread(self._request, payload)

    def _request(self, payload: bytes) -> tuple[int, Any]:
        try:
            self._connection.request("POST", self._path + "/v1/rollouts", body=payload, headers=self._headers)
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


def _outcomes(body: Any, num_groups: int) -> list[Outcome]:
    results = body.get("results") if isinstance(body, dict) else None
    if not isinstance(results, list) or len(results) != num_groups:
        raise ProducerRefused(f"what answers there is no gateway: {_message(body)}")
    return [
        Outcome(**{name: result[name] for name in ("group_id", "outcome", "reason")}) for result in results
    ]


def _message(body: Any) -> str:
    """What went wrong, as a gateway says it or whatever else stands at the address."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error["message"] if isinstance(error, dict) and "message" in error else body)[:500]


def _encoded(group: RolloutGroup) -> bytes:
    return json.dumps(_as_json(to_message(group))).encode()


def _as_json(group: rollout_pb2.RolloutGroup) -> dict[str, Any]:
    return {
        "group_id": group.group_id,
        "prompt": {"text": group.prompt.text, "token_ids": list(group.prompt.token_ids)},
        "responses": [
            {
                "text": response.text,
                "token_ids": list(response.token_ids),
                "reward": response.reward,
                "finish_reason": FINISH_REASON_FROM_WIRE[response.finish_reason].value,
                "trained_token_mask": list(response.trained_token_mask),
                "stop_string": response.stop_string,
                "segments": [
                    {
                        "context_ids": list(each.context_ids),
                        "token_ids": list(each.token_ids),
                        "trained_token_mask": list(each.trained_token_mask),
                    }
                    for each in response.segments
                ],
                **_filled(
                    function_values=dict(response.function_values),
                    function_notes=dict(response.function_notes),
                ),
            }
            for response in group.responses
        ],
        **_filled(
            unscored=[{"text": each.text, "reason": each.reason} for each in group.unscored],
            columns_json=group.columns_json,
        ),
    }


def _filled(**fields: Any) -> dict[str, Any]:
    """Those with something in them: a gateway of an earlier release knows no such fields."""
    return {name: value for name, value in fields.items() if value}
