"""Another engine answers the run's prompts: `python foreign_engine.py ENGINE MODEL [GATEWAY] [GROUPS]`.

ENGINE is any OpenAI-compatible address: vLLM, SGLang, llama.cpp, `transformers serve`, a hosted model. It
need not be the policy and gives no token ids: the learner tokenises the text. Prompts are leased from the
run's task, here sums, so that no other generator answers them as well.
"""

import re
import sys

import httpx
import openai


def grade(prompt: str, text: str) -> float:
    """1 for the sum, a little less the further off a number is, 0 for none."""
    left, right = re.findall(r"\d+", prompt)[-2:]
    said = re.search(r"\d+", text)
    return 1 / (1 + abs(int(said[0]) - int(left) - int(right))) if said else 0.0


def main(engine: str, model: str, address: str = "http://127.0.0.1:8090", num_groups: str = "1") -> None:
    client = openai.OpenAI(base_url=engine, api_key="any")
    gateway = httpx.Client(base_url=address, timeout=90)
    for _ in range(int(num_groups)):
        work = gateway.post("/v1/work", json={"wait_seconds": 60}).raise_for_status().json()
        prompt = work["prompt"]["text"]
        messages = work["messages"] or [{"role": "user", "content": prompt}]
        responses = []
        for _ in range(work["group_size"]):
            answer = client.chat.completions.create(model=model, messages=messages, max_tokens=32)
            choice = answer.choices[0]
            text, finish_reason = choice.message.content, choice.finish_reason
            if text and finish_reason in ("stop", "length"):  # an empty answer has nothing to train
                reward = grade(prompt, text)
                responses.append({"text": text, "reward": reward, "finish_reason": finish_reason})
        group = {"prompt": work["prompt"], "responses": responses, "lease_token": work["lease_token"]}
        (result,) = gateway.post("/v1/rollouts", json=group).raise_for_status().json()["results"]
        print(f"{result['group_id']}: {result['outcome']} {result['reason']}")
        for each in responses:
            print(f"  {each['text']!r} earns {each['reward']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
