"""Texts of records that hold token ids alone, as those of sessions and environments do: for people."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from asympo.common.errors import BadModel
from asympo.common.records import Response, RolloutGroup
from asympo.common.rollout_log import RunLog

_BETWEEN_SEGMENTS = "\n\n[history rewritten]\n\n"


class Texts:
    """Decodes with the run's tokenizer, which is opened when the first record needs it."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._tokenizer: Any = None
        self._is_open = False

    def added(self, group: RolloutGroup) -> RolloutGroup:
        """The group with a text wherever it has none; as it is where the tokenizer is not on this machine."""
        has_all = bool(group.prompt.text) and all(each.text for each in group.responses)
        if has_all or not self._open():
            return group
        prompt = group.prompt
        if not prompt.text:
            prompt = replace(prompt, text=self._decode(prompt.token_ids))
        return replace(group, prompt=prompt, responses=tuple(map(self._response, group.responses)))

    def _response(self, response: Response) -> Response:
        if response.text:
            return response
        parts = [each.token_ids for each in response.segments] or [response.token_ids]
        return replace(response, text=_BETWEEN_SEGMENTS.join(map(self._decode, parts)))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _open(self) -> bool:
        if not self._is_open:
            self._is_open = True
            # Only people who look at such records pay for it.
            from asympo.tasks.tokenizer import open_tokenizer

            config = self._log.state.config()
            try:
                self._tokenizer = open_tokenizer(config.model) if config is not None else None
            except BadModel as error:
                sys.stderr.write(f"asympo: records of token ids are shown without their texts: {error}\n")
        return self._tokenizer is not None
