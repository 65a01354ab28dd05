"""Who is connected, as they report themselves."""

import json
from typing import Any

from asympo.common.rollout_log.access import MAX_VALUE_BYTES, RunAccess, number, text

EVALUATOR = "evaluator"
"""What an evaluator's report says in `service`; a generator's says nothing there."""


class Presence:
    """Status reports, which expire."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def report(self, holder: str, status: dict[str, Any], *, ttl_seconds: float) -> None:
        """Says that `holder` is alive for `ttl_seconds`; a ttl of 0 says goodbye.

        Of a status that is too long, the last of its `warnings` are left out.
        """
        self._run.call("report_presence", holder, _as_json(status), int(ttl_seconds * 1000))

    def generators(self) -> list[dict[str, Any]]:
        """The status of every generator with a report that has not expired."""
        return [each for each in self.holders() if each.get("service") != EVALUATOR]

    def holders(self) -> list[dict[str, Any]]:
        """The same of everyone who holds a policy, with `holder` and `expires_in_seconds`."""
        flat = self._run.call("list_presence")
        found = []
        for holder, left_ms, status in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            fields = self._run.read_object("presence", status)
            if fields is not None:
                seconds = number(left_ms) / 1000
                found.append({**fields, "holder": text(holder), "expires_in_seconds": seconds})
        return sorted(found, key=lambda item: str(item["holder"]))


def _as_json(status: dict[str, Any]) -> bytes:
    warnings = list(status.get("warnings", ()))
    while True:
        # Readers set a report with half a character aside.
        content = json.dumps(status, ensure_ascii=False).encode(errors="replace")
        if len(content) <= MAX_VALUE_BYTES or not warnings:
            return content
        warnings.pop()
        status = {**status, "warnings": warnings}
