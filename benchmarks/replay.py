"""A thousand proposals replayed through gate and archive.

Each proposal is another text (evolution wrote them beforehand), asked for four at a time as of a language
model. The clock runs from the first request to the last row of the archive, the start of the checking
process included; nothing is trained. How much longer the last tenth takes than the second, by when that
process is warm, shows whether the cost of one grows with how many there were. Processor time, of both
processes, is given beside the clock's.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import Row

__all__ = ["rows"]

PROPOSALS = 1000
LIMIT = 60.0  # seconds that the project allows itself
_BATCH = 4
_GENERATIONS = 10


def rows(*, quick: bool = False) -> list[Row]:
    """The table's lines on a search without its training."""
    from discojax.candidates.checker import shared
    from discojax.proposers.evolution import Evolution

    count = 40 if quick else PROPOSALS
    texts = tuple(Evolution().propose([], count, seed=0))
    shared().close()  # so that its start is in the time
    before, cpu = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        marks, accepted = _replayed(texts, Path(folder) / "archive.sqlite")
    cpu = time.process_time() - cpu
    shared().close()  # so that its time is known
    gate = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu += gate.ru_utime + gate.ru_stime - before.ru_utime - before.ru_stime
    what = f"{len(texts):,} proposals through gate and archive"
    _, second, *_, last = (after - at for at, after in zip([0.0, *marks], marks, strict=False))
    return [
        Row(what, f"{marks[-1]:.1f}", f"{LIMIT:g}", LIMIT / marks[-1],
            f"s against the limit; {cpu:.1f} s of a processor, {accepted:,} accepted"),
        Row(f"{what}: the last tenth against the second", f"{last:.2f}", f"{second:.2f}", second / last, "s"),
    ]  # fmt: skip


def _replayed(texts: tuple, path: Path) -> tuple[list[float], int]:
    """Seconds until each tenth was in the archive, and how many the gate accepted."""
    from discojax.proposers.replay import Replay
    from discojax.search import archive as archives
    from discojax.search import proposals
    from discojax.search.ledger import RunLedger

    marks, accepted = [], 0
    with archives.open_archive(path, "replay") as archive:
        begun = time.perf_counter()
        proposals.admit_library(archive, ("dpo", "ipo", "slic"))
        notebook, ledger = proposals.Notebook(archive), RunLedger(archive)
        for generation in range(1, _GENERATIONS + 1):
            found = proposals.propose(
                notebook,
                Replay(texts[: len(texts) * generation // _GENERATIONS]),
                proposals.history(notebook, before=generation),
                generation=generation,
                wanted=len(texts),
                seed=0,
                batch=_BATCH,
                heard=ledger.hand_over,
            )
            accepted += sum(1 for _ in found)
            marks.append(time.perf_counter() - begun)
        assert len(notebook.attempts) == len(texts) + 3
    return marks, accepted
