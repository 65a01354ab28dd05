"""An environment whose code never returns, or ends its process, costs its own episodes, not the run."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from asympo.tasks.config import TaskConfig
from asympo.tasks.environments.player import playing
from asympo.tasks.environments.player.factory_stage import FactoryStage, _answer_of_tool
from asympo.tasks.environments.player.own_thread import in_own_thread
from asympo.tasks.environments.player.playing import DoorPlayer, Player
from asympo.tasks.environments.player.stage import EpisodeFailed, Played, Seat, finite, given_of, reward_of
from asympo.tasks.environments.task import EnvironmentTask


class Game:
    """Hangs in what `hangs_in` names, once it is played."""

    hangs_in = ""
    is_played = False
    free = threading.Event()

    def __init__(self) -> None:
        if self.is_played:
            self.wait_in("factory")

    @classmethod
    def wait_in(cls, place: str) -> None:
        if place == cls.hangs_in:
            cls.free.wait()

    def reset(self, **row: Any) -> None:
        self.wait_in("reset")

    def get_reward(self) -> float:
        return 1.0


class Stage(FactoryStage):
    """Plays an episode as it is told."""

    def __init__(self, earn: Callable[[], float]) -> None:
        self._earn = earn

    async def play(self, row: int, seat: Seat, sampling: Mapping[str, Any]) -> Played:
        return Played(reward=self._earn())


class Secretive:
    """Is given a row's secret, and nothing that the row does not have."""

    def reset(self, secret: str) -> None:
        raise EpisodeFailed(f"it was given {secret!r}")

    def get_reward(self) -> float:
        return 1.0


def play(
    player: Player, answer: Callable[[httpx.Request], Awaitable[httpx.Response]], *, num_groups: int = 1
) -> None:
    """Through a gateway that answers like this."""

    async def run() -> None:
        transport = httpx.MockTransport(answer)  # type: ignore[arg-type]  # it takes coroutines of this kind
        async with httpx.AsyncClient(base_url="http://gateway", transport=transport) as gateway:
            await asyncio.gather(*(player.play(gateway) for _ in range(num_groups)))

    asyncio.run(run())


def started(names: str, *, seconds: float) -> httpx.Response:
    sessions = [{"session_id": name, "base_url": f"http://gateway/{name}/v1"} for name in names]
    return httpx.Response(200, json={"index": 0, "session_seconds": seconds, "sessions": sessions})


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FactoryStage]:
    pytest.importorskip("transformers")
    module: Any = ModuleType("hanging_game")
    module.Game, module.Secretive = Game, Secretive
    monkeypatch.setitem(sys.modules, "hanging_game", module)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Guess."}\n')
    staged = FactoryStage("hanging_game:Game", {}, tmp_path / "rows.jsonl")
    monkeypatch.setattr(Game, "is_played", True)
    monkeypatch.setattr(Game, "free", threading.Event())
    yield staged
    Game.free.set()


@pytest.mark.usefixtures("stage")
def test_reset_is_given_the_line_of_the_file_and_nothing_else(tmp_path: Path) -> None:
    source, written = tmp_path / "source.jsonl", tmp_path / "written.jsonl"
    source.write_text('{"secret": "a\u2028b\x85"}\n\n{"secret": "c", "prompt": "Guess."}\n', encoding="utf-8")
    rows = FactoryStage("hanging_game:Secretive", {}, source).rows()
    assert [row["prompt"][0]["content"] for row in rows] == ["", "Guess."]
    written.write_text("".join(f"{json.dumps(row)}\n" for row in (rows[0], rows[1] | {"held_out": True})))
    staged = FactoryStage("hanging_game:Secretive", {}, written, are_written=True)
    assert staged.rows() == rows
    with pytest.raises(EpisodeFailed, match=r"it was given 'a\\u2028b\\x85'"):
        asyncio.run(staged.play(0, Seat(base_url="http://door/v1", shared_url=""), {}))
    task = EnvironmentTask(TaskConfig(name="trl-environment", environment="m:F", path=str(written)))
    columns = [prompt.columns for prompt in (task.prompt(0), *task.held_out())]
    assert columns == [{"secret": "a\u2028b\x85"}, {"secret": "c"}]


