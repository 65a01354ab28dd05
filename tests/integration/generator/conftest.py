"""A learner's side for each test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.generator.harness import LearnerSide


@pytest.fixture
def make_learner(broker_url: str, run_name: str, tmp_path: Path) -> Iterator[Callable[..., LearnerSide]]:
    """Builds the learner's side of one run; changes to the run config as keywords."""
    made: list[LearnerSide] = []

    def make(**changes: Any) -> LearnerSide:
        made.append(LearnerSide(url=broker_url, run=run_name, root=tmp_path, **changes))
        return made[-1]

    yield make
    for side in made:
        side.close()


@pytest.fixture
def learner(make_learner: Callable[..., LearnerSide]) -> LearnerSide:
    """The learner's side of a run that is not created yet."""
    return make_learner()
