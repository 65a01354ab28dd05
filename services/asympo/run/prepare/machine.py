"""What this machine has, and who gets which part of it.

On CPUs the generator's and the learner's thread pools would fight over the same cores and spin while they
wait, so each process is bound to cores of its own, uses as many threads, and sleeps when it waits. The
learner's allocator keeps its memory: with glibc's defaults every large tensor is mapped and faulted in anew,
which on virtual machines costs more than the arithmetic. In a container whose CPU quota is smaller than its
set of cores nothing is bound: only the kernel knows which of them are idle.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from asympo.common.checkpoints.digests import available_cores, visible_cores

KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc: serve large blocks from the heap and never give it back."""

FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""oneDNN and torch: keep the kernels of a few shapes. Rows have ever new shapes, and the kernels of a
thousand of them, which is the default, fill half a gigabyte."""

NO_SPINNING = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""OpenMP: a thread that waits gives its core away."""

QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Libraries: no bars, no reports home."""


_ALONE, _BESIDE_LEARNER, _IN_TURNS = 0.9, 0.4, 0.5
"""Share of a GPU's memory for generators that have it to themselves, or the learner beside them. Where they
take turns, only what the learner keeps between its steps is beside them."""

PCI_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""CUDA: number GPUs as nvidia-smi does, not by speed."""

_ASK_SECONDS = 180.0
_ASK_TORCH = """
import json, torch
found = {"cuda": torch.version.cuda, "gpus": [], "problem": ""}
if torch.version.cuda:
    try:
        torch.cuda.init()
        for index in range(torch.cuda.device_count()):
            # A card that this build has no kernels for is listed like any other.
            (torch.ones(8, device=f"cuda:{index}") * 2).sum().item()
            of = torch.cuda.get_device_properties(index)
            found["gpus"].append([of.name, of.total_memory, f"{of.major}.{of.minor}"])
    except (RuntimeError, AssertionError) as error:
        found["gpus"], found["problem"] = [], (str(error).splitlines() or ["no reason given"])[0]
print(json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or a part of one (MIG), that torch has computed on."""

    index: str
    """What CUDA_VISIBLE_DEVICES calls it: a number or a UUID."""
    name: str
    memory_bytes: int
    capability: str = ""
    """Compute capability, as in 9.0."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Cores, memory and GPUs that this process may use."""

    cores: tuple[int, ...]
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    cuda_version: str | None = None
    """That torch is built for; None for a CPU build."""
    may_bind: bool = True
    """False where a quota allows fewer cores than there are: all containers would bind to the same."""
    gpu_problem: str = ""
    """Why there is no GPU to use although one is there, or torch is built for it; one sentence."""


@dataclass(frozen=True, kw_only=True)
class CoreShare:
    """What one process gets."""

    cores: tuple[int, ...]
    """Cores it is bound to; empty binds nothing."""
    num_threads: int
    environment: dict[str, str]
    """Variables set for it on top of ours."""

    @property
    def gpu(self) -> str:
        """What CUDA_VISIBLE_DEVICES calls its GPU; empty without one."""
        return self.environment.get("CUDA_VISIBLE_DEVICES", "")

    def __str__(self) -> str:
        bound = ", ".join(str(core) for core in self.cores) if self.cores else "any"
        spin = "off" if self.environment.get("KMP_BLOCKTIME") == "0" else "library default"
        allocator = "keeps its memory" if "MALLOC_MMAP_MAX_" in self.environment else "library default"
        gpu = f", GPU {self.gpu}" if self.gpu else ""
        return f"cores {bound}, {self.num_threads} threads, spin-waiting {spin}, allocator {allocator}{gpu}"


def look_at_machine() -> Machine:
    """Reads what is there; containers' limits are respected."""
    cores = visible_cores()
    allowed = cores[: available_cores()]
    memory = psutil.virtual_memory().total
    limit = _read_number(Path("/sys/fs/cgroup/memory.max"))
    gpus, cuda_version, problem = look_at_gpus(os.environ)
    return Machine(
        cores=tuple(allowed),
        memory_bytes=int(min(memory, limit or memory)),
        gpus=gpus,
        cuda_version=cuda_version,
        may_bind=len(allowed) == len(cores),
        gpu_problem=problem,
    )


