"""Programs of a model run shut in: what they try against the machine fails, and is tried before any runs."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BadSetting
from asympo.rewards import code
from asympo.rewards.code import CodeOptions, CodeReward, last_program, seconds_of_call
from asympo.rewards.conventions.base import Asked
from asympo.rewards.sandbox import inside, run
from asympo.rewards.sandbox.proof import prove_isolation
from asympo.rewards.sandbox.run import Limits, run_program
from asympo.rewards.scorer import Scored, Scorer
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig

LIMITS = Limits(seconds=10.0)


pytestmark = pytest.mark.usefixtures("sandbox")


def ended_with(source: str, limits: Limits = LIMITS) -> str:
    ended = run_program(source, limits=limits)
    assert not ended.is_done, f"it went through: {ended.output}"
    return ended.reason


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        yield server


def test_program_reaches_no_server(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    assert "PermissionError" in ended_with(
        f"import socket; socket.create_connection(('127.0.0.1', {port})).sendall(b'out')"
    )
    with pytest.raises(BlockingIOError):
        listening.accept()


def attributes(path: Path) -> tuple[object, ...]:
    """What a program could have changed; not the time of the last read, which reading changes."""
    found = path.stat()
    return found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, os.listxattr(path)


def test_program_leaves_nothing_behind(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    before = attributes(kept)
    attempts = [
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"open({str(kept)!r}, 'r+').write('x')",
        f"os.truncate({str(kept)!r}, 0)",
        f"os.unlink({str(kept)!r})",
        f"os.rename({str(kept)!r}, {str(tmp_path / 'other')!r})",
        f"os.chmod({str(kept)!r}, 0)",
        f"os.utime({str(kept)!r}, (0, 0))",
        f"os.setxattr({str(kept)!r}, 'user.a', b'b')",
        f"os.mkfifo({str(tmp_path / 'pipe')!r})",
        f"os.open({str(tmp_path)!r}, os.O_TMPFILE | os.O_RDWR)",
    ]
    source = "import os\nfor attempt in {!r}:\n  try: eval(attempt)\n  except OSError: print('refused')"
    ended = run_program(source.format(attempts), limits=LIMITS)
    assert ended.output.split() == ["refused"] * len(attempts), ended
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept.read_text(), attributes(kept)) == ("as it was", before)


def test_program_reads_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    secrets = [str(tmp_path / "token"), "/proc/1/environ", "/proc/self/environ", "/etc/passwd", "/etc/shadow"]
    source = f"""
import glob, os
print(sorted(os.environ))
for path in {secrets!r}:
    try: print(open(path).read())
    except OSError: print("refused")
