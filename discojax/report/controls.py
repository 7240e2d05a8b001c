"""The table of controls: did the search find more than the same effort spent without it?"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from discojax.search.finals import Control
from discojax.search.statistics import Estimate, interval

__all__ = ["table"]


def table(controls: Sequence[Control], *, baseline: str, confidence: float) -> Table:
    """One line for the search and one for each control, for `rich.print`."""
    result = Table(
        title="the search against its controls, held out",
        caption=(
            "Each had the same number of candidates, in the same brackets. `best` is what its elites' own "
            "measurements put first; differences are paired, each by itself, with "
            f"{100 * confidence:g} % intervals."
        ),
        caption_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading, justify in (
        ("arm", "left"),
        ("accepted", "right"),
        ("lane-steps", "right"),
        ("best", "left"),
        (f"vs {baseline}", "right"),
        ("search's lead over it", "right"),
    ):
        result.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for control in controls:
        difference = None if control.comparison is None else control.comparison.difference
        cells = (
            control.name.replace("_", " "),
            f"{control.accepted} of {control.proposed}",
            f"{control.lane_steps:,}",
            control.best or "none trained",
            _cell(difference, confidence),
            _cell(control.lead, confidence),
        )
        result.add_row(*map(Text, cells))
    return result


def _cell(estimate: Estimate | None, confidence: float) -> str:
    if estimate is None or estimate.value != estimate.value:
        return ""
    low, high = interval(estimate, confidence)
    return f"{estimate.value:+.3f} [{low:+.3f}, {high:+.3f}]"
