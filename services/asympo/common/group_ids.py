"""What groups are called: a prompt's own id, a producer's, or that of a record that is appended again."""

import re

_OWN_ID = re.compile(r"(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,14})", re.ASCII)
_RETRIED = re.compile(r"retry/[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)


def parse_own_id(group_id: str) -> tuple[int, int] | None:
    """Epoch and prompt index of "<epoch>-<index>"; None for any other id."""
    match = _OWN_ID.fullmatch(group_id)
    return None if match is None else (int(match[1]), int(match[2]))


def retried_id(letter_id: str) -> str:
    """Of a dead letter that is appended again: its first id counts as consumed."""
    return f"retry/{letter_id.replace('-', '.')}"


def is_issued(group_id: str, *, producer: str, num_prompts: int) -> bool:
    """Whether a run of so many prompts asked for this group, or its producer may call one of its own so."""
    own = parse_own_id(group_id)
    if own is not None:
        return own[1] < num_prompts
    return group_id.startswith(f"{producer}/") or _RETRIED.fullmatch(group_id) is not None
