"""A thousand proposals replayed through gate and archive.

    python benchmarks/replay.py [--count 1000]

Each proposal is another text (evolution wrote them beforehand), asked for four at a time as of a language
model. The clock runs from the first request to the last row of the archive, the start of the checking
process included; nothing is trained. Seconds for each tenth show whether the cost of one grows with
how many there were.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    from discojax.candidates.checker import shared
    from discojax.proposers.evolution import Evolution
    from discojax.proposers.replay import Replay
    from discojax.search import archive as archives
    from discojax.search import proposals
    from discojax.search.ledger import RunLedger

    texts = tuple(Evolution().propose([], count, seed=0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with archives.open_archive(folder / "archive.sqlite", "replay") as archive:
            begun, cpu = time.perf_counter(), time.process_time()
            proposals.admit_library(archive, ("dpo", "ipo", "slic"))
            notebook, ledger, marks = proposals.Notebook(archive), RunLedger(archive), []
            for generation in range(1, 11):
                past = proposals.history(notebook, before=generation)
                found = proposals.propose(
                    notebook, Replay(texts[: count * generation // 10]), past, generation=generation,
                    wanted=count, seed=0, batch=BATCH, heard=ledger.hand_over,
                )  # fmt: skip
                accepted = sum(1 for _ in found)
                marks.append((time.perf_counter() - begun, accepted, len(notebook.attempts)))
            cpu = time.process_time() - cpu
            shared().close()  # so that its time is known
            gate = resource.getrusage(resource.RUSAGE_CHILDREN)
    table = Table("proposals", "accepted", "seconds")
    before = 0.0
    for at, accepted, attempts in marks:
        table.add_row(f"{attempts - 3}", f"{accepted}", f"{at - before:.1f}")
        before = at
    console = Console()
    console.print(table)
    console.print(
        f"{len(texts)} proposals in {marks[-1][0]:.1f} s, of CPU {cpu:.1f} s here and "
        f"{gate.ru_utime + gate.ru_stime:.1f} s in the checking process, its start included; "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
