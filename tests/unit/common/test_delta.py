"""A delta gives back the file it was made for, bit for bit, or nothing."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from asympo.common.checkpoints import delta
from asympo.common.checkpoints.delta import apply_delta, delta_size, write_delta
from asympo.common.checkpoints.digests import Checksum
from asympo.common.errors import CorruptCheckpoint
from hypothesis import given
from hypothesis import strategies as st


def written(path: Path, old: bytes, new: bytes, *, max_bytes: int = 1 << 30) -> bool:
    """A delta in `path / "delta"`, beside its two files."""
    (path / "old").write_bytes(old)
    (path / "new").write_bytes(new)
    checksum = Checksum(old).hexdigest()
    return write_delta(path / "old", path / "new", path / "delta", old_checksum=checksum, max_bytes=max_bytes)


def applied(path: Path) -> bytes:
    apply_delta(path / "old", path / "delta", path / "out")
    return (path / "out").read_bytes()


@given(
    st.binary(max_size=400), st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255))), st.integers(1, 64)
)
def test_any_file_comes_back_from_any_other_of_its_size(
    old: bytes, changes: list[tuple[int, int]], words_at_once: int
) -> None:
    new = bytearray(old)
    for at, value in changes:
        if at < len(new):
            new[at] = value
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "_WORDS_AT_ONCE", words_at_once)
        assert written(Path(name), old, bytes(new))
        assert applied(Path(name)) == new


def test_delta_of_few_neighbouring_values_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old = (rng.normal(0, 0.1, 1 << 20).astype("<f4").view("<u4") >> 16).astype("<u2")
    new = old.copy()
    places = rng.choice(len(old), len(old) // 100, replace=False)
    new[places] += rng.choice(np.array([1, 65535], "<u2"), len(places))
    assert written(tmp_path, old.tobytes(), new.tobytes())
    size = (tmp_path / "delta").stat().st_size
    assert size < 0.008 * old.nbytes
    assert delta_size(tmp_path / "old", tmp_path / "new", max_bytes=size) == size
    assert delta_size(tmp_path / "old", tmp_path / "new", max_bytes=size // 2) is None
    assert applied(tmp_path) == new.tobytes()


def test_whole_file_is_the_better_choice(tmp_path: Path) -> None:
    old = np.random.default_rng(0).bytes(4096)
    cases: list[tuple[bytes, int]] = [(old[:-1], 1 << 30), (old[::-1], 1000)]
    for number, (new, max_bytes) in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        assert not written(tmp_path / str(number), old, new, max_bytes=max_bytes)
    # The old file here is no longer the one that was shared.
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(old)
    assert not write_delta(
        tmp_path / "old", tmp_path / "new", tmp_path / "delta", old_checksum="0" * 32, max_bytes=1 << 30
    )


def test_damaged_delta_never_gives_a_file_that_passes_for_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old = rng.bytes(2000)
    new = bytearray(old)
    new[100:300] = rng.bytes(200)
    assert written(tmp_path, old, bytes(new))
    content = (tmp_path / "delta").read_bytes()
    damaged = [content[:cut] for cut in range(0, len(content), 7)] + [content + b"\0", b""]
    damaged += [
        content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at in range(len(content))
        for bit in (0, 7)
    ]
    outcomes = {"refused": 0, "another file": 0}
    for each in damaged:
        (tmp_path / "delta").write_bytes(each)
        (tmp_path / "out").unlink(missing_ok=True)
        try:
            outcomes["another file"] += applied(tmp_path) != new
        except CorruptCheckpoint:
            outcomes["refused"] += 1
    # A bit that nobody reads, of the compressor's own frame, may leave the file right.
    assert sum(outcomes.values()) > len(damaged) * 0.95
    assert outcomes["refused"] > len(content) // 7


def test_delta_of_another_file_is_refused(tmp_path: Path) -> None:
    assert written(tmp_path, b"a" * 100, b"a" * 99 + b"b")
    (tmp_path / "old").write_bytes(b"a" * 98)
    with pytest.raises(CorruptCheckpoint, match="for a file of 100 bytes"):
        applied(tmp_path)
