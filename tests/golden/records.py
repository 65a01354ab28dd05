"""Records whose bytes are pinned: what was written once must be read for ever.

Regenerate after a deliberate change of the schema: .venv/bin/python -m tests.golden.records
"""

import json
from pathlib import Path

from asympo.common.codec import encode_group
from asympo.common.records import FinishReason, Prompt, Response, ResponseSegment, RolloutGroup

FILE = Path(__file__).with_name("records.json")

GROUPS = {
    "token_ids": RolloutGroup(
        group_id="0-17",
        prompt=Prompt(token_ids=(1, 2, 300, 49151), text="What is 3 + 4?"),
        responses=(
            Response(token_ids=(7, 2), text="7", reward=1.0, finish_reason=FinishReason.STOP),
            Response(token_ids=(0, 0, 128), text="8 8", reward=0.0, finish_reason=FinishReason.LENGTH),
        ),
    ),
    "text_only": RolloutGroup(
        group_id="acme/run-3:41",
        prompt=Prompt(text="Wie heißt du? 🙂"),
        responses=(Response(text="naïve ☃", reward=-0.125, finish_reason=FinishReason.STOP),),
    ),
    "masked": RolloutGroup(
        group_id="12-3",
        prompt=Prompt(token_ids=(5,)),
        responses=(
            Response(
                token_ids=(1, 2, 3),
                reward=0.1,
                finish_reason=FinishReason.STOP,
                trained_token_mask=(True, False, True),
            ),
        ),
    ),
    "segments": RolloutGroup(
        group_id="agents/1-a",
        prompt=Prompt(token_ids=(5, 6)),
        responses=(
            Response(token_ids=(1, 2), reward=0.0, finish_reason=FinishReason.STOP),
            Response(
                reward=1.0,
                finish_reason=FinishReason.STOP,
                segments=(
                    ResponseSegment(token_ids=(1, 2, 300), trained_token_mask=(True, False, True)),
                    ResponseSegment(context_ids=(5, 9), token_ids=(4,)),
                ),
            ),
        ),
    ),
}


def load_payloads() -> dict[str, bytes]:
    return {name: bytes.fromhex(text) for name, text in json.loads(FILE.read_text()).items()}


if __name__ == "__main__":
    payloads = {name: encode_group(group).hex() for name, group in GROUPS.items()}
    FILE.write_text(json.dumps(payloads, indent=2) + "\n")
    print(f"wrote {FILE}")
