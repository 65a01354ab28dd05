"""Messages of a row as TRL, verl and chat templates know them: checked, and otherwise left as they are."""

from collections.abc import Collection, Iterable
from typing import Any

from asympo.common.errors import BadSetting
from asympo.tasks.base import Message

ROLES = ("system", "developer", "user", "assistant", "tool")


def check_messages(messages: Any, where: str, *, prefill: bool = False) -> tuple[Message, ...]:
    """The messages, or BadSetting about the first that is none."""
    if not isinstance(messages, list) or not messages:
        raise BadSetting(f"{where} needs messages to be a non-empty list")
    checked = tuple(without_none(message, kept=("content",)) for message in messages)
    for message in checked:
        if not _is_message(message):
            raise BadSetting(
                f"{where} has message {message!r}: needs role ({', '.join(ROLES)}) and content, a text or a "
                "list of parts that each have a type"
            )
    is_answered = checked[-1]["role"] == "assistant"
    if is_answered and not prefill:
        raise BadSetting(
            f"{where} ends with an assistant message: the policy writes that one; leave it out, or set "
            "task.prefill of a data task if the response is to begin with it"
        )
    if prefill and is_answered and not isinstance(checked[-1].get("content"), str):
        raise BadSetting(
            f"{where} ends with an assistant message that is not text: a response cannot begin with that"
        )
    return checked


def without_none(value: Any, *, kept: Collection[str] = ()) -> Any:
    """Arrow gives every structure the fields that any has; those that say nothing are not there."""
    if isinstance(value, dict):
        return {
            key: without_none(each, kept=kept)
            for key, each in value.items()
            if each is not None or key in kept
        }
    return [without_none(each, kept=kept) for each in value] if isinstance(value, list) else value


def null_names(value: Any) -> set[str]:
    """Names of all fields in it that hold nothing."""
    if isinstance(value, list):
        return {name for each in value for name in null_names(each)}
    if not isinstance(value, dict):
        return set()
    own = {name for name, each in value.items() if each is None}
    return own | null_names([*value.values()])


def is_filled(tools: Iterable[Any]) -> bool:
    """Whether a table filled these up: same fields at a place, with a default that is null in some only."""
    names: dict[tuple[str, ...], Collection[str]] = {}
    found: dict[tuple[str, ...], set[str]] = {}
    left: list[tuple[tuple[str, ...], Any]] = [((), each) for each in tools]
    while left:
        place, value = left.pop()
        if isinstance(value, dict):
            if names.setdefault(place, value.keys()) != value.keys():
                return False
            said = "nothing" if "default" not in value else "null" if value["default"] is None else "value"
            found.setdefault(place, set()).add(said)
            left += [((*place, name), each) for name, each in value.items() if isinstance(each, dict | list)]
        elif isinstance(value, list | tuple):
            left += [(place, each) for each in value]
    return {"null", "value"} in found.values()


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        return False
    content = message.get("content")
    if content is None:
        return bool(message.get("tool_calls"))
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content)
    return isinstance(content, str)
