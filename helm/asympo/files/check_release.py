"""`helm test`: the learner answers, is ready, and has generators.

check_release.py URL MIN_GENERATORS TIMEOUT_SECONDS
"""

import json
import sys
import time
import urllib.error
import urllib.request


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def problem(base: str, min_generators: int) -> str:
    """What is not right yet, in one sentence; empty when all is."""
    try:
        code, text = ask(f"{base}/readyz")
        if code != 200:
            return f"the learner is not ready: {text.strip()}"
        code, text = ask(f"{base}/v1/status")
    except OSError as error:
        return f"the learner does not answer at {base}: {error}"
    if code != 200:
        return f"the learner refuses to tell its status: {text.strip()}"
    status = json.loads(text)
    generators = [each["holder"] for each in status["generators"]]
    if len(generators) < min_generators:
        return f"{len(generators)} of at least {min_generators} generators report to the run: {generators}"
    sys.stdout.write(
        f"run {status['run']}: {status['state']}, step {status['step']}, {len(generators)} generators\n"
    )
    return ""


if __name__ == "__main__":
    deadline = time.monotonic() + float(sys.argv[3])
    while found := problem(sys.argv[1], int(sys.argv[2])):
        if time.monotonic() > deadline:
            sys.exit(found)
        time.sleep(2)
