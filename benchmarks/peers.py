"""PyTorch's side of a comparison, in its own process: `benchmarks.torch_peer`.

It runs in this Python if it has torch and trl, or else in the one that `DISCOJAX_TORCH_PYTHON` names.
The two sides take turns, so that both see the same machine, whatever else it is doing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Peer", "open_peer"]


@dataclass
class Peer:
    """A running peer; `facts` says on what."""

    process: subprocess.Popen
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)

    def build(self, name: str, shape: dict[str, Any], **data: Any) -> None:
        """Prepares a subject: `plain`, `trl` or `generate`."""
        file = self.folder / f"{name}.npz"
        np.savez(file, **{key: np.asarray(value) for key, value in data.items()})
        self._ask({"do": "build", "name": name, "shape": shape, "data": {"file": str(file)}})

    def run(self, name: str, times: int) -> tuple[float, Any]:
        """Seconds that so many steps or calls took, and what they gave."""
        reply = self._ask({"do": name, "times": times})
        return reply["seconds"], reply["result"]

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            log = (self.folder / "log").read_text(errors="replace")
            raise RuntimeError(f"PyTorch's side ended:\n{log[-3000:]}")
        return json.loads(line)


@contextmanager
def open_peer() -> Iterator[Peer | None]:
    """The peer, or None where no Python with torch and trl is known."""
    python = _python()
    if python is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(
            [python, str(Path(__file__).with_name("torch_peer.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        try:
            peer = Peer(process, Path(folder))
            peer.facts = peer.answer()
            yield peer
        finally:
            process.kill()
            process.wait()


def _python() -> str | None:
    named = os.environ.get("DISCOJAX_TORCH_PYTHON")
    if named:
        return named
    found = all(importlib.util.find_spec(name) is not None for name in ("torch", "trl", "transformers"))
    return sys.executable if found else None
