"""Rows of a data set: from a file, a folder that `save_to_disk` wrote, or the Hugging Face hub."""

import base64
import csv
import datetime
import decimal
import errno
import gzip
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from asympo.common.errors import BadSetting

log = logging.getLogger(__name__)

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_NAMES = 8
"""Of files and folders in one sentence."""
_WITHOUT_SUBSETS = "default"
"""What the hub calls the subset of a data set that has none, and so no folder for it."""
Row = dict[str, Any]


def read_rows(
    data: str, *, split: str = "train", subset: str | None = None, revision: str | None = None
) -> list[Row]:
    """Every row with values that JSON can hold. Raises BadSetting in one sentence."""
    path = Path(data).expanduser()
    if path.is_dir():
        rows = _read_folder(_folder_of(path, subset), split)
    elif path.exists() or path.suffix in FILE_KINDS:
        _refuse_hub_options(data, subset=subset, revision=revision)
        rows = _read_file(path)
    elif _HUB_NAME.fullmatch(data):
        rows = _read_hub(data, split=split, subset=subset, revision=revision)
    else:
        raise BadSetting(
            f"task.data {data} is neither a file here nor owner/name on the hub: give a file "
            f"({', '.join(FILE_KINDS)}), a folder written by save_to_disk, or owner/name"
        )
    if not rows:
        raise BadSetting(f"task.data {data} has no rows: it needs at least one, or two if one is held out")
    return rows


def check_split(data: str, split: str, *, subset: str | None = None, is_held_out: bool = False) -> None:
    """Raises BadSetting where a file, or one saved data set for what is held out, has not this split."""
    path = Path(data).expanduser()
    if path.is_file():
        what = "one file"
    else:
        path = path / subset if subset is not None and (path / subset).is_dir() else path
        state = path / "state.json"
        if not state.is_file() or (path / "dataset_dict.json").is_file():
            return
        written = json.loads(state.read_text()).get("_split")
        if not is_held_out and (split == written or split in _split_names(written)):
            return
        if not is_held_out:
            log.warning(
                "task.split %s counts for nothing, as task.data %s is one data set that save_to_disk wrote: "
                "all its rows are read",
                *(split, data),
            )
            return
        what = "one data set that save_to_disk wrote"
    raise BadSetting(
        f"task.data {data} is {what}, which has no split {split}: leave split and held_out_split out, or "
        "name the file or folder with the held-out rows as task.held_out_data"
    )


def _split_names(written: str | None) -> set[str]:
    """The splits that rows were taken from, as `datasets` writes them: train+test[:50%]."""
    return {part.partition("[")[0] for part in (written or "").split("+")}


def is_table(data: str) -> bool:
    """Whether its rows come through Arrow, which gives every structure the fields that any has."""
    path = Path(data).expanduser()
    return not path.is_file() or path.suffix in (".parquet", ".arrow")


