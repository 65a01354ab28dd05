"""`helm test`: what was brought along is there; the learner answers, is ready, and has generators.

check_release.py URL MIN_GENERATORS TIMEOUT_SECONDS [PATH ...]
"""

import json
import os
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


def missing(paths: list[str]) -> str:
    """Which of the paths hold nothing, in one sentence; empty when all hold something."""
    empty = [
        path for path in paths if not os.path.exists(path) or (os.path.isdir(path) and not os.listdir(path))
    ]
    return f"nothing lies at {', '.join(empty)}: look at what data.NAME names" if empty else ""


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
    if gone := missing(sys.argv[4:]):
        sys.exit(gone)
    deadline = time.monotonic() + float(sys.argv[3])
    while found := problem(sys.argv[1], int(sys.argv[2])):
        if time.monotonic() > deadline:
            sys.exit(found)
        time.sleep(2)
