"""An environment of `verifiers` before 0.4: `load_environment`, turns, tools and a rubric."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from .stage import KEY_VARIABLE, MODEL, EpisodeFailed, Played, Seat, finite, reward_of


class LegacyStage:
    """Its rows to train on, then those of its evaluation split if it has one of its own."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        import verifiers.legacy as vf

        self._config = vf.ClientConfig
        self._environment = vf.load_environment(name, **arguments)
        self._rows = self._environment.get_dataset().to_list()
        self._num_trained = len(self._rows)
        # Without one it would answer with the rows to train on.
        if getattr(self._environment, "eval_dataset", None) is not None:
            self._rows += self._environment.get_eval_dataset().to_list()

    def rows(self) -> list[dict[str, Any]]:
        found = [{key: row.get(key) for key in ("prompt", "answer")} for row in self._rows]
        for row in found[self._num_trained :]:
            row["held_out"] = True
        return found

    def serving(self) -> nullcontext[None]:
        return nullcontext()

    async def play(self, row: int, seat: Seat, sampling: Mapping[str, Any]) -> Played:
        client = self._config(api_base_url=seat.base_url, api_key_var=KEY_VARIABLE, max_retries=2)
        output = await self._environment.run_rollout(self._rows[row], client, MODEL, dict(sampling))
        if output.get("error"):
            raise EpisodeFailed(str(output["error"]))
        said = [each for each in output.get("completion") or () if _value(each, "role") == "assistant"]
        return Played(
            reward=reward_of(output.get("reward")),
            functions=finite(output.get("metrics") or {}),
            text=str(_value(said[-1], "content") or "") if said else "",
        )


def _value(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
