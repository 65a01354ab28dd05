"""The final weights against those of an undisturbed learner that reads the same log."""

import asyncio
import json
import sys

from asympo.chaos.system import RUN, System, client_environment

_REPLAY_SECONDS = 900.0


async def weights_problem(system: System, *, final_state: str) -> str | None:
    """None when a fault-free replay of the archive ends with the same bits; else a sentence.

    `final_state`: the training state committed last; the replay has to reach it and the policy of its step.
    """
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
    if not report["weights_identical"]:
        return f"a fault-free replay of the archive ends with other weights: {report['first_difference']}"
    manifest = json.loads((system.run_directory / "train" / final_state / "manifest.json").read_bytes())
    reached = (report["first_step"] + report["steps"], report["last_sequence"])
    if reached != (manifest["step"], manifest["sequence"]):
        return f"the replay ended at step and entry {reached}, the run at {final_state}"
    policies = sorted(
        path.name for path in (system.run_directory / "policy").glob(f"step-{reached[0]:08d}-*")
    )
    if not report["states_compared"] or not report["policies_compared"] or not policies:
        return f"the replay had no state or policy of the last step to compare with: {report}"
    return None
