"""A server that answers as a learner does, from numbers shaped like those of a real run."""

import math
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from asympo.learner.page.mount import mount_page
from asympo.learner.samples import SampleStore
from asympo.learner.servers.samples import add_samples
from fastapi import FastAPI, HTTPException


def recorded_rows(num_steps: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Metrics rows of steps 1 to `num_steps`: a small model that learns to add."""
    rng = random.Random(seed)
    rows = []
    for step in range(1, num_steps + 1):
        progress = 1 / (1 + math.exp(-(step - 14) / 4))
        positive = 0.9 - 0.72 * progress + rng.gauss(0, 0.03)
        negative = 1.1 + 1.3 * progress + rng.gauss(0, 0.08)
        publish = step % 2 == 0
        rows.append(
            {
                "step": step,
                "wall_seconds": 6.2 * step,
                "reward_mean": min(1.0, max(0.0, 0.06 + 0.9 * progress + rng.gauss(0, 0.03))),
                "loss": rng.gauss(0, 1e-6),
                "nll_positive": positive,
                "nll_negative": None if step % 17 == 0 else negative,
                "nll_ratio": None if step % 17 == 0 else negative / positive,
                "grad_norm": 2.4 + 3.5 * math.exp(-step / 9) + abs(rng.gauss(0, 0.35)),
                "entropy": 1.3 - 0.9 * progress + rng.gauss(0, 0.02),
                "learning_rate": 1e-5,
                "response_tokens_mean": 11.5 - 7.5 * progress + rng.gauss(0, 0.25),
                "truncated_ratio": max(0.0, 0.42 - 0.43 * progress + rng.gauss(0, 0.015)),
                "groups": 8 + rng.randrange(3),
                "tokens_per_second": 430 + rng.gauss(0, 18),
                "generator_tokens_per_second": 455 + rng.gauss(0, 30),
                "train_seconds": 2.7 + rng.gauss(0, 0.1),
                "wait_seconds": 2.2 + abs(rng.gauss(0, 0.6)),
                "publish_seconds": 0.55 + rng.gauss(0, 0.03) if publish else 0.0,
                "save_seconds": 0.9 if step % 10 == 0 else 0.0,
                "queue_staleness_mean": abs(rng.gauss(0.7, 0.2)),
                "queue_staleness_max": float(rng.choice([1, 1, 2])),
                "generation_staleness_mean": abs(rng.gauss(0.4, 0.15)),
                "backlog": 5 + rng.randrange(4),
                "sequence": 9 * step,
                "policy_step": step - step % 2,
            }
        )
    return rows


def recorded_group(sequence: int, *, texts: list[tuple[str, float, str]] | None = None) -> dict[str, Any]:
    rng = random.Random(sequence)
    first, second = rng.randint(1, 20), rng.randint(1, 20)
    if texts is None:
        texts = []
        for _ in range(8):
            answer = first + second if rng.random() < 0.6 else first + second + rng.randint(-3, 3)
            form = rng.choice(["{}", "The answer is {}.", "{}\n", "{} + {} = {}"])
            text = form.format(answer) if form.count("{}") == 1 else form.format(first, second, answer)
            texts.append((text, float(answer == first + second), rng.choice(["stop"] * 7 + ["length"])))
    mean = sum(reward for _, reward, _ in texts) / len(texts)
    prompt = (
        "<|im_start|>system\nAnswer with only the number.<|im_end|>\n"
        f"<|im_start|>user\nWhat is {first} + {second}?<|im_end|>\n<|im_start|>assistant\n"
    )
    responses = [
        {
            "text": text,
            "reward": reward,
            "advantage": reward - mean,
            "finish_reason": reason,
            "num_tokens": 2 + len(text) // 4,
        }
        for text, reward, reason in texts
    ]
    return {
        "group_id": f"0-{37 * sequence % 320}",
        "sequence": sequence,
        "step": 1 + (sequence - 1) // 9,
        "prompt": prompt,
        "asks": f"{first}+{second}",
        "responses": responses,
    }


def generator(number: int, **changes: Any) -> dict[str, Any]:
    reload = {
        "step": 40,
        "verdict": "proved",
        "seconds": 0.31,
        "at_seconds": time.time() - 14,
        "in_flight": 16,
    }
    state = {"holder": f"generator-{number}", "state": "generating", "policy_step": 40, "last_reload": reload}
    return state | {"tokens_per_second": 228.0, "groups_in_flight": 4, "responses_total": 1480} | changes


def recorded_eval(name: str, step: int, mean: float, *, samples: int = 1) -> dict[str, Any]:
    pass_at = {str(k): [min(1.0, mean + 0.05 * k), mean, 1.0] for k in (1, 4) if k <= samples}
    return {
        **{"eval": name, "policy_step": step, "policy_fence": 1, "last_policy_step": step},
        **{"prompts": 79, "samples": samples, "mean": [mean, mean - 0.08, mean + 0.07], "pass_at": pass_at},
        **{"functions": {}, "unscored": 0, "seconds": 9.0, "at_seconds": 1000.0 + step},
    }


@dataclass
class RecordedLearner:
    """What the server answers; a test changes it while a browser looks."""

    rows: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    status: dict[str, Any] = field(default_factory=dict)
    evals: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    hides_samples: bool = False
    is_failing: bool = False
    history_requests: list[int | None] = field(default_factory=list)

    @classmethod
    def at_step(cls, step: int, *, total_steps: int = 60) -> "RecordedLearner":
        learner = cls(rows=recorded_rows(step), groups=[recorded_group(9 * step - n) for n in range(24)])
        learner.status = {
            **{"run": "demo", "state": "running", "step": step, "total_steps": total_steps, "paused": False},
            **{"policy_step": 40, "fence": 1, "objective": "asympo", "model": "SmolLM2-135M-Instruct"},
            **{"backlog": 6, "open": 15, "leases": 8, "capacity": 32, "appended": 384, "trained": 378},
            **{
                "dead_letters": 0,
                "queue_staleness_mean": 0.7,
                "tokens_per_second": 431.0,
                "wait_ratio": 0.34,
            },
            **{"last_publish_seconds_ago": 9.0, "eta_seconds": 118.0},
            "generators": [generator(1), generator(2)],
            "broker": {"server": "valkey", "version": "9.1.2", "warnings": []},
        }
        return learner

    def application(self) -> FastAPI:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        @app.get("/v1/status")
        def status() -> dict[str, Any]:
            if self.is_failing:
                raise HTTPException(status_code=503, detail="the broker is away")
            return self.status

        @app.get("/v1/history")
        def history(after: int = 0) -> dict[str, Any]:
            self.history_requests.append(after)
            return {"rows": [row for row in self.rows if row["step"] > after]}

        def store() -> SampleStore | None:
            if self.hides_samples:
                return None
            store = SampleStore()
            store.add(self.groups[::-1])
            return store

        def evaluated() -> SampleStore | None:
            if self.hides_samples:
                return None
            store = SampleStore()
            store.add(self.answers)
            return store

        add_samples(app, samples=store, evaluated=evaluated)

        @app.get("/v1/evals")
        def evals() -> dict[str, Any]:
            return {"evals": self.evals}

        @app.get("/livez")
        def livez() -> str:
            return "ok"

        mount_page(app, allowed_hosts=["asympo.example.com"])
        return app


class Server:
    """uvicorn in a thread on one port; can be stopped and started again on it."""

    def __init__(self, app: FastAPI, *, port: int) -> None:
        self._app = app
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"

    def start(self) -> None:
        config = uvicorn.Config(self._app, port=self.port, log_config=None, timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert self._thread.is_alive(), "uvicorn did not start"
            assert time.monotonic() < deadline, "uvicorn did not start in 10 s"
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
