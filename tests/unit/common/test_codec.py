"""Bytes from anywhere become either a record that is safe to train on, or InvalidRecord."""

import dataclasses
import math
from typing import Any

import pytest
from asympo.common.codec import WireLimits, decode_group, encode_group, prompt_from_wire
from asympo.common.errors import InvalidRecord
from asympo.common.records import FinishReason, Prompt, Response, ResponseSegment, RolloutGroup
from asympo.v1 import rollout_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden.records import GROUPS, load_payloads

LIMITS = WireLimits(
    vocab_size=50_000,
    max_prompt_tokens=8,
    max_response_tokens=8,
    max_responses=4,
    max_payload_bytes=4096,
    max_text_bytes=64,
)
OPEN_LIMITS = WireLimits()


def wire_group(**response_fields: Any) -> rollout_pb2.RolloutGroup:
    """A valid message with one response, changed by `response_fields`."""
    fields: dict[str, Any] = {
        "token_ids": [7, 2],
        "reward": 1.0,
        "finish_reason": rollout_pb2.FINISH_REASON_STOP,
    }
    return rollout_pb2.RolloutGroup(
        group_id="0-1",
        prompt=rollout_pb2.Prompt(token_ids=[1]),
        responses=[rollout_pb2.Response(**(fields | response_fields))],
    )


def decode(message: rollout_pb2.RolloutGroup, limits: WireLimits = LIMITS) -> RolloutGroup:
    return decode_group(message.SerializeToString(), limits=limits)


@pytest.mark.parametrize("name", GROUPS)
def test_golden_bytes_decode_to_the_same_record(name: str) -> None:
    assert decode_group(load_payloads()[name], limits=OPEN_LIMITS) == GROUPS[name]


@pytest.mark.parametrize("name", GROUPS)
def test_encoding_gives_the_golden_bytes(name: str) -> None:
    regenerate = "after a deliberate schema change: .venv/bin/python -m tests.golden.records"
    assert encode_group(GROUPS[name]) == load_payloads()[name], regenerate


texts = st.text(st.characters(codec="utf-8"), max_size=20)
ids = st.lists(st.integers(0, 49_999), max_size=12).map(tuple)


def masks(token_ids: tuple[int, ...]) -> st.SearchStrategy[tuple[bool, ...] | None]:
    flags = st.lists(st.booleans(), min_size=len(token_ids), max_size=len(token_ids)).map(tuple)
    return st.none() | flags.filter(any) if token_ids else st.none()


@st.composite
def segments(draw: st.DrawFn) -> tuple[ResponseSegment, ...]:
    found = []
    for index in range(draw(st.integers(1, 3))):
        token_ids = draw(ids.filter(bool))
        context = draw(ids.filter(bool)) if index else ()
        mask = draw(masks(token_ids))
        found.append(ResponseSegment(context_ids=context, token_ids=token_ids, trained_token_mask=mask))
    return tuple(found)


@st.composite
def responses(draw: st.DrawFn) -> Response:
    token_ids, text = draw(ids), draw(texts)
    in_segments = draw(segments()) if not token_ids and not text else ()
    mask = draw(masks(token_ids))
    return Response(
        token_ids=token_ids,
        text=text,
        segments=in_segments,
        reward=draw(st.floats(-1e6, 1e6)),
        finish_reason=draw(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH])),
        trained_token_mask=mask,
        function_values=draw(st.dictionaries(texts, st.floats(-1e6, 1e6), max_size=3)),
        function_notes=draw(st.dictionaries(texts, texts, max_size=3)),
    )


groups = st.builds(
    RolloutGroup,
    group_id=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:/-]{0,20}\Z"),
    prompt=st.builds(Prompt, token_ids=ids, text=texts.filter(bool)),
    responses=st.lists(responses(), min_size=1, max_size=5).map(tuple),
)


@given(groups)
@settings(max_examples=150, deadline=None)
def test_valid_record_survives_the_round_trip(group: RolloutGroup) -> None:
    payload = encode_group(group)
    assert decode_group(payload, limits=OPEN_LIMITS) == group
    assert encode_group(dataclasses.replace(group)) == payload


def only_invalid_record(payload: bytes, limits: WireLimits) -> None:
    """Whatever is accepted obeys every promise of the codec."""
    try:
        group = decode_group(payload, limits=limits)
    except InvalidRecord:
        return
    assert 1 <= len(group.responses) <= limits.max_responses
    assert group.prompt.token_ids or group.prompt.text
    for response in group.responses:
        assert math.isfinite(response.reward)
        assert bool(response.segments) != bool(response.token_ids or response.text)
        contexts = [token for segment in response.segments for token in segment.context_ids]
        assert all(0 <= token < 50_000 for token in (*response.all_token_ids, *contexts))
        assert len(response.all_token_ids) + len(contexts) <= limits.max_response_tokens
        assert all(segment.token_ids for segment in response.segments)
        assert response.finish_reason is not FinishReason.ABORT


