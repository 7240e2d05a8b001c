"""A whole discovery in the toy laboratory, in a process that may be killed.

    python toy_run.py FOLDER [key=value ...]

It goes on with what the folder holds. Everything but the device and the tasks is the real thing.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

import toy

from discojax.config import load
from discojax.search import discover

SETTINGS = (
    "search.library=[dpo, ipo, exp]", "search.betas=[0.1, 0.5]", "search.rungs=[[1, 20, 64], [2, 40, 2]]",
    "search.elites=[2, 40, 4]", "evaluation.bootstrap=50", "evaluation.search_prompts=16",
    "evaluation.prompts=16", "evaluation.seeds=2", "evaluation.baselines=[dpo, slic]", "population.lanes=8",
)  # fmt: skip


def main(folder: Path, overrides: list[str]) -> None:
    config = load("quickstart", [*SETTINGS, f"run.directory={folder}", "run.name=toy", *overrides])

    def build(config, archive, names, screen, log):
        made = toy.laboratory(archive, config.run.path, lanes=config.population.lanes, chunk=10)
        return replace(made, log=log)

    discover.build_laboratory = build  # type: ignore[assignment]
    discover.run(config, resume=(config.run.path / "archive.sqlite").exists())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in the background
    main(Path(sys.argv[1]), sys.argv[2:])
