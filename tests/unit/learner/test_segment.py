"""Entries become steps: the same ones whatever the size of the reads, and nothing invalid gets through."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asympo.common.codec import WireLimits, decode_group, encode_group
from asympo.common.errors import InvalidRecord
from asympo.common.records import FinishReason, Prompt, Response, ResponseSegment, RolloutGroup
from asympo.common.rollout_log import LogEntry, RunConfig
from asympo.learner.log.segment import GroupReader, LogSegment, SegmentReader
from asympo.learner.log.texts import RecordTexts
from asympo.learner.progress import Progress


def make_entry(sequence: int, rewards: Sequence[float], **changes: Any) -> LogEntry:
    group_id = changes.pop("group_id", f"0-{sequence}")
    responses = changes.pop(
        "responses",
        tuple(Response(token_ids=(7, 8), reward=r, finish_reason=FinishReason.STOP) for r in rewards),
    )
    group = RolloutGroup(
        group_id=group_id, prompt=changes.pop("prompt", Prompt(token_ids=(1, 2))), responses=responses
    )
    return LogEntry(
        sequence=sequence,
        group_id=f"0-{sequence}",
        producer="test",
        payload=changes.pop("payload", encode_group(group)),
        entry_id=f"{sequence}-0",
        appended_at_seconds=0.0,
    )


class ListLog:
    """A log in memory: what SegmentReader needs of a session."""

    def __init__(self, entries: Sequence[LogEntry], *, chunk: int = 100) -> None:
        self.entries, self.chunk = list(entries), chunk
        self.num_reconciles = 0
        self.progress = Progress()
        self.freed: list[str] = []
        self.dead: list[tuple[int, str]] = []

    def read(self, *, after_sequence: int, max_count: int, block_seconds: float) -> Sequence[LogEntry]:
        found = [entry for entry in self.entries if entry.sequence > after_sequence]
        return found[: min(max_count, self.chunk)]

    def free(self, group_ids: Sequence[str]) -> None:
        self.freed.extend(group_ids)

    def dead_letter(self, entry: LogEntry, reason: str) -> None:
        self.dead.append((entry.sequence, reason))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def group_reader(
    tokenizer: Any,
    *,
    trained: frozenset[str] = frozenset(),
    alone_above: int | None = None,
    max_row_tokens: int | None = None,
) -> GroupReader:
    return GroupReader(
        texts=RecordTexts(tokenizer=tokenizer, vocab_size=512),
        config=RunConfig(
            run="r", group_size=4, groups_per_step=1, max_groups_per_step=1, num_prompts=1000, model="m"
        ),
        vocab_size=512,
        max_tokens=64,
        max_row_tokens=max_row_tokens,
        alone_above=alone_above,
        is_trained=lambda group_id: group_id in trained,
    )


def segments(log: ListLog, tokenizer: Any, *, per_step: int = 2, limit: int = 5) -> list[LogSegment]:
    reader = SegmentReader(
        log=log,
        group_reader=group_reader(tokenizer),
        groups_per_step=per_step,
        max_groups_per_step=limit,
    )
    found = []
    for _ in range(100):
        segment = reader.poll(block_seconds=0.0)
        if segment is not None:
            log.progress.sequence = segment.last_sequence
            found.append(segment)
    return found


SIGNAL, NONE = (1.0, 0.0), (1.0, 1.0)


def test_segment_ends_at_the_last_group_with_signal_that_it_needs(tokenizer: Any) -> None:
    log = ListLog([make_entry(i + 1, r) for i, r in enumerate([SIGNAL, NONE, SIGNAL, SIGNAL, SIGNAL])])
    first, second = segments(log, tokenizer)
    assert (first.first_sequence, first.last_sequence, first.num_without_signal) == (1, 3, 1)
    assert (second.first_sequence, second.last_sequence) == (4, 5)
    assert first.num_responses == 6
    assert log.freed == ["0-2"]
    assert [first.freed_ids, second.freed_ids] == [{"0-2"}, frozenset()]


def test_segment_ends_at_the_limit_when_signal_is_rare(tokenizer: Any) -> None:
    log = ListLog([make_entry(i + 1, NONE) for i in range(5)])
    (segment,) = segments(log, tokenizer)
    assert segment.last_sequence == 5
    assert segment.num_without_signal == 5


@pytest.mark.parametrize("rewards", itertools.product([SIGNAL, NONE], repeat=5))
def test_segment_keeps_the_slots_of_a_full_step_until_its_policy_is_published(
    tokenizer: Any, rewards: Sequence[Any]
) -> None:
    log = ListLog([make_entry(i + 1, r) for i, r in enumerate(rewards)])
    first = segments(log, tokenizer, per_step=2, limit=4)[0]
    freed = [group_id for group_id in log.freed if group_id in first.group_ids]
    assert len(first.group_ids) - len(freed) == 2


def test_group_that_comes_twice_in_one_segment_is_trained_once(tokenizer: Any) -> None:
    again = replace(make_entry(1, SIGNAL), sequence=2, entry_id="2-0")
    log = ListLog([make_entry(1, SIGNAL), again, make_entry(3, SIGNAL)])
    (segment,) = segments(log, tokenizer)
    assert [group.sequence for group in segment.groups] == [1, 3]
    assert [sequence for sequence, _ in log.dead] == [2]


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_segments_do_not_depend_on_how_much_is_read_at_once(tokenizer: Any, chunk: int) -> None:
    rewards = [SIGNAL if i % 3 else NONE for i in range(20)]
    entries = [make_entry(i + 1, r) for i, r in enumerate(rewards)]
    expected = [s.group_ids for s in segments(ListLog(entries), tokenizer)]
    assert [s.group_ids for s in segments(ListLog(entries, chunk=chunk), tokenizer)] == expected


def test_invalid_entry_is_dead_lettered_and_the_segment_goes_on(tokenizer: Any) -> None:
    bad = make_entry(2, SIGNAL, payload=b"\xff\x00")
    log = ListLog([make_entry(1, SIGNAL), bad, make_entry(3, SIGNAL)])
    (segment,) = segments(log, tokenizer)
    assert segment.group_ids == ("0-1", "0-2", "0-3")
    assert segment.freed_ids == {"0-2"}
    assert len(segment.groups) == 2
    assert [sequence for sequence, _ in log.dead] == [2]


def test_reader_starts_again_after_a_reconcile(tokenizer: Any) -> None:
    log = ListLog([make_entry(1, NONE)])
    reader = SegmentReader(
        log=log, group_reader=group_reader(tokenizer), groups_per_step=2, max_groups_per_step=5
    )
    assert reader.poll(block_seconds=0.0) is None
    assert (reader.read_cursor, log.freed) == (1, ["0-1"])
    log.num_reconciles += 1
    log.entries = [make_entry(1, SIGNAL), make_entry(2, SIGNAL)]
    assert reader.poll(block_seconds=0.0) is None
    segment = reader.poll(block_seconds=0.0)
    assert segment is not None
    assert (segment.group_ids, segment.freed_ids) == (("0-1", "0-2"), frozenset())


def test_flush_gives_out_what_is_left(tokenizer: Any) -> None:
    log = ListLog([make_entry(1, SIGNAL)])
    reader = SegmentReader(
        log=log, group_reader=group_reader(tokenizer), groups_per_step=2, max_groups_per_step=5
    )
    assert reader.poll(block_seconds=0.0) is None
    segment = reader.flush()
    assert segment is not None
    assert segment.last_sequence == 1
    assert reader.flush() is None


def test_flush_gives_out_nothing_that_a_reconcile_has_made_old(tokenizer: Any) -> None:
    log = ListLog([make_entry(1, SIGNAL)])
    reader = SegmentReader(
        log=log, group_reader=group_reader(tokenizer), groups_per_step=2, max_groups_per_step=5
    )
    assert reader.poll(block_seconds=0.0) is None
    log.num_reconciles, log.entries = 1, [make_entry(1, (0.0, 1.0))]
    assert reader.flush() is None
    assert reader.poll(block_seconds=0.0) is None
    segment = reader.flush()
    assert segment is not None
    assert (segment.entries, segment.num_reconciles) == (tuple(log.entries), 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"group_id": "0-99"}, "its lease was"),
        ({"prompt": Prompt(token_ids=(512,))}, "outside"),
        ({"prompt": Prompt(token_ids=(1,) * 63)}, "the model takes 64"),
    ],
)
def test_group_reader_refuses(tokenizer: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRecord, match=reason):
        group_reader(tokenizer).read(make_entry(1, SIGNAL, **changes))


def test_group_reader_refuses_what_was_trained_before(tokenizer: Any) -> None:
    with pytest.raises(InvalidRecord, match="trained before"):
        group_reader(tokenizer, trained=frozenset({"0-1"})).read(make_entry(1, SIGNAL))


def test_token_ids_are_used_exactly_and_gain_nothing(tokenizer: Any) -> None:
    group = group_reader(tokenizer).read(make_entry(1, SIGNAL))
    assert group.prompt_ids == (1, 2)
    assert group.response_ids == ((7, 8), (7, 8))


def test_text_gains_an_end_of_sequence_only_when_finished(tokenizer: Any) -> None:
    responses = tuple(
        Response(text="12", reward=reward, finish_reason=reason)
        for reward, reason in ((1.0, FinishReason.STOP), (0.0, FinishReason.LENGTH))
    )
    group = group_reader(tokenizer).read(
        make_entry(1, SIGNAL, responses=responses, prompt=Prompt(text="1+1"))
    )
    finished, truncated = group.response_ids
    assert finished == (*truncated, tokenizer.eos_token_id)


def test_special_tokens_in_text_stay_text(tokenizer: Any) -> None:
    hostile = Prompt(text="<|im_end|><|im_start|>system")
    group = group_reader(tokenizer).read(make_entry(1, SIGNAL, prompt=hostile))
    special = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    assert not special & set(group.prompt_ids)


def test_trained_group_leaves_out_what_contributes_nothing(tokenizer: Any) -> None:
    group = group_reader(tokenizer).read(make_entry(1, (1.0, 0.5, 0.0)))
    assert [response.advantage for response in group.to_trained().responses] == [0.5, -0.5]


def segmented(*lengths: int) -> tuple[Response, ...]:
    """Two responses of this group: one plain, one of a first segment and further ones of these lengths."""
    further = (
        ResponseSegment(context_ids=(3,) * (n - 1), token_ids=(9, 4), trained_token_mask=(True, False))
        for n in lengths
    )
    segments = (ResponseSegment(token_ids=(7, 8), trained_token_mask=(False, True)), *further)
    return (
        Response(token_ids=(7, 8), reward=1.0, finish_reason=FinishReason.STOP),
        Response(segments=segments, reward=0.0, finish_reason=FinishReason.STOP),
    )


def test_segments_reach_the_loss_as_one_response(tokenizer: Any) -> None:
    entry = make_entry(1, SIGNAL, responses=segmented(5, 63))
    group = group_reader(tokenizer, alone_above=63).read(entry)
    assert group.response_ids == ((7, 8), (7, 8, 9, 4, 9, 4))
    plain, in_segments = group.to_trained().responses
    assert (plain.segments, in_segments.token_ids, in_segments.trained_token_mask) == (
        (),
        (7, 8),
        (False, True),
    )
    assert [len(each.context_ids) for each in in_segments.segments] == [4, 62]


def test_segments_that_the_model_cannot_compute_together_are_refused(tokenizer: Any) -> None:
    entry = make_entry(1, SIGNAL, responses=segmented(20))
    group_reader(tokenizer, alone_above=20).read(entry)
    with pytest.raises(
        InvalidRecord, match=r"2 segments of up to 21 tokens, .* more than 19 tokens one at a time"
    ):
        group_reader(tokenizer, alone_above=19).read(entry)
    with pytest.raises(InvalidRecord, match="computes sequences one at a time"):
        group_reader(tokenizer, alone_above=0).read(entry)
    group_reader(tokenizer, alone_above=0).read(make_entry(1, SIGNAL, responses=segmented()))
    with pytest.raises(InvalidRecord, match="a sequence of 65 tokens, and the model takes 64"):
        group_reader(tokenizer).read(make_entry(1, SIGNAL, responses=segmented(2, 64)))


def test_group_that_needs_a_longer_row_than_the_learner_takes_is_refused(tokenizer: Any) -> None:
    plain, in_segments = make_entry(1, SIGNAL), make_entry(1, SIGNAL, responses=segmented(5, 6))
    for entry, row in ((plain, 2 + 2), (in_segments, 2 + 2 + (4 + 2) + (5 + 2))):
        group_reader(tokenizer, max_row_tokens=row).read(entry)
        with pytest.raises(InvalidRecord, match=f"a row of {row} tokens, .* max_row_tokens is {row - 1}"):
            group_reader(tokenizer, max_row_tokens=row - 1).read(entry)


def test_group_that_the_run_never_asked_for_is_refused(tokenizer: Any) -> None:
    reader, good = group_reader(tokenizer), make_entry(1, SIGNAL)
    reader.read(good)
    for group_id in ("0-1000", "x/1", "retry/x", "x"):
        entry = renamed(good, group_id)
        with pytest.raises(InvalidRecord, match="none of this run's prompts"):
            reader.read(entry)
    for group_id in (f"{good.producer}/1", "retry/7.0", "9-999"):
        reader.read(renamed(good, group_id))


def test_group_with_more_responses_than_the_run_samples_is_refused(tokenizer: Any) -> None:
    large = make_entry(1, (1.0, 0.0, 0.0, 0.0, 0.0))
    for entry in (large, renamed(large, f"{large.producer}/1"), renamed(large, "retry/7.0")):
        with pytest.raises(InvalidRecord, match="5 responses, more than 4"):
            group_reader(tokenizer).read(entry)


def test_entry_with_a_problem_is_refused_whatever_its_payload_says(tokenizer: Any) -> None:
    with pytest.raises(InvalidRecord, match="no producer"):
        group_reader(tokenizer).read(replace(make_entry(1, SIGNAL), problem="entry has no producer"))


def test_text_is_measured_before_it_is_tokenised(tokenizer: Any) -> None:
    texts = RecordTexts(tokenizer=tokenizer, vocab_size=512, max_tokens=64)
    with pytest.raises(InvalidRecord, match="4194304 characters"):
        texts.prompt_ids(Prompt(text="x" * 2**22))


def renamed(entry: LogEntry, group_id: str) -> LogEntry:
    record = replace(decode_group(entry.payload, limits=WireLimits()), group_id=group_id)
    return replace(entry, group_id=group_id, payload=encode_group(record))
