"""The parsers, each with inputs to start from and the errors that it promises."""

import json
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asympo.common.checkpoints.delta import apply_delta, write_delta
from asympo.common.checkpoints.digests import tensor_spans
from asympo.common.checkpoints.manifest import decode_manifest, open_sealed_json, sealed_json
from asympo.common.checkpoints.names import parse_name, parse_temporary
from asympo.common.codec import WireLimits, decode_group
from asympo.common.errors import AsympoError
from asympo.common.foreign.documents import parse_json, parse_object
from asympo.common.foreign.numbers import parse_whole
from asympo.common.foreign.text import printable
from asympo.common.group_ids import is_issued, parse_own_id
from asympo.common.redaction import redact_text, redact_url
from asympo.common.rollout_log.evals.result import EvalResult
from asympo.common.rollout_log.evals.sample import EvalSample
from asympo.common.rollout_log.run_config import RunConfig
from asympo.common.settings import read_toml, validate
from asympo.common.trained_ids import TrainedIds
from asympo.evaluator.settings import EvaluatorSettings
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.decisions import decode_decisions
from asympo.rewards.scoring import up_to_first_box
from asympo.run.events import read_events
from asympo.run.report.evals import RESULTS, read_results
from asympo.run.settings import take_apart
from asympo.tasks.data.source import parse_json_row

from tests.golden.records import load_payloads

_LIMITS = WireLimits(max_prompt_tokens=64, max_response_tokens=64, max_responses=8, max_payload_bytes=4096)
MAX_SECONDS = 1.0
_FOLDER = TemporaryDirectory(prefix="asympo-fuzz-")


@dataclass(frozen=True, kw_only=True)
class Parser:
    """One way in."""

    name: str
    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    """Inputs that it takes, to begin with."""
    refuses_with: tuple[type[Exception], ...] = ()
    """What it may raise; everything else is a defect."""


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode(errors="surrogateescape"))


