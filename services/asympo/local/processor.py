"""What the processor of this machine can do."""

import os
from pathlib import Path

_ATEN_WITHOUT_BFLOAT16 = {"default", "avx2"}
# https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html; values that it does not know
# limit nothing.
_ONEDNN_WITHOUT_BFLOAT16 = {
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
}
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_CPU_INFO = Path("/proc/cpuinfo")


def has_native_bfloat16() -> bool:
    """Whether matrices are multiplied in bfloat16 by hardware here.

    A processor that can may have been told not to, and then bfloat16 is emulated, many times slower than
    float32: so the switches of oneDNN and PyTorch count as much as what it says of itself. Nothing is timed,
    because two generators on one machine must come to the same answer however busy it is.
    """
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in _ATEN_WITHOUT_BFLOAT16:
        return False
    most = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return most.upper() not in _ONEDNN_WITHOUT_BFLOAT16 and bool(_instructions() & _BFLOAT16)


def _instructions() -> set[str]:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        # Not Linux: nothing is known.
        return set()
    return {
        each
        for line in lines
        if line.startswith(("flags", "Features"))
        for each in line.partition(":")[2].split()
    }
