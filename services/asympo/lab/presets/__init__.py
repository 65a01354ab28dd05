"""Studies fixed before they are run: tasks, grids, seeds, steps, tuning budget, rule of collapse."""

from asympo.common.errors import BadSetting
from asympo.lab.presets.laptop import LAPTOP, PRODUCTS
from asympo.lab.presets.plan import Grid, Preset, TaskSettings, WarmUp
from asympo.lab.presets.smollm import SMOLLM

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (LAPTOP, PRODUCTS, SMOLLM)}

__all__ = [
    "LAPTOP",
    "PRESETS",
    "PRODUCTS",
    "SMOLLM",
    "Grid",
    "Preset",
    "TaskSettings",
    "WarmUp",
    "find_preset",
]


def find_preset(name: str) -> Preset:
    """The preset of that name; BadSetting lists the names."""
    if name not in PRESETS:
        raise BadSetting(f"there is no preset {name}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]
