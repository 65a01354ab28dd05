"""Groups as JSON, for HTTP: what is wrong with one is said with the name of its field."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from asympo.common.codec import FINISH_REASON_TO_WIRE, WireLimits
from asympo.common.errors import InvalidRecord
from asympo.common.records import (
    MAX_FUNCTION_VALUES,
    MAX_RESPONSE_TOKENS,
    MAX_RESPONSES,
    MAX_SEGMENTS,
    FinishReason,
)
from asympo.v1 import rollout_pb2

MAX_MESSAGES = 4096
"""Of one prompt."""
MAX_MESSAGES_BYTES = WireLimits().max_text_bytes
"""All texts of a prompt's messages: they are rendered before anybody can count their tokens."""


def _is_text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("this is no text: it has half of a surrogate pair") from None
    return value


Text = Annotated[str, AfterValidator(_is_text)]
"""A string that UTF-8 can hold: JSON can spell others."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MessageBody(_Body):
    """One chat message."""

    role: Text
    content: Text


def _can_be_rendered(messages: list[MessageBody]) -> list[MessageBody]:
    num_bytes = sum(len(each.role.encode()) + len(each.content.encode()) for each in messages)
    if num_bytes > MAX_MESSAGES_BYTES:
        raise ValueError(f"their texts have {num_bytes} bytes, more than {MAX_MESSAGES_BYTES}")
    return messages


class PromptBody(_Body):
    """What was asked: one of the three at least. A string stands for its text, a list for its messages."""

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"text": value}
        return {"messages": value} if isinstance(value, list) else value

    text: Text = ""
    """As the policy's template renders it, or plain."""
    token_ids: list[int] = Field(default=[], max_length=131_072)
    messages: Annotated[
        list[MessageBody], Field(max_length=MAX_MESSAGES), AfterValidator(_can_be_rendered)
    ] = []
    """Rendered by the gateway with the policy's own template."""


class SegmentBody(_Body):
    """One sequence of a response whose history was rewritten on the way."""

    context_ids: list[int] = Field(default=[], max_length=MAX_RESPONSE_TOKENS)
    token_ids: list[int] = Field(max_length=MAX_RESPONSE_TOKENS)
    trained_token_mask: list[bool] = []


class ResponseBody(_Body):
    """One answer and what it earned."""

    text: Text = ""
    token_ids: list[int] = Field(default=[], max_length=MAX_RESPONSE_TOKENS)
    reward: float
    finish_reason: Literal["stop", "length"] = "stop"
    trained_token_mask: list[bool] = []
    stop_string: Text = ""
    segments: list[SegmentBody] = Field(default=[], max_length=MAX_SEGMENTS)
    """Instead of text and token ids."""
    function_values: dict[Text, float] = Field(default={}, max_length=MAX_FUNCTION_VALUES)
    """Parts of the reward, for people."""
    function_notes: dict[Text, Text] = Field(default={}, max_length=MAX_FUNCTION_VALUES)


class UnscoredBody(_Body):
    """One answer without a reward, for people."""

    text: Text = ""
    reason: Text


class GroupBody(_Body):
    """One group."""

    group_id: Text | int = ""
    prompt: PromptBody
    responses: list[ResponseBody] = Field(max_length=MAX_RESPONSES)
    unscored: list[UnscoredBody] = Field(default=[], max_length=MAX_RESPONSES)
    columns_json: Text = ""
    lease_token: Text = ""


def read_group(value: Any) -> GroupBody:
    """Raises InvalidRecord with the first field that is wrong and why."""
    try:
        return GroupBody.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRecord(f"{place or 'the group'}: {first['msg']}") from None


def messages_of(body: GroupBody) -> list[dict[str, str]]:
    """The prompt's messages; empty when it is text or token ids."""
    return [message.model_dump() for message in body.prompt.messages]


def to_wire(body: GroupBody, *, rendered: tuple[list[int], str] | None) -> rollout_pb2.RolloutGroup:
    """The record; `rendered`: token ids and text of the prompt's messages."""
    token_ids, text = rendered or (body.prompt.token_ids, body.prompt.text)
    try:
        return rollout_pb2.RolloutGroup(
            group_id=str(body.group_id),
            prompt=rollout_pb2.Prompt(token_ids=token_ids, text=text),
            responses=[_response(response) for response in body.responses],
            unscored=[rollout_pb2.UnscoredResponse(**dict(each)) for each in body.unscored],
            columns_json=body.columns_json,
        )
    except (TypeError, ValueError) as error:
        raise InvalidRecord(f"the group cannot be stored: {error}") from error


def _response(body: ResponseBody) -> rollout_pb2.Response:
    return rollout_pb2.Response(
        token_ids=body.token_ids,
        text=body.text,
        reward=body.reward,
        finish_reason=FINISH_REASON_TO_WIRE[FinishReason(body.finish_reason)],
        trained_token_mask=body.trained_token_mask,
        stop_string=body.stop_string,
        function_values=body.function_values,
        function_notes=body.function_notes,
        segments=[rollout_pb2.Segment(**dict(each)) for each in body.segments],
    )
