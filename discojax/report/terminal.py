"""What the command line prints about losses: the library, one loss and its curve, a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from discojax.candidates import CheckResult
    from discojax.objectives import Objective

__all__ = ["show_library", "show_objective", "show_verdict"]

_SPAN = 4.0  # curves show beta times the margin from -_SPAN to _SPAN
_POINTS = 121


def show_library(objectives: Sequence[Objective], console: Console | None = None) -> None:
    """A table of losses: name, aliases, formula, source."""
    from discojax.objectives import NOTATION

    table = Table("loss", "formula", "source", caption=NOTATION, caption_justify="left", show_lines=True)
    for objective in objectives:
        name = Text(objective.name, style="bold")
        if objective.aliases:
            name.append("\n" + ", ".join(objective.aliases), style="not bold dim")
        table.add_row(name, Text(objective.formula), Text(objective.reference, style="dim"))
    (console or Console()).print(table)


def show_objective(objective: Objective, beta: float, console: Console | None = None) -> None:
    """One loss: its formula, its paper, its text, and its value and slope against the margin."""
    from discojax.objectives import NOTATION

    console = console or Console()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("loss", Text(objective.name, style="bold"))
    rows = {
        "also": ", ".join(objective.aliases),
        "formula": objective.formula,
        "where": NOTATION,
        "source": objective.reference,
        "settings": ", ".join(f"{name}={value:g}" for name, value in objective.settings.items()),
    }
    for row, text in rows.items():
        if text:
            facts.add_row(Text(row, style="dim"), Text(text))
    console.print(facts)
    # Never wrapped or padded, so that what is copied or piped is the text itself.
    source = Syntax("", "python", theme="ansi_dark").highlight(objective.source)
    console.print(Text.assemble("\n", source), soft_wrap=True)
    console.print(_curves(objective, beta, console))


def show_verdict(verdict: CheckResult, console: Console | None = None) -> None:
    """What the gate said of a candidate."""
    console = console or Console()
    program = verdict.program
    if not verdict.accepted or program is None:
        line = f", line {verdict.line}" if verdict.line else ""
        console.print(Text.assemble(("rejected", "bold red"), f" at {verdict.stage}{line}: {verdict.reason}"))
        return
    console.print(Text.assemble(("accepted", "bold green"), f" {program.name}"))
    facts = {"formula": program.formula, "hash": program.hash[:16], "complexity": program.complexity}
    for name, fact in facts.items():
        if fact != "":
            console.print(Text(f"  {name:12}{fact}"), soft_wrap=True)
    if program.batch_coupled:
        console.print(Text("  the loss of a pair depends on the other pairs of its batch"))


def _curves(objective: Objective, beta: float, console: Console) -> RenderableType:
    import numpy as np

    from discojax.objectives import curve

    margins = np.linspace(-_SPAN / beta, _SPAN / beta, _POINTS, dtype=np.float32)
    values, slopes = curve(objective, beta, margins)
    title = Text(f"against the log-ratio margin ρ, at β = {beta:g}", style="dim")
    beside = console.width >= 120
    width = 80 if console.width >= (210 if beside else 105) else 40  # a tick every ten falls on round margins
    plots = [
        _plot(margins.tolist(), np.asarray(y).tolist(), label, width, console)
        for label, y in (("loss", values), ("slope", slopes))
    ]
    return Group(title, Columns(plots) if beside else Group(*plots))


def _plot(x: list[float], y: list[float], label: str, width: int, console: Console) -> Text:
    """A line in braille dots; points that are not finite are left out."""
    import plotille

    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if not points:
        return Text(f"{label}: not finite anywhere")
    low, high = min(b for _, b in points), max(b for _, b in points)
    room = 0.05 * (high - low) or 0.5
    figure = plotille.Figure()
    figure.width, figure.height = width, 12
    figure.with_colors = console.is_terminal and not console.no_color
    figure.x_label, figure.y_label = "ρ", label
    figure.set_x_limits(x[0], x[-1])
    figure.set_y_limits(low - room, high + room)
    figure.register_label_formatter(float, _tick)
    figure.plot([a for a, _ in points], [b for _, b in points], lc="cyan" if figure.with_colors else None)
    return Text.from_ansi(figure.show())


def _tick(number: float, chars: int, delta: float, left: bool = False) -> str:
    text = f"{0.0 if abs(number) < 1e-3 * abs(delta) else number:.4g}"
    return text.ljust(chars) if left else text.rjust(chars)
