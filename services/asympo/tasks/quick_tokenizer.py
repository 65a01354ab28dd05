"""A tokenizer for looking at prompts: the model's files alone, without what transformers takes to load."""

import copy
import datetime
import json
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_CUT_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
"""Ends with a space, which a template that trims messages takes away."""


class QuickTokenizer:
    """What rendering a prompt needs of a tokenizer; `open_tokenizer` says where it is not enough."""

    def __init__(self, *, tokenizer: Any, config: dict[str, Any], chat_template: str | None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template
        self._named = {name: token for name in _SPECIAL if (token := _content(config.get(name)))}
        self.bos_token = self._named.get("bos_token")
        self.unk_token = self._named.get("unk_token")
        self.added_tokens_decoder = {
            index: SimpleNamespace(content=token.content, special=token.special)
            for index, token in tokenizer.get_added_tokens_decoder().items()
        }
        self.all_special_tokens = list(self._named.values())
        self.all_special_ids = [tokenizer.token_to_id(token) for token in self.all_special_tokens]
        self.bos_token_id = tokenizer.token_to_id(self.bos_token) if self.bos_token else None
        self.eos_token_id = tokenizer.token_to_id(eos) if (eos := self._named.get("eos_token")) else None

    @cached_property
    def _splitting(self) -> Any:
        """A copy to which control tokens are plain text; a switch of the one would reach other threads."""
        splitting = copy.deepcopy(self._tokenizer)
        splitting.encode_special_tokens = True
        return splitting

    def encode(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> list[int]:
        """As transformers' tokenizers do."""
        tokenizer = self._splitting if split_special_tokens else self._tokenizer
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Text of the ids."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def get_vocab(self) -> dict[str, int]:
        """Ids by spelling, added tokens included."""
        vocab: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocab

    def add_tokens(self, tokens: list[Any], *, special_tokens: bool) -> None:
        """`tokenizers.AddedToken`s."""
        add = self._tokenizer.add_special_tokens if special_tokens else self._tokenizer.add_tokens
        add(tokens)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Id of a spelling."""
        index: int | None = self._tokenizer.token_to_id(token)
        return index

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Spellings of the ids."""
        return [self._tokenizer.id_to_token(index) for index in ids]

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """The rendered text, or its ids."""
        assert self.chat_template is not None
        if continue_final_message:
            last = messages[-1]
            messages = [*messages[:-1], last | {"content": f"{last['content']}{_CUT_HERE}"}]
        text = compile_chat_template(self.chat_template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            **{"tools": None, "documents": None, **self._named, **options},
        )
        if continue_final_message:
            text = _cut_off(text, str(last["content"]))
        return self.encode(text, add_special_tokens=False) if tokenize else text


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _cut_off(text: str, last: str) -> str:
    """Where the last message, marked at its end, ends in the rendered text, as transformers finds it."""
    before, mark, after = text.rpartition(_CUT_HERE.strip())
    if not mark or last.strip() not in text:
        raise ValueError(f"the last message, {last[:80]!r}, does not appear as it is: it cannot be continued")
    return before if after.startswith(" ") else before.rstrip()


@cache
def compile_chat_template(template: str) -> Any:
    """As transformers compiles chat templates. Raises TemplateSyntaxError of jinja2."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what the model wrote, which says nothing here."""

        tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)