@pytest.mark.parametrize(("line", "reason"), [("{", "line 2 is not JSON"), ("5", "line 2 is not a JSON obj")])
def test_line_that_is_no_row_is_named(stage: FactoryStage, tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{{}}\n{line}\n")
    with pytest.raises(SystemExit, match=reason):
        FactoryStage("hanging_game:Game", {}, tmp_path / "rows.jsonl")


def test_reward_may_be_a_scalar_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    assert [reward_of(each) for each in (numpy.float32(0.5), numpy.array(2), True)] == [0.5, 2.0, 1.0]
    values = {"a": numpy.int64(3), "b": "1", "c": numpy.array([1]), "d": numpy.float64("nan"), "e": None}
    assert finite(values) == {"a": 3.0}
    for value in ("1", None, numpy.float32("inf"), [1.0]):
        with pytest.raises(EpisodeFailed, match="which is no finite number"):
            reward_of(value)


@pytest.mark.parametrize("place", ["factory", "reset"])
def test_episode_that_hangs_is_told_as_failed_and_the_player_ends(
    stage: FactoryStage, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Game, "hangs_in", place)
    monkeypatch.setattr(playing, "EPISODE_SECONDS", 0.01)
    with (tmp_path / "answers").open("w") as answers:
        player = DoorPlayer(stage, door="http://door/v1", sampling={}, answers=answers)
        asyncio.run(player.run([0, 0], 2))
    told = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert [each["failure"] for each in told] == ["TimeoutError()"] * 2


def test_session_whose_episode_hangs_is_ended_and_a_player_with_many_of_them_gives_up(
    stage: FactoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Game, "hangs_in", "factory")
    monkeypatch.setattr(playing, "MAX_OVERDUE", 4)
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return started("ab", seconds=0.01)

    with pytest.raises(SystemExit) as ended:
        play(Player(stage, trained=[0], sampling={}), answer)
    assert ended.value.code == 1
    assert asked == ["/rl/start_session", "/rl/end_session", "/rl/end_session"] * 2


def test_what_the_environment_raises_is_raised_where_it_is_played(stage: FactoryStage) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_own_thread(lambda: 1 / 0, {}))
    with pytest.raises(IndexError):
        asyncio.run(stage.play(7, Seat(base_url="", shared_url=""), {}))


@pytest.mark.parametrize("error", [SystemExit(0), StopIteration()])
def test_code_that_would_end_whoever_waits_for_it_fails_its_episode_alone(error: BaseException) -> None:
    def leave() -> None:
        raise error

    async def call() -> None:
        async with asyncio.timeout(20):
            await in_own_thread(leave, {})

    with pytest.raises(EpisodeFailed, match=type(error).__name__):
        asyncio.run(call())


def raise_cancelled() -> float:
    raise asyncio.CancelledError


