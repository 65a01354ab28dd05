"""What a probe proves, row by row."""

import math

import pytest
from asympo.generator.verdict import Verdict, judge

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("measured", "expected", "before", "verdict"),
    [
        pytest.param([2.0], [2.0], [3.0], Verdict.PROVED, id="matches and moved"),
        pytest.param([2.1], [2.0], [3.0], Verdict.PROVED, id="error at the tolerance"),
        pytest.param([2.11], [2.0], [3.0], Verdict.FAILED, id="error above the tolerance"),
        pytest.param([1.89], [2.0], [3.0], Verdict.FAILED, id="error below the tolerance"),
        pytest.param([2.0], [2.0], [2.0], Verdict.CONSISTENT, id="nothing moved"),
        pytest.param([2.0], [2.0], [2.29], Verdict.CONSISTENT, id="moved by less than three tolerances"),
        pytest.param([2.0], [2.0], [2.31], Verdict.PROVED, id="moved by more than three tolerances"),
        pytest.param([3.0], [2.0], [3.0], Verdict.FAILED, id="stale engine"),
        pytest.param([2.0, 2.0], [2.0, 2.0], [2.0, 3.0], Verdict.PROVED, id="one sequence proves"),
        pytest.param([2.0, 2.5], [2.0, 2.0], [9.0, 9.0], Verdict.FAILED, id="one sequence fails"),
        pytest.param([2.0], [2.0], [None], Verdict.CONSISTENT, id="nothing known of before"),
        pytest.param([NAN], [2.0], [3.0], Verdict.FAILED, id="not a number"),
        pytest.param([NAN, 2.0], [2.0, 2.0], [3.0, 3.0], Verdict.FAILED, id="not a number first"),
        pytest.param([2.0, NAN], [2.0, 2.0], [3.0, 3.0], Verdict.FAILED, id="not a number last"),
        pytest.param([INF], [2.0], [3.0], Verdict.FAILED, id="infinite"),
        pytest.param([2.0], [2.0], [NAN], Verdict.CONSISTENT, id="weights before were broken"),
    ],
)
def test_judge_reads_a_probe(
    measured: list[float], expected: list[float], before: list[float | None], verdict: Verdict
) -> None:
    judgement = judge(measured=measured, expected=expected, before=before, tolerance=0.1 + 1e-9)
    assert judgement.verdict is verdict
    assert judgement.is_accepted == (verdict is not Verdict.FAILED)


@pytest.mark.parametrize(("measured", "expected", "before"), [([], [], []), ([1.0], [1.0, 2.0], [1.0, 2.0])])
def test_judge_refuses_a_probe_that_says_nothing(
    measured: list[float], expected: list[float], before: list[float | None]
) -> None:
    with pytest.raises(ValueError, match="at least one"):
        judge(measured=measured, expected=expected, before=before, tolerance=0.1)


def test_judgement_says_its_numbers() -> None:
    judgement = judge(measured=[2.05], expected=[2.0], before=[3.0], tolerance=0.1)
    assert str(judgement) == "proved: off by 0.05 at tolerance 0.1, weights before are 1 away"
