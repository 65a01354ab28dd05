"""Groups as JSON: what is too large is refused before anything is made of it."""

import pytest
from asympo.common.errors import InvalidRecord
from asympo.gateway.bodies import MAX_MESSAGES, MAX_MESSAGES_BYTES, messages_of, read_group


def group(messages: list[dict[str, str]]) -> dict[str, object]:
    return {"group_id": "1", "prompt": messages, "responses": [{"text": "4", "reward": 1}]}


def message(size: int) -> dict[str, str]:
    """So many bytes of two a character, its role included."""
    return {"role": "user", "content": "é" * ((size - 4) // 2)}


def test_messages_of_a_prompt_are_few_and_short_enough_to_be_rendered() -> None:
    most = [message(MAX_MESSAGES_BYTES // 2), message(MAX_MESSAGES_BYTES // 2)]
    assert messages_of(read_group(group(most))) == most
    with pytest.raises(
        InvalidRecord, match=f"prompt.messages: .* {MAX_MESSAGES_BYTES + 10} bytes, more than"
    ):
        read_group(group([*most, message(10)]))
    with pytest.raises(InvalidRecord, match=f"prompt.messages: .* at most {MAX_MESSAGES} "):
        read_group(group([message(4)] * (MAX_MESSAGES + 1)))
