"""What a transfer ends with: one verdict table for each finalist, and the rank correlations."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from discojax.data import cache
from discojax.report import tables
from discojax.search.records import plain
from discojax.search.rungs import BASELINE
from discojax.search.statistics import interval
from discojax.search.transfer import Transferred

__all__ = ["show", "summary"]


def show(transferred: Transferred, *, confidence: float, console: Console | None = None) -> None:
    """Prints it, and writes `transfer.json` into the transfer's folder."""
    console = console or Console()
    for name in transferred.finalists:
        console.print(_verdicts(transferred, name, confidence))
    console.print(_correlations(transferred, confidence))
    for sentence in summary(transferred):
        console.print(f"- {sentence}", highlight=False)
    file = transferred.folder / "transfer.json"
    cache.write_json(file, plain(asdict(transferred) | {"source": str(transferred.source),
                                                         "folder": str(transferred.folder)}))  # fmt: skip
    console.print(f"results: {file}", highlight=False, soft_wrap=True)


def _table(title: str, *headings: str) -> Table:
    table = tables.plain(title)
    for i, heading in enumerate(headings):
        words = i < 2 or heading == "verdict"
        table.add_column(
            Text(heading), justify="left" if words else "right", no_wrap=not words, overflow="fold"
        )
    return table


def _verdicts(transferred: Transferred, name: str, confidence: float) -> RenderableType:
    table = _table(name, "stage", "", "area", f"vs {BASELINE}", "verdict")
    rows = [(stage.name, stage.detail, stage.comparisons[name]) for stage in transferred.stages]
    if name in transferred.search:
        rows.insert(0, ("search", "what it was chosen by", transferred.search[name]))
    for stage, detail, found in rows:
        failed = found.verdict == "failed"
        low, high = interval(found.difference, confidence)
        table.add_row(
            Text(stage),
            Text(detail),
            "" if failed else f"{found.score.value:.3f}",
            "" if failed else f"{found.difference.value:+.3f} [{low:+.3f}, {high:+.3f}]",
            # The search chose it among many by this very number, so its difference is no verdict.
            Text("" if stage == "search" else found.verdict),
        )
    return tables.captioned(
        table,
        f"Differences are of frontier areas, with {100 * confidence:g} % intervals, paired by seed and "
        "prompt; verdicts are Holm-corrected over finalists and baselines.",
    )


def _correlations(transferred: Transferred, confidence: float) -> RenderableType:
    table = _table("does the search measure the right thing?", "stage", "", "objectives", "rank correlation")
    for stage in transferred.stages:
        value, low, high, pairs = stage.correlation
        text = "too few" if np.isnan(value) else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
        table.add_row(Text(stage.name), Text(stage.detail), str(pairs), text)
    return tables.captioned(
        table,
        "Spearman's rank correlation of the search's score with the stage's, over all objectives that went "
        "along. Computed from the DiscoPOP paper's own tables, MT-Bench against AlpacaEval, it is -0.12.",
    )


def summary(transferred: Transferred) -> list[str]:
    """One sentence a finalist: where it is better than the baseline, and where worse."""
    sentences = []
    for name in transferred.finalists:
        by = {
            verdict: [s.name for s in transferred.stages if s.comparisons[name].verdict == verdict]
            for verdict in ("better", "worse", "failed")
        }
        parts = [f"{verdict} in {', '.join(stages)}" for verdict, stages in by.items() if stages]
        said = "; ".join(parts) or "no difference shown in any stage"
        sentences.append(f"{name} against {BASELINE}: {said}.")
    return sentences
