"""A reward function with everything that calling it takes, loaded by name in a scoring process."""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.rewards.built_in import BuiltIn, make_built_in
from asympo.rewards.conventions.base import Asked, Convention, FunctionOutcome, Notes, failed
from asympo.rewards.conventions.recognise import (
    CONVENTIONS,
    check_signature,
    names_taken,
    recognise,
    signature_of,
)
from asympo.tasks.base import Task
from asympo.tasks.reward_config import RewardConfig


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """One function and how it is called."""

    title: str
    """In metrics, logs and on the page; empty for the task's own scoring."""
    function: Callable[..., Any]
    """What is called."""
    convention: Convention
    """With which arguments, and what the result means."""
    takes: frozenset[str] | None
    """Keyword arguments that it takes; None: any."""
    dropped: frozenset[str] = frozenset()
    """Names of its positional arguments: columns that are called so cannot be passed."""

    @property
    def takes_group(self) -> bool:
        return self.convention.takes_group

    @property
    def is_async(self) -> bool:
        """Whether calling it gives something to await."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  its own __call__ may be async
        )

    @property
    def wants_token_ids(self) -> bool:
        """Whether it may look at the token ids of the responses."""
        return self.convention.wants_token_ids and (self.takes is None or "completion_ids" in self.takes)

    def call(self, asked: Asked, notes: Notes) -> Any:
        """What the function returns, or something to await that returns it."""
        if "completion_ids" in (self.takes or ()) and not asked.token_ids:
            raise ValueError(
                "the token ids of the responses are not known: the model's tokenizer is not here"
            )
        positional, named = self.convention.arguments(asked, notes)
        if self.takes is not None:
            named = {name: value for name, value in named.items() if name in self.takes}
        elif self.dropped:
            named = {name: value for name, value in named.items() if name not in self.dropped}
        return self.function(*positional, **named)

    def outcomes(self, result: Any, asked: Asked, notes: Notes) -> list[FunctionOutcome]:
        """What the result says of each response, whatever it is."""
        return self.convention.read(result, asked, notes)

    def raised(self, error: BaseException, asked: Asked) -> list[FunctionOutcome]:
        """The same for every response of the call."""
        reason = f"scoring raised {type(error).__name__}: {error}"
        return [failed("raised", reason)] * len(asked.texts)


async def awaited(value: Awaitable[Any]) -> Any:
    """For `asyncio.run`, which takes coroutines alone."""
    return await value


def task_function(task: Task) -> RewardFunction:
    """The task's own scoring, where the settings name no functions."""
    return RewardFunction(
        title="", function=task.score, convention=CONVENTIONS["task-prompt"], takes=frozenset()
    )


def load_function(
    config: RewardConfig, *, columns: Sequence[str] | None, allow_python: bool
) -> RewardFunction:
    """The function that the settings name, known to fit rows with these columns. Raises BadSetting."""
    if not config.is_python:
        return RewardFunction(
            title=config.title,
            function=make_built_in(config, columns=columns),
            convention=BuiltIn(wants_token_ids=config.function in ("length", "overlong")),
            takes=None,
        )
    what = f"reward {config.function}"
    if not allow_python:
        raise BadSetting(f"{what} is Python code, which this process was not told to allow: set allow_python")
    function = _bind(_find(config.function), config, what)
    name = config.convention or recognise(function, what)
    check_signature(function, name, what, columns)
    positional = list(signature_of(function, what).parameters)[: {"plain": 1, "task-prompt": 2}.get(name, 0)]
    return RewardFunction(
        title=config.title,
        function=function,
        convention=CONVENTIONS[name],
        takes=names_taken(function, name),
        dropped=frozenset(positional),
    )


def _bind(function: Callable[..., Any], config: RewardConfig, what: str) -> Callable[..., Any]:
    """With the options: as keyword arguments, or to the function that makes the reward function of them."""
    if inspect.isclass(function) or (config.options and _makes_functions(function, config)):
        try:
            made = function(**config.options)
        except Exception as error:
            raise BadSetting(f"{what} cannot be made with options {config.options}: {error}") from error
        if not callable(made):
            raise BadSetting(f"{what} made {made!r} of its options, which is not callable")
        return made
    if not config.options:
        return function
    try:
        signature_of(function, what).bind_partial(**config.options)
    except TypeError as error:
        raise BadSetting(f"{what} does not take options {config.options}: {error}") from error
    return functools.partial(function, **config.options)


def _makes_functions(function: Callable[..., Any], config: RewardConfig) -> bool:
    """Whether its parameters are all options, none of them what a convention passes."""
    try:
        recognise(function, config.function)
    except BadSetting:
        try:
            signature_of(function, config.function).bind(**config.options)
        except TypeError:
            return False
        return True
    return False


def _find(spec: str) -> Callable[..., Any]:
    place, _, name = spec.rpartition(":")
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module(place, spec)
    function = getattr(module, name, None)
    if not callable(function):
        near = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise BadSetting(f"{place} has no function {name}: it has {', '.join(near) or 'none'}")
    return function


def _module(name: str, spec: str) -> Any:
    """Found on PYTHONPATH, among the installed packages and in the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise BadSetting(f"reward {spec}: module {name} does not load: {_sentence(error)}") from error


def _module_of_file(path: Path) -> Any:
    """Loaded from where it lies; what it imports may lie beside it."""
    file = path.expanduser().resolve()
    if not file.is_file():
        raise BadSetting(
            f"the reward file {path} does not exist: give its path from {os.getcwd()}, or from /"
        )
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    name = file.stem if file.stem not in sys.modules else f"_asympo_reward_{abs(hash(str(file)))}"
    loaded = next(
        (each for each in sys.modules.values() if getattr(each, "__file__", None) == str(file)), None
    )
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadSetting(f"the reward file {path} does not load: {_sentence(error)}") from error
    return module


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
