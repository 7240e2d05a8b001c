"""The table of controls: did the search find more than the same effort spent without it?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import RenderableType
from rich.text import Text

from discojax.report import tables
from discojax.search.statistics import Comparison, Estimate, interval
from discojax.search.trials import Control

__all__ = ["cells", "headings", "read", "table"]


def table(controls: Sequence[Control], *, baseline: str, confidence: float) -> RenderableType:
    """One line for the search and one for each control, for `rich.print`."""
    result = tables.plain("the search against its controls, held out")
    for heading, justify in headings(baseline):
        result.add_column(heading, justify=justify, overflow="fold")
    for control in controls:
        result.add_row(*map(Text, cells(control, confidence)))
    return tables.captioned(
        result,
        "Each had the same number of candidates, in the same brackets, and an equal share of the budget. "
        "`best` is what its elites' own measurements put first; differences are paired, each by itself, with "
        f"{100 * confidence:g} % intervals.",
    )


def headings(baseline: str) -> list[tuple[str, Literal["left", "right"]]]:
    """Of the columns, and the side that each keeps to."""
    return [
        ("arm", "left"),
        ("accepted", "right"),
        ("lane-steps", "right"),
        ("best", "left"),
        (f"vs {baseline}", "right"),
        ("search's lead over it", "right"),
    ]


def cells(control: Control, confidence: float) -> list[str]:
    """Of one line."""
    difference = None if control.comparison is None else control.comparison.difference
    return [
        control.name.replace("_", " "),
        f"{control.accepted} of {control.proposed}",
        f"{control.lane_steps:,}",
        control.best or "none trained",
        _cell(difference, confidence),
        _cell(control.lead, confidence),
    ]


def read(results: Mapping[str, Any]) -> list[Control]:
    """The controls of a run's `results.json`."""
    return [_control(entry) for entry in results.get("controls") or ()]


def _control(entry: Mapping[str, Any]) -> Control:
    compared = entry.get("comparison")
    if compared is not None:
        estimates = {name: _estimate(compared[name]) for name in ("score", "difference")}
        compared = Comparison(**{**compared, **estimates})
    return Control(**{**entry, "comparison": compared, "lead": _estimate(entry.get("lead"))})


def _estimate(entry: Mapping[str, Any] | None) -> Estimate | None:
    """JSON has no NaN, so what was one is null."""
    if entry is None:
        return None
    return Estimate(**{name: math.nan if value is None else value for name, value in entry.items()})  # type: ignore[arg-type]


def _cell(estimate: Estimate | None, confidence: float) -> str:
    if estimate is None or estimate.value != estimate.value:
        return ""
    low, high = interval(estimate, confidence)
    return f"{estimate.value:+.3f} [{low:+.3f}, {high:+.3f}]"
