"""An agent with a tool, trained through sessions: `python agent.py [GATEWAY] [GROUPS]`.

It is written against the `openai` package: all that training needs is the base_url, and a reward at the end.
"""

import random
import re
import sys

import httpx
import openai

MAX_TURNS = 3
SYSTEM = "Add the numbers. To use the calculator, answer CALC: and the sum, for example CALC: 1 + 2."


def calculate(text: str) -> str | None:
    """What the calculator says to an answer that asks it."""
    asked = re.search(r"CALC: *(\d+) *\+ *(\d+)", text)
    return f"The calculator says {int(asked[1]) + int(asked[2])}." if asked else None


def answer(client: openai.OpenAI, question: str) -> str:
    """The agent: asks the model, and the calculator as often as the model wants it."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    said = ""
    for _ in range(MAX_TURNS):
        completion = client.chat.completions.create(model="policy", messages=messages, max_tokens=64)
        said = completion.choices[0].message.content or ""
        result = calculate(said)
        if result is None:
            break
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": result}]
    return said


def main(address: str = "http://127.0.0.1:8090", num_groups: str = "1") -> None:
    gateway = httpx.Client(base_url=address, timeout=90)
    for _ in range(int(num_groups)):
        left, right = random.randint(1, 99), random.randint(1, 99)
        started = gateway.post("/rl/start_session", json={"own_prompt": True, "num_sessions": 4})
        for session in started.raise_for_status().json()["sessions"]:
            said = answer(openai.OpenAI(base_url=session["base_url"], api_key="any"), f"{left} + {right}?")
            reward = float(str(left + right) in said) + 0.1 * ("CALC" in said)
            path = f"/sessions/{session['session_id']}/complete"
            gateway.post(path, json={"reward": reward}).raise_for_status()
            print(f"{left} + {right}: {said!r} earns {reward}")


if __name__ == "__main__":
    main(*sys.argv[1:])
