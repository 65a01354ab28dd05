"""How one GPU is shared by a learner and its generators: its memory at once, or all of it in turns."""

from typing import Any

from asympo.common.errors import BadSetting
from asympo.common.settings import merge
from asympo.run.prepare.machine import Machine, gpu_memory_share
from asympo.run.settings import RunFile

_CACHE_OF_SHARE = 0.75
"""How much of its share is KV cache where the learner is beside it. Said in bytes: an engine that measures
what is free would count as its own what the learner, which loads at the same time, takes."""


def engine_defaults(machine: Machine, file: RunFile) -> dict[str, Any]:
    """Memory of one generator's engine on its GPU."""
    is_shared, takes_turns = len(machine.gpus) == 1, file.run.gpu_sharing == "sleep"
    memory = gpu_memory_share(
        len(machine.gpus), num_generators=file.generators.count, takes_turns=takes_turns
    )
    values: dict[str, Any] = {"gpu_memory_utilization": memory}
    if is_shared:
        given = merge(values, file.generator_values.get("vllm", {}))["gpu_memory_utilization"]
        values["kv_cache_gib"] = round(_CACHE_OF_SHARE * given * machine.gpus[0].memory_bytes / 2**30, 2)
    return values


def turn_defaults(file: RunFile, machine: Machine) -> dict[str, Any]:
    """What the learner and each generator are told where they take turns; nothing where they do not."""
    if file.run.gpu_sharing != "sleep":
        return {}
    if file.run.use_gpus and len(machine.gpus) > 1:
        raise BadSetting(
            f"run.gpu_sharing is sleep, and with {len(machine.gpus)} GPUs the learner has one of its own: "
            "leave it out, or let CUDA_VISIBLE_DEVICES name one GPU"
        )
    return {"gpu_lock": str(file.directory.absolute() / "gpu.lock")}


def gpu_notes(file: RunFile, machine: Machine) -> list[str]:
    """What a person should know of GPUs before the start."""
    notes = [machine.gpu_problem] if machine.gpu_problem else []
    if file.run.gpu_sharing == "sleep" and not (machine.gpus and file.run.use_gpus):
        notes.append(
            "run.gpu_sharing is sleep: without a GPU the engine only waits while the learner computes"
        )
    return notes