@given(st.binary(max_size=200))
@settings(max_examples=400, deadline=None)
def test_random_bytes_raise_nothing_but_invalid_record(payload: bytes) -> None:
    only_invalid_record(payload, LIMITS)


@given(groups, st.integers(0), st.binary(max_size=8), st.integers(0, 8))
@settings(max_examples=300, deadline=None)
def test_damaged_record_raises_nothing_but_invalid_record(
    group: RolloutGroup, where: int, inserted: bytes, num_removed: int
) -> None:
    payload = encode_group(group)
    position = where % (len(payload) + 1)
    damaged = payload[:position] + inserted + payload[position + num_removed :]
    only_invalid_record(damaged, dataclasses.replace(LIMITS, max_text_bytes=4096))


NOT_VALID_RESPONSES = [
    ({"reward": math.nan}, "not finite"),
    ({"reward": math.inf}, "not finite"),
    ({"reward": 1e30}, "beyond 1e\\+06"),
    ({"reward": None}, "no reward"),
    ({"token_ids": [50_000]}, "token id 50000, outside 0 to 49999"),
    ({"token_ids": []}, "empty"),
    ({"token_ids": [1] * 9}, "9 token ids, more than 8"),
    ({"text": "ü" * 33}, "66 bytes, more than 64"),
    ({"finish_reason": rollout_pb2.FINISH_REASON_UNSPECIFIED}, "finish reason 0"),
    ({"finish_reason": rollout_pb2.FINISH_REASON_ABORT}, "aborted"),
    ({"finish_reason": 77}, "finish reason 77"),
    ({"trained_token_mask": [True]}, "1 flags for 2 token ids"),
    ({"trained_token_mask": [False, False]}, "trains nothing"),
    ({"token_ids": [], "text": "x", "trained_token_mask": [True]}, "1 flags for 0 token ids"),
    ({"function_values": {"judge": math.nan}}, "nan of function 'judge', which is not finite"),
    ({"function_values": {"judge": 1e308}}, "1e\\+308 of function 'judge', beyond 1e\\+30"),
    ({"function_values": dict.fromkeys(map(str, range(65)), 0.0)}, "65 values of functions, more than 64"),
    ({"function_notes": dict.fromkeys(map(str, range(65)), "")}, "65 notes of functions, more than 64"),
]


@pytest.mark.parametrize(("fields", "reason"), NOT_VALID_RESPONSES)
def test_invalid_response_is_refused_with_its_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRecord, match=f"^response 0 .*{reason}"):
        decode(wire_group(**fields))


FIRST: dict[str, Any] = {"token_ids": [1, 2]}
SECOND: dict[str, Any] = {"context_ids": [3], "token_ids": [4]}
NOT_VALID_SEGMENTS: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([FIRST, SECOND], {"token_ids": [7]}, "response 0 has segments, and token ids"),
    ([FIRST, SECOND], {"text": "x"}, "response 0 has segments, and token ids, text"),
    ([FIRST, SECOND], {"token_ids": [7], "trained_token_mask": [True]}, "or a mask beside them"),
    ([SECOND, SECOND], {}, "response 0 segment 0 has a context"),
    ([FIRST, SECOND, FIRST], {}, "response 0 segment 2 has no context"),
    ([{}, SECOND], {}, "response 0 segment 0 has no token ids"),
    ([FIRST, {"context_ids": [3]}], {}, "response 0 segment 1 has no token ids"),
    ([FIRST, SECOND | {"token_ids": [50_000]}], {}, "response 0 segment 1 has token id 50000"),
    ([FIRST, SECOND | {"context_ids": [50_000]}], {}, "segment 1 .context. has token id 50000"),
    ([FIRST, SECOND | {"trained_token_mask": [True] * 2}], {}, "2 flags for 1 token ids"),
    ([FIRST, SECOND | {"trained_token_mask": [False]}], {}, "segment 1 has .* trains nothing"),
    ([FIRST, SECOND | {"context_ids": [3] * 6}], {}, "response 0 has 9 token ids, more than 8"),
]


@pytest.mark.parametrize(("parts", "beside", "reason"), NOT_VALID_SEGMENTS)
def test_invalid_segment_is_refused_with_its_reason(
    parts: list[dict[str, Any]], beside: dict[str, Any], reason: str
) -> None:
    wire = [rollout_pb2.Segment(**each) for each in parts]
    with pytest.raises(InvalidRecord, match=reason):
        decode(wire_group(**{"token_ids": [], "segments": wire} | beside))
    assert decode(wire_group(token_ids=[], segments=[rollout_pb2.Segment(**FIRST)]))


