"""`asympo log show` on records of token ids: people read what was said, where the tokenizer is to be had."""

from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from asympo.common.records import FinishReason, Prompt, Response, ResponseSegment, RolloutGroup
from asympo.ops.texts import Texts
from asympo.tasks.tokenizer import open_tokenizer


def texts_of(model: object) -> Texts:
    log = MagicMock()
    log.state.config.return_value = MagicMock(model=str(model))
    return Texts(cast(Any, log))


def group_of(*, prompt: Prompt, responses: list[dict[str, Any]]) -> RolloutGroup:
    answers = (Response(reward=1.0, finish_reason=FinishReason.STOP, **each) for each in responses)
    return RolloutGroup(group_id="0-1", prompt=prompt, responses=tuple(answers))


def test_prompts_responses_and_segments_of_ids_get_their_texts(tiny_model: Path) -> None:
    tokenizer = open_tokenizer(str(tiny_model))
    ids = {text: tuple(tokenizer.encode(text)) for text in ("asked", "said", "first", "second")}
    segments = (
        ResponseSegment(token_ids=ids["first"]),
        ResponseSegment(context_ids=(5,), token_ids=ids["second"]),
    )
    responses: list[dict[str, Any]] = [
        {"token_ids": ids["said"]},
        {"segments": segments},
        {"text": "its own"},
    ]
    given = group_of(prompt=Prompt(token_ids=ids["asked"]), responses=responses)
    found = texts_of(tiny_model).added(given)
    assert found.prompt.text == tokenizer.decode(list(ids["asked"]))
    said, rewritten, own = (each.text for each in found.responses)
    assert (said, own) == (tokenizer.decode(list(ids["said"])), "its own")
    parts = (tokenizer.decode(list(ids[each])) for each in ("first", "second"))
    assert rewritten.split("\n\n[history rewritten]\n\n") == list(parts)
    # An id outside of the vocabulary is what such a record may have been set aside for.
    texts_of(tiny_model).added(group_of(prompt=Prompt(token_ids=(2**31,)), responses=responses))


def test_nobody_needs_the_tokenizer_of_texts_and_a_missing_one_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = texts_of(tmp_path / "none")
    whole = group_of(prompt=Prompt(text="asked"), responses=[{"text": "said"}])
    assert texts.added(whole) is whole
    assert capsys.readouterr().err == ""
    bare = group_of(prompt=Prompt(token_ids=(1, 2)), responses=[{"text": "said"}])
    assert texts.added(bare) is bare
    assert texts.added(bare) is bare
    assert capsys.readouterr().err.count("is not on this machine") == 1
