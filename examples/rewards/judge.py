"""A reward given by another model, behind any server that speaks as OpenAI's does.

JUDGE_URL, JUDGE_MODEL and JUDGE_API_KEY say which.
"""

import os
import re

import httpx

QUESTION = """Question: {prompt}
Right answer: {answer}
Response: {response}

Grade the response from 0 (useless) to 10 (right, clear and short). Answer with the number alone."""

client = httpx.AsyncClient(
    base_url=os.environ.get("JUDGE_URL", "http://127.0.0.1:8001/v1"),
    headers={"Authorization": f"Bearer {os.environ.get('JUDGE_API_KEY', 'none')}"},
    limits=httpx.Limits(max_connections=256),
    timeout=60,
)


async def judge(response_text, prompt, answer, **columns):
    """From 0 to 1. Calls of all groups are in flight at once; one that fails costs its response alone."""
    question = QUESTION.format(prompt=prompt, answer=answer, response=response_text)
    body = {
        "model": os.environ.get("JUDGE_MODEL", "judge"),
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 8,
    }
    reply = await client.post("chat/completions", json=body)
    reply.raise_for_status()
    said = reply.json()["choices"][0]["message"]["content"]
    grade = re.search(r"\d+", said)
    if grade is None:
        raise ValueError(f"the judge gave no grade but {said!r}")
    return min(10, int(grade.group())) / 10
