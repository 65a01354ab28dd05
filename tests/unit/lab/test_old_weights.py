"""Old policies are what they were, in memory or on disk, and no more are kept than can be asked for."""

from pathlib import Path

import pytest
import torch
from asympo.lab import old_weights
from asympo.lab.old_weights import OldWeights


@pytest.mark.parametrize("max_bytes", [0, 1 << 20], ids=["on disk", "in memory"])
def test_policies_of_every_age_are_what_they_were(
    max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_weights, "_MAX_BYTES", max_bytes)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    added = [{"a": torch.full((3, 2), 0.1 * step), "b": torch.arange(step + 1.0)} for step in range(6)]
    kept = OldWeights(added[0], count=3)
    for each in added[1:]:
        kept.add(each)
    assert len(kept) == 3
    for age in range(3):
        found = kept.of_age(age)
        assert found.keys() == {"a", "b"}
        assert all(torch.equal(found[name], added[5 - age][name]) for name in found)
    with pytest.raises(IndexError):
        kept.of_age(3)
    assert len(list(tmp_path.rglob("*.safetensors"))) == (0 if max_bytes else 3)
    del kept
    assert not list(tmp_path.iterdir())
