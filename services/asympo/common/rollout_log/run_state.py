"""Creating, joining, ending and deleting a run."""

import time
from collections.abc import Callable
from typing import Any

from asympo.common.errors import BadSetting, NoProgress, RunConfigMismatch
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.keys import NOUNS
from asympo.common.rollout_log.run_config import RunConfig
from asympo.common.rollout_log.types import Fence, RunState

_UNLIMITED = -1


def state_of(stored: Any) -> RunState:
    """A stored state; one that this build does not know counts as not yet running."""
    known = text(stored)
    return RunState(known) if known in set(RunState) else RunState.CREATED


class RunStates:
    """Config and state of one run."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def create_or_join(
        self, config: RunConfig, *, complete: Callable[[RunConfig], RunConfig] = lambda stored: stored
    ) -> RunConfig:
        """Writes `config` if the run is new, else compares; returns what is stored.

        `complete` gives the settings of a run of the release before their values where that did not know
        them. Raises RunConfigMismatch naming every field that differs, BrokerFull for a new run without room,
        BadSetting for one whose config is too long.
        """
        if config.run != self._run.name:
            raise ValueError(f"the config is of run {config.run!r}, this log of {self._run.name!r}")
        # A full broker refuses the script, and a learner that resumes must get in: its commits make room.
        stored = complete(self.config() or self._create(config))
        differences = config.differences(stored)
        if differences:
            raise RunConfigMismatch(
                f"run {self._run.name!r} was created with other settings ({'; '.join(differences)}): "
                "use those, or another run name"
            )
        return stored

    def _create(self, config: RunConfig) -> RunConfig:
        """Writes it unless another learner was faster; what is stored then."""
        config.check_size()
        limit, order = config.max_generation_staleness, config.task.get("order")
        reply = self._run.call(
            "create",
            config.to_json(),
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
            *(() if order is None else ("order", order)),
        )
        return RunConfig.from_json(reply[1])

    def config(self) -> RunConfig | None:
        """The stored config; None while no learner has created the run."""
        stored = self._run.broker.command("GET", self._run.key("config"))
        return None if stored is None else RunConfig.from_json(stored)

    def wait_for_config(self, timeout_seconds: float) -> RunConfig:
        """Blocks until the run is created; raises NoProgress after `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            config = self.config()
            if config is not None:
                return config
            left = deadline - time.monotonic()
            if left <= 0:
                raise NoProgress(
                    f"run {self._run.name!r} was not created within {timeout_seconds:g} s: start its "
                    f"learner, or check the run name and the broker ({self._run.broker.url})"
                )
            # create.lua writes the run's first event, so this returns the moment the config exists.
            self._run.broker.blocking_read(
                self._run.key("wake"), after_id="0", max_count=1, block_seconds=left
            )

    def get(self) -> RunState:
        """Where the run is in its life; `created` also while it does not exist."""
        return state_of(self._run.learner_fields("state")[0])

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
            raise BadSetting(
                f"the broker at {self._run.broker.url} has no run {self._run.name!r}: check the name"
            )

    def delete(self) -> None:
        """Deletes every key of the run. Checkpoints stay where they are."""
        self._run.broker.run_script("delete", [self._run.key(noun) for noun in NOUNS], [])
