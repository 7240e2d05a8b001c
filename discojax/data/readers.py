"""Rows of a file or a data set, streamed: what each format needs to be read, and nothing of their meaning."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from discojax.errors import UserError, nearest

__all__ = ["Broken", "Row", "provide", "read_rows"]

SUFFIXES = (".jsonl", ".parquet", ".txt")
_LONGEST = 1 << 26  # bytes of a line; a file without line breaks must not fill the memory
_ROWS = 256  # of Parquet at a time


class Broken(NamedTuple):
    """A row that could not even be read."""

    reason: str
    detail: str = ""


Row = Mapping[str, Any] | Broken

_PROVIDED: dict[str, Callable[[], Path]] = {}


def provide(name: str, folder: Callable[[], Path]) -> None:
    """Makes `tfds:NAME` the data set in the folder that `folder` gives, which is called when it is read."""
    _PROVIDED[name] = folder


def read_rows(
    source: str, split: str = "train", *, text_column: str | None = None
) -> Iterator[tuple[str, Row]]:
    """The rows of a source with the place of each, such as `pairs.jsonl, line 3`.

    Args:
      source: a `.jsonl` or `.parquet` file, a folder of such, `hf:OWNER/NAME` or `tfds:NAME`; without
        the prefix a name with a slash is sought on the hub and any other in TFDS.
      split: of a hub or TFDS data set.
      text_column: what a line of a `.txt` file is called; None if none can be meant.

    Raises:
      UserError: there is no such source, it cannot be read, or its library is not installed.
    """
    path = Path(source).expanduser()
    kind, colon, name = source.partition(":")
    if colon and kind in ("hf", "tfds"):
        return _hub(name, split) if kind == "hf" else _tfds(name, split)
    if path.is_dir():
        return _folder(path, split, text_column)
    if path.is_file():
        return _file(path, text_column)
    if path.suffix in (*SUFFIXES, ".json", ".csv", ".gz") or source.startswith((".", "/", "~")):
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"There is no file {source!r}.{nearest(path.name, there)}")
    return _hub(source, split) if source.count("/") == 1 else _tfds(source, split)


def _folder(path: Path, split: str, text_column: str | None) -> Iterator[tuple[str, Row]]:
    if (path / "dataset_info.json").is_file() and (path / "features.json").is_file():
        yield from _tfds(str(path), split)
        return
    files = [file for file in sorted(path.rglob("*")) if file.suffix in (".jsonl", ".parquet")]
    if not files:
        raise UserError(f"{path} holds no .jsonl and no .parquet file.")
    for file in files:
        yield from _file(file, text_column)


def _file(path: Path, text_column: str | None) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".txt" and text_column is not None:
        return ((place, {text_column: line}) for place, line in _lines(path))
    if path.suffix == ".jsonl":
        return _jsonl(path)
    raise UserError(
        f"{path} is of no kind that can be read: write one JSON object a line into a .jsonl file, "
        "or a table into a .parquet file."
    )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST):
                number += 1
                if len(line) == _LONGEST:
                    raise UserError(
                        f"{path}, line {number} is longer than {_LONGEST >> 20} MiB: is it one row?"
                    )
                if text := line.decode("utf-8", errors="replace").strip("\r\n"):
                    yield f"{path.name}, line {number}", text
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    for place, line in _lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield place, Broken("not JSON", str(error))
            continue
        yield place, value if isinstance(value, dict) else Broken("not an object", line[:60])


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    parquet = _library("pyarrow.parquet", "Reading Parquet", "pyarrow")
    arrow = _library("pyarrow", "Reading Parquet", "pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}, row {number}", row
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file that can be read: {_first_line(error)}.") from error


def _hub(name: str, split: str) -> Iterator[tuple[str, Row]]:
    library = _library("datasets", f"The data set {name}", "'discojax[hub]'")
    try:
        rows = library.load_dataset(name, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{name}, row {number}", row
    except UserError:
        raise
    except Exception as error:  # whatever the hub, the network or a broken file comes up with
        raise UserError(
            f"The data set {name} (split {split!r}) could not be had from the hub ({_first_line(error)}). "
            "Without the network, save its .parquet or .jsonl files into a folder and give that."
        ) from error


def _tfds(name: str, split: str) -> Iterator[tuple[str, Row]]:
    library = _library("tensorflow_datasets", f"The data set {name}", "tensorflow-datasets")
    folder = str(_PROVIDED[name]()) if name in _PROVIDED else name
    try:
        if Path(folder).is_dir():
            builder = library.builder_from_directory(folder)
        else:
            builder = library.builder(name)
            builder.download_and_prepare(file_format="array_record")
        rows = builder.as_data_source(split=split)
    except Exception as error:
        raise UserError(
            f"The data set {name!r} (split {split!r}) could not be had from TFDS ({_first_line(error)}). "
            "For the hub write hf:OWNER/NAME, for a file its path."
        ) from error
    for number in range(len(rows)):
        yield f"{name}, row {number + 1}", rows[number]


def _library(module: str, what: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{what} takes a package that is not installed: run `pip install {package}`."
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