print(glob.glob("/proc/*"), glob.glob(os.path.expanduser("~/.*")), glob.glob({str(tmp_path)!r} + "/*"))
"""
    ended = run_program(source, limits=LIMITS)
    names, *read, globbed = ended.output.strip().splitlines()
    assert "TOKEN" not in names
    assert read == ["refused"] * 5
    assert globbed == "[] [] []"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import multiprocessing; multiprocessing.Process(target=print).start()", "PermissionError"),
        ("import threading\nwhile True: threading.Thread(target=input).start()", "can't start new thread"),
        ("x = []\nwhile True: x.append(bytearray(2**24))", "MemoryError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import os; os.kill(-1, 9)", "PermissionError"),
        ("import ctypes; ctypes.CDLL(None).syscall(425, 8, 0) == -1 and 1/0", "ZeroDivisionError"),
        ("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "the program"),
        ("import os; os._exit(3)", "exit code 3"),
        ("def", "SyntaxError"),
    ],
)
def test_program_that_attacks_ends_in_an_error(source: str, reason: str) -> None:
    assert reason in ended_with(source)


def test_hanging_and_endless_programs_are_ended() -> None:
    short = Limits(seconds=0.5, output_bytes=1000)
    started = time.monotonic()
    assert "took more than 0.5 s" in ended_with("import time\nwhile True: time.sleep(60)", short)
    ignoring = (
        "import signal\nfor n in range(1, 30):\n  if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n"
    )
    assert "took more than 0.5 s" in ended_with(ignoring + "while True: pass", short)
    assert "wrote more than 1000 bytes" in ended_with("import os\nwhile True: os.write(2, b'x' * 99)", short)
    twice = "import os\nos.write(1, b'x' * 600), os.write(2, b'x' * 600)"
    assert "wrote more than 1000 bytes" in ended_with(twice, short), "both outputs count together"
    assert time.monotonic() - started < 8


def test_verdict_that_a_program_writes_itself_does_not_count() -> None:
    forged = "import os, sys\nos.write(int(sys.argv[2]), b'{\"failures\": [null]}')\nos._exit(0)"
    ended = run_program(forged, limits=LIMITS, tests=["assert False"])
    assert (ended.is_done, ended.reason) == (False, "the program ends before its tests")
    refused = 'import os, sys\nos.write(int(sys.argv[2]), b\'{"refused": "Landlock"}\')'
    assert not run_program(refused, limits=LIMITS, tests=["assert False"]).is_done


def test_sandbox_without_its_filter_or_its_paths_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, "seccomp_filter", lambda: bytes.fromhex("060000000000ff7f"))
        with pytest.raises(BadSetting, match="leaks on this machine: a program can"):
            prove_isolation()
    monkeypatch.setattr(run, "_SYSTEM_PATHS", ("/",))
    with pytest.raises(BadSetting, match="a program can read a file"):
        prove_isolation()


def scored(tests: Any, *texts: str, **options: Any) -> list[Any]:
    rewards = [{"function": "code", "options": {"seconds": 5.0, **options}}]
    prompt = TaskPrompt(index=0, text="p", answer="", columns={"tests": tests})
    task = TaskConfig.model_validate({"rewards": rewards})
    # No function gets less time than it needs by its own options.
    with Scorer(task=task, timeout_seconds=0.001, columns=["tests"]) as scorer:
        scores = scorer.score(prompt, texts)
    return [each.reward if isinstance(each, Scored) else each.reason for each in scores]


def block(source: str) -> str:
    return f"First ```python\nraise SystemExit\n``` and then:\n```python\n{source}\n```\nThat is all."


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nprint(5)\n```\nOutput:\n```text\n5\n```\nDone.", "print(5)\n"),
        ("```python\nprint(5)\n```\nOutput:\n```\n5\n```", "print(5)\n"),
        ("```bash\npip install x\n```\nThen:\n```Python\r\nprint(1)\n```", "print(1)\n"),
        ("Of ```x``` here:\n``` \nprint(1)\n``` and\n```py title=a\nprint(2)", "print(2)"),
        ("``` \nprint(1)\n```\n```\nprint(2)\n```", "print(2)\n"),
        ("```text\n5\n```\nDone: ```5```\n", None),
    ],
)
def test_program_is_the_last_block_of_python(text: str, program: str | None) -> None:
    assert last_program(text) == program


def test_code_is_scored_by_the_tests_of_its_row() -> None:
    right, wrong = block("def add(a, b):\n    return a + b"), block("def add(a, b):\n    return a * b")
    tests = ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]
    texts = (right, wrong, "def add(a, b): return a + b", block("import sys; sys.exit(0)"))
    assert scored(tests, *texts) == [1.0, 0.0, 0.0, 0.0]
    assert scored(tests, right, wrong, partial=True) == [1.0, 0.5]
    prepared = ["x = add(1, 2)", "from __future__ import annotations", tests[0]]
    assert scored(prepared, right, wrong, partial=True) == [1.0, 0.0]
    cases = {"inputs": ["1 2\n", "2 2\n"], "outputs": ["3", "4\n"]}
    adds = block(
        "import sys\nprint(sum(map(int, input().split()))); print('log', file=sys.stderr); 'a' is 'a'"
    )
    assert scored(cases, adds, wrong) == [1.0, 0.0]
    for same in (json.dumps(cases), [{"input": "1 2", "output": "3"}, {"input": ["2 2"], "output": 4}]):
        assert scored(same, adds, wrong) == [1.0, 0.0]


def test_time_of_all_cases_is_the_programs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"inputs": ["1", "2"], "outputs": ["1", "2"]}
    prompt = TaskPrompt(index=0, text="p", answer="", columns={"tests": cases})
    monkeypatch.setattr(code, "prove_isolation", lambda: None)

    def told(source: str, seconds: float = 10.0, *, partial: bool = True) -> tuple[Any, ...]:
        reward = CodeReward(CodeOptions(seconds=seconds, partial=partial), None)
        return tuple(reward(Asked(prompt=prompt, texts=(block(source),))).values())

    late = "the program took more than 0.5 s for all inputs together"
    assert told("if input() == '2':\n  while True: pass\nprint(1)", 0.5) == (0.5, 1, late)
    assert told("print(2)") == (0.5, 1, "wrote '2'")
    assert told("print(2)", partial=False) == (0.0, 0, "wrote '2'"), "the case after it is not tried"
    slow = tmp_path / "inside.py"
    slow.write_text("import time\ntime.sleep(0.6)\n" + Path(inside.__file__).read_text())
    monkeypatch.setattr(run, "_INSIDE", slow)
    assert told("print(input())", 1.0) == (1.0, 2, "")
    monkeypatch.setattr(run, "_START_SECONDS", 0.1)
    with pytest.raises(TimeoutError, match="no interpreter was ready"):
        told("print(input())")


def test_call_may_take_as_long_as_its_programs_and_all_their_interpreters() -> None:
    cases = {"inputs": ["1"] * 300, "outputs": ["1"] * 300}
    listed = [{"input": "1", "output": "1"}] * 300
    texts = ["assert f()"] * 300
    for tests, num_starts in (
        *((cases, 300), (json.dumps(cases), 300), (listed, 300), ([*map(json.dumps, listed)], 300)),
        ({"input": ["1"] * 300, "output": ["1"] * 300}, 300),
        *((texts, 1), (None, 1), (5, 1), ({"inputs": 5}, 1)),
    ):
        allowed = seconds_of_call({"seconds": 7.0}, {"tests": tests})
        assert allowed == 7.0 + num_starts * code.START_SECONDS


def test_row_without_tests_has_no_reward_and_rows_without_the_column_are_refused() -> None:
    (failure,) = scored([], block("pass"))
    assert failure.endswith("row 0 has no tests")
    task = TaskConfig.model_validate({"rewards": [{"function": "code"}]})
    with pytest.raises(BadSetting, match="column tests or test_list, and the rows have answer"):
        Scorer(task=task, timeout_seconds=30.0, columns=["answer"])
