"""The settings of the followed run, which may change whenever its learner starts, as its archive has them."""

import logging
from collections.abc import Mapping
from typing import Any

from asympo.common.archive import ArchiveStore, PartRef
from asympo.common.errors import BadSetting
from asympo.common.settings import validate
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.step_settings import step_settings

log = logging.getLogger(__name__)


class FollowedSettings:
    """Those of each step, with what the second learner was given in their place."""

    def __init__(self, *, archive: ArchiveStore, given: Mapping[str, Any]) -> None:
        """Raises BadSetting where the run has no archive yet."""
        self._archive = archive
        self._given = given
        self._tip: PartRef | None = None
        self._found: list[tuple[int, LearnerSettings]] = []
        self.refresh(step=0)

    @property
    def newest(self) -> LearnerSettings:
        """Those that the run was trained with last."""
        return self._found[-1][1]

    def at(self, step: int) -> LearnerSettings:
        """Those that a step is made with."""
        known = [settings for since, settings in self._found if since <= step]
        return known[-1] if known else self._found[0][1]

    def refresh(self, *, step: int) -> None:
        """Looks what the run was trained with since, `step` steps having been made here."""
        tip = self._archive.newest_tip()
        if tip is None:
            raise BadSetting(
                f"{self._archive.path} has no archive yet: its learner must run with retain, and save once, "
                "before another one can follow"
            )
        if tip == self._tip:
            return
        found: list[tuple[int, LearnerSettings]] = []
        for part in self._archive.chain(tip):
            settings = validate(LearnerSettings, {**part.info.recipe["settings"], **self._given})
            if not found or step_settings(settings) != step_settings(found[-1][1]):
                found.append((part.info.step_before + 1, settings))
        if self._found:
            self._tell([since for since, _ in found if since not in dict(self._found)], step)
        self._tip, self._found = tip, found

    def _tell(self, changed_at: list[int], step: int) -> None:
        for since in changed_at:
            if since <= step:
                log.warning(
                    "The run has other settings from step %d on, and step %d was made here already: no "
                    "longer bit for bit what the run does",
                    *(since, step),
                )
