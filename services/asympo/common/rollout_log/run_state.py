"""Creating, joining, ending and deleting a run."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from asympo.common.errors import BadSetting, NoProgress, RunConfigMismatch
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.keys import DELETED, NOUNS
from asympo.common.rollout_log.run_config import RunConfig
from asympo.common.rollout_log.types import Fence, KnownRun, RunState

log = logging.getLogger(__name__)

_UNLIMITED = -1
_DELETED_SECONDS = 30 * 24 * 3600
"""How long a deleted run is told from one that its broker has lost, if that has restarted since."""
_T = TypeVar("_T")


def state_of(stored: Any) -> RunState:
    """A stored state; one that this build does not know counts as not yet running."""
    known = text(stored)
    return RunState(known) if known in set(RunState) else RunState.CREATED


def _same(known: KnownRun, digest: str) -> KnownRun:
    """The run if it has these settings, else none."""
    return known if known.config_digest == digest else KnownRun()


class RunStates:
    """Config and state of one run."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run
        self._joined: RunConfig | None = None
        self._digest = self._joined_id = ""

    def create_or_join(
        self,
        config: RunConfig,
        *,
        complete: Callable[[RunConfig], RunConfig] = lambda stored: stored,
        known: Callable[[], KnownRun] = KnownRun,
    ) -> RunConfig:
        """Writes `config` if the run is new, else compares; returns what is stored.

        `complete` gives the settings of a run of the release before their values where that did not know
        them. `known` finds the run of the newest training state, if there is one: a run that the broker has
        lost is created again under its id, one that was deleted, or had other settings, under a new one.
        Raises RunConfigMismatch naming every field that differs, BrokerFull for a new run without room,
        BadSetting for one whose config is too long.
        """
        if config.run != self._run.name:
            raise ValueError(f"the config is of run {config.run!r}, this log of {self._run.name!r}")
        # A full broker refuses the script, and a learner that resumes must get in: its commits make room.
        joined = self.config() or self._create(config, digest=config.digest, known=known())
        stored = complete(joined)
        differences = config.differences(stored)
        if differences:
            raise RunConfigMismatch(
                f"run {self._run.name!r} was created with other settings ({'; '.join(differences)}): "
                "use those, or another run name"
            )
        self._joined, self._digest = joined, stored.digest
        self._joined_id = self.run_id() or _same(known(), self._digest).run_id
        return stored

    def known_by(self, fence: Fence) -> KnownRun:
        """The run of this fence, which was created or joined here, as `create_or_join` may be told later."""
        return KnownRun(run_id=fence.run_id, server_id=fence.server_id, config_digest=self._digest)

    def create_again(self, *, run_id: str) -> None:
        """For a broker that has lost the run: what this process has created or joined. Raises BadSetting."""
        if self._joined is None:
            self._raise_missing()
        log.warning("The broker has lost run %s: it is created again", self._run.name)
        known = KnownRun(run_id=run_id or self._joined_id, config_digest=self._digest)
        self._create(self._joined, digest=self._digest, known=known)

    def _create(self, config: RunConfig, *, digest: str, known: KnownRun) -> RunConfig:
        """Writes it unless another learner was faster; what is stored then."""
        config.check_size()
        limit, order = config.max_generation_staleness, config.task.get("order")
        known = _same(known, digest)
        reply = self._run.call(
            "create",
            config.to_json(),
            *(known.run_id, known.server_id),
            *("config_digest", digest),
            *("capacity", config.capacity),
            *("lease_ms", int(config.lease_seconds * 1000)),
            *("max_lease_ms", int(config.max_lease_seconds * 1000)),
            *("max_staleness", config.max_staleness),
            *("max_generation_staleness", _UNLIMITED if limit is None else limit),
            *("max_prompt_failures", config.max_prompt_failures),
            *("seed", config.seed),
            *("num_prompts", config.num_prompts),
            *("num_epochs", config.num_epochs),
            *("model", config.model),
            *("max_record_bytes", config.max_record_bytes),
            *("run_id", secrets.token_hex(8)),
            *(() if order is None else ("order", order)),
        )
        return RunConfig.from_json(reply[1])

    def config(self) -> RunConfig | None:
        """The stored config; None while no learner has created the run."""
        stored = self._run.broker.command("GET", self._run.key("config"))
        return None if stored is None else RunConfig.from_json(stored)

    def wait_for_config(self, timeout_seconds: float) -> RunConfig:
        """Blocks until the run is created; raises NoProgress after `timeout_seconds`."""
        return self._wait_for(self.config, timeout_seconds)

    def wait_to_join(self, timeout_seconds: float) -> tuple[RunConfig, str]:
        """The same and the run's id, empty in a run of an earlier version.

        Both are of one run, though another may be created under its name meanwhile. One whose limits and id
        the broker has lost is waited for: its learner writes them again.
        """
        return self._wait_for(self._joinable, timeout_seconds)

    def _joinable(self) -> tuple[RunConfig, str] | None:
        config = self.config()
        run_id, capacity = self._run.learner_fields("run_id", "capacity")
        if config is None or capacity is None or self.config() != config:
            return None
        return config, text(run_id)

    def _wait_for(self, find: Callable[[], _T | None], timeout_seconds: float) -> _T:
        deadline, after_id = time.monotonic() + timeout_seconds, "0"
        while True:
            found = find()
            if found is not None:
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                raise NoProgress(
                    f"run {self._run.name!r} was not created within {timeout_seconds:g} s: start its "
                    f"learner, or check the run name and the broker ({self._run.broker.url})"
                )
            # create.lua writes an event, so this returns the moment the config exists. Those before it, of a
            # run that is restored or was lost in part, are read once.
            events = self._run.broker.blocking_read(
                self._run.key("wake"), after_id=after_id, max_count=1000, block_seconds=left
            )
            after_id = events[-1][0] if events else after_id

    def get(self) -> RunState:
        """Where the run is in its life; `created` also while it does not exist."""
        return state_of(self._run.learner_fields("state")[0])

    def run_id(self) -> str:
        """Drawn when the run was created; empty where there is none, and of runs of an earlier version."""
        return text(self._run.learner_fields("run_id")[0])

    def total_steps(self) -> int:
        """That the newest learner was told to make; 0 for none."""
        return number(self._run.learner_fields("total_steps")[0])

    def set(self, state: RunState, *, reason: str = "", fence: Fence | None = None) -> None:
        """Moves the run and wakes everyone who waits. A learner passes its fence, a person's command none."""
        arguments = (state.value, reason)
        if fence is None:
            reply = self._run.call("set_state", 0, "", "", *arguments)
        else:
            reply = self._run.call_fenced(fence, "set_state", *arguments)
        if reply[0] == b"MISSING":
            self._raise_missing()

    def _raise_missing(self) -> NoReturn:
        raise BadSetting(
            f"the broker at {self._run.broker.url} has no run {self._run.name!r}: check the name"
        )

    def delete(self) -> None:
        """Deletes every key of the run, and notes its id. Checkpoints stay where they are."""
        keys = [self._run.key(noun) for noun in (DELETED, "learner", "run", *NOUNS)]
        self._run.broker.run_script("delete", keys, [_DELETED_SECONDS])
