"""The leaderboard: one line an objective, with what is known and how surely, as a table, text and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from discojax.search.statistics import Comparison

__all__ = ["Row", "ranked", "row", "table", "to_csv"]

_Interval = Callable[[float | None, float | None, float | None, str], str]
_COLOURS = {"better": "green", "worse": "red", "baseline": "bold"}


@dataclass(frozen=True)
class Row:
    """One objective's line. Whatever was not measured is None; a failure is a status, never a number.

    Attributes:
      name: the objective.
      status: "ok", "failed" or "diverged".
      rank: from 1 for the best; None for what failed. `ranked` sets it.
      score: frontier area above SFT, in units of reward, with its interval `score_low`, `score_high`.
      reward: mean reward at the beta reported, and
      kl: sequence KL(policy‖reference) there, in nats.
      difference: score minus the baseline's, with its interval `difference_low`, `difference_high`.
      verdict: "better", "worse", "no difference shown", "baseline", or "" if nothing was compared.
      seeds: training seeds behind the numbers.
      note: anything to add, such as how many lanes diverged.
    """

    name: str
    status: str = "ok"
    rank: int | None = None
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    reward: float | None = None
    kl: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    verdict: str = ""
    seeds: int = 0
    note: str = ""


def row(
    comparison: Comparison,
    *,
    reward: float | None = None,
    kl: float | None = None,
    confidence: float = 0.95,
) -> Row:
    """The line of one comparison; `reward` and `kl` are those at the beta the caller reports."""
    from discojax.search.statistics import interval

    diverged = f"{comparison.failures} of {comparison.lanes} lanes diverged" if comparison.failures else ""
    seeds = comparison.score.seeds
    if comparison.verdict == "failed":
        status = "diverged" if comparison.failures == comparison.lanes else "failed"
        return Row(comparison.name, status, verdict="", seeds=seeds, note=diverged)
    low, high = interval(comparison.score, confidence)
    line = Row(
        comparison.name,
        score=comparison.score.value,
        score_low=low,
        score_high=high,
        reward=reward,
        kl=kl,
        verdict=comparison.verdict,
        seeds=seeds,
        note=diverged,
    )
    if comparison.verdict == "baseline":
        return line
    return replace(
        line,
        difference=comparison.difference.value,
        difference_low=comparison.interval[0],
        difference_high=comparison.interval[1],
    )


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Rows by score, best first, equal scores by name; then, without a rank, those that failed."""
    rows = list(rows)
    scored = sorted((r for r in rows if r.score is not None), key=lambda r: (-(r.score or 0.0), r.name))
    failed = sorted((r for r in rows if r.score is None), key=lambda r: r.name)
    return [replace(r, rank=i + 1) for i, r in enumerate(scored)] + failed


def table(
    rows: Sequence[Row], *, title: str = "", baseline: str = "dpo", caption: str = ""
) -> RenderableType:
    """The leaderboard for `rich.print`, in the order given."""
    from rich.text import Text

    from discojax.report import tables

    result = tables.plain(title)
    for heading, justify in _columns(baseline, "±"):
        # On a narrow terminal names and words fold; a number is never cut.
        folds = heading in ("objective", "verdict")
        result.add_column(
            Text(heading),
            justify=justify,
            no_wrap=not folds,
            overflow="fold",
            min_width={"objective": 11, "verdict": 10}.get(heading),
        )
    for r in rows:
        style = "dim" if r.status != "ok" else _COLOURS.get(r.verdict)
        result.add_row(*map(Text, _cells(r, _plus_minus)), style=style)  # Text: names may hold markup
    return tables.captioned(result, caption)


def to_csv(rows: Sequence[Row]) -> str:
    """All fields of the rows at full precision, with a header; what was not measured is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ["rank", *(f.name for f in fields(Row) if f.name != "rank")]
    writer.writerow(names)
    for r in rows:
        writer.writerow(["" if (value := getattr(r, n)) is None else value for n in names])
    return buffer.getvalue()


def _columns(baseline: str, bounds: str = "[95 %]") -> list[tuple[str, Literal["left", "right"]]]:
    return [
        ("#", "right"),
        ("objective", "left"),
        (f"score {bounds}", "right"),
        ("reward", "right"),
        ("KL", "right"),
        (f"vs {baseline} {bounds}", "right"),
        ("seeds", "right"),
        ("verdict", "left"),
    ]


def _cells(r: Row, interval: _Interval) -> list[str]:
    return [
        "" if r.rank is None else str(r.rank),
        r.name,
        interval(r.score, r.score_low, r.score_high, "{:.3f}"),
        "" if r.reward is None else f"{r.reward:.3f}",
        "" if r.kl is None else f"{r.kl:.1f}",
        interval(r.difference, r.difference_low, r.difference_high, "{:+.3f}"),
        str(r.seeds) if r.seeds else "",
        ": ".join(x for x in (r.verdict if r.status == "ok" else r.status, r.note) if x),
    ]


def _plus_minus(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """The longer side of the interval, for a narrow table; the CSV has both ends."""
    if value is None:
        return ""
    if low is None or high is None:
        return form.format(value)
    return f"{form} ± {{:.3f}}".format(value, max(high - value, value - low))
