"""Text to token ids: control tokens where the policy's template means them, plain characters elsewhere."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from asympo.common.errors import AsympoError

_BREAK = "\ue000\ue0a5\ue05a"
"""Private-use characters that stand in no text; as a token of their own they keep others from forming."""
_ANCHOR = "\n"
"""Stands for the prompt where a response is encoded without it."""
_CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "1"}],
    [{"role": "user", "content": "2"}],
    [{"role": "system", "content": "3"}, {"role": "user", "content": "4"}],
)
"""What they have in common once rendered is the template's own."""


class TextRefused(AsympoError):
    """The tokenizer has no token ids for a text; others may be fine."""


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Spellings of the tokens that a text must not be able to forge, with their ids."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    unknown = getattr(tokenizer, "unk_token", None)
    return {name: index for name, index in (*added.items(), *named) if name != unknown}


def has_control_tokens(ids: Sequence[int], tokenizer: Any) -> bool:
    """Whether any are among the ids, the one that begins every text aside."""
    controls = set(control_tokens(tokenizer).values()) - {getattr(tokenizer, "bos_token_id", None)}
    return not controls.isdisjoint(ids)


def encode_plain(text: str, tokenizer: Any) -> list[int]:
    """Ids of untrusted text: what is spelled like a control token stays text. Raises TextRefused."""
    ids = encode(tokenizer, text, add_special_tokens=False, split_special_tokens=True)
    # Some are control tokens to the model alone, and the tokenizer does not know to split them.
    if not set(control_tokens(tokenizer).values()).isdisjoint(ids):
        return encode_broken(break_up(text, tokenizer), tokenizer)
    return ids


def encode_response(text: str, tokenizer: Any) -> list[int]:
    """Ids of untrusted text that goes on after a prompt. Raises TextRefused.

    Some tokenizers put a space before every text; nobody sampled one here.
    """
    if anchor := _anchor(tokenizer):
        ids = encode_plain(_ANCHOR + text, tokenizer)
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
    return encode_plain(text, tokenizer)


def encode_prompt(text: str, tokenizer: Any, *, is_own: bool) -> list[int]:
    """Ids of a whole prompt, with what the tokenizer begins every text with, once. Raises TextRefused.

    Control tokens count in our `own` prompts and in those that the model's chat template has rendered.
    """
    is_rendered = not is_own and was_rendered(text, tokenizer)
    begin = _begin(text, tokenizer)
    if is_own or is_rendered:
        ids = encode(tokenizer, text, add_special_tokens=False)
        is_left_out = is_rendered and not frame_of(tokenizer).begins_text
        return ids if is_left_out or ids[: len(begin)] == begin else begin + ids
    spelt = "".join(tokenizer.convert_ids_to_tokens(begin))
    return begin + encode_plain(text.removeprefix(spelt), tokenizer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What a chat template puts around any conversation."""

    begin: str
    """The control token that comes first, that of every text aside; else all that the renderings share."""
    end: str
    """Last part of a rendered prompt."""
    begins_text: bool
    """Whether the template itself writes the token that begins every text."""
    turn_ends: tuple[int, ...]
    """Ids of what follows on an answer."""


def was_rendered(text: str, tokenizer: Any) -> bool:
    """Whether a prompt begins and ends as the model's chat template makes them.

    The beginning of the answer may follow; a control token in it would not be the template's.
    """
    frame = frame_of(tokenizer)
    begin_of_text = getattr(tokenizer, "bos_token", None) or ""
    at = text.rfind(frame.end)
    if not frame.end or at < 0 or not text.removeprefix(begin_of_text).startswith(frame.begin):
        return False
    return not any(name in text[at + len(frame.end) :] for name in control_tokens(tokenizer))


@lru_cache(maxsize=4)
def frame_of(tokenizer: Any) -> Frame:
    """The frame of the tokenizer's chat template, empty where it has none."""
    rendered = [text for chat in _CHATS if (text := _rendered(tokenizer, chat))]
    if not rendered:
        return Frame(begin="", end="", begins_text=False, turn_ends=())
    begin_of_text = getattr(tokenizer, "bos_token", None) or ""
    begin = _common_start([text.removeprefix(begin_of_text) for text in rendered])
    first = next((name for name in control_tokens(tokenizer) if begin.startswith(name)), begin)
    answered = _rendered(tokenizer, [*_CHATS[0], {"role": "assistant", "content": "5"}], is_answered=True)
    after = answered.rpartition("5")[2]
    return Frame(
        begin=first,
        end=_common_start([text[::-1] for text in rendered])[::-1],
        begins_text=bool(begin_of_text) and rendered[0].startswith(begin_of_text),
        turn_ends=tuple(encode(tokenizer, after, add_special_tokens=False)) if after else (),
    )


def break_up(text: str, tokenizer: Any) -> str:
    """The text with a mark inside everything that is spelt like a control token."""
    spellings = sorted((name for name in control_tokens(tokenizer) if len(name) > 1), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
    parts, at = [], 0
    # From the next character on, as spellings may overlap.
    while found := pattern.search(text, at):
        parts += [text[at : found.start() + 1], _BREAK]
        at = found.start() + 1
    return "".join([*parts, text[at:]])


def encode_broken(text: str, tokenizer: Any) -> list[int]:
    """Ids of a text after `break_up`; they decode to the text before it. Raises TextRefused."""
    breaking, mark = _with_break(tokenizer)
    return [index for index in encode(breaking, text, add_special_tokens=False) if index != mark]


def is_template_error(error: Exception) -> bool:
    """Whether a chat template raised it: its own errors, or no template of a name."""
    return isinstance(error, ValueError | TypeError) or type(error).__module__.startswith("jinja2")


@lru_cache(maxsize=4)
def _anchor(tokenizer: Any) -> list[int]:
    """Ids of the anchor; none where a text has the same ids behind it as alone."""
    try:
        anchor, alone, behind = (encode_plain(text, tokenizer) for text in (_ANCHOR, "x", f"{_ANCHOR}x"))
    except TextRefused:
        return []
    return [] if behind == anchor + alone else anchor


@lru_cache(maxsize=2)
def _with_break(tokenizer: Any) -> tuple[Any, int]:
    from tokenizers import AddedToken

    breaking = copy.deepcopy(tokenizer)
    breaking.add_tokens([AddedToken(_BREAK, special=True, normalized=False)], special_tokens=True)
    return breaking, breaking.convert_tokens_to_ids(_BREAK)


def _common_start(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    places = (at for at, characters in enumerate(zip(*texts, strict=False)) if len(set(characters)) > 1)
    return shortest[: next(places, len(shortest))]


def _begin(text: str, tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text; what it puts behind would end a prompt before its response."""
    inner = encode(tokenizer, text, add_special_tokens=False)
    whole = encode(tokenizer, text)
    places = range(len(whole) - len(inner) + 1)
    return next((whole[:at] for at in places if whole[at : at + len(inner)] == inner), [])


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, is_answered: bool = False) -> str:
    """Text of the chat template; empty when there is none or it refuses such messages."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        text: str = tokenizer.apply_chat_template(
            messages, add_generation_prompt=not is_answered, tokenize=False
        )
    except Exception as error:
        if not is_template_error(error):
            raise
        return ""
    return text


def encode(tokenizer: Any, text: str, **options: bool) -> list[int]:
    """Ids of a text as the tokenizer makes them. Raises TextRefused."""
    try:
        return list(tokenizer.encode(text, **options))
    except Exception as error:
        # The tokenizers library raises nothing narrower for a character that it has no token for.
        raise TextRefused(f"the tokenizer cannot encode {text[:40]!r}: {error}") from error
