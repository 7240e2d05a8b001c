"""The plots of objectives, as Vega-Lite says them. Vega draws them in the page; colours are the page's own.

Every colour is a variable of the page's style sheet, so that light, dark and print need no redrawing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from discojax.report.gather import Density
from discojax.report.plots import Series
from discojax.search.frontier import reward_at

__all__ = [
    "ACCENT",
    "COLOURS",
    "INK",
    "SOFT",
    "Chart",
    "axis",
    "chart",
    "curve",
    "density_rows",
    "frontier",
    "short",
]

Chart = dict[str, Any]

INK, SOFT, GRID, ACCENT = "var(--ink)", "var(--soft)", "var(--line)", "var(--accent)"
COLOURS = [f"var(--c{i})" for i in range(8)]
_BANDS = 3
_FONT = "system-ui, sans-serif"


def chart(description: str, **rest: Any) -> Chart:
    """A chart as wide as its element, in the page's colours; `rest` is its own part."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "height": 300,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": None,
        "config": {
            "font": _FONT,
            "view": {"stroke": None},
            "axis": {
                "labelColor": SOFT,
                "titleColor": INK,
                "gridColor": GRID,
                "domainColor": SOFT,
                "tickColor": SOFT,
                "labelFontSize": 11,
                "titleFontSize": 12,
                "titleFontWeight": 500,
                "labelFlush": True,
                "tickCount": 6,
            },
            "legend": {
                "orient": "bottom",
                "labelColor": INK,
                "titleColor": INK,
                "labelFontSize": 11,
                "labelLimit": 260,
                "title": None,
                "symbolStrokeWidth": 2,
                "symbolOpacity": 1,
            },
        },
        **rest,
    }


def axis(field: str, title: str, **rest: Any) -> dict[str, Any]:
    """A numeric position channel."""
    return {"field": field, "type": "quantitative", "title": title, **rest}


def _palette(names: Sequence[str], baseline: str) -> dict[str, Any]:
    """Colours by name: the baseline is ink, the first eight others have one, the rest is soft."""
    colours = iter(COLOURS)
    chosen = [INK if name == baseline else next(colours, SOFT) for name in names]
    return {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": list(names), "range": chosen},
    }


_PICK = {"name": "pick", "select": {"type": "point", "fields": ["name"]}, "bind": "legend"}


def _faint(value: float, otherwise: float = 0.06) -> dict[str, Any]:
    return {"condition": {"param": "pick", "value": value}, "value": otherwise}


def frontier(
    series: Sequence[Series], *, sft: float, budget: float, baseline: str, reward_name: str, confidence: float
) -> Chart:
    """Reward against KL: each beta's policy with its interval, bands, and each objective's frontier."""
    points, lines = [], []
    reach = 1.04 * max([budget, *(float(np.nanmax(s.kl, initial=0.0)) for s in series)])
    for item in series:
        order = np.argsort(item.kl)
        order = order[np.isfinite((item.kl + item.reward)[order])]
        kl, reward = item.kl[order], item.reward[order]
        grid = np.unique(np.concatenate([np.linspace(0, reach, 61), np.clip(kl, 0, reach)]))
        own = kl[np.argmax(reward)] if len(kl) and reward.max() > sft else 0.0
        for x, y in zip(grid, reward_at(kl, reward, grid, (0.0, sft)), strict=True):
            if x <= own:
                lines.append({"name": item.name, "kl": short(x), "reward": short(y), "part": "measured"})
            if x >= own:
                lines.append({"name": item.name, "kl": short(x), "reward": short(y), "part": "promised"})
        shaded = item.name == baseline or item in [s for s in series if s.name != baseline][:_BANDS]
        for i in order:
            points.append(
                {
                    "name": item.name,
                    "beta": float(item.beta[i]),
                    "kl": short(item.kl[i]),
                    "reward": short(item.reward[i]),
                    "low": short(item.low[i]),
                    "high": short(item.high[i]),
                    "band": shaded,
                }
            )
    colour = _palette([s.name for s in series], baseline)
    x = axis("kl", "sequence KL(policy‖reference), nats", scale={"domain": [0, short(reach)], "nice": False})
    y = axis("reward", reward_name, scale={"domain": _around(points, sft), "nice": False})
    tips = [
        {"field": "name", "title": "objective"},
        {"field": "beta", "title": "β"},
        {"field": "kl", "title": "KL", "format": ".2f"},
        {"field": "reward", "format": ".3f"},
        {"field": "low", "title": f"{100 * confidence:g} % from", "format": ".3f"},
        {"field": "high", "title": "to", "format": ".3f"},
    ]
    rule = {"strokeDash": [4, 4], "color": SOFT}
    return chart(
        "Reward against KL of each objective, a point for each beta, with intervals and frontiers",
        height=380,
        layer=[
            {
                "data": {"values": [{"kl": short(budget)}]},
                "mark": {"type": "rule", **rule},
                "encoding": {"x": x},
            },
            {
                "data": {"values": [{"kl": short(budget), "text": "KL budget"}]},
                "mark": {"type": "text", "align": "right", "dx": -4, "y": 8, "color": SOFT},
                "encoding": {"x": x, "text": {"field": "text"}},
            },
            {
                "data": {"values": points},
                "transform": [{"filter": "datum.band"}],
                "mark": {"type": "area", "interpolate": "linear", "line": False, "clip": True},
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                    "color": colour,
                    "opacity": _faint(0.09, 0.0),
                },
            },
            {
                "data": {"values": lines},
                "mark": {"type": "line", "strokeWidth": 1.8},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "opacity": _faint(0.95),
                    "strokeDash": {
                        "field": "part",
                        "type": "nominal",
                        "legend": None,
                        "scale": {"domain": ["measured", "promised"], "range": [[1, 0], [1, 4]]},
                    },
                },
            },
            {
                "data": {"values": points},
                "mark": {"type": "rule", "strokeWidth": 1, "clip": True},
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                    "color": colour,
                    "opacity": _faint(0.7),
                },
            },
            {
                "data": {"values": points},
                "params": [_PICK],
                "mark": {"type": "circle", "size": 70, "stroke": "var(--paper)", "strokeWidth": 1},
                "encoding": {"x": x, "y": y, "color": colour, "opacity": _faint(1), "tooltip": tips},
            },
            {
                "data": {"values": [{"kl": 0, "reward": short(sft), "text": "SFT"}]},
                "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 130, "color": INK},
                "encoding": {
                    "x": x,
                    "y": y,
                    "tooltip": [{"field": "text", "title": "policy"}, {"field": "reward"}],
                },
            },
            {
                "data": {"values": [{"kl": 0, "reward": short(sft), "text": "SFT"}]},
                "mark": {"type": "text", "align": "left", "dx": 9, "dy": 10, "color": INK},
                "encoding": {"x": x, "y": y, "text": {"field": "text"}},
            },
        ],
    )


