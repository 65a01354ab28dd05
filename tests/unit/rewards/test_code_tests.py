"""Which tests of a row can be run, and that those which would judge every program alike are refused."""

import base64
import json
import zlib
from typing import Any

import pytest
from asympo.rewards.code_tests import Case, read_tests


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": "1 2", "output": "3"}, {"input": "5\n6", "output": "11"}],
        {"inputs": ["1 2", "5\n6"], "outputs": ["3", "11"]},
        {"input": ["1 2", "5\n6"], "output": ["3", "11"]},
        [{"input": "1 2", "output": "3", "fn_name": None}, {"input": "5\n6", "output": "11", "metadata": {}}],
        {"inputs": [["1 2"], ["5", "6"]], "outputs": [3, ["11"]], "fn_name": None},
    ],
)
def test_cases_are_the_same_in_every_shape(tests: Any) -> None:
    for given in (
        tests,
        json.dumps(tests),
        *([[*map(json.dumps, tests)]] if isinstance(tests, list) else []),
    ):
        found = read_tests({"tests": given}, 0)
        assert found == [Case(given="1 2", right="3"), Case(given="5\n6", right="11")]


CHECK = "def check(candidate):\n    assert candidate(1) == 2"
SWALLOWS = "try:\n    assert f(1) == 2\nexcept {}:\n    {}"
EXPECTS = "try:\n    f(-1)\n    {}\nexcept ValueError:\n    pass"
FAIL = "def fail(why):\n    raise AssertionError(why)\n"
UNITTEST = (
    "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(1), 2)\n"
)


@pytest.mark.parametrize(
    "tests",
    [
        "assert f(1) == 2",
        f"{CHECK}\ncheck(f)",
        f"def all_of(candidate):\n    check(candidate)\n{CHECK}\nfor g in [f]:\n    all_of(g)",
        f"{CHECK}\nfor each in [check]:\n    each(f)",
        "class Test:\n    def test(self):\n        assert f(1) == 2\nTest().test()",
        "import numpy as np\nnp.testing.assert_allclose(f(1), 2)",
        "from numpy.testing import *\nassert_equal(f(1), 2)",
        "import pytest\nwith pytest.raises(ValueError):\n    f(-1)",
        "if f(1) != 2:\n    raise AssertionError",
        "f(1) == 2 or exit(1)",
        *(map(EXPECTS.format, ("assert False", "assert 1 == 2", "assert not 'reached'", "raise TypeError"))),
        SWALLOWS.format("AssertionError", "raise"),
        *(
            UNITTEST + f"{made}.debug()"
            for made in ("T('test')", "unittest.TestLoader().loadTestsFromName(T)")
        ),
        f"{CHECK}\nlist(map(check, [f]))",
        f"{CHECK}\nimport timeit\ntimeit.timeit(lambda: check(f), number=1)",
        f"def run(test):\n    test(f)\n@run\n{CHECK}",
        "from numpy.testing import assert_allclose as close\nclose(f(1), 2)",
        "from nose.tools import eq_\neq_(f(1), 2)",
        "exec('assert f(1) == 2')",
        f"exec({CHECK + chr(10) + 'check(f)'!r})",
        f"{CHECK}\neval(' check(f)')",
        f"{CHECK}\nfor each in ['check(f)']:\n    eval(each)",
        "for each in ['assert f(1) == 2']:\n    exec(each)",
        FAIL + "if f(1) != 2:\n    fail('bad')",
        FAIL + "f(1) == 2 or fail('bad')",
        FAIL + EXPECTS.format("fail('no error')"),
        FAIL + "def check(c):\n    if c(1) != 2:\n        fail('bad')\nfor each in [check]:\n    each(f)",
        FAIL + SWALLOWS.format("AssertionError as error", "fail(error)"),
        "for each in ['assert_equal(f(1), 2)']:\n    eval(each)",
        "eval(compile('assert f(1) == 2', 'tests', 'exec'))",
        "class C:\n    def eq(self, a, b):\n        if a != b:\n            self.no()\n"
        "    def no(self):\n        raise OSError\nC().eq(f(1), 2)",
        "def check(c):\n    if c(1) != 2:\n        raise OSError\n    return True\ncheck(f)",
        "for x in [1, 2]:\n    if x == 1:\n        continue\n    assert f(x) == 3",
        "import sys\nif f(1) != 2:\n    sys.exit(1)",
        "def check(c):\n    def each():\n        yield 1\n    assert c(*each()) == 2\ncheck(f)",
        f"{CHECK}\nclass T:\n    def check(self):\n        yield\ncheck(f)",
        f"class T:\n    def check(self):\n        yield\n{CHECK}\ncheck(f)",
        "class A:\n    def __init__(self):\n        assert f(1) == 2\nclass B(A):\n    pass\nB()",
        "class A:\n    def __exit__(self, *_):\n        assert f(1) == 2\nwith A():\n    pass",
        "class A:\n    assert f(1) == 2",
        "def same(a, b):\n    if a == b:\n        return\n    raise ValueError\nsame(f(1), 2)",
        "def a(n):\n    b(n)\n    assert f(n)\ndef b(n):\n    if n:\n        a(n - 1)\nb(3)",
        "async def t():\n    assert await f(1) == 2\nimport asyncio\nasyncio.run(t())",
        *(
            "import asyncio\nclass T:\n    async def run(self):\n        assert await f(1) == 2\n"
            f"{other}asyncio.run(T().run())"
            for other in ("", "class O:\n    def run(self):\n        pass\n")
        ),
        "if __name__ != '__main__':\n    assert f(1) == 2",
        "f(1), f(2)\nassert f(1) == 2",
        "[f(1), f(2)]\nassert f(1) == 2",
        "x = " + "-" * 10000 + "1\nassert f(x) == 2",
    ],
)
def test_code_is_taken_as_it_stands(tests: str) -> None:
    assert read_tests({"test_list": tests}, 0) == [(tests,)]


