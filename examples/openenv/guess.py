"""A client of OpenEnv as an environment: what `step` takes becomes a tool, and what it pays the reward."""

from openenv import GenericEnvClient


class Guess:
    """One episode at a server."""

    def __init__(self, base_url: str) -> None:
        self._client = GenericEnvClient(base_url=base_url).sync()
        self._reward = 0.0

    def reset(self, seed: int, **row: object) -> str:
        """Begins at the server, with what the row says; its first observation follows the prompt."""
        self._client.connect()
        return " " + self._client.reset(seed=seed).observation["text"]

    def guess(self, number: int) -> str:
        """
        Says whether a number is the one that is looked for.

        Args:
            number: What you guess.
        """
        result = self._client.step({"number": number})
        self._reward += result.reward or 0.0
        return result.observation["text"]

    def get_reward(self) -> float:
        """All that the server paid."""
        self._client.close()
        return self._reward
