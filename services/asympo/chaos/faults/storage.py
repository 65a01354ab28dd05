"""Checkpoints torn by a crash or by the storage itself, and learners that outlive their time."""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from asympo.chaos.faults.base import WINDOW_SECONDS, NotObserved, PromiseBroken, Stage
from asympo.chaos.processes import ProcessEnded
from asympo.chaos.proxy import Handling, Moment
from asympo.chaos.system import START_SECONDS, TRAINING, ProxiedProcess
from asympo.common.checkpoints.links import file_of
from asympo.common.errors import Fenced

_TORN_SECONDS = 20.0
_SAVING_SECONDS = 0.4
"""Length of each fsync while we wait for a save to tear."""


async def torn_checkpoint(stage: Stage) -> dict[str, Any]:
    """One of: a learner dies in a save or a publish; a whole state that nobody committed is torn
    after its learner died; a policy is torn before anyone hears of it."""
    system = stage.system
    learner = await system.learner_training()
    choices = ["state", "policy", *(["saving", "publishing"] if learner.control is not None else [])]
    how = stage.rng.choice(choices)
    if how in ("saving", "publishing"):
        kind = "train" if how == "saving" else "policy"
        return await _die_while_writing(learner, system.run_directory / kind, how)
    if how == "policy":
        return await _tear_policy(stage, learner)
    return await _tear_state(stage, learner)


async def _die_while_writing(learner: ProxiedProcess, directory: Path, how: str) -> dict[str, Any]:
    assert learner.control is not None
    learner.control.slow_fsync(_SAVING_SECONDS)
    try:
        torn = await _temporary(directory)
        killed_at = time.monotonic()
        await learner.process.kill()
    finally:
        learner.control.slow_fsync(0.0)
    if not torn.is_dir():
        raise NotObserved(f"{torn.name} was complete before its learner died")
    return {"process": learner.name, "killed_at": killed_at, "torn": torn.name, "how": f"died while {how}"}


async def _tear_state(stage: Stage, learner: ProxiedProcess) -> dict[str, Any]:
    trap = learner.link.trap(script="commit", moment=Moment.BEFORE)
    catch = await trap.caught(WINDOW_SECONDS)
    name = catch.request.arguments[4].decode()
    killed_at = time.monotonic()
    await learner.process.kill(is_restarted=False)
    trap.release(Handling.DISCARD)
    try:
        how = tear(stage.system.run_directory / "train" / name, stage.rng)
    except FileNotFoundError as error:
        raise NotObserved(f"the state to tear is not there: {error}") from error
    finally:
        learner.process.is_restarted = True
        await learner.process.start()
    return {"process": learner.name, "killed_at": killed_at, "torn": name, "how": how}


async def _tear_policy(stage: Stage, learner: ProxiedProcess) -> dict[str, Any]:
    trap = learner.link.trap(script="announce_policy", moment=Moment.BEFORE)
    catch = await trap.caught(WINDOW_SECONDS)
    try:
        fence, step = int(catch.request.arguments[0]), int(catch.request.arguments[3])
        path = stage.system.run_directory / "policy" / f"step-{step:08d}-f{fence:04d}"
        how = tear(path, stage.rng)
    except FileNotFoundError as error:
        raise NotObserved(f"the policy to tear is not there: {error}") from error
    finally:
        trap.release(Handling.RELAY)
    return {"process": learner.name, "torn": path.name, "how": how}


def tear(path: Path, rng: random.Random) -> str:
    """Damages one file of a directory; says how. Raises NotObserved unless its digest differs afterwards."""
    files = sorted(
        file for file in path.iterdir() if Path(file_of(file.name)).suffix in (".safetensors", ".bin")
    )
    file = rng.choice(files)
    before = _digest(file)
    size = file.stat().st_size
    how = rng.choice(["truncated", "flipped", "removed", "manifest"])
    if how == "truncated":
        os.truncate(file, rng.randrange(size))
    elif how == "flipped":
        with file.open("r+b") as content:
            content.seek(size // 2)
            byte = content.read(1)
            content.seek(size // 2)
            content.write(bytes([byte[0] ^ 0xFF]))
    elif how == "removed":
        file.unlink()
    else:
        manifest = path / "manifest.json"
        os.truncate(manifest, manifest.stat().st_size // 2)
        return "manifest truncated"
    if file.exists() and _digest(file) == before:
        raise NotObserved(f"{file} is as it was")
    return f"{file.name} {how}"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


async def zombie_learner(stage: Stage) -> dict[str, Any]:
    """A learner freezes between save and commit until another has taken the run, then goes on."""
    system = stage.system
    zombie = await system.learner_training()
    trap = zombie.link.trap(script="commit", moment=Moment.BEFORE)
    await trap.caught(WINDOW_SECONDS)
    life = zombie.process.life
    zombie.process.send(signal.SIGSTOP)
    system.learner, system.spare = system.spare, zombie
    life.is_wanted_dead = True
    try:
        successor = await system.learner.process.start()
        await system.learner.process.said(TRAINING, timeout_seconds=START_SECONDS, life=successor)
    except ProcessEnded:
        # It is started again like any other; what matters is that one of its lives gets the run.
        await system.learner_training()
    finally:
        answer = zombie.link.trap(moment=Moment.AFTER, is_wanted=_is_fenced_script)
        zombie.process.send(signal.SIGCONT)
        trap.release(Handling.RELAY)
    reply = await _zombie_answer(answer)
    await zombie.process.until(lambda: life.exit_code is not None, timeout_seconds=_TORN_SECONDS * 3)
    if life.exit_code != Fenced.exit_code:
        raise PromiseBroken(
            f"a superseded learner ended with exit code {life.exit_code}, not with {Fenced.exit_code}"
        )
    return {"process": zombie.name, "reply": reply, "exit_code": life.exit_code}


_FENCED_SCRIPTS = {
    "commit",
    "free",
    "announce_policy",
    "heartbeat",
    "read_fenced",
    "set_state",
    "dead_letter",
}


def _is_fenced_script(request: Any, reply: Any) -> bool:
    return request.script in _FENCED_SCRIPTS and isinstance(reply, list)


async def _zombie_answer(answer: Any) -> str:
    """The first thing the broker says to the superseded learner."""
    try:
        catch = await answer.caught(_TORN_SECONDS)
    except TimeoutError:
        raise NotObserved("the superseded learner asked the broker nothing") from None
    finally:
        answer.release(Handling.RELAY)
    status = catch.reply[0].decode() if isinstance(catch.reply[0], bytes) else str(catch.reply[0])
    if status != "FENCED":
        raise PromiseBroken(
            f"the broker answered {catch.request.script} of a superseded learner with {status}, "
            "not with FENCED"
        )
    return f"{catch.request.script}: {status}"


async def _temporary(directory: Path) -> Path:
    """What is being written there now."""
    begun = set(directory.glob(".tmp-step-*"))
    try:
        async with asyncio.timeout(WINDOW_SECONDS):
            while True:
                for path in directory.glob(".tmp-step-*"):
                    # It may have got its final name since we saw it.
                    with contextlib.suppress(FileNotFoundError):
                        if path not in begun and any(path.iterdir()):
                            return path
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise NotObserved("no checkpoint was being written") from None
