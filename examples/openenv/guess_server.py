"""An OpenEnv server for the example beside it: a number is guessed. `python guess_server.py PORT`."""

import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    number: int


class Answer(Observation):
    text: str


class Guessing(Environment[Guess, Answer, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Answer:
        self._secret = (seed or 0) % 100
        self._state = State(episode_id=episode_id, step_count=0)
        return Answer(text="Guess a number from 0 to 99.")

    def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Answer:
        self._state.step_count += 1
        if action.number == self._secret:
            return Answer(text="right", done=True, reward=1 / self._state.step_count)
        return Answer(text="too low" if action.number < self._secret else "too high", reward=0.0)

    @property
    def state(self) -> State:
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Guessing, Guess, Answer, max_concurrent_envs=64)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
