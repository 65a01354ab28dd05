import hashlib
import json

import pytest
from asympo.common.trained_ids import TrainedIds
from hypothesis import given
from hypothesis import strategies as st

OWN_IDS = st.builds("{}-{}".format, st.integers(0, 4), st.integers(0, 9))
FOREIGN_IDS = st.sampled_from(["gateway:a", "0-10", "00-1", "1-01", "-1-2", "x", "", "1_2", "٣-1"])


RESTS = st.dictionaries(st.integers(0, 4), st.integers(0, 2**10 - 1))


@given(st.lists(OWN_IDS | FOREIGN_IDS), st.lists(OWN_IDS), RESTS)
def test_prompts_that_rest_count_as_consumed(
    before: list[str], after: list[str], rests: dict[int, int]
) -> None:
    ids, model = TrainedIds(num_prompts=10), set(before)
    for group_id in before:
        ids.add(group_id)
    for epoch, bits in rests.items():
        ids.rest(epoch, bits.to_bytes(2, "little"))
        ids.rest(epoch, bytes(2))
    resting = {f"{epoch}-{i}" for epoch, bits in rests.items() for i in range(10) if bits >> i & 1}
    for group_id in after:
        assert ids.add(group_id) == (group_id not in model | resting)
        model.add(group_id)
    again = TrainedIds.from_bytes(ids.to_bytes())
    assert again == ids
    for epoch in range(5):
        every = {f"{epoch}-{i}" for i in range(10)}
        assert again.num_in_epoch(epoch) == len(every & (model | resting))
        assert {i for i in every if i in again} == every & (model | resting)
        if epoch >= again.complete_epochs:
            alone = {f"{epoch}-{i}" for i in range(10) if again.is_resting(epoch, i)}
            assert alone == every & resting - set(before)


@given(st.lists(OWN_IDS | FOREIGN_IDS))
def test_trained_ids_behave_like_a_set_and_survive_bytes(added: list[str]) -> None:
    ids, model = TrainedIds(num_prompts=10), set()
    for group_id in added:
        assert ids.add(group_id) == (group_id not in model)
        model.add(group_id)
    again = TrainedIds.from_bytes(ids.to_bytes())
    assert again == ids
    assert len(again) == len(model)
    assert all(group_id in again for group_id in model)
    assert not any(f"{e}-{i}" in again for e in range(6) for i in range(10) if f"{e}-{i}" not in model)


def test_trained_ids_shrink_to_a_number_when_leading_epochs_are_complete() -> None:
    ids = TrainedIds(num_prompts=64)
    for epoch in (1, 0, 2):
        for index in range(64):
            ids.add(f"{epoch}-{index}")
    ids.add("4-5")
    assert ids.complete_epochs == 3
    assert ids.partial_epochs() == [4]
    assert (ids.num_in_epoch(1), ids.num_in_epoch(3), ids.num_in_epoch(4)) == (64, 0, 1)
    assert not ids.add("1-7")
    assert len(ids) == 3 * 64 + 1


def test_trained_ids_keep_only_the_newest_foreign_ids() -> None:
    ids = TrainedIds(num_prompts=4, max_foreign=3)
    for name in "abcde":
        ids.add(name)
    assert list(ids.foreign()) == ["c", "d", "e"]
    assert "a" not in ids


def test_trained_ids_copy_is_independent() -> None:
    ids = TrainedIds(num_prompts=4)
    copy = ids.copy()
    copy.add("0-1")
    assert "0-1" not in ids


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" + data[1:], lambda _data: b""])
def test_trained_ids_refuse_damaged_bytes(damage) -> None:  # type: ignore[no-untyped-def]
    ids = TrainedIds(num_prompts=16)
    ids.add("0-3")
    with pytest.raises(ValueError, match="intact"):
        TrainedIds.from_bytes(damage(ids.to_bytes()))


GOOD = {"num_prompts": 9, "max_foreign": 5, "complete_below": 0, "epochs": [[0, 2]], "foreign": ["a"]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_prompts": "9"},
        {"num_prompts": -9},
        {"num_prompts": 1 << 70},
        {"max_foreign": True},
        {"complete_below": None},
        {"epochs": [[0, 3]]},
        {"epochs": [[0, 2], [1, 2]]},
        {"epochs": [0]},
        {"epochs": 7},
        {"foreign": [["a"]]},
        {"foreign": [1]},
        {"resting": [0]},
        {"resting": [7]},
        {"resting": 3},
        "num_prompts",
        "foreign",
    ],
)
def test_intact_bytes_of_something_else_are_refused(wrong: dict[str, object] | str) -> None:
    def sealed(header: object) -> bytes:
        head = json.dumps(header).encode()
        body = len(head).to_bytes(8, "big") + head + b"\x03\x00"
        return b"asympo-ids-1\n" + hashlib.sha256(body).digest() + body

    assert "0-1" in TrainedIds.from_bytes(sealed(GOOD))
    header = (
        {**GOOD, **wrong}
        if isinstance(wrong, dict)
        else {name: value for name, value in GOOD.items() if name != wrong}
    )
    for each in (header, [header], "[" * 100_000):
        with pytest.raises(ValueError, match="not a set of trained ids"):
            TrainedIds.from_bytes(sealed(each))
