"""What the door says in the name of vLLM's handlers, without an engine."""

import pytest
from asympo.engines.vllm_door import _answered
from fastapi import Response


@pytest.mark.parametrize(("step", "said"), [(7, "7"), (None, "")])
def test_answer_names_the_policy(step: int | None, said: str) -> None:
    assert _answered(Response("x"), step).headers["x-asympo-policy-step"] == said


def test_caller_that_has_left_is_no_error() -> None:
    assert _answered(None, 7).status_code == 499
