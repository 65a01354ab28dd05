"""Reward functions in their processes: groups, weights, async ones at once, and what hangs or blocks."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asympo.common.codec import encode_group
from asympo.common.records import FinishReason, Prompt, Response, RolloutGroup, UnscoredResponse
from asympo.generator.work.group import notes_of, numbers_of
from asympo.rewards.progress import RunProgress
from asympo.rewards.scorer import Scored, ScoreFailure, Scorer
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig

CODE = """
import asyncio, time

async def judge(prompts, completions, **columns):
    await asyncio.sleep(1.0)
    return [1.0] * len(completions)

async def one(solution_str, ground_truth):
    if solution_str == "sleep":
        await asyncio.sleep(60)
    if solution_str == "block":
        time.sleep(60)
    if solution_str == "raise":
        raise ValueError("no judge")
    if solution_str == "cancel":
        raise asyncio.CancelledError
    return {"score": float(solution_str == ground_truth), "length": len(solution_str)}

def matches(completions, answer, **columns):
    return [None if text == "skip" else float(text == right) for text, right in zip(completions, answer)]

def tells(completions, log_extra, log_metric, **columns):
    log_metric("share", 0.25)
    log_extra("length", [len(text) for text in completions])
    log_extra("text", list(completions))
    return [1.0] * len(completions)

def early(completions, trainer_state, **columns):
    return [float(trainer_state.global_step < 10)] * len(completions)

def share(completions, trainer_state, **columns):
    passes = trainer_state.epoch / trainer_state.num_train_epochs
    return [trainer_state.global_step / trainer_state.max_steps + 10 * passes] * len(completions)

async def early_later(completions, trainer_state, **columns):
    return [float(trainer_state.global_step < 10)] * len(completions)

def odd(solution_str, ground_truth):
    if solution_str == "raise":
        raise ValueError("cut off \\ud83d")
    extras = {"big": 10**400, "text": "cut off \\ud83d", "n" * 5000: 1, "\\ud83d": 2, "nan": float("nan")}
    return {"score": 1.0, **extras}

def hangs(response_text, **columns):
    while response_text == "hang":
        pass
    if response_text == "leave":
        raise GeneratorExit
    return 2.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own_functions.py"
    path.write_text(CODE)
    return path


def scorer_of(file: Path, *rewards: dict[str, Any], timeout_seconds: float = 10.0) -> Scorer:
    own = [{**each, "function": f"{file}:{each['function']}"} for each in rewards]
    return Scorer(
        task=TaskConfig.model_validate({"rewards": own}),
        timeout_seconds=timeout_seconds,
        allow_python=True,
        columns=["answer"],
    )


@pytest.fixture
def prompt() -> TaskPrompt:
    return TaskPrompt(index=0, text="say a", answer="a", columns={"prompt": "say a", "answer": "a"})


def test_reward_is_the_weighted_sum_of_what_applies(file: Path, prompt: TaskPrompt) -> None:
    # Added from left to right, these weights make 0.9999999999999999.
    rewards = (
        {"function": "matches", "weight": 0.7},
        {"function": "one", "name": "judge", "weight": 0.2},
        {"function": "matches", "name": "again", "weight": 0.1},
    )
    with scorer_of(file, *rewards) as scorer:
        first, second, third = scorer.score(prompt, ["a", "x", "skip"])
    assert isinstance(first, Scored)
    assert (first.reward, first.functions) == (1.0, {"matches": 1.0, "judge": 1.0, "again": 1.0})
    assert first.extras == {"judge/length": 1}
    assert isinstance(third, Scored)
    assert (third.reward, third.functions) == (0.0, {"matches": None, "judge": 0.0, "again": None})
    assert isinstance(second, Scored)


def test_what_a_function_logs_comes_with_each_response(file: Path, prompt: TaskPrompt) -> None:
    with scorer_of(file, {"function": "tells"}) as scorer:
        scores = scorer.score(prompt, ["a", "abc"])
    extras = [each.extras for each in scores if isinstance(each, Scored)]
    assert extras == [
        {"tells/share": 0.25, "tells/length": 1, "tells/text": "a"},
        {"tells/share": 0.25, "tells/length": 3, "tells/text": "abc"},
    ]


@pytest.mark.parametrize("name", ["early", "early_later"])
def test_function_knows_the_step_of_the_policy_that_answered(
    file: Path, prompt: TaskPrompt, name: str
) -> None:
    with scorer_of(file, {"function": name}) as scorer:
        for step, reward in ((9, 1.0), (10, 0.0)):
            scores = scorer.score(prompt, ["4"], progress=RunProgress(step=step))
            assert scores == [Scored(reward=reward, functions={name: reward})]
        assert scorer.score(prompt, ["4"]) == [Scored(reward=1.0, functions={name: 1.0})]


def test_function_knows_how_far_the_run_is(file: Path, prompt: TaskPrompt) -> None:
    progress = RunProgress(step=3, total_steps=12, epoch=1, num_epochs=2)
    with scorer_of(file, {"function": "share"}) as scorer:
        [known] = scorer.score(prompt, ["4"], progress=progress)
        [unknown] = scorer.score(prompt, ["4"])
    assert known == Scored(reward=5.25, functions={"share": 5.25})
    assert isinstance(unknown, ScoreFailure)
    assert "division by zero" in unknown.reason


