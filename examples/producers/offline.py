"""A file of answers with rewards, text only: `python offline.py FILE [ADDRESS]`.

A group's id is its line, so that running it again appends nothing twice.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from asympo.client import Client, RolloutGroup, text_group


def groups(path: str) -> Iterator[RolloutGroup]:
    """One group a line."""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        answers = [(text, reward) for text, reward in row["responses"]]
        yield text_group(row["prompt"], answers, group_id=f"{number}-{Path(path).stem}")


def main(path: str, address: str = "http://127.0.0.1:8090") -> None:
    with Client(address) as client:
        refused = client.submit_many(groups(path))
    for outcome in refused:
        print(f"{outcome.group_id}: {outcome.outcome} {outcome.reason}")
    print(f"{path}: done, {len(refused)} refused")


if __name__ == "__main__":
    main(*sys.argv[1:])
