"""Simulates every scenario, prints what came out, draws it with `--plot`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from deploy.autoscaling_simulation.rules import RecordingRules
from deploy.autoscaling_simulation.scenarios import POOLS, SCENARIOS, SLOTS_SHORT, Measured, simulate


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.autoscaling_simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each scenario")
    parser.add_argument("--plot", type=Path, help="PNG of the runs with the first seed")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser.parse_args()


def _line(found: Measured) -> str:
    return (
        f"| {found.scenario} | {found.seed} | {found.waiting_ratio:.1%} | {found.min_replicas}–"
        f"{found.max_replicas} of {found.limit} | {found.last_replicas} | {found.changes_per_hour:.1f} |\n"
    )


def main() -> None:
    options, rules = _parse(), RecordingRules.load()
    if not options.json:
        sys.stdout.write(
            "From the second hour on:\n\n| scenario | seed | learner waits | generators | at the end "
            "| changes an hour |\n|---|---|---|---|---|---|\n"
        )
    measured, pictures = [], []
    for scenario in (*SCENARIOS, *POOLS, SLOTS_SHORT):
        for seed in range(options.seeds):
            found, trace = simulate(scenario, seed=seed, rules=rules)
            measured.append(found)
            if seed == 0 and scenario is not SLOTS_SHORT:
                pictures.append((scenario, trace))
            if not options.json:
                sys.stdout.write(_line(found))
                sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps({"runs": [dataclasses.asdict(found) for found in measured]}) + "\n")
    if options.plot:
        from deploy.autoscaling_simulation.plot import draw

        draw(pictures, options.plot)


if __name__ == "__main__":
    main()
