"""`asympo log follow`: a second learner on the log of a run, with an objective and weights of its own."""

import argparse
import dataclasses
import fcntl
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from asympo.common.archive import open_archive
from asympo.common.commands import write_json, write_table
from asympo.common.errors import BadSetting
from asympo.common.lifecycle import StopSignal
from asympo.common.names import directory_of_run
from asympo.common.paths import given_path
from asympo.common.rollout_log import RunConfig
from asympo.common.settings import object_store_of
from asympo.common.telemetry import set_up_logging
from asympo.learner.settings import ObjectiveName
from asympo.ops.access import add_broker_flags, add_checkpoint_flags, open_log


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb; imports nothing heavy."""
    add_broker_flags(parser)
    parser.add_argument("--run", required=True, metavar="RUN")
    add_checkpoint_flags(parser)
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="DIR", help="directory for its own states"
    )
    parser.add_argument("--objective", choices=get_args(ObjectiveName), help="default: the run's")
    parser.add_argument("--learning-rate", type=float, help="default: the run's")
    parser.add_argument("--num-threads", type=int, help="CPU threads; default: the run's")
    parser.add_argument(
        "--any-build", action="store_true", help="go on even if this machine cannot give the same bits"
    )
    parser.add_argument("--until-step", type=int, metavar="N", help="stop after this step")


def main(arguments: Namespace) -> int:
    """Trains until the run is over, and goes on from its own last state when started again."""
    set_up_logging(service="follow", log_format="text", level="warning" if arguments.json else "info")
    run_directory = directory_of_run(arguments.checkpoint_root, arguments.run)
    with (
        _held(arguments.out),
        open_log(arguments.redis_url, directory=arguments.directory, run=arguments.run) as run_log,
        StopSignal() as stop,
    ):
        config = run_log.state.config()
        if config is None:
            raise BadSetting(f"run {arguments.run} has no config yet: start its learner")
        # From here on torch, which the other verbs of `asympo log` do without.
        from asympo.learner.replay.followed_settings import FollowedSettings
        from asympo.learner.replay.second_learner import SecondLearner
        from asympo.tasks.tokenizer import load_tokenizer

        settings = FollowedSettings(
            archive=open_archive(run_directory, object_store_of(arguments)), given=_given(arguments, config)
        )
        report = SecondLearner(
            settings=settings,
            config=config,
            tokenizer=load_tokenizer(settings.newest.model),
            run_log=run_log,
            run_directory=run_directory,
            object_store=object_store_of(arguments),
            out=arguments.out,
            any_build=arguments.any_build,
            stop=stop,
        ).run(until_step=arguments.until_step)
    values = dataclasses.asdict(report)
    if arguments.json:
        write_json(values)
    else:
        write_table(f"second learner of {arguments.run}", ("", ""), list(values.items()))
    return 0


def _given(arguments: Namespace, config: RunConfig) -> dict[str, Any]:
    """What this learner does otherwise than the run."""
    given = {"objective": arguments.objective, "learning_rate": arguments.learning_rate}
    return {
        **{name: value for name, value in given.items() if value is not None},
        # The run's are among its decisions, step by step.
        "num_threads": arguments.num_threads,
        "model": config.model,
    }


@contextmanager
def _held(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadSetting(
                f"another second learner writes to {out}: give every one its own --out"
            ) from error
        yield
