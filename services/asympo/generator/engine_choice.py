"""The engine that the settings ask for; imports no other."""

from asympo.common.errors import BadSetting
from asympo.engines.base import Engine, EngineSettings
from asympo.generator.settings import GeneratorSettings, SimulatedOptions


def build_engine(settings: GeneratorSettings) -> Engine:
    """An engine that is not started yet. Raises BadSetting when its library is not installed."""
    if settings.engine == "simulated":
        return _simulated(settings.simulated)
    try:
        from asympo.engines.vllm import VllmEngine
    except ImportError as error:
        raise BadSetting(
            f"engine = 'vllm' needs vLLM, and importing it failed ({error}): install asympo[generator], "
            "or set engine to 'simulated'"
        ) from error
    return VllmEngine(settings=EngineSettings(**settings.vllm.model_dump()))


def _simulated(options: SimulatedOptions) -> Engine:
    from asympo.engines.simulated import SimulatedEngine, SimulatedFaults, SimulatedSettings
    from asympo.engines.simulated_answers import ResponseLength

    values = options.model_dump()
    length = ResponseLength(
        kind=values.pop("length_kind"),
        mean_tokens=values.pop("length_mean_tokens"),
        sigma=values.pop("length_sigma"),
    )
    faults = SimulatedFaults(**values.pop("faults"))
    return SimulatedEngine(settings=SimulatedSettings(length=length, faults=faults, **values))
