"""Flags of `asympo bench pipeline`; nothing heavy is imported here."""

import argparse

from asympo.common.commands import add_json_flag


def add_pipeline_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench pipeline`."""
    for name, default, text in (
        ("steps", 24, "optimizer steps of the synchronous and of the asynchronous run"),
        ("saturated-steps", 8, "steps of the runs of one side alone"),
        ("group-size", 8, "responses of a prompt"),
        ("groups-per-step", 16, "prompts of a step"),
        ("max-num-seqs", 16, "responses that the simulated engine decodes together"),
        ("max-tokens", 256, "longest response"),
        ("hidden-size", 256, "width of the policy: what a step of the learner costs"),
        ("num-layers", 3, "layers of the policy"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    for name, real, text in (
        ("mean-tokens", 32.0, "mean length of a response"),
        ("sigma", 0.8, "spread of the logarithm of lengths; 0.8 makes one in 100 over five times the median"),
        ("reload-seconds", 0.05, "time of one reload"),
    ):
        parser.add_argument(f"--{name}", type=float, default=real, help=f"{text} (default {real:g})")
    parser.add_argument(
        "--seconds-per-token", type=float, help="speed of the engine; if not given, matched to the learner"
    )
    add_json_flag(parser)
