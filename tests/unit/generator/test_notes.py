"""What a group's maker says in words: notes of reward functions in its record, a warning in the log."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from asympo.engines.base import SamplingSettings
from asympo.generator.work import group
from asympo.generator.work.group import MAX_NOTES_CHARS, notes_of, warn_of_cut_responses
from asympo.rewards.scorer import Scored


def test_words_are_kept_and_cut_where_the_room_ends() -> None:
    extras = {"judge/why": "short", "judge/length": 17, "judge/empty": "", "judge/essay": "x" * 5000}
    notes = notes_of(Scored(reward=1.0, extras={**extras, "judge/late": "never fits"}))
    assert list(notes) == ["judge/why", "judge/essay"]
    assert notes["judge/why"] == "short"
    assert sum(len(name) + len(text) for name, text in notes.items()) == MAX_NOTES_CHARS


def test_many_words_are_as_many_as_a_record_takes() -> None:
    extras = {f"n{number}": "a" for number in range(100)}
    assert len(notes_of(Scored(reward=1.0, extras=extras))) == 64


def test_warning_of_cut_responses_advises_only_what_every_engine_accepts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(group, "render_prompt", lambda *_: [1, 2, 3])
    task = cast("Any", SimpleNamespace(prompt=lambda index: None))
    for served in (None, 19, 18):
        engine = cast("Any", SimpleNamespace(context_length=served, tokenizer=None))
        warn_of_cut_responses(engine, task, SamplingSettings(max_tokens=16))
    (said,) = [record.getMessage() for record in caplog.records]
    assert "serves 18 in a row" in said
    assert "max_model_len (with LongRoPE up to its original range only); else lower sampling.max_tok" in said
