"""A taskset of `verifiers.v1` (0.4 and later): one agent in the null harness, a process on this machine."""

import itertools
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from .stage import KEY_VARIABLE, MODEL, EpisodeFailed, Played, Seat, finite, reward_of

MAX_ENDLESS = 1000
"""Tasks taken of a taskset that has no end."""
HARNESS = "asympo_null"


class TasksetStage:
    """Asks through the client that verifiers has for evaluations, which needs no token ids."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        import verifiers.v1 as vf
        from verifiers.v1.clients import ModelContext
        from verifiers.v1.utils.loaders import env_config_type, load_environment, resolve_env_config

        from . import null_harness

        # verifiers finds harnesses by the name of a module.
        sys.modules[HARNESS] = null_harness
        self._vf, self._context = vf, ModelContext
        block: dict[str, Any] = dict(arguments)
        block["taskset"] = {**block.get("taskset", {}), "id": name}
        fields = env_config_type(name, block.get("id") or "").model_fields
        agents = [each for each, found in fields.items() if isinstance(found.default, vf.AgentConfig)]
        if len(agents) != 1:
            raise SystemExit(f"{name} has the agents {', '.join(agents)}: only one can be played")
        local = {"runtime": {"type": "subprocess"}, "harness": {"id": HARNESS}}
        block[agents[0]] = {**local, **block.get(agents[0], {})}
        self._environment = load_environment(resolve_env_config(block))
        taskset = self._environment.taskset
        self._tasks = list(taskset if taskset.bounded else itertools.islice(taskset, MAX_ENDLESS))

    def rows(self) -> list[dict[str, Any]]:
        found = [task.data for task in self._tasks]
        return [{"prompt": _asked(data), "answer": getattr(data, "answer", None)} for data in found]

    def serving(self) -> AbstractAsyncContextManager[Any]:
        serving: AbstractAsyncContextManager[Any] = self._environment.serving()
        return serving

    async def play(self, row: int, seat: Seat, sampling: Mapping[str, Any]) -> Played:
        # One address for all: verifiers keeps a client for each that it is given.
        client = self._vf.EvalClientConfig(base_url=seat.shared_url, api_key_var=KEY_VARIABLE)
        context = self._context(client=client, model=MODEL, sampling=self._vf.SamplingConfig(**sampling))

        def name_session(trace: Any) -> None:
            # Its id is sent as `x-session-id` with every request.
            trace.id = seat.session_id or trace.id

        episode = await self._environment.run_episode(self._tasks[row], context, on_trace=name_session)
        if not episode.ok:
            errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
            last = errors[-1] if errors else None
            raise EpisodeFailed(f"{last.type}: {last.message}" if last else "it did not complete")
        if len(episode.traces) != 1:
            raise EpisodeFailed(f"its agent ran {len(episode.traces)} times: a session is for one")
        (trace,) = episode.traces
        rewards = {name: reward.score for name, reward in trace.rewards.items() if reward is not None}
        return Played(
            reward=reward_of(trace.reward), functions=finite(trace.metrics | rewards), text=trace.last_reply
        )


def _asked(data: Any) -> list[dict[str, Any]]:
    from verifiers.v1.dialects.chat import message_to_wire

    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    if data.prompt and not isinstance(data.prompt, str):
        return [*system, *(message_to_wire(message) for message in data.prompt)]
    # The environment speaks first: its words are not known before the episode.
    content = data.prompt or data.description or data.name or f"task {data.idx}"
    return [*system, {"role": "user", "content": content}]
