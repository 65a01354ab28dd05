"""The engine that the settings ask for; imports no other."""

from asympo.common.errors import BadSetting
from asympo.engines.base import Engine
from asympo.generator.settings import GeneratorSettings


def build_engine(settings: GeneratorSettings) -> Engine:
    """An engine that is not started yet. Raises BadSetting when its library is not installed."""
    if settings.engine == "simulated":
        from asympo.engines.simulated import SimulatedEngine

        return SimulatedEngine(settings=settings.simulated)
    try:
        from asympo.engines.vllm import VllmEngine
    except ImportError as error:
        raise BadSetting(
            f"engine = 'vllm' needs vLLM, and importing it failed ({error}): install asympo[generator], "
            "or set engine to 'simulated'"
        ) from error
    return VllmEngine(settings=settings.vllm)
