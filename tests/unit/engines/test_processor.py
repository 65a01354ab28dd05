"""What is asked of a processor, by what it says of itself and by the switches of libraries."""

from pathlib import Path

import pytest
import torch
from asympo.local import processor
from asympo.local.processor import has_native_bfloat16

X86 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f {}\nbugs\t\t: bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.fixture(autouse=True)
def without_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("switch", "native"),
    [
        ({}, True),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core"}, False),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, False),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "ATEN_CPU_CAPABILITY": "avx512"}, True),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, True),
    ],
)
def test_bfloat16_is_native_unless_switched_off(
    switch: dict[str, str], native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in switch.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
    for text, instruction in ((X86, "avx512_bf16"), (X86, "amx_bf16"), (ARM, "bf16")):
        (tmp_path / "cpuinfo").write_text(text.format(instruction))
        assert has_native_bfloat16() is native
        (tmp_path / "cpuinfo").write_text(text.format("avx512_vnni"))
        assert not has_native_bfloat16()


def test_processor_of_linux_says_what_torch_knows() -> None:
    known = torch.cpu.get_capabilities()
    assert has_native_bfloat16() is any(known.get(each) is True for each in processor._BFLOAT16)