def leave_cancelled() -> float:
    """As a cancel scope does that is never left."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return 1.0


@pytest.mark.parametrize(
    ("earn", "failure"),
    [
        (sys.exit, "SystemExit()"),
        (raise_cancelled, "the environment cancelled the episode"),
        (leave_cancelled, "the environment cancelled the episode"),
    ],
)
def test_session_whose_episode_exits_or_is_cancelled_is_ended_and_the_next_prompt_is_played(
    earn: Callable[[], float], failure: str, tmp_path: Path
) -> None:
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(410) if asked.count("/rl/start_session") > 2 else started("a", seconds=600)

    play(Player(Stage(earn), trained=[0], sampling={}), answer)
    assert asked == ["/rl/start_session", "/rl/end_session"] * 2 + ["/rl/start_session"]

    with (tmp_path / "answers").open("w") as answers:
        player = DoorPlayer(Stage(earn), door="http://door/v1", sampling={}, answers=answers)
        asyncio.run(player.run([0], 1))
    assert json.loads((tmp_path / "answers").read_text()) == {"episode": 0, "failure": failure}


def test_reward_is_said_until_it_is_heard_and_one_that_is_refused_ends_its_session(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(playing, "WAIT_SECONDS", 0.0)
    asked: list[str] = []
    answers: Iterator[Any] = iter([httpx.ConnectError("gone"), httpx.Response(502), httpx.Response(200)])
    refusals: Iterator[Any] = iter([httpx.Response(400, text="it is no number"), httpx.Response(200)])

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path == "/rl/start_session":
            return httpx.Response(410) if len(asked) > 5 else started("ab"[len(asked) > 1], seconds=600)
        told = next(answers if "/a/" in request.url.path else refusals)
        if isinstance(told, httpx.Response):
            return told
        raise told

    play(Player(Stage(lambda: 1.0), trained=[0], sampling={}), answer)
    first = ["/rl/start_session", *["/sessions/a/complete"] * 3]
    assert asked == [*first, "/rl/start_session", "/sessions/b/complete", "/rl/end_session", first[0]]
    assert "it is no number" in caplog.text


def test_reward_that_nobody_hears_is_given_up_when_its_session_is_over() -> None:
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path != "/rl/start_session":
            raise httpx.ConnectError("gone")
        return started("a", seconds=0.5) if len(asked) == 1 else httpx.Response(410)

    play(Player(Stage(lambda: 1.0), trained=[0], sampling={}), answer)
    assert asked[1:] == ["/sessions/a/complete", "/rl/end_session", "/rl/start_session"]


def test_few_wait_for_a_prompt_however_many_play() -> None:
    num_waiting, most, enough = 0, 0, asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal num_waiting, most
        num_waiting += 1
        most = max(most, num_waiting)
        if num_waiting >= playing.MAX_ASKING:
            asyncio.get_running_loop().call_soon(enough.set)
        await enough.wait()
        num_waiting -= 1
        return httpx.Response(410)

    play(Player(Stage(lambda: 1.0), trained=[0], sampling={}), answer, num_groups=2 * playing.MAX_ASKING)
    assert most == playing.MAX_ASKING


class Tools:
    """Some that fail."""

    def look_up(self) -> str:
        return {"queen": "d1"}["rook"]

    async def leave(self) -> None:
        sys.exit("I leave")


@pytest.mark.parametrize(
    ("tool", "said"), [("look_up", "rook"), ("leave", "I leave"), ("look", "there is no tool look")]
)
def test_policy_is_told_what_its_call_of_a_tool_met(tool: str, said: str) -> None:
    call = SimpleNamespace(id="1", function=SimpleNamespace(name=tool, arguments="{}"))
    told = asyncio.run(_answer_of_tool(Tools(), call))["content"]
    assert (said in told, "no tool" in told) == (True, tool == "look")


def test_environment_that_ends_its_process_has_not_come_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "verifiers").mkdir()
    (tmp_path / "verifiers" / "__init__.py").touch()
    (tmp_path / "verifiers" / "legacy.py").write_text(
        "ClientConfig = dict\ndef load_environment(_):\n    exit()\n"
    )
    spec: dict[str, Any] = {"environment": "", "kind": "verifiers", "arguments": {}, "source": None}
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            str(Path(playing.__file__).parent / "__main__.py"),
            json.dumps(spec),
            "rows",
            "-",
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, b"exit()" in done.stderr) == (1, True), done.stderr.decode()


@pytest.mark.parametrize(("last", "code"), [("pass", 0), ("raise SystemExit('over')", 1)])
def test_player_leaves_even_if_a_thread_of_the_environment_hangs(last: str, code: int) -> None:
    program = f"""
import asyncio, threading
from asympo.tasks.environments.player import command

async def play():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    {last}

command.LEAVE_SECONDS = 0.0
asyncio.run(command.to_its_end(play()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr.decode()


def test_row_written_by_an_earlier_version_is_given_whole() -> None:
    line = {"given": "4..1", "size": 4}
    assert given_of({"prompt": "Fill it.", "answer": "4321", "given": line}) == line
    for old in ({"prompt": "Fill it.", **line}, {"prompt": "Fill it.", "size": 4, "given": {"a": 1}}):
        assert given_of(old) == old
