"""What the followed run has decided about its arithmetic, read again as it goes on."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from asympo.common.archive import ArchiveStore
from asympo.common.rollout_log import RunLog
from asympo.learner.state.decide import find_decisions
from asympo.learner.state.decision_files import DecisionFiles
from asympo.learner.state.decisions import Decision, Decisions
from asympo.learner.state.recipe import check_device
from asympo.learner.step.compute import Compute

log = logging.getLogger(__name__)


class FollowedDecisions:
    """Measures nothing. Rows that this machine's memory makes smaller still are kept in `own`."""

    def __init__(
        self,
        *,
        run_log: RunLog,
        files: DecisionFiles,
        archive: ArchiveStore,
        own: DecisionFiles,
        fence: int,
        num_threads: int | None,
        any_build: bool,
    ) -> None:
        self._run_log = run_log
        self._files = files
        self._archive = archive
        self._own_files = own
        self._own = own.newest() or Decisions(fence=fence)
        self._num_threads = num_threads
        self._any_build = any_build
        self._found = Decisions()
        self.refresh(step=0)

    def refresh(self, *, step: int) -> None:
        """Looks for what was decided since, `step` steps having been made here."""
        found = find_decisions(self._files, mirrored=self._run_log.decisions.read(), state=None)
        if not found.entries and not self._found.entries:
            found = Decisions(entries=tuple(_archived(self._archive)))
        if found.rank <= self._found.rank:
            return
        for entry in found.entries[len(self._found.entries) :]:
            if entry.from_step <= step:
                log.warning(
                    "The run goes on in another way from step %d, and step %d was made here already: no "
                    "longer bit for bit what the run does",
                    *(entry.from_step, step),
                )
        self._found = found

    def at(self, step: int) -> dict[str, Any]:
        """What holds for a step; JSON values."""
        return self._found.at(step)

    def compute(self, step: int) -> Compute:
        """How a step is computed. Raises BadSetting where this machine cannot do it with the same bits."""
        compute = Compute.of(self.at(step))
        check_device(compute, any_build=self._any_build)
        return replace(compute, num_ranks=1, num_threads=self._num_threads or compute.num_threads)

    def row_limits(self, step: int) -> tuple[int, int]:
        """Most tokens of a row and logits at once: the run's, or less."""
        own = [entry.decided for entry in self._own.entries if entry.from_step <= step]
        tokens, logits = zip(*(each["row_limits"]["used"] for each in (self.at(step), *own)), strict=True)
        return min(tokens), min(logits)

    def rows_made_smaller(self, limits: tuple[int, int], *, step: int) -> None:
        """Memory ran out here: smaller rows from this step on. Returns once that is durable."""
        self._own = self._own.appended(from_step=step, decided={"row_limits": {"used": list(limits)}})
        self._own_files.seal(self._own)


def _archived(archive: ArchiveStore) -> Iterator[Decision]:
    """What the archive says of a run of the release before, which kept no list."""
    for part in archive.chain(archive.newest_tip()):
        recipe = part.info.recipe
        asked = [recipe["settings"][name] for name in ("token_budget", "head_chunk_rows")]
        for since, *used in part.info.row_limits or ((part.info.step_before + 1, *asked),):
            limits = {"asked": asked, "used": used}
            yield Decision(from_step=since, decided={**recipe["decisions"], "row_limits": limits})
