"""The proposer of a folder: every `.py` file in it is a candidate, in the order of their names."""

from __future__ import annotations

from pathlib import Path

from discojax.errors import UserError
from discojax.proposers.replay import Replay
from discojax.proposers.replies import identifier
from discojax.proposers.types import Proposal

__all__ = ["read_folder"]

_LONGEST = 100_000  # characters; the gate takes 4 kB, and says so of what is longer


def read_folder(path: str | Path) -> Replay:
    """Proposes the files of a folder, each once. They are read now: changing one later changes nothing.

    Raises:
      UserError: if there is no such folder, no `.py` file in it, or one that cannot be read.
    """
    folder = Path(path).expanduser()
    if not str(path) or not folder.is_dir():
        raise UserError(
            f"There is no folder {str(path)!r}: set proposer.path to one with a .py file for each candidate."
        )
    files = sorted(file for file in folder.glob("*.py") if file.is_file())
    if not files:
        raise UserError(f"{folder} has no .py file: put a file with one function into it for each candidate.")
    proposals: list[Proposal] = []
    names: set[str] = set()
    for file in files:
        try:
            source = file.read_text(encoding="utf-8", errors="replace")[:_LONGEST]
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}.") from error
        name = identifier(file.stem)
        while name in names:
            name += "_"
        names.add(name)
        proposals.append(Proposal(name, source, "file", (), f"From the file {file.name}."))
    return Replay(tuple(proposals), "file")
