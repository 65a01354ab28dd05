"""Names on checkpoint storage: directories of one step, temporary ones, and the closed lists of files."""

import re
import secrets
from dataclasses import dataclass

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 256 << 20
RETAINED = ".retained"
"""Suffix of the empty file or object beside a step that is kept for good."""

POLICY_FILES = re.compile(
    r"model\.safetensors|model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json"
    r"|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json"
    r"|adapter_config\.json|adapter_model\.safetensors"
    r"|vocab\.json|vocab\.txt|merges\.txt|spiece\.model|chat_template\.jinja|chat_template\.json"
)
"""Everything a published policy may hold beside its manifest. No code, no pickles."""

WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""Those of them that hold tensors."""

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What a policy that is an adapter holds beside its manifest, in PEFT's form."""

STATE_FILES = re.compile(r"rank-\d{5}\.safetensors|(trained_ids|streaks)\.bin")
"""Everything a durable training state may hold beside its manifest."""

DECISION_FILES = re.compile(r"decisions-f(?P<fence>[0-9]{4,10})-n(?P<length>[0-9]{4,10})\.json")
"""Beside the training states: what the run has decided, by the fence that sealed it and its length."""

MAX_FENCE = 10**9
"""One for each start of a learner: no run is started that often."""

MAX_DECISION_BYTES = 16 << 20

_DIRECTORY = re.compile(
    r"step-(?P<step>[0-9]{8,12})-f(?P<fence>[0-9]{4,10})(?:-n(?P<sequence>[0-9]{12,15}))?"
)
_TEMPORARY = re.compile(r"\.(?P<use>tmp|trash|get)-(?P<name>step-.+)-(?P<token>[0-9a-f]{16})")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepName:
    """The name of a directory that holds one step."""

    step: int
    """Optimizer step."""
    fence: int
    """Fence of the learner that wrote it."""
    sequence: int | None = None
    """Last log sequence number covered; training states only, where one step can cover several cursors."""

    def __str__(self) -> str:
        suffix = "" if self.sequence is None else f"-n{self.sequence:012d}"
        return f"step-{self.step:08d}-f{self.fence:04d}{suffix}"

    @property
    def rank(self) -> tuple[int, int, int]:
        """Sorting key: a higher fence wins over any step, so a zombie never writes the newest."""
        return (self.fence, self.step, -1 if self.sequence is None else self.sequence)


def parse_name(name: str) -> StepName | None:
    """The step a directory name stands for, or None when it is no such name or not its canonical spelling."""
    match = _DIRECTORY.fullmatch(name)
    if match is None:
        return None
    sequence = match["sequence"]
    parsed = StepName(
        step=int(match["step"]),
        fence=int(match["fence"]),
        sequence=None if sequence is None else int(sequence),
    )
    return parsed if str(parsed) == name and parsed.fence <= MAX_FENCE else None


def temporary_name(name: StepName) -> str:
    """A fresh name, invisible to readers, under which `name` is written."""
    return f".tmp-{name}-{secrets.token_hex(8)}"


def download_name(name: StepName) -> str:
    """A fresh name, invisible to readers, under which a copy of `name` is fetched."""
    return f".get-{name}-{secrets.token_hex(8)}"


def trash_name(name: StepName) -> str:
    """A fresh name, invisible to readers, to which `name` is moved before its files are deleted."""
    return f".trash-{name}-{secrets.token_hex(8)}"


def parse_temporary(name: str) -> tuple[str, StepName] | None:
    """("tmp", "trash" or "get", step) of a temporary name, or None for any other name."""
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return None
    step = parse_name(match["name"])
    return None if step is None else (match["use"], step)
