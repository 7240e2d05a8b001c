"""The command line on few reviews, in a process of a job that may have others.

python hosts_run.py REVIEWS COMMAND...
"""

from __future__ import annotations

import sys
from pathlib import Path

from discojax import launch
from discojax.data import reviews


def main() -> int:
    reviews._installed = lambda: Path(sys.argv[1])  # type: ignore[assignment]
    return launch.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