def _file(name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    path = Path(_FOLDER.name) / name

    def write_and_parse(data: bytes) -> object:
        path.write_bytes(data)
        return parse(path)

    return write_and_parse


def _printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() or not shown, "a control character reaches the terminal"


def _settings(data: bytes) -> None:
    values = parse_object(data, max_bytes=1 << 16)
    for model in (LearnerSettings, EvaluatorSettings):
        validate(model, values)


def _run_file(path: Path) -> object:
    return take_apart(read_toml(path), source="fuzz")


def _secret_is_masked(text: str) -> None:
    url = f"redis://user:planted-secret@{text}"
    assert "planted-secret" not in redact_url(url), "a password is shown"
    redact_text(text)


def _seed(value: Any) -> bytes:
    return json.dumps(value).encode()


def _parent() -> Path:
    path = Path(_FOLDER.name) / "parent"
    path.write_bytes(bytes(600))
    return path


def _apply(delta: Path) -> None:
    out = delta.with_name("child")
    out.unlink(missing_ok=True)
    apply_delta(_parent(), delta, out)


def _delta() -> bytes:
    child, delta = (Path(_FOLDER.name) / name for name in ("next", "seed"))
    child.write_bytes(b"ab" * 2 + bytes(590) + b"\xff" * 6)
    write_delta(_parent(), child, delta, old_checksum=None, max_bytes=1 << 16)
    return delta.read_bytes()


_HEADER = _seed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
_RESULT = {"eval": "e", "prompts": 1, "samples": 1, "mean": [0.5, 0, 1], "pass_at": {"1": [0.5, 0, 1]}}
_SAMPLE = {"eval": "e", "policy_step": 3, "prompt": "x", "answer": "y", "responses": [], "at_seconds": 1.5}
_RESPONSE = {"text": "x", "reward": 1.0, "functions": {"f": 0.5}, "reason": "", "num_tokens": 3}
_SEALED = sealed_json({"format": 1, "step": 1, "fence": 1, "files": []})

PARSERS = (
    Parser(
        name="record",
        parse=lambda data: decode_group(data, limits=_LIMITS),
        seeds=tuple(load_payloads().values()),
        refuses_with=(AsympoError,),
    ),
    Parser(
        name="json",
        parse=lambda data: parse_json(data, max_bytes=1 << 16),
        seeds=(b'{"a": [1, 2.5e3, null, "x"]}', b"[[[[]]]]"),
        refuses_with=(ValueError,),
    ),
    Parser(name="whole-number", parse=parse_whole, seeds=(b"17", b"-1", b"1e3", b"9" * 30)),
    Parser(name="printable", parse=_text(_printable), seeds=(b"a\x1b[31mb", "ü‮[/x]".encode())),
    Parser(name="redaction", parse=_text(_secret_is_masked), seeds=(b"host:6379/0?password=x", b"h/#@[::1]")),
    Parser(
        name="group-id",
        parse=_text(lambda text: (parse_own_id(text), is_issued(text, producer="a", num_prompts=9))),
        seeds=(b"0-1", b"a/1", b"12-99999999999999999999"),
    ),
    Parser(
        name="checkpoint-name",
        parse=_text(lambda text: (parse_name(text), parse_temporary(text))),
        seeds=(b"step-00000001-f0001", b".tmp-step-00000001-f0001"),
    ),
    Parser(
        name="sealed",
        parse=lambda data: open_sealed_json(data, what="fuzz"),
        seeds=(_SEALED,),
        refuses_with=(AsympoError,),
    ),
    Parser(
        name="manifest",
        parse=lambda data: decode_manifest(data, what="fuzz"),
        seeds=(_SEALED,),
        refuses_with=(AsympoError,),
    ),
    Parser(
        name="decisions",
        parse=lambda data: decode_decisions(data, what="fuzz"),
        seeds=(_SEALED,),
        refuses_with=(AsympoError,),
    ),
    Parser(
        name="safetensors",
        parse=_file("model.safetensors", tensor_spans),
        seeds=(len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(4), b""),
        refuses_with=(AsympoError,),
    ),
    Parser(
        name="run-config",
        parse=RunConfig.from_json,
        seeds=(_seed({"run": "r", "num_prompts": 3, "format_version": 1}),),
        refuses_with=(AsympoError,),
    ),
    Parser(
        name="trained-ids",
        parse=TrainedIds.from_bytes,
        seeds=(TrainedIds(num_prompts=9).to_bytes(),),
        refuses_with=(AsympoError, ValueError),
    ),
    Parser(
        name="eval-result",
        parse=lambda data: EvalResult.from_dict(parse_object(data, max_bytes=1 << 14)),
        seeds=(_seed(_RESULT),),
        refuses_with=(ValueError,),
    ),
    Parser(
        name="eval-sample",
        parse=lambda data: EvalSample.from_dict(parse_object(data, max_bytes=1 << 14)).to_group(number=1),
        seeds=(
            _seed({**_SAMPLE, "responses": [_RESPONSE, {**_RESPONSE, "reward": None}]}),
            _seed({**_SAMPLE, "responses": "x"}),
        ),
        refuses_with=(ValueError,),
    ),
    Parser(name="delta", parse=_file("delta", _apply), seeds=(_delta(),), refuses_with=(AsympoError,)),
    Parser(name="eval-results", parse=_file(RESULTS, read_results), seeds=(_seed(_RESULT) + b"\n",)),
    Parser(
        name="events",
        parse=_file("events.jsonl", lambda path: read_events(path.parent)),
        seeds=(_seed({"text": "x", "at_seconds": 1.5, "kind": "end"}) + b"\n",),
    ),
    Parser(
        name="task-row",
        parse=lambda data: parse_json_row(data, "row 1"),
        seeds=(_seed({"prompt": [{"role": "user", "content": "x"}], "answer": 3}),),
        refuses_with=(AsympoError,),
    ),
    Parser(
        name="toml",
        parse=_file("run.toml", _run_file),
        seeds=(b'[run]\nname = "x"\n[run.task]\ndata = "a"\n', b"[learner]\na.b.c = [1]\n"),
        refuses_with=(AsympoError, tomllib.TOMLDecodeError),
    ),
    Parser(
        name="settings",
        parse=_settings,
        seeds=(_seed({"learning_rate": 1e-5, "task": {"name": "addition"}, "evals": [{"samples": 2}]}),),
        refuses_with=(AsympoError, ValueError),
    ),
    Parser(name="boxed-answer", parse=_text(up_to_first_box), seeds=(b"\\boxed{a{b}} c\n", b"{" * 99)),
)


def attempt(parser: Parser, data: bytes) -> None:
    """Raises what is a defect; a stall of more than a second of computing is one."""
    begun = time.process_time()
    with suppress(*parser.refuses_with):
        parser.parse(data)
    if time.process_time() - begun > MAX_SECONDS:
        raise TimeoutError(f"{parser.name} took more than {MAX_SECONDS:g} s")
