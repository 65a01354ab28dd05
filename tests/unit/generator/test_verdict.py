"""What a reload proves, row by row."""

import math

import pytest
from asympo.common.checkpoints import ProbeSequence
from asympo.engines.base import Readback
from asympo.generator.reload.verdict import NllCheck, Verdict, check_nll, judge

QUIET = NllCheck(error=0.01, noise=0.004, token_noise=0.05)
GROSS = NllCheck(error=0.5, noise=0.004, token_noise=6.0)


def readback(**changes: object) -> Readback:
    return Readback(**({"num_values": 9, "num_changed": 3} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "nll", "verdict"),
    [
        pytest.param(readback(), QUIET, Verdict.PROVED, id="all equal the child and some changed"),
        pytest.param(readback(num_changed=None), QUIET, Verdict.PROVED, id="nothing was there before"),
        pytest.param(readback(num_changed=0), QUIET, Verdict.UNCHANGED, id="the child equals the parent"),
        pytest.param(readback(wrong=("head",)), QUIET, Verdict.FAILED, id="one layer differs"),
        pytest.param(readback(wrong=("head",), num_changed=0), QUIET, Verdict.FAILED, id="differs from both"),
        pytest.param(readback(uncovered=("experts",)), QUIET, Verdict.UNPROVEN, id="one layer is unseen"),
        pytest.param(
            readback(uncovered=("experts",), wrong=("head",)), QUIET, Verdict.FAILED, id="unseen and wrong"
        ),
        pytest.param(readback(num_values=0), QUIET, Verdict.UNPROVEN, id="nothing was read back"),
        pytest.param(readback(), None, Verdict.PROVED, id="no probe sequences"),
        pytest.param(readback(), GROSS, Verdict.FAILED, id="proved and speaks no sense"),
        pytest.param(readback(uncovered=("experts",)), GROSS, Verdict.FAILED, id="unseen and no sense"),
    ],
)
def test_judge_reads_a_reload(found: Readback, nll: NllCheck | None, verdict: Verdict) -> None:
    judgement = judge(found, nll)
    assert judgement.verdict is verdict
    assert judgement.is_accepted == (verdict is not Verdict.FAILED)


def sequences(*lengths: int) -> list[ProbeSequence]:
    return [ProbeSequence(token_ids=tuple(range(n + 1)), num_prompt_tokens=1, mean_nll=2.0) for n in lengths]


@pytest.mark.parametrize(
    ("measured", "lengths", "token_noise", "is_gross"),
    [
        pytest.param([2.03], [12], None, False, id="bfloat16 on a dozen tokens"),
        pytest.param([2.3, 1.7], [100, 100], 0.1, False, id="errors that cancel"),
        pytest.param([2.3], [400], 0.1, True, id="the same error on many tokens"),
        pytest.param([2.3], [400], 0.3, False, id="an engine as noisy as that"),
        pytest.param([2.0, 3.0], [100, 100], 0.1, True, id="one sequence is far off"),
        pytest.param([math.nan], [12], 0.1, True, id="not a number"),
        pytest.param([2.0, math.nan], [12, 12], 0.1, True, id="not a number last"),
        pytest.param([math.inf, 2.0], [12, 12], 0.1, True, id="infinite"),
    ],
)
def test_only_a_gross_difference_on_many_tokens_counts(
    measured: list[float], lengths: list[int], token_noise: float | None, is_gross: bool
) -> None:
    check = check_nll(measured, sequences(*lengths), token_noise=token_noise)
    assert check is not None
    assert check.is_gross is is_gross


def test_noise_of_a_token_is_what_sequences_of_any_length_show_of_it() -> None:
    check = check_nll([2.1, 2.05], sequences(25, 100), token_noise=None)
    assert check is not None
    assert check.token_noise == pytest.approx(0.5)


def test_probe_without_sequences_says_nothing() -> None:
    assert check_nll([], [], token_noise=None) is None


def test_judgement_says_what_it_rests_on() -> None:
    judgement = judge(readback(wrong=("lm_head (multiplied): 3 of 9 values",)), QUIET)
    assert str(judgement) == (
        "failed: 9 values read back, differ in 1 layers, lm_head (multiplied): 3 of 9 values first, "
        "mean NLL off by 0.01 where noise is 0.004"
    )