def test_text_that_is_indented_as_a_whole_is_not() -> None:
    assert read_tests({"tests": ["    assert f(1)\n    assert f(2)"]}, 0) == [("assert f(1)\nassert f(2)",)]


def test_texts_that_only_prepare_count_with_the_test_that_they_are_for() -> None:
    texts = [
        "import math",
        "",
        "assert f(1) == math.pi",
        '"""The second test."""',
        "x = f(2)",
        "assert x",
        "f(3)",
    ]
    assert read_tests({"tests": texts}, 0) == [tuple(texts[:3]), tuple(texts[3:])]
    texts = ["data = eval('[1, 2]')", "assert f(data) == 3"]
    assert read_tests({"tests": texts}, 0) == [tuple(texts)]


ASSERT_NOTHING = (
    "# nothing",
    '"""Tests."""',
    "f(2)",
    "print(f(2) == 3)",
    "assert True",
    "assert 1 == 1",
    "assert (f(1) == 2, 'wrong')",
    f"A: dict = {{}}\nN = int(1e5)\n{CHECK}",
    f"{CHECK}\nif __name__ == '__main__':\n    check(f)",
    "def check(candidate):\n    candidate(1) == 2\ncheck(f)",
    "class Test:\n    def test(self):\n        assert f(1) == 2\nTest()",
    SWALLOWS.format("AssertionError", "print('failed')"),
    SWALLOWS.format("(ValueError, Exception)", "pass"),
    "assertEqual(f(1), 2)",
    "def a():\n    b()\ndef b():\n    a()\na()",
    "assert [f(1) == 2]",
    "if False:\n    assert f(1) == 2",
    UNITTEST + "T('test')()",
    "import signal\ndef late(*_):\n    raise TimeoutError\nsignal.signal(signal.SIGALRM, late)\nf(1) + 1",
    "def run():\n    try:\n        f(1)\n    except Exception:\n        raise TypeError\nrun()",
    "print(eval('f([1])'))",
    "text = 'f(1) == 2'\nprint(eval(text))",
    "exec('x = f(1)')",
    "exec('no Python')",
    FAIL + "def late(*_):\n    fail('late')\nimport signal\nsignal.signal(signal.SIGALRM, late)\nf(1) + 1",
    FAIL + "try:\n    f(1)\nexcept ValueError:\n    fail('an error')",
    "def late(*_):\n    def one():\n        return\n    raise TimeoutError\nprint(late)",
    "import contextlib\nwith contextlib.suppress(Exception):\n    assert f(1) == 2",
    "def t():\n    try:\n        assert f(1) == 2\n    finally:\n        return\nt()",
    "def t():\n    assert f(1) == 2\n    yield\nt()",
    "async def t():\n    assert f(1) == 2\nt()",
    "class T:\n    async def t(self):\n        assert f(1) == 2\nclass O:\n"
    "    def t(self):\n        pass\nT().t()",
    "class V:\n    def visit(self, n):\n        raise NotImplementedError\nclass P(V):\n"
    "    def visit(self, n):\n        n()\nP().visit(f)",
    "class Frozen(list):\n    def append(self, x):\n        raise TypeError\nout = []\nout.append(f(1))",
    "import signal\ndef late():\n    raise OSError\n"
    "signal.signal(signal.SIGALRM, lambda *_: late())\nf(1) + 1",
    "def check(c):\n    return\n    assert c(1) == 2\ncheck(f)",
    "for x in [1]:\n    continue\n    assert f(x) == 2",
    "while False:\n    assert f(1) == 2",
    "for x in []:\n    assert f(1) == 2",
    "assert f(1) == 2 or True",
    "assert lambda: f(1) == 2",
    "assert (f(x) == 2 for x in [1])",
    "assert f'{f(1)} is 2'",
)
ALWAYS_FAIL = (
    "def main():\n    raise SystemExit(0 if f(1) == 2 else 1)\nmain()",
    "async def main():\n    raise SystemExit(0 if f(1) == 2 else 1)\nimport asyncio\nasyncio.run(main())",
    FAIL + "fail('bad')",
    "import sys\nsys.exit(0 if f(1) == 2 else 1)",
    "assert False",
)
NO_PYTHON = (
    ["assert f(1)", "this is no Python"],
    ">>> f(1)\n2",
    "```python\nassert f(1) == 2\n```",
    ["%timeit f(1)", "assert f(1)"],
    "assert f(1)\n    assert f(2)",
    "assert f(1)\0",
)
PACKED = base64.b64encode(zlib.compress(json.dumps([{"input": "1", "output": "2"}] * 9).encode())).decode()


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ([], "row 7 has no tests"),
        (5, "are 5: give Python code or a list of it, "),
        ([1, 2], "hold 1, which is no text"),
        (["assert f()", {"input": "1"}], "which is no text"),
        ("['assert f()']", "which passes for every program"),
        ("'assert f()'", "assert nothing when they run"),
        (["assert f()", '{"input": "1 2", "output": "3"}'], "which passes for every program"),
        (["assert f()", '{"input": null}'], "which passes for every program"),
        ("null", "row 7 has no tests"),
        *((text, "which is no Python .*: give Python code or a list of it") for text in NO_PYTHON),
        (
            "f(2) == 3",
            "'f.2. == 3', which only compares, and so passes for every program: write assert before",
        ),
        (["assert f(1)", "f(2) == 3 and not f(3)"], "which only compares"),
        (["assert f(1)\nnot f(2)"], "which only compares"),
        (PACKED, "are packed in column tests, like LiveCodeBench's private_test_cases, .* put the JSON text"),
        *((tests, "assert nothing when they run: end them with an assert") for tests in ASSERT_NOTHING),
        *((tests, "which always raises an error or exits, and so fails for every") for tests in ALWAYS_FAIL),
        (
            {"fn_name": "f", "inputs": [[1, 2]], "outputs": [3]},
            "call the function f: write each as an assert",
        ),
        ({"inputs": [[1, 2]], "outputs": ["3"]}, r"hold \[1, 2\]: give what the program reads or writes as"),
        ({"inputs": [None], "outputs": ["3"]}, "hold None: give what"),
        ({"inputs": ["1"], "outputs": []}, "have 1 inputs and 0 outputs"),
        ({"inputs": 1, "outputs": 2}, "'inputs': 1"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "call a function: write each as"),
        (
            [{"input": "1", "output": "2", "metadata": {"func_name": "f"}}],
            "call the function f: write each as",
        ),
        ([{"input": "1", "expected": "2"}], "lacks input or output"),
        ({"input": "1", "output": "2"}, "are {'input': '1', 'output': '2'}: give "),
    ],
)
def test_tests_that_say_nothing_of_a_program_are_refused(tests: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        read_tests({"tests": tests}, 7)
    assert "\n" not in str(raised.value)


def test_cases_are_refused_whose_row_names_the_function_that_they_call() -> None:
    columns = {"tests": '[{"input": "1", "output": "2"}]', "metadata": '{"func_name": "add"}'}
    with pytest.raises(ValueError, match="the tests of row 7 call the function add: write each as an assert"):
        read_tests(columns, 7)
    assert read_tests(columns | {"metadata": "{}"}, 7) == [Case(given="1", right="2")]
    assert read_tests(columns | {"tests": "assert add(1)"}, 7) == [("assert add(1)",)]
