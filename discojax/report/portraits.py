"""What the report shows of programs, their formulas and curves, kept from one report to the next.

Each takes some milliseconds a program, and a page is written again and again while a run goes on, and
then by `report`. Importing this module imports no JAX, and where all is kept already nothing else does.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from discojax.data import cache
from discojax.parsing import PARSING

if TYPE_CHECKING:
    from discojax.candidates import Program

__all__ = ["Curves", "Gallery", "Portrait", "kept", "margins"]

_POINTS = 101
_SQUEEZE = 3.0  # margins lie closer together near 0, where some losses turn within a nat
_RUNS = 20  # whose portraits are kept
_MADE_BY = ("candidates", "objectives", "report/formulas.py", "report/portraits.py")

Make = Callable[[], "Program | None"]
Pairs = dict[str, Float[np.ndarray, "2 points"]]


@dataclass(frozen=True)
class Portrait:
    """A program as a card shows it.

    Attributes:
      source: its text.
      hash: of the program.
      formula: see `formulas.formula`.
    """

    source: str
    hash: str
    formula: tuple[tuple[str, str], ...]


class Curves(NamedTuple):
    """Losses and their derivatives at the same margins: see `formulas.curves`."""

    margins: Float[np.ndarray, " points"]
    values: Float[np.ndarray, "programs points"]
    slopes: Float[np.ndarray, "programs points"]


class Gallery:
    """The portraits of one run, made as they are asked for.

    Args:
      portraits: that there are already, by what they were asked for by.
      curves: that there are already, by beta and reach, those of a program by its hash.
    """

    def __init__(self, portraits: dict[str, Portrait], curves: dict[tuple[float, float], Pairs]):
        self._portraits = portraits
        self._curves = curves
        self._makers: dict[str, Make] = {}
        self._shown: set[tuple[float, float]] = set()
        self.changed = False

    def portrait(self, key: str, make: Make) -> Portrait | None:
        """The portrait of what `make` makes, None if that is nothing; `key` stands for it."""
        if key not in self._portraits:
            from discojax.report import formulas

            program = make()
            if program is None:
                return None
            self.changed = True
            self._portraits[key] = Portrait(program.source, program.hash, tuple(formulas.formula(program)))
            self._makers[program.hash] = lambda: program
        found = self._portraits[key]
        self._makers.setdefault(found.hash, make)
        return found

    def curves(self, portraits: Sequence[Portrait], beta: float, reach: float) -> Curves:
        """The curves of programs, in their order, of which `portrait` has been asked for."""
        points = margins(reach)
        known = self._curves.setdefault((beta, reach), {})
        self._shown.add((beta, reach))
        if missing := {p.hash: self._makers[p.hash] for p in portraits if p.hash not in known}:
            from discojax.report import formulas

            self.changed = True
            programs = [program for make in missing.values() if (program := make()) is not None]
            for name, *both in zip(missing, *formulas.curves(programs, beta, points), strict=True):
                known[name] = np.stack(both)
        found = np.stack([known[p.hash] for p in portraits]) if portraits else np.zeros((0, 2, len(points)))
        return Curves(points, found[:, 0], found[:, 1])

    def save(self, file: Path) -> None:
        """Keeps all portraits, and the curves that this report has shown."""
        tables = {at: known for at, known in self._curves.items() if at in self._shown}
        index = {
            "made by": _made_by(),
            "portraits": {key: astuple(found) for key, found in self._portraits.items()},
            "curves": [[*at, list(known)] for at, known in tables.items()],
        }
        arrays = {f"{i}": np.stack([*known.values()]) for i, known in enumerate(tables.values()) if known}
        buffer = io.BytesIO()
        np.savez(buffer, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        file.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(file, buffer.getvalue())
        self.changed = False


def margins(reach: float) -> Float[np.ndarray, " points"]:
    """Where curves are drawn, from minus to plus `reach` nats, closer together near 0."""
    grid = np.sinh(np.linspace(-_SQUEEZE, _SQUEEZE, _POINTS)) / np.sinh(_SQUEEZE)
    return (reach * grid).astype(np.float32)


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[Gallery]:
    """The gallery of the run in a folder, which is kept at the end if there is anything new in it.

    It lies in the cache and not beside the run: a run may be anybody's, and a page believes its formulas.
    """
    place = cache.default_root() / "report"
    file = place / f"{cache.content_hash(str(folder.resolve()))[:16]}.npz"
    gallery = _read(file)
    yield gallery
    if gallery.changed:
        gallery.save(file)
        for old in sorted(place.glob("*.npz"), key=lambda path: path.stat().st_mtime)[:-_RUNS]:
            old.unlink(missing_ok=True)


def _read(file: Path) -> Gallery:
    """What is kept there; nothing if it is of another version, or damaged."""
    portraits: dict[str, Portrait] = {}
    curves: dict[tuple[float, float], Pairs] = {}
    wrong = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
    with contextlib.suppress(*wrong), PARSING, np.load(file, allow_pickle=False) as arrays:
        index = json.loads(arrays["index"].tobytes())
        if index["made by"] == _made_by():
            for i, (beta, reach, names) in enumerate(index["curves"]):
                curves[beta, reach] = dict(zip(names, arrays[f"{i}"], strict=True)) if names else {}
            for key, (source, digest, lines) in index["portraits"].items():
                portraits[key] = Portrait(source, digest, tuple((left, right) for left, right in lines))
    return Gallery(portraits, curves)


@functools.cache
def _made_by() -> str:
    """What formulas and curves depend on beside the program: our own code, and what writes MathML."""
    root = Path(__file__).parent.parent
    files = [path for part in _MADE_BY for path in sorted([root / part, *(root / part).glob("*.py")])]
    texts = [path.read_bytes() for path in files if path.is_file()]
    return cache.content_hash([version("latex2mathml"), *texts])
