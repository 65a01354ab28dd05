"""Doors on the broker: what a generator's user may write there, by scripts and by hand."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from asympo.chaos.hostile.doors import Door, in_short
from asympo.chaos.hostile.garbage import Garbage, valid_message
from asympo.common.errors import BrokerRefused, InvalidRecord
from asympo.common.rollout_log import Lease, Refused, RunLog
from asympo.common.rollout_log.keys import key
from asympo.common.rollout_log.producers.submissions import Submission

_LEASE_SECONDS = 5.0
FORGED_UNTIL = 10**15


class BrokerDoors:
    """All of them, with a connection of the hostile one's own."""

    def __init__(self, run_log: RunLog) -> None:
        self._log = run_log

    @property
    def all(self) -> list[Door]:
        found = {
            "stream": self._stream,
            "append": self._append,
            "submit": self._submit,
            "presence": self._presence,
            "leases": self._leases,
            "reports": self._reports,
            "evaluations": self._evaluations,
        }
        return [Door(name=name, put=_in_thread(put)) for name, put in found.items()]

    def _stream(self, garbage: Garbage) -> str:
        """An entry by hand: garbage, or a record that would be trained if an append had written it."""
        rng = garbage.rng
        last = int(self._log.broker.command("HGET", self._key("run"), "last_sequence") or 0)
        entry_id = rng.choice(("*", f"{last}-1", f"{last}-7", f"{last + 1}-0", f"{last + 3}-5"))
        group_id = f"0-{rng.randrange(64)}"
        fields: dict[bytes | str, bytes | str] = {
            "group_id": group_id,
            "producer": rng.choice(("generator", "hostile", garbage.text()[:3000])),
            "at_ms": rng.choice(("1", "soon", "9" * 5000, str(FORGED_UNTIL))),
            "payload": valid_message(group_id, rng).SerializeToString()
            if rng.random() < 0.5
            else garbage.data(),
        }
        for name in rng.sample(sorted(map(str, fields)), rng.randrange(3)):
            fields[name] = garbage.data()
        if rng.random() < 0.2:
            del fields[rng.choice(sorted(map(str, fields)))]
        flat = [_bytes(part) for pair in fields.items() for part in pair] or [b"x", b"y"]
        self._log.broker.command("XADD", self._key("log"), entry_id, *flat)
        return "added by hand"

    def _append(self, garbage: Garbage) -> str:
        """Under a lease that was given in good faith."""
        lease = self._lease(garbage)
        if lease is None:
            return "no lease was to be had"
        fault, payload = garbage.record(lease.group_id)
        producer = garbage.rng.choice(("hostile", garbage.text()))
        try:
            result = self._log.leases.append(lease, payload, producer=producer)
        except (BrokerRefused, UnicodeEncodeError) as error:
            # Its lease ends on its own.
            return f"producer refused: {in_short(error)}"
        if result.sequence is None:
            self._log.leases.hand_back(lease, reason=garbage.text())
        return f"{result.outcome.value}: {fault}"

    def _submit(self, garbage: Garbage) -> str:
        """Without a lease, under a producer's name."""
        rng = garbage.rng
        foreign = f"0-{rng.randrange(64)}", f"other/{rng.randrange(64)}", garbage.text()[:100]
        group_id = rng.choice((f"hostile/{rng.randrange(10**6)}", *foreign))
        fault, payload = garbage.record(_utf8(group_id), is_leased=False)
        if not group_id.startswith("hostile/"):
            fault = "an id of others"
            payload = valid_message(_utf8(group_id), rng).SerializeToString()
        submission = Submission(group_id=group_id, payload=payload)
        try:
            answers, _ = self._log.submissions.submit("hostile", [submission])
        except (BrokerRefused, InvalidRecord, UnicodeEncodeError) as error:
            return f"refused: {in_short(error)}"
        return f"{answers[0].outcome.value}: {fault}"

    def _presence(self, garbage: Garbage) -> str:
        holder, status = garbage.text(), garbage.document()
        keys = [self._key("presence"), self._key("presence_until")]
        if garbage.rng.random() < 0.5:
            # By hand: what no script would store, small enough to stay.
            self._log.broker.command("HSET", keys[0], _bytes(holder)[:900], status[:60_000])
            self._log.broker.command("ZADD", keys[1], FORGED_UNTIL, _bytes(holder)[:900])
            return "stored by hand"
        if garbage.rng.random() < 0.2:
            status = garbage.data()
        return self._script(
            "report_presence", keys, [_bytes(holder), status, garbage.rng.choice((1, 10**12))]
        )

    def _leases(self, garbage: Garbage) -> str:
        """Forged ones, stolen ids, reasons without end."""
        rng, broker = garbage.rng, self._log.broker
        kind = rng.randrange(4)
        if kind == 0:
            broker.command("HSET", self._key("leases"), _bytes(garbage.text())[:200], garbage.data()[:3000])
            return "forged without a deadline"
        if kind == 1:
            token = f"forged-{rng.randrange(10**6)}"
            broker.command("HSET", self._key("leases"), token, garbage.data()[:3000])
            broker.command("ZADD", self._key("deadlines"), rng.choice((1, FORGED_UNTIL)), token)
            return "forged"
        if kind == 2:
            broker.command("RPUSH", self._key("reissue"), garbage.data()[:3000])
            return "queued by hand"
        lease = self._lease(garbage)
        if lease is None:
            return "no lease was to be had"
        try:
            self._log.leases.hand_back(lease, reason=garbage.text() * 3, is_prompt_failure=False)
        except (BrokerRefused, UnicodeEncodeError) as error:
            return f"handing back refused: {in_short(error)}"
        return "handed back"

    def _reports(self, garbage: Garbage) -> str:
        name = garbage.rng.choice((f"1:{10**6 + garbage.rng.randrange(10**6)}", garbage.text()))
        report = garbage.document()
        if garbage.rng.random() < 0.4:
            self._log.broker.command(
                "HSET", self._key("bad_policies"), _bytes(name)[:900], b"1:" + report[:60_000]
            )
            return "stored by hand"
        if garbage.rng.random() < 0.3:
            report = json.dumps({"reason": garbage.text(), "holder": garbage.text(), "later": 1}).encode()
        return self._script(
            "mark_bad_policy", [self._key("bad_policies"), self._key("wake")], [_bytes(name), report]
        )

    def _evaluations(self, garbage: Garbage) -> str:
        result = garbage.document()
        if garbage.rng.random() < 0.5:
            field = garbage.rng.choice((b"result", b"other"))
            value = (result * 9)[:60_000] or b"x"
            self._log.broker.command("XADD", self._key("evaluations"), "*", field, value)
            return "added by hand"
        return self._script("add_evaluation", [self._key("evaluations")], [result])

    def _lease(self, garbage: Garbage) -> Lease | None:
        policy = self._log.policies.latest()
        answer = self._log.leases.acquire(holder="hostile", policy_step=policy.step if policy else 0)
        if isinstance(answer, Refused):
            self._log.leases.wait_for_slot(_LEASE_SECONDS, refused=answer)
            answer = self._log.leases.acquire(holder="hostile", policy_step=policy.step if policy else 0)
        return answer if isinstance(answer, Lease) else None

    def _script(self, name: str, keys: list[str], arguments: list[bytes | int]) -> str:
        try:
            self._log.broker.run_script(name, keys, arguments)
        except BrokerRefused as error:
            return f"refused: {in_short(error)}"
        return "stored"

    def _key(self, noun: str) -> str:
        return key(self._log.run, noun)


def _in_thread(put: Callable[[Garbage], str]) -> Callable[[Garbage], Awaitable[str]]:
    async def run(garbage: Garbage) -> str:
        return await asyncio.to_thread(put, garbage)

    return run


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
