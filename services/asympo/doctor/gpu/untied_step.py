"""The same as the engine's step with a head of its own and without graphs: what the first does not take."""

from pathlib import Path

from asympo.doctor.gpu.engine_step import try_reloads, write_policies
from asympo.doctor.gpu.steps import Found
from asympo.engines.settings import EngineSettings


def run(*, device: str, directory: Path) -> Found:
    """An untied head, eager."""
    settings = EngineSettings(enforce_eager=True, max_num_seqs=32, max_model_len=2048, kv_cache_gib=0.5)
    return try_reloads(settings, device=device, policies=write_policies(directory / "untied", is_tied=False))
