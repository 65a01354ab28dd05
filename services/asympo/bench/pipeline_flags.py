"""Flags of `asympo bench pipeline`; nothing heavy is imported here."""

import argparse

from asympo.common.commands import add_json_flag, at_least


def add_pipeline_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench pipeline`, each with the least that can be measured."""
    for name, default, least, text in (
        ("steps", 24, 4, "optimizer steps of the synchronous and of the asynchronous run; three warm up"),
        ("saturated-steps", 8, 2, "steps of the runs of one side alone; one warms up"),
        ("group-size", 8, 1, "responses of a prompt"),
        ("groups-per-step", 16, 1, "prompts of a step"),
        ("max-num-seqs", 16, 1, "responses that the simulated engine decodes together"),
        ("max-tokens", 256, 1, "longest response"),
        ("hidden-size", 256, 1, "width of the policy: what a step of the learner costs"),
        ("num-layers", 3, 1, "layers of the policy"),
    ):
        parser.add_argument(
            f"--{name}", type=at_least(least, int), default=default, help=f"{text} (default {default})"
        )
    for name, real, least_real, text in (
        ("mean-tokens", 32.0, 1, "mean length of a response"),
        (
            "sigma",
            0.8,
            0,
            "spread of the logarithm of lengths; 0.8: one in 100 is over five times the median",
        ),
        ("reload-seconds", 0.05, 0, "time of one reload"),
    ):
        parser.add_argument(
            f"--{name}", type=at_least(least_real, float), default=real, help=f"{text} (default {real:g})"
        )
    parser.add_argument(
        "--seconds-per-token",
        type=at_least(1e-6, float),
        help="speed of the engine; if not given, matched to the learner",
    )
    add_json_flag(parser)
