"""Prompts from a file with one JSON object a line: `prompt` or `messages`, and `answer`."""

from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.tasks.base import as_prompt_parts
from asympo.tasks.config import TaskConfig
from asympo.tasks.data.source import parse_json_row
from asympo.tasks.data.task import chat_parts
from asympo.tasks.rows import RowsTask, question_key


class JsonlTask(RowsTask):
    """Rows of a file; rows that ask the same are all trained or all held out."""

    name = "jsonl"

    def __init__(self, config: TaskConfig) -> None:
        assert config.path is not None
        super().__init__(config)
        rows = _read_rows(Path(config.path), config)
        self.place_share(
            [(question_key(row), row) for row in rows], fraction=config.held_out_fraction, seed=config.seed
        )
        self.keep_trainable(config.left_out)
        settings = config.model_dump(mode="json", exclude={"path", "left_out"})
        self.digest = self.digest_with(settings, with_columns=bool(config.rewards))


def _read_rows(path: Path, config: TaskConfig) -> list[dict[str, Any]]:
    """Arguments of a TaskPrompt, its index aside, for every line that is not empty."""
    rows = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(_parse_row(line, f"{path} line {number}", config) | {"row": number})
    except OSError as error:
        raise BadSetting(f"task.path {path} cannot be read: {error.strerror}") from error
    if not rows:
        raise BadSetting(f"task.path {path} has no rows: each line holds one JSON object")
    return rows


def _parse_row(line: bytes, where: str, config: TaskConfig) -> dict[str, Any]:
    row = parse_json_row(line, where)
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise BadSetting(f"{where} needs answer, a text or a number; it has {answer!r}")
    if ("prompt" in row) == ("messages" in row):
        raise BadSetting(f"{where} needs either prompt or messages")
    if "messages" in row:
        parts = chat_parts(row["messages"], where, config)
    else:
        prompt = row["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise BadSetting(f"{where} needs prompt to be a non-empty text")
        parts = as_prompt_parts(prompt, system_prompt=config.system_prompt, config=config)
    return parts | {"answer": str(answer), "columns": row}
