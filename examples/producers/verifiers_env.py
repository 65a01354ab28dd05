"""An environment of the `verifiers` package: `python verifiers_env.py ENVIRONMENT [GATEWAY] [GROUPS]`.

The environment runs as it is, turns, tools and rubric; each rollout talks to a session of its own, and the
rubric's reward is the reward. It needs `pip install verifiers==0.3.1` and the environment, nothing of ours.
"""

import asyncio
import sys

import httpx
import verifiers.legacy as vf

GROUP_SIZE = 4


async def play(environment: vf.Environment, row: dict, session: dict, gateway: httpx.AsyncClient) -> None:
    """One rollout, and its reward. One that failed has none: its session is left out."""
    model = vf.ClientConfig(api_base_url=session["base_url"], max_retries=2)
    output = await environment.run_rollout(row, model, "policy", {"temperature": 1.0, "max_tokens": 256})
    if output.get("error"):
        print(f"row {row['example_id']}: {output['error']}")
        await gateway.post("/rl/end_session", json={"session_id": session["session_id"]})
        return
    answer = await gateway.post(
        f"/sessions/{session['session_id']}/complete", json={"reward": output["reward"]}
    )
    answer.raise_for_status()
    print(f"row {row['example_id']} earns {output['reward']:g}: {output['metrics']}")


async def main(name: str, address: str = "http://127.0.0.1:8090", num_groups: str = "1") -> None:
    environment = vf.load_environment(name)
    async with httpx.AsyncClient(base_url=address, timeout=90) as gateway:
        for row in environment.get_dataset(n=int(num_groups)).to_list():
            asked = {"own_prompt": True, "num_sessions": GROUP_SIZE}
            started = (await gateway.post("/rl/start_session", json=asked)).raise_for_status().json()
            await asyncio.gather(*(play(environment, row, each, gateway) for each in started["sessions"]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
