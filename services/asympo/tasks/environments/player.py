"""An environment of the `verifiers` package, run by an interpreter that has it and nothing of ours.

`player.py rows ENVIRONMENT ARGUMENTS OUT` writes what it asks, `player.py play ENVIRONMENT ARGUMENTS GATEWAY
SAMPLING GROUPS` plays it through the gateway's sessions until the run ends. ARGUMENTS and SAMPLING are JSON.
"""

import asyncio
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

log = logging.getLogger("asympo.player")

WAIT_SECONDS = 1.0
"""Between two tries while the gateway is away."""


def write_rows(environment: Any, out: Path) -> None:
    """Every row of the environment's own data, one JSON object a line."""
    rows = [
        {key: row.get(key) for key in ("prompt", "answer")} for row in environment.get_dataset().to_list()
    ]
    out.write_text("".join(f"{json.dumps(row, default=str)}\n" for row in rows))


class Player:
    """Asks for prompts, and plays a rollout in each of their sessions."""

    def __init__(
        self, environment: Any, *, client_config: Any, gateway: Any, sampling: dict[str, Any]
    ) -> None:
        self._environment = environment
        self._rows = environment.get_dataset().to_list()
        self._client_config = client_config
        self._gateway = gateway
        self._sampling = sampling

    async def play(self) -> None:
        """One prompt after the other, until the run has ended."""
        while True:
            answer = await self._post("/rl/start_session", {"wait_seconds": 30})
            status = 503 if answer is None else answer.status_code
            if status == 410:
                return
            if status in (429, 503):
                said = answer.json() if status == 429 else {}
                await asyncio.sleep(float(said.get("retry_after_seconds") or WAIT_SECONDS))
                continue
            if status != 200:
                raise SystemExit(f"the gateway opens no sessions: {answer.text}")
            started = answer.json()
            row = self._rows[started["index"]]
            await asyncio.gather(*(self._rollout(row, session) for session in started["sessions"]))

    async def _rollout(self, row: dict[str, Any], session: dict[str, str]) -> None:
        """One episode, and its reward with the rubric's parts. One that failed has none: it is left out."""
        session_id = session["session_id"]
        client = self._client_config(api_base_url=session["base_url"], max_retries=2)
        try:
            output = await self._environment.run_rollout(row, client, "policy", self._sampling)
            failure = output.get("error")
        except Exception as error:  # noqa: BLE001  somebody else's code: its failure ends one session only
            output, failure = {}, repr(error)
        if failure:
            log.warning("Row %s failed: %s", row.get("example_id"), failure)
            await self._post("/rl/end_session", {"session_id": session_id})
            return
        functions = {
            name: float(value)
            for name, value in (output.get("metrics") or {}).items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        body = {"reward": output["reward"], "functions": functions}
        await self._post(f"/sessions/{session_id}/complete", body)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer; None while nobody answers."""
        import httpx

        try:
            return await self._gateway.post(path, json=body)
        except httpx.TransportError as error:
            log.warning("The gateway does not answer: %r", error)
            return None


async def play(environment: Any, address: str, sampling: dict[str, Any], num_groups: int) -> None:
    import httpx
    import verifiers.legacy as vf

    token = os.environ.get("ASYMPO_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=90) as gateway:
        player = Player(environment, client_config=vf.ClientConfig, gateway=gateway, sampling=sampling)
        await asyncio.gather(*(player.play() for _ in range(num_groups)))


def main(verb: str, name: str, arguments: str, *rest: str) -> None:
    import verifiers.legacy as vf

    environment = vf.load_environment(name, **json.loads(arguments))
    if verb == "rows":
        write_rows(environment, Path(rest[0]))
    else:
        asyncio.run(play(environment, rest[0], json.loads(rest[1]), int(rest[2])))


if __name__ == "__main__":
    main(*sys.argv[1:])