def _refuse_hub_options(data: str, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise BadSetting(
                f"task.{name} {value} is for a data set on the hub, but task.data {data} is a file: "
                "leave it out"
            )


def _read_file(path: Path) -> list[Row]:
    readers = {
        **{".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv},
        **{".parquet": _read_parquet, ".arrow": _read_arrow},
    }
    if not path.exists():
        raise BadSetting(f"task.data {path} cannot be read: {os.strerror(errno.ENOENT)}")
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        return list(readers.get(kind, _read_jsonl)(path))
    except BadSetting as error:
        if kind in readers:
            raise
        raise BadSetting(f"{error}; what ends in none of {', '.join(FILE_KINDS)} is read as JSONL") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadSetting(f"task.data {path} cannot be read: {reason}") from error


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # reads alike


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield parse_json_row(line, f"{path} line {number}")


def parse_json_row(line: bytes, where: str) -> Row:
    """One JSON object of text that is text; BadSetting says what it is instead."""
    try:
        row = _parsed(line.decode("utf-8-sig"))
    except UnicodeError as error:
        raise BadSetting(f"{where} is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadSetting(f"{where} is not JSON: {error}") from error
    return _as_row(row, where)


def _parsed(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"it holds {name}, which is not a number: leave the value out, or give null")

    value = json.loads(text, parse_constant=refuse)
    # Half of a surrogate pair passes as JSON, but is no text.
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _as_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise BadSetting(f"{where} is not a JSON object with a value for each column: {json.dumps(row)[:60]}")
    return row


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects, or one object a line under another name."""
    with _opened(path) as file:
        text = file.read()
    if not text.lstrip().startswith(b"["):
        yield from _read_jsonl(path)
        return
    try:
        rows = _parsed(text.decode("utf-8-sig"))
    except UnicodeError as error:
        raise BadSetting(f"task.data {path} is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadSetting(f"task.data {path} is not JSON: {error}") from error
    yield from (_as_row(row, f"{path} row {number}") for number, row in enumerate(rows, start=1))


def _read_csv(path: Path) -> Iterator[Row]:
    """Every value stays the text that is there: 007 is not 7."""
    csv.field_size_limit(2**31 - 1)
    try:
        with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or ()
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise BadSetting(f"{path} has two columns {twice}: give each a name of its own")
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    raise BadSetting(
                        f"{path} row {number} has more or fewer values than there are columns "
                        f"({len(names)}): quote values that hold a comma"
                    )
                yield row
    except (UnicodeError, csv.Error) as error:
        raise BadSetting(f"task.data {path} is not CSV in UTF-8: {error}") from error


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise BadSetting(
            "data in Parquet or Arrow needs the pyarrow library: pip install 'asympo[tasks]'"
        ) from error
    return pyarrow


def _read_parquet(path: Path) -> list[Row]:
    pyarrow = _pyarrow()
    try:
        return _plain(pyarrow.parquet.read_table(path).to_pylist())
    except pyarrow.ArrowException as error:
        raise BadSetting(f"task.data {path} is not Parquet: {error}") from error


def _read_arrow(path: Path) -> list[Row]:
    """The stream format of `datasets`, or the file format of others."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                table = pyarrow.ipc.open_stream(source).read_all()
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(source).read_all()
            return _plain(table.to_pylist())
    except pyarrow.ArrowException as error:
        raise BadSetting(f"task.data {path} is not Arrow: {error}") from error


def _folder_of(path: Path, subset: str | None) -> Path:
    """A data set of the hub that was downloaded as it is has a folder for each subset."""
    if subset is None or (path / subset).is_dir():
        return path / (subset or ".")
    if subset == _WITHOUT_SUBSETS:
        return path
    raise BadSetting(
        f"task.data {path} has no folder for task.subset {subset}, only "
        f"{_names(each for each in path.iterdir() if each.is_dir())}: name one of its folders, or leave the "
        "subset out"
    )


def _names(paths: Iterable[Path]) -> str:
    names = sorted({path.name for path in paths})
    return ", ".join([*names[:_MAX_NAMES], *(["..."] if len(names) > _MAX_NAMES else [])]) or "none"


def _read_folder(path: Path, split: str) -> list[Row]:
    """What `save_to_disk` wrote of a data set, or of several splits; else Parquet files named by split."""
    splits = path / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text())["splits"]
        if split not in names:
            raise BadSetting(f"task.data {path} has no split {split}: choose from {', '.join(names)}")
        path = path / split
    state = path / "state.json"
    if state.is_file():
        files = [path / each["filename"] for each in json.loads(state.read_text())["_data_files"]]
    else:
        files = _files_of_split(path, split)
    return [row for file in files for row in _read_file(file)]


def _files_of_split(path: Path, split: str) -> list[Path]:
    """`train.parquet`, or `train-00000-of-00002.parquet` and its like, in one folder."""
    all_files = list(path.rglob("*.parquet"))
    files = sorted(each for each in all_files if each.stem == split or each.name.startswith(f"{split}-"))
    if not files:
        raise BadSetting(
            f"task.data {path} is a folder without state.json, dataset_dict.json, {split}.parquet or "
            f"{split}-*.parquet (its Parquet files: {_names(all_files)}): give one that save_to_disk wrote, "
            "or another task.split"
        )
    folders = sorted({str(each.parent.relative_to(path)) for each in files})
    if len(folders) > 1:
        raise BadSetting(
            f"task.data {path} has the split {split} in {len(folders)} folders: set task.subset to one of "
            f"{', '.join(folders[:_MAX_NAMES])}, or give the folder itself as task.data"
        )
    return files


def _read_hub(name: str, *, split: str, subset: str | None, revision: str | None) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise BadSetting(
            f"task.data {name} is on the hub, which needs the datasets library: pip install 'asympo[tasks]'"
        ) from error
    try:
        found = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:
        # The library and the hub client raise errors of a dozen unrelated classes.
        raise BadSetting(_hub_sentence(name, split, subset, revision, error)) from error
    return _plain(found.to_list())


def _hub_sentence(name: str, split: str, subset: str | None, revision: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    what = f"task.data {name}"
    what += "".join(
        f", {key} {value}" for key, value in (("subset", subset), ("revision", revision)) if value
    )
    is_offline = any(
        os.environ.get(key, "0") not in ("0", "") for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )
    if is_offline or isinstance(error, ConnectionError):
        return (
            f"{what} (split {split}) is no file here, it is not in the cache, and the hub "
            f"{'is switched off (HF_HUB_OFFLINE)' if is_offline else 'does not answer'}: load it once with a "
            f"connection, or give a file or folder ({reason})"
        )
    return f"{what} (split {split}) cannot be loaded: {type(error).__name__}: {reason}"


def _plain(rows: list[Any]) -> list[Row]:
    return [{str(key): plain_value(value) for key, value in row.items()} for row in rows]


def plain_value(value: Any) -> Any:
    """The value as JSON can hold it: times as ISO text, bytes as base64."""
    match value:
        case dict():
            return {str(key): plain_value(each) for key, each in value.items()}
        case list() | tuple():
            return [plain_value(each) for each in value]
        case None | bool() | int() | float() | str():
            return value
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal():
            return float(value)
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return str(value)