def test_response_without_any_value_has_no_reward(file: Path, prompt: TaskPrompt) -> None:
    with scorer_of(file, {"function": "matches"}) as scorer:
        skipped, other = scorer.score(prompt, ["skip", "a"])
    assert isinstance(skipped, ScoreFailure)
    assert skipped.kind == "does_not_apply"
    assert isinstance(other, Scored)


def test_what_no_record_could_hold_is_said_in_one_that_can(file: Path, prompt: TaskPrompt) -> None:
    with scorer_of(file, {"function": "odd"}) as scorer:
        first, second, failed = scorer.score(prompt, ["a", "b", "raise"])
    assert isinstance(first, Scored)
    assert isinstance(failed, ScoreFailure)
    assert failed.reason == "odd: scoring raised ValueError: cut off ?"
    assert first.extras["odd/big"] == "a whole number of 1329 bits"
    responses = [
        Response(
            token_ids=(1,),
            text="x",
            reward=1.0,
            finish_reason=FinishReason.STOP,
            function_values=numbers_of(each),
            function_notes=notes_of(each),
        )
        for each in (first, second)
        if isinstance(each, Scored)
    ]
    group = RolloutGroup(
        group_id="0-1",
        prompt=Prompt(token_ids=(1,)),
        responses=tuple(responses),
        unscored=(UnscoredResponse(text="x", reason=failed.reason),),
    )
    assert len(encode_group(group)) < 5000


def test_function_that_hangs_costs_its_response_alone(file: Path, prompt: TaskPrompt) -> None:
    rewards = ({"function": "matches"}, {"function": "hangs", "timeout_seconds": 0.5})
    with scorer_of(file, *rewards) as scorer:
        first, hanging, leaving, last = scorer.score(prompt, ["a", "hang", "leave", "x"])
    assert isinstance(leaving, ScoreFailure)
    assert (leaving.kind, "GeneratorExit" in leaving.reason) == ("raised", True)
    assert isinstance(hanging, ScoreFailure)
    assert (hanging.kind, hanging.reason) == ("timed_out", "hangs: scoring took more than 0.5 s")
    assert hanging.functions["matches"] == 0.0
    assert [each.reward for each in (first, last) if isinstance(each, Scored)] == [3.0, 2.0]


def test_async_function_that_fails_costs_its_response_alone(file: Path, prompt: TaskPrompt) -> None:
    with scorer_of(file, {"function": "one"}, timeout_seconds=1.0) as scorer:
        scores = scorer.score(prompt, ["a", "sleep", "raise", "cancel", "x"])
        failed = [each for each in scores if isinstance(each, ScoreFailure)]
        assert [each.kind for each in failed] == ["timed_out", "raised", "raised"]
        assert "no judge" in failed[1].reason
        assert "raised CancelledError" in failed[2].reason
        blocked = scorer.score(prompt, ["block"])[0]
        assert isinstance(blocked, ScoreFailure)
        assert blocked.kind == "timed_out"
        assert isinstance(scorer.score(prompt, ["a"])[0], Scored), "its process was replaced"


def test_call_right_after_one_that_stood_still_has_a_new_process(file: Path, prompt: TaskPrompt) -> None:
    with scorer_of(file, {"function": "one"}, timeout_seconds=0.2) as scorer:
        for _ in range(3):
            [blocked, after] = scorer.score(prompt, ["block"])[0], scorer.score(prompt, ["sleep"])[0]
            assert isinstance(blocked, ScoreFailure)
            assert isinstance(after, ScoreFailure)
            assert (blocked.kind, after.kind) == ("timed_out", "timed_out"), after.reason


def test_judge_calls_of_many_groups_are_in_flight_at_once(file: Path, prompt: TaskPrompt) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with scorer_of(file, {"function": "judge"}) as scorer, ThreadPoolExecutor(16) as threads:
        started = time.monotonic()
        groups = list(threads.map(lambda _: scorer.score(prompt, ["a"] * 8), range(16)))
        seconds = time.monotonic() - started
    assert all(isinstance(each, Scored) and each.reward == 1.0 for group in groups for each in group)
    assert seconds < 16, "one after the other takes 16 s"


@pytest.fixture
def server() -> Iterator[str]:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Verify(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/verify":
                text = asked["response"]["output"][0]["content"][0]["text"]
                right, answer = asked["answer"], {**asked, "reward_components": {"right": 1.0, "form": 0.5}}
                body = answer if text == right else {**asked, "reward": 0.0}
            else:
                body = {"reward": float(asked["response"] == asked["columns"]["answer"])}
            payload = json.dumps(body).encode()
            self.send_response(500 if asked.get("response") == "fail" else 200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:
            """Not on the terminal."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Verify)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_server_says_what_a_response_earns(server: str, prompt: TaskPrompt) -> None:
    rewards = [
        {"function": "http", "name": "plain", "options": {"url": f"{server}/score"}},
        {"function": "http", "name": "gym", "options": {"url": f"{server}/verify", "shape": "nemo-gym"}},
    ]
    config = TaskConfig.model_validate({"rewards": rewards})
    with Scorer(task=config, timeout_seconds=10.0) as scorer:
        right, wrong, failing = scorer.score(prompt, ["a", "x", "fail"])
    assert isinstance(right, Scored)
    assert right.functions == {"plain": 1.0, "gym": 1.5}
    assert right.extras == {"gym/right": 1.0, "gym/form": 0.5}
    assert isinstance(wrong, Scored)
    assert wrong.reward == 0.0
    assert isinstance(failing, ScoreFailure)
    assert "500" in failing.reason
