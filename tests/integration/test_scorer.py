"""Scoring goes on whatever the scoring code does: real processes, real hangs, real deaths."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.rewards.scorer import Score, ScoreFailure, Scorer
from asympo.tasks.base import TaskPrompt
from asympo.tasks.registry import TaskConfig, load_task

TIMEOUT_SECONDS = 1.5

REWARDS = """
import ctypes, glob, os, sys, time

def score(prompt, response_text):
    if response_text == "raise":
        raise ValueError("no such thing")
    if response_text.startswith("hang"):
        open("hanging", "w").close()
    if response_text == "hang":
        while True:
            pass
    if response_text == "hang in C":
        10 ** 10 ** 9  # holds the interpreter lock: no thread and no signal handler of Python ever runs
    if response_text == "exit":
        sys.exit(3)
    if response_text == "die":
        os._exit(4)
    if response_text == "crash":
        ctypes.string_at(0)
    if response_text == "print":
        print("noise on standard output", flush=True)
        print("{}", file=sys.__stdout__, flush=True)
    if response_text == "read":
        return float(len(sys.stdin.read()))
    if response_text == "child":
        return float(os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "300"))
    if response_text == "meet":  # comes back only when two of these are being scored at once
        open(f"met-{os.getpid()}", "w").close()
        while len(glob.glob("met-*")) < 2:
            time.sleep(0.01)
    values = {"nan": float("nan"), "inf": float("inf"), "huge": 1e9, "none": None, "text": "1"}
    return values.get(response_text, float(response_text == prompt.answer))
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskConfig:
    """Scored by the code above, which lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"say {answer}", "answer": answer} for answer in "abcdefghij"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TaskConfig(name="jsonl", path=str(tmp_path / "rows.jsonl"), scoring="python:my_rewards:score")


@pytest.fixture
def scorer(task: TaskConfig) -> Iterator[Scorer]:
    with Scorer(task=task, timeout_seconds=TIMEOUT_SECONDS, allow_python=True) as scorer:
        yield scorer


def own(answer: str = "a") -> TaskPrompt:
    return TaskPrompt(index=0, text=f"say {answer}", answer=answer)


def rewards(scores: list[Score]) -> list[float | ScoreFailure]:
    return [score if isinstance(score, ScoreFailure) else score.reward for score in scores]


def process_ids(scorer: Scorer) -> list[int]:
    return [worker.process_id for worker in scorer._workers if worker.process_id is not None]


def is_alive(process_id: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def wait_until_dead(process_id: int) -> bool:
    return wait_until(lambda: not is_alive(process_id))


def expect_failure(outcome: float | ScoreFailure, kind: str, reason: str) -> None:
    assert isinstance(outcome, ScoreFailure)
    assert (outcome.kind, reason in outcome.reason) == (kind, True), outcome


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("raise", "raised", "scoring raised ValueError: no such thing"),
        ("none", "wrong_result", "returned None, which is not a number"),
        ("text", "wrong_result", "returned '1', which is not a number"),
        ("exit", "raised", "SystemExit: 3"),
        ("nan", "not_finite", "reward is nan"),
        ("inf", "not_finite", "reward is inf"),
        ("huge", "not_finite", "reward is 1000000000.0"),
        ("die", "died", "exit code 4"),
        ("crash", "died", "killed by SIGSEGV"),
        ("hang", "timed_out", "more than 1.5 s"),
        ("hang in C", "timed_out", "more than 1.5 s"),
    ],
)
def test_response_fails_alone_when_its_scoring_goes_wrong(
    scorer: Scorer, text: str, kind: str, reason: str
) -> None:
    first, middle, last = rewards(scorer.score(own(), ["a", text, "x"]))
    assert (first, last) == (1.0, 0.0)
    expect_failure(middle, kind, reason)


def test_what_scoring_prints_or_reads_does_not_disturb_the_replies(scorer: Scorer) -> None:
    texts = ["print", "read", "a", "long" * 500_000]
    assert rewards(scorer.score(own(), texts)) == [0.0, 0.0, 1.0, 0.0]


def test_hanging_process_and_its_children_are_killed(scorer: Scorer) -> None:
    (process_id,) = process_ids(scorer)
    (child_id,) = rewards(scorer.score(own(), ["child"]))
    assert isinstance(child_id, float)
    assert is_alive(int(child_id))
    scorer.score(own(), ["hang"])
    assert wait_until_dead(process_id)
    assert wait_until_dead(int(child_id))
    assert process_ids(scorer) == []
    assert rewards(scorer.score(own(), ["a"])) == [1.0]


def test_process_killed_between_two_calls_is_replaced(scorer: Scorer) -> None:
    os.kill(process_ids(scorer)[0], signal.SIGKILL)
    expect_failure(rewards(scorer.score(own(), ["a"]))[0], "died", "killed by SIGKILL")
    assert rewards(scorer.score(own(), ["a"])) == [1.0]


def test_held_out_prompts_are_scored_with_their_own_answers(task: TaskConfig, scorer: Scorer) -> None:
    held_out = load_task(task).held_out()
    assert len(held_out) == 2
    for prompt in held_out:
        assert rewards(scorer.score(prompt, [prompt.answer, "x"])) == [1.0, 0.0]


def test_two_workers_score_for_many_threads_in_parallel(task: TaskConfig) -> None:
    results: dict[int, list[float | ScoreFailure]] = {}
    with Scorer(task=task, timeout_seconds=30.0, num_workers=2, allow_python=True) as scorer:

        def score(number: int) -> None:
            results[number] = rewards(scorer.score(own("abcd"[number]), ["abcd"[number], "meet", "x"]))

        threads = [threading.Thread(target=score, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len(results[number]) for number in range(4)] == [3] * 4
    assert {tuple(results[number][1:]) for number in range(4)} == {(0.0, 0.0)}


def test_close_ends_a_scoring_that_hangs(task: TaskConfig) -> None:
    scorer = Scorer(task=task, timeout_seconds=60.0, allow_python=True)
    (process_id,) = process_ids(scorer)
    outcomes: list[float | ScoreFailure] = []
    thread = threading.Thread(target=lambda: outcomes.extend(rewards(scorer.score(own(), ["hang", "a"]))))
    thread.start()
    assert wait_until(Path("hanging").exists)
    scorer.close()
    thread.join(timeout=60)
    assert [outcome.kind for outcome in outcomes if isinstance(outcome, ScoreFailure)] == ["closed"] * 2
    assert wait_until_dead(process_id)
    expect_failure(rewards(scorer.score(own(), ["a"]))[0], "closed", "closed")
    scorer.close()


PARENT = """
import sys
from asympo.rewards.scorer import Scorer
from asympo.tasks.base import TaskPrompt
from asympo.tasks.registry import TaskConfig
task = TaskConfig(name="jsonl", path="rows.jsonl", scoring="python:my_rewards:score")
scorer = Scorer(task=task, timeout_seconds=60.0, allow_python=True)
print(scorer._workers[0].process_id, flush=True)
scorer.score(TaskPrompt(index=0, text="say a", answer="a"), [sys.argv[1]])
print("scored", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("text", ["hang in C", "a"])
def test_scoring_process_ends_with_a_killed_parent(task: TaskConfig, text: str) -> None:
    command = [sys.executable, "-c", PARENT, text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        if text == "a":
            assert parent.stdout.readline() == b"scored\n"
        else:
            assert wait_until(Path("hanging").exists)
        parent.kill()
    assert wait_until_dead(process_id)


def test_users_code_is_not_loaded_unless_this_process_allows_it(task: TaskConfig) -> None:
    Path("my_rewards.py").write_text("import pathlib; pathlib.Path('loaded').touch()\n" + REWARDS)
    with pytest.raises(BadSetting, match="python:my_rewards:score runs Python code"):
        Scorer(task=task, timeout_seconds=1.0)
    assert not Path("loaded").exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def other(): pass", "module my_rewards has no function score"),
        ("score = 3", "module my_rewards has no function score"),
        ("import nothing_of_this_name", "does not load: ModuleNotFoundError"),
        ("1 / 0", "does not load: ZeroDivisionError"),
        ("import os; os._exit(9)", "ended as it started \\(exit code 9\\)"),
    ],
)
def test_users_code_that_does_not_load_is_reported_at_the_start(
    task: TaskConfig, code: str, reason: str
) -> None:
    Path("my_rewards.py").write_text(code)
    with pytest.raises(BadSetting, match=reason):
        Scorer(task=task, timeout_seconds=1.0, allow_python=True)


def test_task_that_cannot_be_built_is_reported_at_the_start() -> None:
    with pytest.raises(BadSetting, match=r"nowhere\.jsonl cannot be read"):
        Scorer(task=TaskConfig(name="jsonl", path="nowhere.jsonl"), timeout_seconds=1.0)
    with pytest.raises(BadSetting, match="time limit above 0"):
        Scorer(task=TaskConfig(), timeout_seconds=0.0)


def test_math_verify_scores_in_the_process(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "half?", "answer": "1/2"}))
    config = TaskConfig(name="jsonl", path=str(path), scoring="math-verify")
    with Scorer(task=config, timeout_seconds=10.0) as scorer:
        half = TaskPrompt(index=0, text="half?", answer="1/2")
        scores = scorer.score(half, ["\\boxed{0.5}", "$9^{9^{9^{9}}}$", "none"])
        assert rewards(scores) == [1.0, 0.0, 0.0]
