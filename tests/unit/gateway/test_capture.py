"""Turns of agents as one response, without a gateway around them."""

import re
from array import array

import pytest
from asympo.common.records import MAX_RESPONSE_TOKENS, MAX_SEGMENTS
from asympo.gateway.capture import BadAnswer, NotTrainable, Transcript, Turn, TurnReader


def turn(prompt_ids: list[int], answer_ids: list[int], *, finish_reason: str = "stop") -> Turn:
    prompt, answer = array("I", prompt_ids), array("I", answer_ids)
    return Turn(prompt_ids=prompt, answer_ids=answer, finish_reason=finish_reason)


def why_not(transcript: Transcript) -> str:
    with pytest.raises(NotTrainable) as error:
        transcript.conversation(has_segments=True)
    return error.value.reason


def test_answer_of_several_choices_is_not_trained_as_one() -> None:
    reader, transcript = TurnReader(), Transcript()
    for index, ids in enumerate(([1, 2], [3, 4])):
        choice = {"index": index, "token_ids": ids, "prompt_token_ids": [9], "finish_reason": "stop"}
        reader.read({"choices": [choice]})
    assert reader.turn is not None
    transcript.add(reader.turn)
    assert why_not(transcript) == "unknown_end"


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b'{"choices": 1}', b'{"choices": [1]}', b'{"choices": [{"token_ids": 1}]}'),
        *(b'{"object": "response", "input_messages": 1}', b'{"object": "response", "response": [1]}'),
        b'{"object": "response", "input_messages": [1], "output_messages": [{}]}',
        *(b"[]", b"3", b'"x"', b"{}", b'{"choices": []}', b'{"choices": [{"finish_reason": null}]}'),
        *(b'{"choices": [{"finish_reason": %s}]}' % other for other in (b"3", b"[1]", b'{"a": 1}')),
        *(
            b'{"prompt_token_ids": %s, "choices": [{"finish_reason": "stop"}]}' % ids
            for ids in (b"5", b'"five"', b'["a"]', b"[-1]", b"[1.5]", b"[4294967296]")
        ),
    ],
)
def test_answer_that_makes_no_sense_is_told_with_its_beginning(content: bytes) -> None:
    with pytest.raises(BadAnswer, match=re.escape(repr(content))):
        TurnReader().read_whole(content)


def test_each_token_of_many_turns_is_kept_once() -> None:
    transcript = Transcript()
    for length in range(1, 2001, 2):
        transcript.add(turn(list(range(length)), [length]))
    (stretch,) = transcript.conversation(has_segments=False).stretches
    assert list(stretch.token_ids) == list(range(2000))
    assert stretch.token_ids.itemsize == 4
    assert list(stretch.is_sampled) == [0, 1] * 1000
    transcript.clear()
    assert (transcript.num_turns, why_not(transcript)) == (1000, "no_turns")


def test_nothing_is_kept_of_a_session_once_it_is_too_long() -> None:
    forks, long = Transcript(), Transcript()
    for number in range(MAX_SEGMENTS + 1):
        forks.add(turn([number], [1]))
    long.add(turn([1] * MAX_RESPONSE_TOKENS, [1]))
    for transcript in (forks, long):
        assert transcript._stretches == []
        transcript.add(turn([1], [1]))
        assert (transcript._stretches, why_not(transcript)) == ([], "too_long")
    assert forks.num_turns == MAX_SEGMENTS + 2
