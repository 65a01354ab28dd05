"""The final weights against those of an undisturbed learner that reads the same log."""

import asyncio
import json
import sys

from asympo.chaos.system import RUN, System, client_environment

_REPLAY_SECONDS = 900.0


async def weights_problem(system: System) -> str | None:
    """None when a fault-free replay of the archive ends with the same bits; else a sentence."""
    command = [sys.executable, "-m", "asympo.cli", "log", "replay", "--run", RUN]
    command += ["--checkpoint-root", str(system.checkpoints), "--json"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=client_environment(),
    )
    try:
        async with asyncio.timeout(_REPLAY_SECONDS):
            answer, said = await process.communicate()
    except TimeoutError:
        return f"the replay of the archive took longer than {_REPLAY_SECONDS:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    (system.logs / "replay.log").write_bytes(said)
    try:
        report = json.loads(answer)
    except ValueError:
        words = said.decode(errors="replace").strip().splitlines() or ["nothing"]
        return f"the replay of the archive ended with {process.returncode}: {words[-1][:400]}"
    if not report.get("weights_identical"):
        return f"a fault-free replay of the archive ends with other weights: {report}"
    return None
