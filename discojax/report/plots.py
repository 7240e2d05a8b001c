"""The two pictures of a run: what rewards cost in KL, and what the losses that won look like.

Drawn with Matplotlib's object interface on its Agg canvas: no display, no global state, safe in threads.
Lines are labelled where they end instead of in a legend, so that no colour has to be matched by eye;
colours are Okabe & Ito's, told apart also by the colour-blind. The baseline is black and on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from discojax.search.frontier import reward_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "Series", "curves_png", "frontier_png"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6D14", "#7B4FA3")
_GREY = "#b0b0b0"
_BANDS = 3  # more shaded bands than these, and the baseline's, only make mud; the others have bars
_LABEL_GAP = 0.055  # of the axes' height, between two labels


@dataclass(frozen=True)
class Series:
    """One objective's policies, one point a beta; a point that diverged is NaN and left out.

    Attributes:
      name: its label.
      beta: `[points]`.
      kl: sequence KL(policy‖reference) in nats, `[points]`.
      reward: `[points]`.
      low: lower end of the reward's interval, `[points]`.
      high: upper end, `[points]`.
    """

    name: str
    beta: Float[Array, " points"]
    kl: Float[Array, " points"]
    reward: Float[Array, " points"]
    low: Float[Array, " points"]
    high: Float[Array, " points"]


@dataclass(frozen=True)
class Curve:
    """A loss as a function of the margin, all else held.

    Attributes:
      name: its label.
      margin: the log-ratio margin ρ in nats, ascending, `[points]`.
      value: the loss there, `[points]`.
      slope: its derivative with respect to the margin, `[points]`.
    """

    name: str
    margin: Float[Array, " points"]
    value: Float[Array, " points"]
    slope: Float[Array, " points"]


def frontier_png(
    path: str | Path,
    series: Sequence[Series],
    *,
    sft_reward: float,
    budget: float | None = None,
    baseline: str = "dpo",
    title: str = "",
    reward_name: str = "reward",
) -> None:
    """Draws reward against sequence KL: each beta's policy with its interval, and each objective's frontier.

    Args:
      path: of the PNG to write.
      series: best first. Besides the baseline eight have colours, three of them bands; the rest is grey.
      sft_reward: where every frontier starts, at KL 0.
      budget: the KL budget of the score, in nats; drawn where it is given.
      baseline: the name of the series drawn in black.
      title: above the picture, for instance the task and what the intervals are.
      reward_name: the label of the vertical axis.
    """
    from matplotlib.patheffects import withStroke

    figure, (axes,) = _figure(1, width=8.6, height=5.2)
    halo = withStroke(linewidth=2.5, foreground="white")
    ends: list[tuple[float, float, str, str]] = []
    reach = np.nanmax([budget or 0.0, *(np.nanmax(s.kl, initial=0.0) for s in series)])
    reach = 1.04 * (reach or 1.0)
    for item, colour in reversed(list(zip(series, _palette(series, baseline), strict=True))):
        first = item.name == baseline
        order = np.argsort(item.kl)
        shown = order[np.isfinite(item.kl + item.reward)[order]]
        kl, reward, low, high = (x[shown] for x in (item.kl, item.reward, item.low, item.high))
        front = 5 if first else (2 if colour == _GREY else 4)
        width = 2.4 if first else 1.5
        grid = np.unique(np.concatenate([np.linspace(0, reach, 400), np.clip(kl, 0, reach)]))
        height = reward_at(kl, reward, grid, (0.0, sft_reward))
        # Beyond its own points a frontier is only a promise: dots.
        own = grid <= (kl[np.argmax(reward)] if len(kl) and reward.max() > sft_reward else 0.0)
        axes.plot(grid[own], height[own], color=colour, linewidth=width, zorder=front)
        axes.plot(grid[~own], height[~own], color=colour, linewidth=0.9, linestyle=(0, (1, 3)), zorder=front)
        if colour != _GREY:
            if first or colour in _COLOURS[:_BANDS]:
                axes.fill_between(kl, low, high, color=colour, alpha=0.14, linewidth=0, zorder=1)
            error = np.maximum([reward - low, high - reward], 0)
            axes.errorbar(kl, reward, error, fmt="none", ecolor=colour, elinewidth=1, alpha=0.6, zorder=front)
            ends.append((reach, float(height[-1]), item.name, colour))
        axes.scatter(kl, reward, s=34 if first else 22, color=colour, zorder=front, edgecolor="white", lw=0.6)
        if first:
            for b, x, y in zip(item.beta[shown], kl, low, strict=True):
                axes.annotate(f"β {b:g}", (x, y), (0, -4), textcoords="offset points", ha="center", va="top",
                              fontsize=8, color="#333333", zorder=6, path_effects=[halo])  # fmt: skip
    axes.scatter([0], [sft_reward], marker="*", s=150, color="black", zorder=7, clip_on=False)
    axes.annotate("SFT", (0, sft_reward), (8, -5), textcoords="offset points", va="top", fontsize=9, zorder=7)
    if budget is not None:
        axes.axvline(budget, color="#888888", linewidth=1, linestyle="--", zorder=0)
        axes.annotate("KL budget", (budget, 0.01), (-3, 0), xycoords=("data", "axes fraction"), va="bottom",
                      textcoords="offset points", rotation=90, ha="right", fontsize=8)  # fmt: skip
    axes.set_xlim(-0.01 * reach, reach)
    axes.set_xlabel("sequence KL(policy‖reference), nats")
    axes.set_ylabel(reward_name)
    others = sum(c == _GREY for c in _palette(series, baseline))
    axes.set_title(title + (f"   ({others} others in grey)" if others else ""), fontsize=10, loc="left")
    _label_ends(axes, ends)
    _save(figure, path)


def curves_png(
    path: str | Path, curves: Sequence[Curve], *, baseline: str = "dpo", title: str = "", start: float = 0.0
) -> None:
    """Draws losses and their slopes against the margin, the baseline's as the reference.

    A loss that explodes does not flatten the others: the vertical range follows the baseline's, and a loss
    more than 20 times as large is divided by a power of ten that its label tells. (The scale of a loss
    trades off against the learning rate, so its shape is what matters.)

    Args:
      path: of the PNG to write.
      curves: best first, the baseline anywhere among them; eight besides it have colours.
      baseline: the name of the curve drawn black and dashed.
      title: above the picture, for instance at which beta.
      start: the margin where training starts.
    """
    figure, panels = _figure(2, width=11.0, height=4.6)
    colours = _palette(curves, baseline)
    for axes, what in zip(panels, ("value", "slope"), strict=True):
        lines = [np.where(np.isfinite(y), y, np.nan) for y in (getattr(c, what) for c in curves)]
        spans = [_inner_range(y) for y in lines]
        own = next((s for c, s in zip(curves, spans, strict=True) if c.name == baseline), None)
        own = own or (min((s[0] for s in spans), default=0.0), max((s[1] for s in spans), default=1.0))
        unit = (own[1] - own[0]) or 1.0
        ends, low, high = [], own[0], own[1]
        for curve, y, span, colour in reversed(list(zip(curves, lines, spans, colours, strict=True))):
            first = curve.name == baseline
            ratio = max(abs(span[0]), abs(span[1])) / unit
            shrink = 10.0 ** np.ceil(np.log10(ratio / 4)) if ratio > 20 else 1.0
            y = y / shrink
            axes.plot(curve.margin, y, color=colour, linewidth=2.2 if first else 1.6,
                      linestyle=(0, (4, 2)) if first else "-", zorder=5 if first else 3)  # fmt: skip
            low = min(low, max(span[0] / shrink, own[0] - 2 * unit))
            high = max(high, min(span[1] / shrink, own[1] + 2 * unit))
            if np.isfinite(y).any() and colour != _GREY:
                name = curve.name if shrink == 1 else f"{curve.name} ÷ {shrink:,.0f}"
                ends.append((float(curve.margin[-1]), float(y[np.isfinite(y)][-1]), name, colour))
        room = 0.06 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)
        axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        axes.axvline(start, color="#999999", linewidth=0.8, zorder=0)
        if curves:
            axes.set_xlim(float(curves[0].margin[0]), float(curves[0].margin[-1]))
        axes.set_xlabel("margin ρ, nats")
        axes.set_ylabel("loss" if what == "value" else "d loss / d ρ")
        _label_ends(axes, ends)
    panels[0].set_title(title, fontsize=10, loc="left")
    panels[1].set_title("below zero, descent raises the margin", fontsize=10, loc="left")
    _save(figure, path)


def _inner_range(y: Array) -> tuple[float, float]:
    """The range over the middle 80 % of the margins, where training spends its time."""
    inner = y[len(y) // 10 : len(y) - len(y) // 10]
    inner = inner[np.isfinite(inner)]
    return (float(inner.min()), float(inner.max())) if len(inner) else (0.0, 0.0)


def _palette(items: Sequence[Series] | Sequence[Curve], baseline: str) -> list[str]:
    """A colour for each: black for the baseline, then the palette in order, then grey."""
    colours = iter(_COLOURS)
    return ["black" if x.name == baseline else next(colours, _GREY) for x in items]


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#eeeeee", zorder=0)
        each.set_axisbelow(True)
    return figure, axes


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Names each line at the right edge, moved apart where they would overlap, with a leader."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: (end[1], end[2]))
    wanted = np.clip([(y - low) / (high - low) for _, y, _, _ in ends], 0.0, 1.0)
    gap = min(_LABEL_GAP, 1.0 / max(len(ends) - 1, 1))
    steps = gap * np.arange(len(ends))
    # Isotonic regression by pooling: the closest positions to those wanted that keep the gap.
    pools: list[tuple[float, int]] = []
    for y in wanted - steps:
        pools.append((float(y), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (y1, n1), (y0, n0) = pools.pop(), pools.pop()
            pools.append(((y0 * n0 + y1 * n1) / (n0 + n1), n0 + n1))
    placed = np.concatenate([np.full(n, y) for y, n in pools]) if pools else np.zeros(0)
    placed = np.clip(placed, 0.0, max(1.0 - (steps[-1] if len(steps) else 0.0), 0.0)) + steps
    for at, y, (_, _, name, colour) in zip(wanted, placed, ends, strict=True):
        axes.annotate(
            name if len(name) <= 28 else name[:27] + "…",
            xy=(1.0, at),
            xytext=(1.035, y),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colour,
            fontweight="bold" if colour == "black" else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.7,
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
            parse_math=False,  # a proposer chooses names
        )


def _save(figure: Figure, path: str | Path) -> None:
    # No version or date inside: the same run gives the same bytes.
    figure.savefig(Path(path), dpi=144, metadata={"Software": None})
