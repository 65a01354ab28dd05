"""Each parser of foreign bytes with some hundred inputs; `make fuzz` tries a million of each."""

import random

import pytest

from tests.fuzz import parsers
from tests.fuzz.parsers import PARSERS, Parser, attempt

NUM_EXAMPLES = 400
TOKENS = (
    b"{",
    b"[",
    b'"',
    b"\\",
    b"\x00",
    b"\xff\xfe",
    b"NaN",
    b"1e999",
    b"-",
    b"9" * 40,
    b"\x1b[2J",
    b"null",
)


def changed(seed: bytes, rng: random.Random) -> bytes:
    """A few edits away from what is right."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        match rng.randint(0, 4):
            case 0:
                data[at:at] = rng.choice(TOKENS)
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3 if data:
                data[at % len(data)] ^= 1 << rng.randint(0, 7)
            case _:
                data[at:at] = bytes(data[: rng.randint(0, 64)]) * rng.randint(1, 4)
    return bytes(data)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda each: each.name)
def test_parser_refuses_what_it_cannot_read(parser: Parser) -> None:
    rng = random.Random(parser.name)
    for number in range(NUM_EXAMPLES):
        data = parser.seeds[number % len(parser.seeds)]
        data = data if number < len(parser.seeds) else changed(data, rng)
        attempt(parser, data)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda each: each.name)
def test_parser_ends_soon_on_deep_and_endless_input(parser: Parser) -> None:
    for data in (b"[" * 100_000, b'{"a":' * 50_000, b"9" * 100_000, b"\xff" * 100_000, b"\\boxed{" * 20_000):
        attempt(parser, data)


def test_a_defect_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Parser(name="x", parse=lambda data: data[3], seeds=(b"abcd",), refuses_with=(ValueError,))
    with pytest.raises(IndexError):
        attempt(broken, b"")
    monkeypatch.setattr(parsers, "MAX_SECONDS", 0.0)
    with pytest.raises(TimeoutError, match="x took more than"):
        attempt(broken, b"abcd")
