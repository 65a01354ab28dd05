"""Which tests of a row can be run, and that those which would judge every program alike are refused."""

import json
from typing import Any

import pytest
from asympo.rewards.code_tests import Case, read_tests


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": "1 2", "output": "3"}, {"input": "5\n6", "output": "11"}],
        {"inputs": ["1 2", "5\n6"], "outputs": ["3", "11"]},
        {"inputs": [["1 2"], ["5", "6"]], "outputs": [3, ["11"]], "fn_name": None},
    ],
)
def test_cases_are_the_same_in_every_shape(tests: Any) -> None:
    for given in (tests, json.dumps(tests)):
        found = read_tests({"tests": given}, 0)
        assert found == [Case(given="1 2", right="3"), Case(given="5\n6", right="11")]


@pytest.mark.parametrize(
    "tests",
    [
        "assert f(1) == 2",
        "def check(candidate):\n    assert candidate(1)\ncheck(f)",
        ["import math", "", "assert f(1) == math.pi"],
        ["this is no Python"],
    ],
)
def test_code_is_taken_as_it_stands(tests: Any) -> None:
    assert read_tests({"test_list": tests}, 0) == ([tests] if isinstance(tests, str) else tests)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ([], "row 7 has no tests"),
        (5, "are 5: give Python code or a list of it, "),
        ([1, 2], "hold 1, which is no text"),
        (["assert f()", {"input": "1"}], "which is no text"),
        ("['assert f()']", "which passes for every program"),
        ("'assert f()'", "which passes for every program"),
        (["assert f()", '{"input": "1 2", "output": "3"}'], "which passes for every program"),
        ("# nothing", "call nothing: end them with what checks"),
        ("A = {}\ndef check(candidate):\n    assert candidate(1)", "call nothing: end them with what checks"),
        (
            {"fn_name": "f", "inputs": [[1, 2]], "outputs": [3]},
            "call the function f: write each as an assert",
        ),
        ({"inputs": [[1, 2]], "outputs": ["3"]}, r"hold \[1, 2\]: give what the program reads or writes as"),
        ({"inputs": [None], "outputs": ["3"]}, "hold None: give what"),
        ({"inputs": ["1"], "outputs": []}, "have 1 inputs and 0 outputs"),
        ({"inputs": 1, "outputs": 2}, "'inputs': 1"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "call a function: write each as"),
        ([{"input": "1", "expected": "2"}], "lacks input or output"),
    ],
)
def test_tests_that_say_nothing_of_a_program_are_refused(tests: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        read_tests({"tests": tests}, 7)
    assert "\n" not in str(raised.value)
