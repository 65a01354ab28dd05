"""Records to bytes and back; whatever comes out of `decode_group` is safe to turn into tensors."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from asympo.common.errors import InvalidRecord
from asympo.common.records import (
    MAX_ABS_FUNCTION_VALUE,
    MAX_ABS_REWARD,
    MAX_FUNCTION_VALUES,
    MAX_PAYLOAD_BYTES,
    MAX_RESPONSE_TOKENS,
    MAX_RESPONSES,
    MAX_SEGMENTS,
    FinishReason,
    Prompt,
    Response,
    ResponseSegment,
    RolloutGroup,
    UnscoredResponse,
)
from asympo.v1 import rollout_pb2

MAX_GROUP_ID_CHARS = 128

FINISH_REASON_TO_WIRE = {
    FinishReason.STOP: rollout_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: rollout_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: rollout_pb2.FINISH_REASON_ABORT,
}
FINISH_REASON_FROM_WIRE: dict[int, FinishReason] = {
    number: reason for reason, number in FINISH_REASON_TO_WIRE.items()
}

_GROUP_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*", re.ASCII)
_MAX_UINT32 = 2**32 - 1
_NOT_OF_ITS_TYPE = (TypeError, ValueError, AttributeError, LookupError, OverflowError)
"""What a value raises that is not what its field says."""
_MAX_OTHER_FIELDS = 64
"""Fields of a record besides its responses, with room for later versions of the schema."""
_MAX_RESPONSE_FIELDS = 2 * MAX_FUNCTION_VALUES + MAX_SEGMENTS + _MAX_OTHER_FIELDS
_COUNTED = {"record": "responses and unscored", "response": "segments, function values and notes"}
_RESPONSES_TAG = rollout_pb2.RolloutGroup.RESPONSES_FIELD_NUMBER << 3 | 2


@dataclass(frozen=True, kw_only=True, slots=True)
class WireLimits:
    """What a reader accepts. Sizes bound the memory that a hostile record can claim."""

    vocab_size: int | None = None
    """Token ids must be below it; None where no model is known, which is never the case in a learner."""
    max_prompt_tokens: int = 131_072
    """Token ids of the prompt."""
    max_response_tokens: int = MAX_RESPONSE_TOKENS
    """Token ids of one response; in segments all of theirs, contexts included."""
    max_responses: int = MAX_RESPONSES
    """Responses of one group."""
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    """The whole serialised record."""
    max_text_bytes: int = 4 * 2**20
    """One text in UTF-8."""


def encode_group(group: RolloutGroup) -> bytes:
    """Serialise deterministically: equal groups give equal bytes.

    Raises InvalidRecord for a group that no reader would accept, whatever its limits.
    """
    try:
        _check_group_id(group.group_id)
        _check_prompt(group.prompt)
        _check_responses(group.responses)
    except _NOT_OF_ITS_TYPE as error:
        raise _unserialisable(group, error) from error
    payload = to_message(group).SerializeToString(deterministic=True)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidRecord(f"group has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}")
    return payload


def to_message(group: RolloutGroup) -> rollout_pb2.RolloutGroup:
    """As the wire has it, unchecked; raises InvalidRecord for what cannot be put there at all."""
    try:
        return rollout_pb2.RolloutGroup(
            group_id=str(group.group_id),
            prompt=rollout_pb2.Prompt(token_ids=group.prompt.token_ids, text=group.prompt.text),
            responses=[
                rollout_pb2.Response(
                    token_ids=response.token_ids,
                    text=response.text,
                    reward=_number(f"response {index} has reward", response.reward),
                    finish_reason=FINISH_REASON_TO_WIRE[response.finish_reason],
                    trained_token_mask=response.trained_token_mask or (),
                    stop_string=response.stop_string,
                    function_values=response.function_values,
                    function_notes=response.function_notes,
                    segments=[
                        rollout_pb2.Segment(
                            context_ids=segment.context_ids,
                            token_ids=segment.token_ids,
                            trained_token_mask=segment.trained_token_mask or (),
                        )
                        for segment in response.segments
                    ],
                )
                for index, response in enumerate(group.responses)
            ],
            unscored=[
                rollout_pb2.UnscoredResponse(text=each.text, reason=each.reason) for each in group.unscored
            ],
            columns_json=group.columns_json,
        )
    except _NOT_OF_ITS_TYPE as error:  # lone surrogates in a text, a token id that is no integer
        raise _unserialisable(group, error) from error


def _unserialisable(group: RolloutGroup, error: Exception) -> InvalidRecord:
    return InvalidRecord(f"group {group.group_id} cannot be serialised: {error}")


def _number(what: str, value: Any) -> float:
    """A float of whatever has one (NumPy's numbers, a scalar tensor); raises InvalidRecord."""
    try:
        return float(value)
    except _NOT_OF_ITS_TYPE as error:
        raise InvalidRecord(f"{what} {str(value)[:40]}, which is not a number") from error


def decode_group(payload: bytes, *, limits: WireLimits) -> RolloutGroup:
    """Parse and validate one record.

    Raises InvalidRecord with the reason, and nothing else, for any bytes. Fields added by later versions
    of the schema are ignored.
    """
    if len(payload) > limits.max_payload_bytes:
        raise InvalidRecord(f"record has {len(payload)} bytes, more than {limits.max_payload_bytes}")
    _check_num_fields(payload, limits.max_responses + _MAX_OTHER_FIELDS)
    message = rollout_pb2.RolloutGroup()
    try:
        message.ParseFromString(payload)
    except (
        DecodeError,
        ValueError,
    ) as error:  # ValueError: text that is not UTF-8, in the pure Python parser
        raise InvalidRecord(f"record is not a serialised RolloutGroup: {error}") from error
    check_group(message, limits=limits)
    return RolloutGroup(
        group_id=message.group_id,
        prompt=Prompt(token_ids=tuple(message.prompt.token_ids), text=message.prompt.text),
        responses=tuple(_response_from_wire(response) for response in message.responses),
        unscored=tuple(UnscoredResponse(text=each.text, reason=each.reason) for each in message.unscored),
        columns_json=message.columns_json,
    )


def check_group(message: rollout_pb2.RolloutGroup, *, limits: WireLimits) -> None:
    """Validate a parsed record where it lies, nothing copied; raises InvalidRecord with the field and why."""
    _check_group_id(message.group_id)
    _check_sizes(message, limits)
    prompt_from_wire(message.prompt, limits=limits, as_ids=_as_they_are)
    for index, response in enumerate(message.responses):
        if not response.HasField("reward"):
            raise InvalidRecord(f"response {index} has no reward")
        if response.finish_reason not in FINISH_REASON_FROM_WIRE:
            raise InvalidRecord(
                f"response {index} has finish reason {response.finish_reason}, which is not known"
            )
    _check_responses(
        [_response_from_wire(response, as_ids=_as_they_are) for response in message.responses],
        vocab_size=limits.vocab_size,
    )


def _as_they_are(values: Any) -> Any:
    """In place of `tuple`: a repeated field can be looked at without a copy of it."""
    return values


def _check_num_fields(payload: bytes, max_fields: int) -> None:
    """Count fields before parsing: millions of empty messages would claim 70 times their size."""
    for tag, begin, end in _fields("record", payload, 0, len(payload), max_fields=max_fields):
        if tag == _RESPONSES_TAG:
            for _ in _fields("response", payload, begin, end, max_fields=_MAX_RESPONSE_FIELDS):
                pass


def _fields(
    what: str, payload: bytes, position: int, end: int, *, max_fields: int
) -> Iterator[tuple[int, int, int]]:
    """Tag, begin and end of the fields of one message."""
    for _ in range(max_fields):
        if position == end:
            return
        tag, position = _read_varint(payload, position)
        begin, wire_type = position, tag & 7
        if wire_type == 0:
            _, position = _read_varint(payload, position)
        elif wire_type == 1:
            position += 8
        elif wire_type == 2:
            length, begin = _read_varint(payload, position)
            position = begin + length
        elif wire_type == 5:
            position += 4
        else:
            raise InvalidRecord(f"{what} has a field of wire type {wire_type}, which the schema never uses")
        if position > end:
            raise InvalidRecord(f"{what} is cut off")
        yield tag, begin, position
    if position < end:
        raise InvalidRecord(f"{what} has more than {max_fields} fields, its {_COUNTED[what]} counted")


def _read_varint(payload: bytes, position: int) -> tuple[int, int]:
    """Value and the position after it."""
    value = 0
    for num_byte, byte in enumerate(payload[position : position + 10]):
        value |= (byte & 0x7F) << (7 * num_byte)
        if byte < 0x80:
            return value, position + num_byte + 1
    raise InvalidRecord("record is cut off or holds a number longer than 10 bytes")


def prompt_from_wire(
    message: rollout_pb2.Prompt, *, limits: WireLimits, as_ids: Callable[[Any], tuple[int, ...]] = tuple
) -> Prompt:
    """One validated prompt; raises InvalidRecord. Control RPCs use it too: theirs are not in the log."""
    _check_size(
        "prompt", len(message.token_ids), limits.max_prompt_tokens, message.text, limits.max_text_bytes
    )
    prompt = Prompt(token_ids=as_ids(message.token_ids), text=message.text)
    _check_prompt(prompt, vocab_size=limits.vocab_size)
    return prompt


def _response_from_wire(
    message: rollout_pb2.Response, *, as_ids: Callable[[Any], tuple[int, ...]] = tuple
) -> Response:
    return Response(
        token_ids=as_ids(message.token_ids),
        text=message.text,
        reward=message.reward,
        finish_reason=FINISH_REASON_FROM_WIRE[message.finish_reason],
        trained_token_mask=tuple(message.trained_token_mask) or None,
        stop_string=message.stop_string,
        function_values=dict(message.function_values),
        function_notes=dict(message.function_notes),
        segments=tuple(
            ResponseSegment(
                context_ids=as_ids(segment.context_ids),
                token_ids=as_ids(segment.token_ids),
                trained_token_mask=tuple(segment.trained_token_mask) or None,
            )
            for segment in message.segments
        ),
    )


def _check_sizes(message: rollout_pb2.RolloutGroup, limits: WireLimits) -> None:
    """Before anything is copied into Python objects."""
    if len(message.responses) > limits.max_responses:
        raise InvalidRecord(f"group has {len(message.responses)} responses, more than {limits.max_responses}")
    for index, response in enumerate(message.responses):
        name, parts = f"response {index}", response.segments
        num_tokens = len(response.token_ids) + sum(len(s.context_ids) + len(s.token_ids) for s in parts)
        _check_size(name, num_tokens, limits.max_response_tokens, response.text, limits.max_text_bytes)
        _check_mask_length(name, len(response.trained_token_mask), len(response.token_ids))
        for segment in parts:
            _check_mask_length(name, len(segment.trained_token_mask), len(segment.token_ids))
    # As the fields of bytes are counted: what is checked here alone must not fail at its reader.
    num_others = len(message.responses) + 2 + bool(message.columns_json)
    max_unscored = limits.max_responses + _MAX_OTHER_FIELDS - num_others
    if len(message.unscored) > max_unscored:
        raise InvalidRecord(f"group has {len(message.unscored)} unscored responses, more than {max_unscored}")
    for index, unscored in enumerate(message.unscored):
        _check_size(f"unscored response {index}", 0, 0, unscored.text, limits.max_text_bytes)


def _check_size(name: str, num_tokens: int, max_tokens: int, text: str, max_text_bytes: int) -> None:
    if num_tokens > max_tokens:
        raise InvalidRecord(f"{name} has {num_tokens} token ids, more than {max_tokens}")
    # A character has at most 4 bytes, so most texts need no encoding to be measured.
    if 4 * len(text) > max_text_bytes and len(text.encode()) > max_text_bytes:
        raise InvalidRecord(f"{name} has a text of {len(text.encode())} bytes, more than {max_text_bytes}")


def _check_group_id(group_id: str) -> None:
    if not group_id:
        raise InvalidRecord("record has no group id")
    if len(group_id) > MAX_GROUP_ID_CHARS:
        raise InvalidRecord(f"group id has {len(group_id)} characters, more than {MAX_GROUP_ID_CHARS}")
    if not _GROUP_ID.fullmatch(group_id):
        raise InvalidRecord(
            f"group id {group_id!r} may hold only A-Z a-z 0-9 . _ : / - and starts with a letter or digit"
        )


def _check_prompt(prompt: Prompt, *, vocab_size: int | None = None) -> None:
    if not prompt.token_ids and not prompt.text:
        raise InvalidRecord("prompt has neither token ids nor text")
    _check_token_ids("prompt", prompt.token_ids, vocab_size)


def _check_responses(responses: Sequence[Response], *, vocab_size: int | None = None) -> None:
    if not responses:
        raise InvalidRecord("group has no responses")
    for index, response in enumerate(responses):
        _check_response(f"response {index}", response, vocab_size)


def _check_response(name: str, response: Response, vocab_size: int | None) -> None:
    if response.segments:
        _check_segments(name, response, vocab_size)
    elif not response.token_ids and not response.text:
        raise InvalidRecord(f"{name} is empty: neither token ids nor text")
    reward = _number(f"{name} has reward", response.reward)
    if not math.isfinite(reward):
        raise InvalidRecord(f"{name} has reward {reward}, which is not finite")
    if abs(reward) > MAX_ABS_REWARD:
        raise InvalidRecord(f"{name} has reward {reward}, beyond {MAX_ABS_REWARD:g}")
    for what, entries in (("values", response.function_values), ("notes", response.function_notes)):
        if len(entries) > MAX_FUNCTION_VALUES:
            raise InvalidRecord(
                f"{name} has {len(entries)} {what} of functions, more than {MAX_FUNCTION_VALUES}"
            )
    for function, given in response.function_values.items():
        value = _number(f"{name} has of function {function[:40]!r} the value", given)
        if not math.isfinite(value):
            raise InvalidRecord(f"{name} has {value} of function {function[:40]!r}, which is not finite")
        if abs(value) > MAX_ABS_FUNCTION_VALUE:
            raise InvalidRecord(
                f"{name} has {value} of function {function[:40]!r}, beyond {MAX_ABS_FUNCTION_VALUE:g}"
            )
    if response.stop_string and response.finish_reason is not FinishReason.STOP:
        raise InvalidRecord(
            f"{name} has stop string {response.stop_string[:40]!r} and finish reason "
            f"{response.finish_reason}: a stop string goes with stop"
        )
    if response.finish_reason is FinishReason.ABORT:
        raise InvalidRecord(f"{name} was aborted: training would treat it as finished")
    _check_sequence(name, response, vocab_size)


def _check_segments(name: str, response: Response, vocab_size: int | None) -> None:
    if response.token_ids or response.text or response.trained_token_mask is not None:
        raise InvalidRecord(
            f"{name} has segments, and token ids, text or a mask beside them: give its first segment those"
        )
    if len(response.segments) > MAX_SEGMENTS:
        raise InvalidRecord(f"{name} has {len(response.segments)} segments, more than {MAX_SEGMENTS}")
    for index, segment in enumerate(response.segments):
        which = f"{name} segment {index}"
        if not segment.token_ids:
            raise InvalidRecord(f"{which} has no token ids")
        if not index and segment.context_ids:
            raise InvalidRecord(f"{which} has a context: the first one follows the group's prompt")
        if index and not segment.context_ids:
            raise InvalidRecord(f"{which} has no context: give all that was shown before its token ids")
        _check_token_ids(f"{which} (context)", segment.context_ids, vocab_size)
        _check_sequence(which, segment, vocab_size)


def _check_sequence(name: str, sequence: Response | ResponseSegment, vocab_size: int | None) -> None:
    token_ids, mask = sequence.token_ids, sequence.trained_token_mask
    _check_token_ids(name, token_ids, vocab_size)
    if mask is None:
        return
    if not token_ids:
        raise InvalidRecord(f"{name} has a trained-token mask but no token ids")
    if not mask or not any(mask):
        raise InvalidRecord(f"{name} has a trained-token mask that trains nothing")
    _check_mask_length(name, len(mask), len(token_ids))


def _check_mask_length(name: str, num_flags: int, num_tokens: int) -> None:
    if num_flags and num_flags != num_tokens:
        raise InvalidRecord(
            f"{name} has a trained-token mask of {num_flags} flags for {num_tokens} token ids"
        )


def _check_token_ids(name: str, token_ids: Sequence[int], vocab_size: int | None) -> None:
    if not token_ids:
        return
    largest = _MAX_UINT32 if vocab_size is None else vocab_size - 1
    if isinstance(token_ids, tuple) or vocab_size is not None:
        is_right = min(token_ids) >= 0 and max(token_ids) <= largest
    else:
        is_right = True  # A repeated field of the wire cannot hold another number.
    if not is_right:
        wrong = next(token for token in token_ids if not 0 <= token <= largest)
        raise InvalidRecord(f"{name} has token id {wrong}, outside 0 to {largest}")
