"""Files of JSON lines that a kill at any moment leaves readable: transcripts, metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["append", "read"]


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; one that a kill cut short is left out, and no file has none."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines in one piece, whole even behind one that a kill cut short; makes file and folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + text if _torn(path) else text)


def _torn(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
