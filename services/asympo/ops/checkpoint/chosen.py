"""Which policy a command is asked about: by its step, as `best` or `last`, or by its directory."""

import os
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.digests import weight_files
from asympo.common.checkpoints.names import StepName, parse_name
from asympo.common.checkpoints.opening import open_policies
from asympo.common.errors import BadSetting
from asympo.common.names import directory_of_run
from asympo.common.paths import given_path
from asympo.common.rollout_log.evals.result import EvalResult, best_of
from asympo.common.settings import object_store_of
from asympo.ops.access import CHECK_PLACE, add_checkpoint_flags
from asympo.run.report.evals import RESULTS, read_results

_MAX_STEPS_SHOWN = 12
_WORDS = "STEP, best or last"


@dataclass(frozen=True, kw_only=True)
class ChosenWeights:
    """Weights that a command was asked about, on this machine."""

    path: Path
    """Their directory."""
    ref: PolicyRef | None
    """The policy of the run; None for a directory that was named."""
    store: PolicyStore | None = None
    """Where the policy was found; its directory is there as long as this is held."""

    @property
    def files(self) -> dict[str, Path]:
        """Those with tensors that loaders read, by name; caches of the hub have links in their place."""
        found = {each.name: each for each in weight_files(self.path)}
        if self.ref is not None:
            return found
        return {name: Path(os.path.realpath(file)) for name, file in found.items()}


def add_eval_flags(parser: ArgumentParser) -> None:
    """For `best`."""
    parser.add_argument("--eval", metavar="NAME", help="needed if there are several evaluations")
    parser.add_argument(
        "--results",
        type=given_path,
        metavar="FILE",
        help="what the evaluator wrote; none: the run's own",
    )


def add_choice_flags(parser: ArgumentParser, *, needs_run: bool) -> None:
    """Where policies are looked for."""
    parser.add_argument("--run", required=needs_run, metavar="RUN", help="run of the policies")
    add_checkpoint_flags(parser)
    add_eval_flags(parser)


def choose(text: str, arguments: Namespace) -> ChosenWeights:
    """The policy of the run, every byte checked, or the directory; BadSetting, CorruptCheckpoint."""
    is_policy = text in ("best", "last") or text.isdecimal() or parse_name(text) is not None
    if is_policy:
        return choose_policy(text, arguments)
    path = given_path(text)
    if not path.is_dir():
        raise BadSetting(f"{text!r} is neither a policy ({_WORDS}) nor a directory")
    return ChosenWeights(path=path, ref=None)


def choose_policy(text: str, arguments: Namespace) -> ChosenWeights:
    """The same for a policy of the run only."""
    if arguments.run is None:
        raise BadSetting(f"{text} is a policy of a run: say which with --run")
    store = open_policies(arguments.checkpoint_root, arguments.run, object_store_of(arguments))
    if text == "last":
        ref = store.newest()
        if ref is None:
            raise BadSetting(f"there are no policies in {store.path}: {CHECK_PLACE}")
    elif text == "best":
        found = best_result(arguments)
        assert found.policy_step is not None
        why = f", which {found.eval} likes best"
        ref = _of_step(store, found.policy_step, fence=found.policy_fence, why=why)
    elif text.isdecimal():
        ref = _of_step(store, int(text))
    else:
        name = parse_name(text)
        if name is None or name.sequence is not None:
            raise BadSetting(f"{text!r} is no policy: give {_WORDS}")
        ref = _named(store, name)
    store.verify(ref)
    return ChosenWeights(path=ref.path, ref=ref, store=store)


def best_result(arguments: Namespace) -> EvalResult:
    """The result that an evaluation likes best, of a single policy; BadSetting."""
    file = arguments.results or directory_of_run(arguments.checkpoint_root, arguments.run) / RESULTS
    results = read_results(file)
    if not results:
        raise BadSetting(f"{file} holds no results: give the file of the evaluator's setting results")
    names = list(dict.fromkeys(each.eval for each in results))
    name = arguments.eval or names[0]
    if name not in names or (arguments.eval is None and len(names) > 1):
        raise BadSetting(f"{file} holds the evaluations {', '.join(names)}: give one with --eval")
    best = best_of(results, name)
    if best is None:
        raise BadSetting(
            f"no result of {name} belongs to a single policy: give the evaluator an engine of its own"
        )
    return best


def _of_step(store: PolicyStore, step: int, *, fence: int | None = None, why: str = "") -> PolicyRef:
    refs = store.list()
    # A learner that went back publishes a step again, with other weights and a higher fence.
    found = [ref for ref in refs if ref.step == step and fence in (None, ref.fence)]
    if not found:
        steps = [str(ref.step) for ref in refs]
        shown = ", ".join(["..."][: len(steps) > _MAX_STEPS_SHOWN] + steps[-_MAX_STEPS_SHOWN:])
        raise BadSetting(
            f"there is no complete policy of step {step}{why} in {store.path}: "
            f"it has {'step ' + shown if steps else 'none; ' + CHECK_PLACE}"
        )
    return max(found, key=lambda ref: ref.fence)


def _named(store: PolicyStore, name: StepName) -> PolicyRef:
    found = [ref for ref in store.list() if ref.name == str(name)]
    if not found:
        raise BadSetting(f"there is no complete policy {name} in {store.path}")
    return found[0]
