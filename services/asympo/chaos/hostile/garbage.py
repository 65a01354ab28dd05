"""What a hostile hand sends, as a seed makes it: bytes, texts, documents, records that are not valid."""

import json
import random
import string
import struct
from collections.abc import Callable
from typing import Any

from asympo.v1 import rollout_pb2

LARGE_BYTES = 2**20
_AWKWARD = (
    "",
    "\x00",
    "\x1b[2J\x1b]0;owned\x07",
    "line\r\n2026-01-01 INFO forged line",
    "[/x][bold red]",
    "%s%n{}{0.__class__}{{ 7 * 7 }}",
    "../../../etc/passwd",
    "\u202egnp.exe\u2066",
    "\ufeff\u200b",
    "9" * 400,
    "-1",
    "1e999",
    "null",
    "😀" * 50,
)
_DOCUMENTS = (
    b"",
    b"null",
    b"[]",
    b"{",
    b'"x"',
    b"\xff\xfe",
    b"[" * 50_000,
    b'{"a":' * 2_000,
    b'{"a": NaN}',
    b'{"step": 1e999}',
    b'{"step": ' + b"9" * 5000 + b"}",
    b'{"\\ud800": "\\udfff"}',
)


class Garbage:
    """One source; the same seed gives the same things in the same order."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)

    def text(self) -> str:
        """Awkward, random, or both."""
        kind = self.rng.randrange(4)
        if kind == 0:
            return self.rng.choice(_AWKWARD)
        if kind == 1:
            return self.rng.choice(_AWKWARD) + self._letters() + self.rng.choice(_AWKWARD)
        if kind == 2:
            return "".join(chr(self.rng.choice((self.rng.randrange(0x20), 0x7F, 0x2028))) for _ in range(20))
        return self._letters() * self.rng.choice((1, 1, 1, 200, 20_000))

    def data(self) -> bytes:
        """Of any form, sometimes large."""
        kind = self.rng.randrange(6)
        if kind == 0:
            return self.rng.randbytes(self.rng.choice((1, 16, 300, 5_000)))
        if kind == 1:
            return bytes(self.rng.randrange(1, LARGE_BYTES))
        if kind == 2:
            return self.document()
        if kind == 3:
            return self.record()[1]
        return self.text().encode(errors="surrogatepass")

    def document(self) -> bytes:
        """JSON, or nearly."""
        if self.rng.random() < 0.5:
            return self.rng.choice(_DOCUMENTS)
        whole = json.dumps(self._value(3)).encode()
        if self.rng.random() < 0.3:
            return whole[: self.rng.randrange(len(whole))]
        return whole

    def record(self, group_id: str = "0-0", *, is_leased: bool = True) -> tuple[str, bytes]:
        """A serialised group that no learner may train, and what is wrong with it.

        Ids and sizes that only a prompt of the run's own has to keep to are left alone without `is_leased`.
        """
        kind = self.rng.choice(sorted(_FAULTS if is_leased else _FAULTS.keys() - _OF_LEASES))
        message = valid_message(group_id, self.rng)
        changed = _FAULTS[kind](message, self.rng)
        return kind, message.SerializeToString() if changed is None else changed

    def _letters(self) -> str:
        return "".join(self.rng.choices(string.ascii_letters + " ", k=self.rng.randint(1, 40)))

    def _value(self, depth: int) -> Any:
        kind = self.rng.randrange(7 if depth else 5)
        if kind == 0:
            return self.text()[:2000]
        if kind == 1:
            return self.rng.choice((0, -1, 2**31, 2**53, 2**64, 10**19))
        if kind == 2:
            return self.rng.choice((None, True, False))
        if kind == 3:
            return self.rng.uniform(-1e300, 1e300)
        if kind == 4:
            return float(self.rng.choice(("nan", "inf", "-inf", "1e-320")))
        if kind == 5:
            return [self._value(depth - 1) for _ in range(self.rng.randrange(4))]
        names = ("state", "step", "fence", "reason", "holder", "files", "digest", self.text()[:200])
        return {self.rng.choice(names): self._value(depth - 1) for _ in range(self.rng.randrange(5))}


def valid_message(group_id: str, rng: random.Random) -> rollout_pb2.RolloutGroup:
    """A group that a learner would train if it were appended under a lease of its id."""
    return rollout_pb2.RolloutGroup(
        group_id=group_id,
        prompt=rollout_pb2.Prompt(token_ids=[rng.randrange(10, 200) for _ in range(5)], text="hostile"),
        responses=[
            rollout_pb2.Response(
                token_ids=[rng.randrange(10, 200) for _ in range(rng.randint(1, 8))],
                text="hostile",
                reward=float(number % 2),
                finish_reason=rollout_pb2.FINISH_REASON_LENGTH,
            )
            for number in range(4)
        ],
    )


# --- one fault each: in the message, or bytes in its place -------------------------------------------------

_Message = rollout_pb2.RolloutGroup


def _set_reward(value: float) -> Callable[[_Message, random.Random], None]:
    def change(message: _Message, rng: random.Random) -> None:
        rng.choice(message.responses).reward = value

    return change


def _other_id(message: _Message, rng: random.Random) -> None:
    message.group_id = rng.choice(("", "0-999999999", "x/../1", "a" * 5000, "\x1b[31m", "9" * 15 + "-1"))


def _unknown_token(message: _Message, rng: random.Random) -> None:
    rng.choice(message.responses).token_ids.append(rng.choice((512, 2**31, 2**32 - 1)))


def _empty_response(message: _Message, rng: random.Random) -> None:
    rng.choice(message.responses).Clear()


def _no_answer(message: _Message, rng: random.Random) -> None:
    response = rng.choice(message.responses)
    response.text = ""
    del response.token_ids[:]


def _no_responses(message: _Message, rng: random.Random) -> None:
    del message.responses[:]


def _too_many(message: _Message, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2000))):
        message.responses.append(message.responses[0])


def _too_long(message: _Message, rng: random.Random) -> None:
    message.responses[0].token_ids.extend([11] * rng.choice((5_000, 200_000)))


def _long_text(message: _Message, rng: random.Random) -> None:
    response = message.responses[0]
    del response.token_ids[:]
    response.text = rng.choice("aé😀") * rng.choice((20_000, LARGE_BYTES))


def _wrong_mask(message: _Message, rng: random.Random) -> None:
    response = message.responses[0]
    response.trained_token_mask.extend([True] * (len(response.token_ids) + 1))


def _mask_of_nothing(message: _Message, rng: random.Random) -> None:
    response = message.responses[0]
    response.trained_token_mask.extend([False] * len(response.token_ids))


def _in_segments(message: _Message) -> rollout_pb2.Response:
    """Its first response, rightly in two."""
    response = message.responses[0]
    response.segments.add(token_ids=response.token_ids)
    response.segments.add(context_ids=message.prompt.token_ids, token_ids=response.token_ids)
    response.ClearField("token_ids")
    response.ClearField("text")
    return response


def _beside_segments(message: _Message, rng: random.Random) -> None:
    _in_segments(message).text = "hostile"


def _segment_of_nothing(message: _Message, rng: random.Random) -> None:
    _in_segments(message).segments[1].ClearField(rng.choice(("context_ids", "token_ids")))


def _many_segments(message: _Message, rng: random.Random) -> None:
    segments = _in_segments(message).segments
    segments.extend([segments[1]] * rng.choice((200, 50_000)))


def _stop_string(message: _Message, rng: random.Random) -> None:
    message.responses[0].stop_string = "\n"


def _many_values(message: _Message, rng: random.Random) -> None:
    for number in range(rng.choice((100, 20_000))):
        message.responses[0].function_values[f"f{number}"] = 1.0


def _value_not_finite(message: _Message, rng: random.Random) -> None:
    message.responses[0].function_values["f"] = float("inf")


def _no_prompt(message: _Message, rng: random.Random) -> None:
    message.prompt.Clear()


def _unknown_reason(message: _Message, rng: random.Random) -> bytes:
    message.responses[0].ClearField("finish_reason")
    tail = struct.pack("BB", 4 << 3, rng.choice((0, 3, 99)))
    response = message.responses[0].SerializeToString() + tail
    del message.responses[0]
    return message.SerializeToString() + b"\x1a" + _varint(len(response)) + response


def _cut_off(message: _Message, rng: random.Random) -> bytes:
    # Within the last field, whose length says that more should come.
    return message.SerializeToString()[: -rng.randint(1, 8)]


def _noise(message: _Message, rng: random.Random) -> bytes:
    return b"\xff" + rng.randbytes(rng.choice((0, 10, 3_000)))


def _many_fields(message: _Message, rng: random.Random) -> bytes:
    return message.SerializeToString() + b"\x22\x00" * rng.choice((2_000, 400_000))


def _not_utf8(message: _Message, rng: random.Random) -> bytes:
    return message.SerializeToString().replace(b"hostile", b"hos\xff\xfele")


_FAULTS: dict[str, Callable[[_Message, random.Random], bytes | None]] = {
    "reward is not a number": _set_reward(float("nan")),
    "reward is infinite": _set_reward(float("-inf")),
    "reward is too large": _set_reward(1e30),
    "another group's id": _other_id,
    "unknown token": _unknown_token,
    "response without anything": _empty_response,
    "response without an answer": _no_answer,
    "no responses": _no_responses,
    "too many responses": _too_many,
    "too many tokens": _too_long,
    "too much text": _long_text,
    "mask of another length": _wrong_mask,
    "mask of nothing": _mask_of_nothing,
    "text beside segments": _beside_segments,
    "segment of nothing": _segment_of_nothing,
    "too many segments": _many_segments,
    "stop string without a stop": _stop_string,
    "too many values": _many_values,
    "value that is not finite": _value_not_finite,
    "no prompt": _no_prompt,
    "unknown finish reason": _unknown_reason,
    "cut off": _cut_off,
    "noise": _noise,
    "too many fields": _many_fields,
    "no UTF-8": _not_utf8,
}


_OF_LEASES = {"another group's id", "too many responses"}


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])
