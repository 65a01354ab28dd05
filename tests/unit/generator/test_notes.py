"""What reward functions say in words fits into a record, whatever they say."""

from asympo.generator.work.group import MAX_NOTES_CHARS, notes_of
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
