import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from asympo.common import errors
from asympo.common.checkpoints.digests import Checksum, Span, digest_spans, tensor_entries
from asympo.common.checkpoints.manifest import (
    FileEntry,
    Manifest,
    Probe,
    ProbeSequence,
    TensorEntry,
    decode_manifest,
    encode_manifest,
    open_sealed_json,
    sealed_json,
)
from asympo.common.checkpoints.names import (
    POLICY_FILES,
    StepName,
    parse_name,
    parse_temporary,
    temporary_name,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file


def manifest(step: int = 1, **changes: object) -> Manifest:
    made = Manifest(
        step=step,
        fence=7,
        files=(FileEntry(name="model.safetensors", size=3, sha256="ab"),),
        tensors=(TensorEntry(name="w", dtype="BF16", shape=(2, 3), sha256="cd"),),
        probe=Probe(
            sequences=(
                ProbeSequence(token_ids=(1, 2, 3), num_prompt_tokens=1, mean_nll=2.6, parent_mean_nll=2.4),
            ),
            tolerance=0.02,
        ),
        digest=f"digest-{step}",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_manifest_survives_a_round_trip() -> None:
    decoded = decode_manifest(encode_manifest(manifest()), what="x")
    assert replace(decoded, digest="") == replace(manifest(), digest="")
    assert len(decoded.digest) == 64


@pytest.mark.parametrize("position", range(0, 600, 7))
def test_manifest_is_refused_when_one_byte_changes(position: int) -> None:
    content = bytearray(encode_manifest(manifest()))
    position %= len(content)
    content[position] ^= 0x01
    before = json.loads(encode_manifest(manifest()))
    try:
        is_same = json.loads(content) == before
    except ValueError:
        is_same = False
    if not is_same:
        with pytest.raises(errors.CorruptCheckpoint):
            decode_manifest(bytes(content), what="x")


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "partial"), ("files", "none"), ("step", "one")],
)
def test_manifest_is_refused_when_its_form_is_wrong_although_its_digest_is_right(
    field: str, value: object
) -> None:
    document = json.loads(encode_manifest(manifest()))
    with pytest.raises(errors.CorruptCheckpoint, match="wrong at"):
        decode_manifest(sealed_json({**document, field: value}), what="x")


def test_manifest_is_refused_when_a_number_is_not_finite() -> None:
    with pytest.raises(errors.CorruptCheckpoint, match="not finite"):
        open_sealed_json(b'{"mean_nll": NaN, "digest": ""}', what="x")


@given(step=st.integers(0, 10**10), fence=st.integers(0, 10**6), sequence=st.none() | st.integers(0, 10**14))
def test_step_name_survives_a_round_trip(step: int, fence: int, sequence: int | None) -> None:
    name = StepName(step=step, fence=fence, sequence=sequence)
    assert parse_name(str(name)) == name
    assert parse_temporary(temporary_name(name)) == ("tmp", name)


@pytest.mark.parametrize(
    "name",
    ["step-1-f1", "step-000000001-f0001", "step-00000001-f00001", ".tmp-step-00000001-f0001", "latest"],
)
def test_step_name_has_one_spelling(name: str) -> None:
    assert parse_name(name) is None


@pytest.mark.parametrize(
    "name", ["model.bin", "pytorch_model.pt", "modeling_x.py", "../config.json", "x.pkl", ".nfs1"]
)
def test_closed_list_refuses_code_pickles_and_paths(name: str) -> None:
    assert POLICY_FILES.fullmatch(name) is None


def test_tensor_entries_are_read_from_the_bytes(tmp_path: Path) -> None:
    save_file(
        {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros(0, np.int64)},
        tmp_path / "x.safetensors",
    )
    empty, full = tensor_entries([tmp_path / "x.safetensors"])
    assert (empty.name, empty.dtype, empty.shape) == ("a", "I64", (0,))
    assert (full.name, full.dtype, full.shape) == ("b", "F32", (2, 3))
    assert full.sha256 == hashlib.sha256(np.arange(6, dtype=np.float32).tobytes()).hexdigest()


def test_checksum_is_of_the_bytes_that_were_hashed(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(9 << 20)
    (tmp_path / "x").write_bytes(content)
    whole = Span(path=tmp_path / "x", offset=0, size=len(content))
    part = Span(path=tmp_path / "x", offset=5, size=100)
    checksum = Checksum()
    digests = digest_spans([part, whole], checksums={whole: checksum})
    assert digests == [hashlib.sha256(each).hexdigest() for each in (content[5:105], content)]
    assert checksum.hexdigest() == Checksum(content).hexdigest()


@pytest.mark.parametrize("size", [0, 7, 12, 90])
def test_tensor_entries_are_refused_when_the_file_is_short(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"b": np.zeros((2, 3), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(errors.CorruptCheckpoint):
        tensor_entries([path])


@pytest.mark.parametrize(
    "header", ['{"a": ' + "[" * 100_000, '{"a": {"shape": [' + "9" * 5000 + "]}}", "[]", ""]
)
def test_header_that_is_no_header_is_a_corrupt_checkpoint(tmp_path: Path, header: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(errors.CorruptCheckpoint, match="no valid safetensors header"):
        tensor_entries([path])