def _around(points: Sequence[Mapping[str, Any]], sft: float) -> list[float | None]:
    """The rewards, with room for their intervals; one far wider than what there is to compare is cut."""
    rewards = [sft, *(point["reward"] for point in points)]
    low, high = min(rewards), max(rewards)
    room = 0.75 * (high - low) or 0.1
    ends = [x for point in points for x in (point["low"], point["high"]) if x is not None]
    return [
        short(max(low - room, min([low - 0.1 * room, *ends]))),
        short(min(high + room, max([high + 0.1 * room, *ends]))),
    ]


def _height(densities: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the density's axis: the margin 0, where every lane starts, would leave the rest flat."""
    return short(
        1.25 * max((row["share"] for row in densities if not row["from"] < 0 < row["to"]), default=1.0) or 1.0
    )


def density_rows(names: Mapping[str, Any], density: Density, reach: float) -> list[dict[str, Any]]:
    """The histogram as steps within the reach of a curve, each with the fields `names`."""
    rows = []
    for left, right, share in zip(density.edges[:-1], density.edges[1:], density.share, strict=True):
        if right > -reach and left < reach:
            ends = {"from": short(max(left, -reach)), "to": short(min(right, reach))}
            rows.append({**names, **ends, "share": short(share)})
    return rows


def curve(
    what: str,
    lines: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    densities: Sequence[Mapping[str, Any]],
    *,
    baseline: str,
    beta: float,
    span: tuple[float, float],
) -> Chart:
    """A loss or its derivative against the margin, over the density of the margins that it met in training.

    Args:
      what: "loss" or "slope": the field of `lines`.
      lines: a point each: `name`, `beta`, `margin`, `loss`, `slope`, and `shown`, what the legend calls it.
      names: as shown, in the order of the colours.
      densities: see `density_rows`: with `name`, `beta` and `shown`.
      baseline: as shown.
      beta: that is shown first; the page's signal "beta" changes it.
      span: of the vertical axis; what leaves it is cut.
    """
    title = {"loss": "loss", "slope": "d loss / d ρ"}[what]
    x = axis("margin", "log-ratio margin ρ, nats", scale={"nice": False})
    y = axis(what, title, scale={"zero": False, "domain": list(span), "nice": False})
    colour = {**_palette(names, baseline), "field": "shown"}
    layers: list[dict[str, Any]] = []
    if densities:
        layers.append(
            {
                "data": {"values": list(densities)},
                "transform": [{"filter": "datum.beta == beta"}],
                "mark": {"type": "rect", "clip": True},
                "encoding": {
                    "color": colour,
                    "opacity": {"condition": {"param": "pick", "value": 0.22}, "value": 0},
                    "x": {**x, "field": "from"},
                    "x2": {"field": "to"},
                    "y": axis(
                        "share",
                        "share of training pairs, per nat",
                        axis={"grid": False, "orient": "right", "tickCount": 3},
                        scale={"domain": [0, _height(densities)], "nice": False},
                    ),
                    "y2": {"datum": 0},
                    "tooltip": [
                        {"field": "name", "title": "objective"},
                        {"field": "from", "title": "ρ from"},
                        {"field": "to"},
                        {"field": "share", "title": "share per nat", "format": ".3f"},
                    ],
                },
            }
        )
    layers.append(
        {
            "data": {"values": list(lines)},
            "transform": [{"filter": "datum.beta == beta"}],
            "layer": [
                {
                    "params": [_PICK],
                    "mark": {"type": "line", "strokeWidth": 2, "clip": True},
                    "encoding": {
                        "x": x,
                        "y": y,
                        "color": colour,
                        "opacity": _faint(1, 0.08),
                        "tooltip": [
                            {"field": "name", "title": "objective"},
                            {"field": "margin", "title": "ρ"},
                            {"field": what, "title": title, "format": ".4g"},
                        ],
                    },
                },
            ],
        }
    )
    found = chart(
        f"The {title} of each objective against the margin, with the density of margins it met in training",
        height=300,
        params=[{"name": "beta", "value": beta}],
        layer=layers,
        resolve={"scale": {"y": "independent"}},
    )
    layers[-1]["layer"][0]["params"] = [{**_PICK, "select": {"type": "point", "fields": ["shown"]}}]
    return found


def short(value: Any) -> float | None:
    """Five significant digits, which is what a pixel can show; null where not finite."""
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None
