"""A small evaluation of real policies by the command line, in a process that may be stopped or killed.

    python small_run.py REVIEWS SECONDS WORD...

REVIEWS is the file that stands for the package's; each call to the device takes SECONDS longer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from discojax.data import reviews
from discojax.launch import main


def run(path: str, seconds: float, words: list[str]) -> int:
    reviews._installed = lambda: Path(path)  # type: ignore[assignment]
    from discojax.population import operations

    perform = operations._perform

    def slowly(station, state, operation):
        answer = perform(station, state, operation)
        if isinstance(operation, operations.Advance):
            time.sleep(seconds)
        return answer

    operations._perform = slowly
    return main(words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
