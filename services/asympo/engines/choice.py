"""The engine that a service's settings ask for; imports no other."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from asympo.common.errors import BadSetting
from asympo.engines.base import Engine
from asympo.engines.settings import EngineSettings, OpenAISettings, SimulatedSettings

if TYPE_CHECKING:
    from asympo.engines.vllm_fork import EngineFork


@runtime_checkable
class AsksServers(Protocol):
    """Settings of a service whose engine may be a server."""

    @property
    def openai(self) -> OpenAISettings: ...


class EngineChoice(Protocol):
    """Settings of a service with an engine."""

    @property
    def engine(self) -> str: ...

    @property
    def vllm(self) -> EngineSettings: ...

    @property
    def simulated(self) -> SimulatedSettings: ...


def import_engine(settings: EngineChoice) -> None:
    """Imports what the engine needs, which takes seconds, ahead of its start.

    That start says what is missing, so nothing is raised here.
    """
    if settings.engine == "vllm":
        with contextlib.suppress(BadSetting):
            from asympo.engines.vllm_start import import_vllm

            import_vllm()


def fork_engine(settings: EngineChoice) -> EngineFork | None:
    """A process for a service's engine, made before the service has threads; None where it needs none."""
    if settings.engine != "vllm":
        return None
    from asympo.engines.vllm_start import fork_ahead

    return fork_ahead(settings.vllm)


def build_engine(settings: EngineChoice, *, fork: EngineFork | None = None) -> Engine:
    """An engine that is not started yet. Raises BadSetting when its library is not installed."""
    if settings.engine == "simulated":
        from asympo.engines.simulated import SimulatedEngine

        return SimulatedEngine(settings=settings.simulated)
    if settings.engine == "openai" and isinstance(settings, AsksServers):
        try:
            from asympo.engines.openai.engine import OpenAIEngine
        except ImportError as error:
            raise BadSetting(
                f"engine = 'openai' needs the openai client, and importing it failed ({error}): install "
                "asympo[openai]"
            ) from error
        return OpenAIEngine(settings=settings.openai)
    try:
        from asympo.engines.vllm import VllmEngine
    except ImportError as error:
        raise BadSetting(
            f"engine = 'vllm' needs vLLM, and importing it failed ({error}): install asympo[generator], "
            "or set engine to 'simulated'"
        ) from error
    return VllmEngine(settings=settings.vllm, fork=fork)
