"""`asympo …`: finds the command and imports nothing else before it runs."""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from asympo import __version__
from asympo.common.commands import say
from asympo.common.errors import AsympoError, BadSetting, StorageUnavailable
from asympo.common.proxies import pass_by

_STORAGE_ERRORS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP}
) | {errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EIO}
"""What is wrong with a path, not with the program: one sentence, no traceback."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One word after `asympo`."""

    name: str
    module: str
    """Has `main(argv) -> int`; for a service, `settings` and `app` below it."""
    summary: str
    settings_class: str = ""
    """Set for a service: class in `<module>.settings`, given to `main` in `<module>.app`."""


COMMANDS = (
    Command(
        name="demo",
        module="asympo.demo.command",
        summary="watch a small language model learn on this machine",
    ),
    Command(
        name="run",
        module="asympo.run.command",
        summary="broker, generators and learner on this machine, from one settings file",
    ),
    Command(
        name="generator",
        module="asympo.generator",
        settings_class="GeneratorSettings",
        summary="one generator: samples and scores groups of responses",
    ),
    Command(
        name="learner",
        module="asympo.learner",
        settings_class="LearnerSettings",
        summary="the learner of a run: trains and publishes policies",
    ),
    Command(
        name="gateway",
        module="asympo.gateway",
        settings_class="GatewaySettings",
        summary="the door for other producers: finished groups, prompts, sessions for agents",
    ),
    Command(
        name="evaluator",
        module="asympo.evaluator",
        settings_class="EvaluatorSettings",
        summary="measures published policies on held-out prompts or other data, while the run goes on",
    ),
    Command(
        name="eval",
        module="asympo.ops.eval",
        summary="measure one policy or model now, with the evaluations of a settings file",
    ),
    Command(
        name="task",
        module="asympo.ops.task",
        summary="show, score, try: look at data and rewards before training on them",
    ),
    Command(
        name="environment",
        module="asympo.ops.environment",
        summary="rows, play: an environment as the task, beside services that you start yourself",
    ),
    Command(
        name="init",
        module="asympo.ops.init",
        summary="write a settings file and a reward file with its test, to start from",
    ),
    Command(name="runs", module="asympo.ops.runs", summary="list, show or delete the runs known to a broker"),
    Command(
        name="log",
        module="asympo.ops.log",
        summary="tail, stats, show, export, replay, follow, purge, retry, acl: the rollout log",
    ),
    Command(
        name="checkpoint",
        module="asympo.ops.checkpoint.command",
        summary="list, verify, best, diff, export, import: the checkpoints of a run",
    ),
    Command(
        name="backup",
        module="asympo.ops.backup",
        summary="back up a run while it goes on: log, policy, training state, archive",
    ),
    Command(
        name="restore",
        module="asympo.ops.restore",
        summary="restore a backup into an empty broker and directory",
    ),
    Command(
        name="bench",
        module="asympo.bench.command",
        summary="measure the learner, the log and the pipeline on this machine",
    ),
    Command(name="lab", module="asympo.lab.command", summary="is the loss stable on stale data?"),
    Command(
        name="chaos",
        module="asympo.chaos.command",
        summary="break everything, and count what was lost or trained twice",
    ),
    Command(
        name="doctor",
        module="asympo.doctor.command",
        summary="find what is wrong with this deployment, and how to fix it",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; an error of ours becomes one sentence and its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Prompts, names and our own help may hold what the terminal's encoding does not.
            stream.reconfigure(errors="backslashreplace")
    pass_by(os.environ)
    try:
        return _dispatch(arguments)
    except AsympoError as error:
        say(f"asympo: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`); the interpreter must not flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        say(f"asympo: {_storage_sentence(error)}")
        is_service = any(c.settings_class for c in COMMANDS if c.name in arguments[:1])
        # What ails the storage of a service may pass: it is started again.
        return StorageUnavailable.exit_code if is_service else BadSetting.exit_code


def _storage_sentence(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room to write{where} ({error.strerror}): free some, or give another directory"
    return f"cannot use{where} ({error.strerror}): mend it, or give another path"


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"asympo {__version__}\n")
        return 0
    name, rest = arguments[0], arguments[1:]
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is None:
        raise BadSetting(f"there is no command {name}: choose from {', '.join(c.name for c in COMMANDS)}")
    try:
        return _entry(command)(rest)
    except SystemExit as exit_:
        # argparse leaves this way after --help, and settings after --check-config.
        return exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1


def _entry(command: Command) -> Callable[[Sequence[str]], int]:
    if not command.settings_class:
        run: Callable[[Sequence[str]], int] = import_module(command.module).main
        return run

    def run_service(argv: Sequence[str]) -> int:
        settings = getattr(import_module(f"{command.module}.settings"), command.settings_class).load(argv)
        exit_code: int = import_module(f"{command.module}.app").main(settings)
        return exit_code

    return run_service


def _help() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = ["usage: asympo COMMAND [FLAGS]", "", "Asynchronous post-training of language models.", ""]
    lines += [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS]
    lines += ["", "asympo COMMAND --help lists the flags of a command."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
