"""The release before as a broker sees it: its own scripts, called with its own keys and arguments.

Written when that release was recorded, and not touched until the next one is.
"""

import secrets
from pathlib import Path
from typing import Any

from asympo.common.rollout_log import Broker

RECORD = Path(__file__).with_name("v0.1")
ACQUIRE_KEYS = "run open leases deadlines reissue wake policy_steps"
APPEND_KEYS = "run log open leases deadlines answers reissue wake policy_steps failures"
SURVEY_KEYS = "run commit holes open leases reissue set_aside"
SETTLE_KEYS = "run commit log holes open leases deadlines reissue set_aside wake"
COMMIT_KEYS = "run commit log open leases reissue holes wake"


class _OldClient:
    def __init__(self, broker: Broker, run: str) -> None:
        self._broker, self._run = broker, run

    def _call(self, script: str, nouns: str, *arguments: Any) -> Any:
        source = (RECORD / "scripts" / f"{script}.lua").read_text()
        keys = [f"asympo:{{{self._run}}}:{noun}" for noun in nouns.split()]
        return self._broker.command("EVAL", source, len(keys), *keys, *arguments)


class OldGenerator(_OldClient):
    """Leases and appends as that release does."""

    holder = "old-generator"

    def acquire(self) -> tuple[str, str] | None:
        """Token and group id; None when there is no lease."""
        step = self._broker.command("HGET", f"asympo:{{{self._run}}}:run", "policy_step")
        token = secrets.token_hex(16)
        reply = self._call("acquire", ACQUIRE_KEYS, token, int(step or 0), self.holder)
        return (token, reply[1].decode()) if reply[0] == b"GRANTED" else None

    def append(self, token: str, payload: bytes) -> tuple[str, int]:
        """Outcome and number."""
        reply = self._call("append", APPEND_KEYS, token, payload, self.holder)
        return reply[0].decode(), reply[1]

    def renew(self, token: str) -> bool:
        return self._call("renew", "run leases deadlines", token) == [1]

    def hand_back(self, token: str) -> bool:
        nouns = "run leases deadlines reissue wake failures set_aside"
        return self._call("hand_back", nouns, token, 0, "stopping") == [1]

    def report(self, status: str) -> None:
        self._call("report_presence", "presence presence_until", self.holder, status, 60_000)


class OldLearner(_OldClient):
    """Owns a run, reads it and commits it as that release does."""

    def take(self, *, committed: tuple[Any, ...] = (0, "", 0, 0), consumed: int = 0) -> None:
        self.token = secrets.token_hex(16)
        _, self.number, self.server_id = self._call("take_fence", "run", self.token, "old", 60_000, 1, 0)
        survey = (self.number, self.token, committed[3] + 1 if committed[0] else 0, consumed, "old", 60_000)
        status, head, *_ = self._call("survey", SURVEY_KEYS, *survey)
        assert status == b"OK"
        self.number, self.server_id = head[0], head[8]
        cursor = (head[6], head[7], head[6], head[7])
        assert self._fenced("settle", SETTLE_KEYS, *cursor, *committed, 0, 0, 0, 0, 0)[0] == b"OK"

    def announce(self, *, step: int, digest: str) -> None:
        assert self._fenced("announce_policy", "run policies policy_steps", step, digest)[0] == b"OK"

    def read(self, after: int, count: int) -> list[tuple[int, str, bytes]]:
        """Number, group id, payload."""
        assert self._fenced("check_fence", "run")[0] == b"OK"
        found = []
        for entry_id, flat in self._broker.command(
            "XRANGE", f"asympo:{{{self._run}}}:log", f"({after}-0", "+", "COUNT", count
        ):
            fields = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
            number = int(entry_id.decode().partition("-")[0])
            found.append((number, fields[b"group_id"].decode(), fields[b"payload"]))
        return found

    def free(self, group_ids: list[str], *, sequence: int) -> None:
        assert self._fenced("free", "run open wake", sequence, *group_ids)[0] == b"OK"

    def commit(self, group_ids: list[str], *, sequence: int, step: int) -> None:
        arguments = (sequence, f"step-{step}", step, len(group_ids), *group_ids)
        assert self._fenced("commit", COMMIT_KEYS, *arguments)[0] == b"OK"

    def heartbeat(self) -> None:
        assert self._fenced("heartbeat", "run", 60_000, 0)[0] == b"OK"

    def release(self) -> None:
        self._call("release", "run", self.number, self.token)

    def _fenced(self, script: str, nouns: str, *arguments: Any) -> Any:
        reply = self._call(script, nouns, self.number, self.token, self.server_id, *arguments)
        if reply[0] in (b"FENCED", b"CHANGED"):
            raise PermissionError(reply[0].decode())
        return reply