def test_too_many_segments_are_refused_and_millions_of_empty_ones_before_parsing() -> None:
    parts = [rollout_pb2.Segment(**each) for each in (FIRST, *[SECOND] * 128)]
    with pytest.raises(InvalidRecord, match="response 0 has 129 segments, more than 128"):
        decode(wire_group(token_ids=[], segments=parts), OPEN_LIMITS)
    assert decode(wire_group(token_ids=[], segments=parts[:-1]), OPEN_LIMITS)
    response = b"\x4a\x00" * 1_000_000
    with pytest.raises(InvalidRecord, match="response has more than 320 fields"):
        decode_group(b"\x1a\x80\x89\x7a" + response, limits=OPEN_LIMITS)


def test_reader_that_does_not_know_segments_refuses_the_response() -> None:
    """Their numbers are those of fields that it passes over."""
    payload = wire_group(token_ids=[], segments=[rollout_pb2.Segment(**FIRST)]).SerializeToString()
    known = bytes([rollout_pb2.Response.SEGMENTS_FIELD_NUMBER << 3 | 2])
    later = bytes([15 << 3 | 2])
    assert payload.count(known) == 1
    with pytest.raises(InvalidRecord, match="response 0 is empty"):
        decode_group(payload.replace(known, later), limits=LIMITS)


@pytest.mark.parametrize("group_id", ["", "-1", "a b", "a\n", "ä", "a" * 129, "{a}"])
def test_group_id_outside_its_alphabet_is_refused(group_id: str) -> None:
    message = wire_group()
    message.group_id = group_id
    with pytest.raises(InvalidRecord, match="group id"):
        decode(message)


def test_group_without_prompt_or_responses_is_refused() -> None:
    message = wire_group()
    message.ClearField("prompt")
    with pytest.raises(InvalidRecord, match="prompt has neither"):
        decode(message)
    message = wire_group()
    message.ClearField("responses")
    with pytest.raises(InvalidRecord, match="no responses"):
        decode(message)


def test_too_many_responses_are_refused() -> None:
    message = wire_group()
    message.responses.extend([message.responses[0]] * 4)
    with pytest.raises(InvalidRecord, match="5 responses, more than 4"):
        decode(message)


def test_oversized_record_is_refused_before_parsing() -> None:
    with pytest.raises(InvalidRecord, match="5000 bytes, more than 4096"):
        decode_group(b"\xff" * 5000, limits=LIMITS)


def test_millions_of_empty_responses_are_refused_before_parsing() -> None:
    with pytest.raises(InvalidRecord, match="more than 1088 fields, its responses and unscored counted"):
        decode_group(b"\x1a\x00" * 1_000_000, limits=OPEN_LIMITS)


def test_text_that_is_not_utf8_is_refused() -> None:
    payload = wire_group(text="QQQQ").SerializeToString().replace(b"QQQQ", b"\xff\xfe\xff\xfe")
    with pytest.raises(InvalidRecord, match="not a serialised RolloutGroup"):
        decode_group(payload, limits=LIMITS)


def test_fields_of_a_later_schema_are_ignored() -> None:
    later_field = bytes([0x7A, 0x03]) + b"new"  # number 15, length-delimited
    payload = wire_group().SerializeToString() + later_field
    assert decode_group(payload, limits=LIMITS).group_id == "0-1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reward": math.nan}, "not finite"),
        ({"finish_reason": FinishReason.ABORT}, "aborted"),
        ({"token_ids": (-1,)}, "token id -1"),
        ({"token_ids": (2**32,)}, "outside 0 to 4294967295"),
        ({"text": "\ud800"}, "cannot be serialised"),
        ({"trained_token_mask": ()}, "trains nothing"),
        ({"token_ids": (), "text": "x", "trained_token_mask": (True,)}, "no token ids"),
        ({"segments": (ResponseSegment(token_ids=(1,)),)}, "has segments, and token ids"),
        (
            {"token_ids": (), "text": "", "segments": (ResponseSegment(token_ids=(-1,)),)},
            "segment 0 has token id -1",
        ),
    ],
)
def test_producer_is_told_at_once_when_no_reader_would_accept(change: dict[str, Any], reason: str) -> None:
    good = GROUPS["token_ids"]
    bad = dataclasses.replace(good, responses=(dataclasses.replace(good.responses[0], **change),))
    with pytest.raises(InvalidRecord, match=reason):
        encode_group(bad)


def test_prompt_of_a_control_call_is_validated_too() -> None:
    assert prompt_from_wire(rollout_pb2.Prompt(text="hi"), limits=LIMITS) == Prompt(text="hi")
    with pytest.raises(InvalidRecord, match="prompt has token id 50000"):
        prompt_from_wire(rollout_pb2.Prompt(token_ids=[50_000]), limits=LIMITS)
