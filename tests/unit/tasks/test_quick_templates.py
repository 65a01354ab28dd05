"""Chat templates give the same text in the quick tokenizer as in transformers' own."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from asympo.tasks.base import TaskPrompt
from asympo.tasks.quick_tokenizer import QuickTokenizer
from asympo.tasks.render import render_prompt
from asympo.tasks.tokenizer import open_tokenizer
from transformers import AutoTokenizer

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
TRIMMED = PLAIN.replace("m.content", "m.content | trim")
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}\n{% generation %}\n{{ m.content }}<|im_end|>\n"
    "{%- endgeneration %}\n{% else %}[{{ m.role }}]{{ m.content }}\n{% endif %}{% endfor %}"
)
JSON = (
    "{% for m in messages %}{{ m.content | tojson(ensure_ascii=True, separators=(',', ':')) }}{% endfor %}"
    "{{ tools | tojson(indent=2) }}{{ tools | tojson(sort_keys=True) }}"
)


@pytest.fixture
def pair(tiny_model: Path) -> tuple[Any, Any]:
    quick = open_tokenizer(str(tiny_model))
    assert isinstance(quick, QuickTokenizer)
    return quick, AutoTokenizer.from_pretrained(tiny_model)


def asked(*contents: str, **options: Any) -> TaskPrompt:
    roles = ("user", "assistant") * len(contents)
    messages = tuple({"role": role, "content": text} for role, text in zip(roles, contents, strict=False))
    return TaskPrompt(index=0, messages=messages, answer="", **options)


@pytest.mark.parametrize("template", [PLAIN, TRIMMED, GENERATION])
@pytest.mark.parametrize("begun", ["It is ", "It is\n\n", " a", "", "2", "<|im_end|> b "])
def test_response_is_begun_alike(pair: tuple[Any, Any], template: str, begun: str) -> None:
    for each in pair:
        each.chat_template = template
    quick, whole = (render_prompt(asked("2", begun, is_prefilled=True), each) for each in pair)
    assert quick == whole


@pytest.mark.parametrize("template", [GENERATION, JSON])
def test_what_templates_may_say_is_understood_alike(pair: tuple[Any, Any], template: str) -> None:
    tools = ({"type": "function", "function": {"name": "zählen", "description": "<b>"}},)
    for each in pair:
        each.chat_template = template
    quick, whole = (render_prompt(asked("é", "<a>", "東京", tools=tools), each) for each in pair)
    assert quick == whole


def test_template_that_drops_the_beginning_of_the_response_is_refused(pair: tuple[Any, Any]) -> None:
    quick, _ = pair
    quick.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="the last message, 'It', does not appear"):
        quick.apply_chat_template(
            [{"role": "user", "content": "2"}, {"role": "assistant", "content": "It"}],
            continue_final_message=True,
        )


def test_template_that_only_transformers_may_understand_is_left_to_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% unheard_of %}")
    assert not isinstance(open_tokenizer(str(tmp_path / "model")), QuickTokenizer)
