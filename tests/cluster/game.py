"""A game as TRL's environment_factory makes them: which side of a coin is up is guessed with a tool."""


class GuessedCoin:
    """One toss, whose side the row names."""

    def reset(self, side: str, **_: object) -> None:
        """A new toss."""
        self._side, self._is_guessed = side, False

    def guess(self, side: str) -> str:
        """
        Guesses the side.

        Args:
            side: heads or tails
        """
        self._is_guessed = side == self._side
        return self._side

    def get_reward(self) -> float:
        """1 for the right side."""
        return float(self._is_guessed)
