"""Fetches a model from the Hugging Face hub, once: fetch_model.py REPOSITORY REVISION DIRECTORY."""

import os
import shutil
import sys
from pathlib import Path

from asympo.common.checkpoints.directory import flush_directory, make_durable_directory
from huggingface_hub import snapshot_download

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*"]


def fetch(repository: str, revision: str, directory: Path) -> None:
    """Leaves a complete directory or none, also when the node dies: it is renamed once it is on the disk.

    Several pods may do this at once; the first that is done wins.
    """
    if (directory / "config.json").is_file():
        # The pod that renamed it may have died before it flushed the name.
        flush_directory(directory.parent)
        sys.stdout.write(f"{directory} is there already\n")
        return
    partial = directory.with_name(f"{directory.name}.partial-{os.uname().nodename}")
    make_durable_directory(directory.parent)
    partial.mkdir(exist_ok=True)
    snapshot_download(repository, revision=revision, local_dir=partial, allow_patterns=WANTED)
    if not list(partial.glob("*.safetensors")):
        sys.exit(f"{repository} at {revision} has no *.safetensors file: choose a model or revision that has")
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    flush(partial)
    try:
        partial.rename(directory)
    except OSError:
        if not (directory / "config.json").is_file():
            raise
        shutil.rmtree(partial)
    flush_directory(directory.parent)
    sys.stdout.write(f"fetched {repository} at {revision} to {directory}\n")


def flush(directory: Path) -> None:
    """fsync everything in and below `directory`."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with Path(folder, name).open("rb") as file:
                os.fsync(file.fileno())
        flush_directory(Path(folder))


if __name__ == "__main__":
    fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
