"""An exported policy on its way to a repository of the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asympo.common.errors import AsympoError, BadSetting
from asympo.common.foreign.text import reason_of

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class HubRepository:
    """A model repository that is not there yet. The token comes from HF_TOKEN, a file, or a login."""

    def __init__(self, name: str) -> None:
        """Asks the hub whether the name is free; BadSetting, AsympoError."""
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not _REPOSITORY.fullmatch(name):
            raise BadSetting(f"--push {name} is no repository: give owner/name")
        token = get_token()
        if token is None:
            raise BadSetting("--push needs a token of the hub: set HF_TOKEN, or HF_TOKEN_PATH to its file")
        disable_progress_bars()
        self._name = name
        self._api: Any = HfApi(token=token)
        with _hub_errors(f"{name} could not be looked for"):
            if self._api.repo_exists(name):
                raise BadSetting(f"{name} exists on the hub: give --push a new name")

    def upload(self, directory: Path, *, message: str) -> str:
        """Makes it, private, with the files of a directory in one commit; its address."""
        with _hub_errors(f"{directory} is complete and could not be pushed to {self._name}"):
            address = self._api.create_repo(self._name, private=True, exist_ok=False)
            self._api.upload_folder(repo_id=self._name, folder_path=directory, commit_message=message)
        return str(address)


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turns the library's many errors into one sentence."""
    try:
        yield
    except AsympoError:
        raise
    except Exception as error:
        raise AsympoError(f"{what}: {reason_of(error)}") from error
