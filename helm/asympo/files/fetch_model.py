"""Fetches a model from the Hugging Face hub, once: fetch_model.py REPOSITORY REVISION DIRECTORY."""

import os
import shutil
import sys
from pathlib import Path

from huggingface_hub import snapshot_download

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*"]


def fetch(repository: str, revision: str, directory: Path) -> None:
    """Leaves a complete directory or none: the download goes beside it and is renamed at the end.

    Several pods may do this at once; the first that is done wins.
    """
    if (directory / "config.json").is_file():
        sys.stdout.write(f"{directory} is there already\n")
        return
    partial = directory.with_name(f"{directory.name}.partial-{os.uname().nodename}")
    partial.mkdir(parents=True, exist_ok=True)
    snapshot_download(repository, revision=revision, local_dir=partial, allow_patterns=WANTED)
    if not list(partial.glob("*.safetensors")):
        sys.exit(f"{repository} at {revision} has no *.safetensors file: choose a model or revision that has")
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    try:
        partial.rename(directory)
    except OSError:
        if not (directory / "config.json").is_file():
            raise
        shutil.rmtree(partial)
    sys.stdout.write(f"fetched {repository} at {revision} to {directory}\n")


if __name__ == "__main__":
    fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
