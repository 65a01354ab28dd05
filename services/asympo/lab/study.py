"""Runs a study: warm-up, tuning, grids; one file for each cell, so that it can stop and go on."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path

from asympo.common.errors import AsympoError
from asympo.lab.analysis import passing_specs
from asympo.lab.arms import find_arm
from asympo.lab.cell import Cell, CellResult, CellSpec
from asympo.lab.language import LanguageWorld, weights_file
from asympo.lab.presets.plan import Grid, Preset
from asympo.lab.results import Results
from asympo.lab.start import Weights, load_weights, save_weights, warm_up, weights_of
from asympo.lab.worlds import DigitWorld, World
from asympo.learner.step.compute import processor_class, set_up_torch
from asympo.local.launch import end_with

Say = Callable[[str], None]
Advance = Callable[[int, int], None]
"""Told how many of how many cells are done."""


class Study:
    """One preset in one directory."""

    def __init__(
        self,
        preset: Preset,
        *,
        directory: Path,
        workers: int,
        versions: Mapping[str, str],
        say: Say,
        advance: Advance,
    ) -> None:
        self._preset, self._directory, self._workers = preset, directory, workers
        self._versions, self._say, self._advance = dict(versions), say, advance
        self._pool: ProcessPoolExecutor

    def run(self, grids: Sequence[Grid]) -> Results:
        """All cells of the grids that are not there yet."""
        with self._open_pool() as self._pool:
            try:
                return self._measure(grids)
            except BaseException:
                self._pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _measure(self, grids: Sequence[Grid]) -> Results:
        self._make_starts({grid.task for grid in grids})
        tuning: list[CellResult] = []
        chosen: dict[str, float] = {}
        if self._preset.tuning is not None and any(grid.constants == "tuned" for grid in grids):
            arms = {arm: None for grid in grids if grid.constants == "tuned" for arm in grid.arms}
            self._say(f"tuning: the same runs for each of {len(arms)} arms")
            tuning = self._run(tuning_specs(self._preset, arms))
            chosen = choose_constants(tuning)
        measured: list[tuple[Grid, list[CellResult]]] = []
        for grid in grids:
            self._say(f"grid {grid.name}: {grid.question}")
            if grid.constants == "passed":
                passing = passing_specs(measured, confirming_seeds=self._preset.confirming_seeds)
                specs = [replace(spec, seed=seed) for spec in passing for seed in grid.seeds]
            else:
                specs = grid_specs(self._preset, grid, chosen)
            measured.append((grid, self._run(specs)))
        return Results(tuning=tuning, chosen=chosen, grids=measured)

    def _make_starts(self, tasks: Iterable[str]) -> None:
        if self._preset.warm_up is None:
            return
        missing = [task for task in sorted(tasks) if not start_path(self._directory, task).is_file()]
        if not missing:
            return
        self._say(f"warm-up: {', '.join(missing)}")
        jobs = {self._pool.submit(_make_start, self._preset, task, self._directory): task for task in missing}
        for job in as_completed(jobs):
            self._say(f"start of {jobs[job]}: sampled accuracy {job.result():.3f}")

    def _run(self, specs: Sequence[CellSpec]) -> list[CellResult]:
        tasks = {spec.task for spec in specs}
        digests = {task: start_digest(self._preset, self._directory, task) for task in tasks}
        found = {spec: _read(self._path(spec), digests[spec.task]) for spec in specs}
        missing = [spec for spec, result in found.items() if result is None]
        done = len(found) - len(missing)
        self._advance(done, len(found))
        jobs = [
            self._pool.submit(
                _run_cell,
                *(self._preset, spec, self._directory, self._path(spec)),
                *(digests[spec.task], self._versions),
            )
            for spec in missing
        ]
        for job in as_completed(jobs):
            job.result()
            done += 1
            self._advance(done, len(found))
        results = [_read(self._path(spec), digests[spec.task]) for spec in specs]
        return [result for result in results if result is not None]

    def _path(self, spec: CellSpec) -> Path:
        return self._directory / "cells" / f"{spec.name}.json"

    def _open_pool(self) -> ProcessPoolExecutor:
        # Forked children of a process with threads may hang.
        return ProcessPoolExecutor(
            max_workers=self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=set_up_worker,
        )


def set_up_worker() -> None:
    """One thread each: cells are many, and their matrices too small to share. It ends with the study."""
    end_with(os.getppid())
    set_up_torch(seed=0, num_threads=1)


def start_path(directory: Path, task: str) -> Path:
    """Where the weights lie that every cell of a task starts from."""
    return directory / "starts" / f"{task}.safetensors"


def start_digest(preset: Preset, directory: Path, task: str) -> str:
    """Of the weights that cells of the task start from: cells from others do not count."""
    path = weights_file() if preset.warm_up is None else start_path(directory, task)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def tuning_specs(preset: Preset, arms: Iterable[str]) -> list[CellSpec]:
    """Candidates times learning rates for every arm, on the tuning seed."""
    plan = preset.tuning
    if plan is None:
        return []
    return [
        _spec(preset, arm, constant, plan.staleness, learning_rate, plan.seed, plan.steps)
        for arm in arms
        for constant, learning_rate in product(find_arm(arm).candidates, plan.learning_rates)
    ]


def choose_constants(tuning: Sequence[CellResult]) -> dict[str, float]:
    """The candidate with the higher mean final accuracy; the first one on a tie."""
    chosen = {}
    for arm in dict.fromkeys(result.spec.arm for result in tuning):
        means = {}
        for constant in dict.fromkeys(find_arm(arm).candidates):
            finals = [
                result.final_accuracy or 0.0
                for result in tuning
                if result.spec.arm == arm and result.spec.constant == constant
            ]
            means[constant] = sum(finals) / len(finals)
        chosen[arm] = max(means, key=lambda constant: means[constant])
    return chosen


def grid_specs(preset: Preset, grid: Grid, chosen: dict[str, float]) -> list[CellSpec]:
    """The cells of a grid, each once."""
    specs = []
    for arm in grid.arms:
        candidates = find_arm(arm).candidates
        if grid.constants == "both":
            constants: Sequence[float] = tuple(dict.fromkeys(candidates))
        else:
            constants = (chosen.get(arm, candidates[0]) if grid.constants == "tuned" else candidates[0],)
        axes = product(
            constants,
            *(grid.kinds, grid.optimizers, grid.compute_dtypes),
            *(grid.staleness, grid.learning_rates, grid.seeds),
        )
        for constant, kind, optimizer, dtype, staleness, learning_rate, seed in axes:
            specs.append(
                _spec(
                    preset, arm, constant, staleness, learning_rate, seed, grid.steps,
                    kind=kind, optimizer=optimizer, compute_dtype=dtype, task=grid.task,
                )
            )  # fmt: skip
    return list(dict.fromkeys(specs))


def _spec(
    preset: Preset, arm: str, constant: float, staleness: int, learning_rate: float, seed: int, steps: int,
    **other: str,
) -> CellSpec:  # fmt: skip
    return CellSpec(
        arm=arm,
        constant=constant,
        staleness=staleness,
        learning_rate=learning_rate,
        seed=seed,
        steps=steps,
        groups_per_step=preset.groups_per_step,
        group_size=preset.group_size,
        evaluate_every=preset.evaluate_every,
        **{"kind": "fixed", **other},  # type: ignore[arg-type]
    )


def _read(path: Path, digest: str) -> CellResult | None:
    """A finished cell from the same start; None when there is none."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise AsympoError(f"{path} is not the result of a cell ({error}): remove it") from error
    return CellResult.from_json(values["result"]) if values["start"] == digest else None


def _make_start(preset: Preset, task: str, directory: Path) -> float:
    assert preset.warm_up is not None
    weights, accuracy = warm_up(preset.tasks[task], preset.warm_up, say=lambda line: None)
    save_weights(start_path(directory, task), weights)
    return accuracy


def _make_world(preset: Preset, task: str) -> World:
    """The preset's tiny network, or the demo's language model if it has none."""
    return DigitWorld(preset.tasks[task]) if preset.tasks else LanguageWorld()


def _run_cell(
    preset: Preset, spec: CellSpec, directory: Path, path: Path, digest: str, versions: dict[str, str]
) -> None:
    world = _make_world(preset, spec.task)
    start = _start(preset, spec, directory, world)
    made_by = versions | {"device": processor_class(next(iter(start.values())).device.type)}
    result = replace(Cell(spec, world=world, start=start).run(), made_by=made_by)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"start": digest, "result": result.to_json()}))
    temporary.replace(path)


def _start(preset: Preset, spec: CellSpec, directory: Path, world: World) -> Weights:
    if preset.warm_up is None:
        return weights_of(world.make_model())
    return load_weights(start_path(directory, spec.task))
