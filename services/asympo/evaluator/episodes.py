"""Held-out rows of an environment: its player asks a door, and says what each episode earned."""

import asyncio
import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.control.tokens import read_token
from asympo.common.errors import BadSetting, NoProgress
from asympo.engines.base import SamplingSettings
from asympo.evaluator.measure import Answered, Measured, Sampler, conclude
from asympo.evaluator.prepare import Prepared
from asympo.evaluator.settings import EvaluatorSettings
from asympo.rewards.scorer import Score, Scored, ScoreFailure
from asympo.tasks.config import TaskConfig
from asympo.tasks.environments.player.command import LEAVE_SECONDS, LOAD_SECONDS
from asympo.tasks.environments.player.playing import EPISODE_SECONDS
from asympo.tasks.environments.player_command import asked_sampling, player_command

MAX_LINE_BYTES = 2**24
_LEAVE_SECONDS = LEAVE_SECONDS + 10.0
"""Until a player that has given all its answers is stopped."""
_ONE_TOKEN = SamplingSettings(temperature=0.0, max_tokens=1)


@dataclass(frozen=True, kw_only=True)
class EpisodePlayer:
    """An interpreter that has the environment."""

    python: Path
    token: str = ""
    """What the door asks for."""

    async def play(
        self,
        task: TaskConfig,
        rows: Sequence[int],
        *,
        door: str,
        sampling: SamplingSettings,
        max_in_flight: int,
        note: Callable[[int], None],
    ) -> list[dict[str, Any]]:
        """What each row's episode earned, in order. Raises NoProgress when it ends early."""
        verb = ("evaluate", door, asked_sampling(sampling), str(max_in_flight))
        player = await asyncio.create_subprocess_exec(
            *player_command(self.python, task, *verb),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "ASYMPO_TOKEN": self.token},
            limit=MAX_LINE_BYTES,
        )
        found: dict[int, dict[str, Any]] = {}
        seconds = LOAD_SECONDS + EPISODE_SECONDS * math.ceil(len(rows) / max_in_flight)
        try:
            async with asyncio.timeout(seconds):
                await _talk(player, rows, found, note)
            # It may have something to clean up, or wait for what hangs.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await player.wait()
        except TimeoutError:
            raise NoProgress(
                f"the player of {task.environment} has told {len(found)} of {len(rows)} episodes after "
                f"{seconds:.0f} s, enough for all: its own words are in the log"
            ) from None
        finally:
            if player.returncode is None:
                player.kill()
                await player.wait()
        if len(found) < len(rows):
            raise NoProgress(
                f"the player of {task.environment} ended with {player.returncode} after {len(found)} of "
                f"{len(rows)} episodes: its own words are in the log"
            )
        return [found[number] for number in range(len(rows))]


def player_of(settings: EvaluatorSettings, task: TaskConfig) -> EpisodePlayer:
    """The player of an environment, which these settings allow. Raises BadSetting."""
    # What comes over the broker names no program.
    if settings.environment_python is None or settings.environment != task.environment:
        raise BadSetting(
            f"the run's task is the environment {task.environment}: give the evaluator environment_python, "
            "and the same name as environment"
        )
    if settings.engine == "generators" and not settings.doors:
        raise BadSetting("episodes ask a generator's door: give doors, or the evaluator an engine of its own")
    return EpisodePlayer(python=settings.environment_python, token=read_token(settings.doors_token))


async def _talk(
    player: asyncio.subprocess.Process,
    rows: Sequence[int],
    found: dict[int, dict[str, Any]],
    note: Callable[[int], None],
) -> None:
    """Until every episode is found, or the player says no more."""
    assert player.stdin is not None
    assert player.stdout is not None
    # A player that has ended says more by its exit code.
    with contextlib.suppress(ConnectionError):
        player.stdin.write("".join(f"{row}\n" for row in rows).encode())
        await player.stdin.drain()
        player.stdin.close()
    while len(found) < len(rows) and (line := await player.stdout.readline()):
        told = json.loads(line)
        found[told["episode"]] = told
        note(len(found))


async def measure_episodes(
    prepared: Prepared,
    player: EpisodePlayer,
    *,
    door: str,
    sampler: Sampler,
    max_in_flight: int,
    policy_fence: int | None = None,
    note: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Plays every row, as often as the evaluation has samples; `sampler` asks whom `door` belongs to."""
    begun, config = time.monotonic(), prepared.config
    rows = [prompt.row for prompt in prepared.prompts for _ in range(config.samples)]

    async def served() -> int | None:
        # Episodes do not say which policy answered.
        answered = await sampler.sample(prepared.prompt_ids[0], num_samples=1, sampling=_ONE_TOKEN)
        return answered.policy_steps[-1]

    before = await served()
    told = await player.play(
        prepared.task,
        rows,
        door=door,
        sampling=prepared.sampling,
        max_in_flight=max_in_flight,
        note=lambda done: note(done // config.samples),
    )
    steps = (before, await served())
    pairs = []
    for number in range(len(prepared.prompts)):
        of_prompt = told[number * config.samples :][: config.samples]
        texts = [str(each.get("text") or "") for each in of_prompt]
        answered = Answered(texts=texts, token_ids=[()] * len(texts), policy_steps=steps)
        pairs.append((answered, [_score(each) for each in of_prompt]))
    return conclude(prepared, pairs, policy_fence=policy_fence, begun=begun)


def _score(told: dict[str, Any]) -> Score:
    if "failure" in told:
        return ScoreFailure(kind="raised", reason=told["failure"])
    return Scored(reward=told["reward"], functions=told["functions"])