def look_at_gpus(environment: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str | None, str]:
    """GPUs that torch can compute on, the CUDA version it is built for, and what stands in the way of any.

    Torch is asked, in a process of its own: a driver lists cards that torch may not be able to use.
    """
    build = _installed("torch") or ""
    if not build or build.endswith("+cpu"):
        cards = _listed_by_driver()
        if not cards:
            return (), None, ""
        repair = "`ASYMPO_DEVICE=cuda make setup` installs the CUDA build"
        return (), None, f"{cards} is here and not used, since torch {build} is the CPU build: {repair}"
    names = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            env={**PCI_ORDER, **environment},
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
        found = json.loads(answer.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return (), None, f"torch {build} could not be asked for GPUs ({type(error).__name__})"
    cuda, problem = found["cuda"], found["problem"]
    if problem:
        problem = (
            f"torch is built for CUDA {cuda} and can use no GPU here ({problem}): fix the driver "
            "(CUDA 13 needs 580 or newer) or CUDA_VISIBLE_DEVICES; on a machine without a GPU run "
            "`ASYMPO_DEVICE=cpu make setup`"
        )
    # CUDA numbers what CUDA_VISIBLE_DEVICES names in the order of the names.
    gpus = tuple(
        Gpu(
            index=names[number] if names else str(number),
            name=name, memory_bytes=memory, capability=capability,
        )
        for number, (name, memory, capability) in enumerate(found["gpus"])
    )  # fmt: skip
    return gpus, cuda, problem


def split_machine(
    machine: Machine,
    *,
    num_generators: int,
    learner_cores: Sequence[int] | None = None,
    generator_cores: Sequence[int] | None = None,
    use_gpus: bool = True,
) -> tuple[CoreShare, list[CoreShare]]:
    """The learner's share and one for each generator.

    On CPUs a third of the cores, at least one, goes to the generators, which sample short responses faster
    than the learner trains on them; given cores override that and may overlap. Where nothing may be bound,
    each gets as many threads. With one GPU all share it; with more, the learner takes the first and the
    generators the others in turn.
    """
    gpus = machine.gpus if use_gpus else ()
    if gpus:
        rest = gpus[1:] or gpus
        learner = _share(machine.cores, gpu=gpus[0].index, keep_memory=True)
        return learner, [_share(machine.cores, gpu=rest[i % len(rest)].index) for i in range(num_generators)]
    cores = machine.cores
    for_generators = min(len(cores) - 1, max(1, len(cores) // 3)) or 1
    theirs = tuple(generator_cores) if generator_cores else cores[-for_generators:]
    ours = tuple(learner_cores) if learner_cores else (cores[: len(cores) - for_generators] or cores)
    shares = [theirs[i::num_generators] or (theirs[i % len(theirs)],) for i in range(num_generators)]
    is_bound, are_bound = (machine.may_bind or bool(given) for given in (learner_cores, generator_cores))
    return _share(ours, bind=is_bound, keep_memory=True), [_share(share, bind=are_bound) for share in shares]


def gpu_memory_share(num_gpus: int, *, num_generators: int, takes_turns: bool) -> float:
    """Of each generator, where `split_machine` gives them these GPUs."""
    if num_gpus == 1:
        return round((_IN_TURNS if takes_turns else _BESIDE_LEARNER) / num_generators, 2)
    # The learner has a GPU of its own; generators share the others where they are more than these.
    return round(_ALONE / math.ceil(num_generators / (num_gpus - 1)), 2)


def _share(
    cores: tuple[int, ...], *, bind: bool = False, gpu: str | None = None, keep_memory: bool = False
) -> CoreShare:
    threads = len(cores)
    environment = dict(QUIET)
    if gpu is None:
        environment |= NO_SPINNING
        environment |= dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads)
        )
    # Empty hides the GPUs of a machine that were not to be used.
    environment |= {"CUDA_VISIBLE_DEVICES": gpu or "", **PCI_ORDER}
    if keep_memory:
        environment |= KEEP_MEMORY | FEW_KERNELS
    return CoreShare(cores=cores if bind else (), num_threads=threads, environment=environment)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _listed_by_driver() -> str:
    """The first card that nvidia-smi lists, for messages; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(listed.splitlines()), "").partition(" (UUID")[0]
