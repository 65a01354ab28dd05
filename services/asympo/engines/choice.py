"""The engine that a service's settings ask for; imports no other."""

from typing import Protocol

from asympo.common.errors import BadSetting
from asympo.engines.base import Engine
from asympo.engines.settings import EngineSettings, SimulatedSettings


class EngineChoice(Protocol):
    """Settings of a service with an engine."""

    @property
    def engine(self) -> str: ...

    @property
    def vllm(self) -> EngineSettings: ...

    @property
    def simulated(self) -> SimulatedSettings: ...


def build_engine(settings: EngineChoice) -> Engine:
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
