"""The scripts of waves and reports, called twice as in `test_scripts.py` above."""

from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.keys import key

from ..test_scripts import call, twice


def test_claim_swap_lets_one_in_and_after_its_proof_a_share(log: RunLog) -> None:
    def claims(*holders: str, policy: str = "1:5", milliseconds: int = 30_000) -> list[bytes]:
        rest, nouns = (policy, milliseconds, 25), "swaps presence_until bad_policies"
        found = (twice(log, "claim_swap", nouns, each, *rest, without="swaps") for each in holders)
        return [first[0] for first, again in found if first == again]

    log.broker.client.zadd(key(log.run, "presence_until"), {f"g{n}": 10**15 for n in range(8)})
    log.broker.command("HSET", key(log.run, "swaps"), "h:forged", 10**15, "h:other", "x")
    assert claims("g0", "g1") + claims("g1", policy="1:6") == [b"FIRST", b"WAIT", b"WAIT"]
    assert twice(log, "end_swap", "swaps", "g0", "1:5") == ([b"OK"], [b"OK"])
    assert claims("g1", milliseconds=1) + claims("g2", "g3", "g4") == [b"OK", b"OK", b"OK", b"WAIT"]
    log.policies.mark_bad(step=6, fence=1, reason="r", holder="g")
    call(log, "end_swap", "swaps", "g3", "")
    assert claims("g2", policy="1:6") + claims("g2", policy="1:7") == [b"BAD", b"FIRST"]


def test_end_swap_says_what_is_proved(log: RunLog) -> None:
    log.swaps.proved("g", step=5, fence=1)
    assert log.broker.command("HGETALL", key(log.run, "swaps")) == {b"proved": b"1:5"}


def test_warnings_that_make_a_report_too_long_are_left_out_of_it(log: RunLog) -> None:
    warnings = [{"text": f"{count}: " + 300 * "\u65e5" + 100 * "\udcff"} for count in range(40)]
    log.presence.report("g", {"state": "serving", "warnings": warnings}, ttl_seconds=60)
    (shown,) = log.presence.generators()
    assert shown["state"] == "serving"
    whole = [{"text": warning["text"].replace("\udcff", "?")} for warning in warnings]
    assert shown["warnings"] == whole[: len(shown["warnings"])]
    assert 5 < len(shown["warnings"]) < 40
