"""The plots of a search, as Vega-Lite says them: scores, lineage, lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from discojax.report.charts import ACCENT, COLOURS, INK, SOFT, Chart, axis, chart, short

__all__ = ["lanes", "lineage", "proposals"]


def proposals(rows: Sequence[Mapping[str, Any]], *, baseline: str, confidence: float) -> Chart:
    """Each proposal's score against the baseline's in the order they came, and the best so far.

    Args:
      rows: `number`, `name`, `how` (operator), and where it was scored `difference`, `low`, `high`, `best`.
      baseline: that differences are to.
      confidence: of `low` and `high`.
    """
    x = axis(
        "number",
        "proposal, in the order they came",
        scale={"nice": False, "zero": False, "padding": 8},
        axis={"format": "d"},
    )
    y = axis("difference", f"score minus {baseline}'s, on the search's prompts", scale={"zero": False})
    tips = [
        {"field": "name", "title": "proposal"},
        {"field": "how", "title": "made by"},
        {"field": "difference", "title": f"vs {baseline}", "format": "+.3f"},
        {"field": "low", "title": f"{100 * confidence:g} % from", "format": "+.3f"},
        {"field": "high", "title": "to", "format": "+.3f"},
    ]
    scored = [row for row in rows if row.get("difference") is not None]
    failed = [row for row in rows if row.get("difference") is None]
    hows = sorted({str(row["how"]) for row in rows})
    colour = {"field": "how", "type": "nominal", "scale": {"domain": hows, "range": [*COLOURS, INK, SOFT]}}
    layer: list[dict[str, Any]] = [
        {
            "data": {"values": [{"difference": 0}]},
            "mark": {"type": "rule", "color": SOFT, "strokeDash": [4, 4]},
            "encoding": {"y": y},
        },
    ]
    if len(scored) <= 120:
        layer.append(
            {
                "data": {"values": scored},
                "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.45},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            }
        )
    pick = {"name": "pick", "select": {"type": "point", "fields": ["how"]}, "bind": "legend"}
    layer += [
        {
            "data": {"values": scored},
            "mark": {"type": "line", "interpolate": "step-after", "color": INK, "strokeWidth": 2},
            "encoding": {"x": x, "y": {**y, "field": "best"}},
        },
        {
            "data": {"values": scored},
            "params": [pick],
            "mark": {"type": "circle", "size": 46 if len(scored) <= 200 else 22, "cursor": "pointer"},
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "opacity": {"condition": {"param": "pick", "value": 0.9}, "value": 0.08},
                "tooltip": tips,
            },
        },
    ]
    if failed:
        layer.append(
            {
                "data": {"values": failed},
                "mark": {
                    "type": "tick",
                    "orient": "vertical",
                    "thickness": 1.5,
                    "size": 9,
                    "color": "var(--bad)",
                },
                "encoding": {
                    "x": x,
                    "y": {"value": {"expr": "height - 4"}},
                    "tooltip": [*tips[:2], {"field": "why", "title": "status"}],
                },
            }
        )
    return chart("The score of each proposal against its number, and the best score so far", layer=layer)


def lineage(
    nodes: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]], *, baseline: str
) -> Chart:
    """Who came of whom: generations side by side, in each the best on top; the winner's line stands out.

    Args:
      nodes: `name`, `generation`, `place` from 1, `difference` (or null), `how`, `line` (of the winner).
      edges: `x`, `y`, `x2`, `y2` as generation and place, `line`.
      baseline: that differences are to.
    """
    x = axis(
        "generation",
        "generation (0 is the library)",
        scale={"nice": False, "padding": 14},
        axis={"format": "d", "tickMinStep": 1, "grid": False},
    )
    y = axis(
        "place",
        "place in its generation, the best on top",
        scale={"reverse": True, "zero": False, "nice": False, "padding": 12},
        axis={"format": "d", "tickMinStep": 1, "grid": False},
    )
    ends = {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}, "x2": {"field": "x2"}, "y2": {"field": "y2"}}
    faint = max(0.08, min(0.5, 40 / max(len(edges), 1)))
    size = 60 if len(nodes) <= 200 else 18
    tips = [
        {"field": "name", "title": "objective"},
        {"field": "how", "title": "made by"},
        {"field": "parents"},
        {"field": "difference", "title": f"vs {baseline}", "format": "+.3f"},
    ]
    worth = {
        "condition": [
            {"test": "datum.difference === null", "value": "var(--paper)"},
            {"test": "datum.difference > 0", "value": "var(--good)"},
        ],
        "value": "var(--bad)",
    }
    named = [node for node in nodes if node["line"]]
    return chart(
        "Lineage: each objective under its generation, with lines to those it was made from",
        height=min(520, 140 + 16 * max((int(n["place"]) for n in nodes), default=1)),
        layer=[
            {
                "data": {"values": [e for e in edges if not e["line"]]},
                "mark": {"type": "rule", "color": SOFT, "strokeWidth": 1, "opacity": faint},
                "encoding": ends,
            },
            {
                "data": {"values": [e for e in edges if e["line"]]},
                "mark": {"type": "rule", "color": ACCENT, "strokeWidth": 2.5},
                "encoding": ends,
            },
            {
                "data": {"values": list(nodes)},
                "mark": {
                    "type": "circle",
                    "size": size,
                    "stroke": SOFT,
                    "strokeWidth": 1,
                    "opacity": 1,
                    "cursor": "pointer",
                },
                "encoding": {"x": x, "y": y, "color": worth, "tooltip": tips},
            },
            {
                "data": {"values": named},
                "mark": {
                    "type": "text",
                    "align": "left",
                    "dx": 8,
                    "dy": -7,
                    "fontSize": 11,
                    "color": INK,
                    "limit": {"expr": "width > 560 ? 170 : 60"},
                },
                "encoding": {"x": x, "y": y, "text": {"field": "name"}},
            },
        ],
    )


def lanes(progress: Sequence[Mapping[str, Any]], created: float, groups: int = 200) -> Chart | None:
    """The share of the lanes' steps that trained somebody, over time; None if no step was taken."""
    known = [p for p in progress if p.get("room") and isinstance(p.get("time"), float)]
    if not known:
        return None
    ends = np.array([max(p["time"] - created, 0.0) / 60 for p in known])
    usual = float(np.median(np.diff(ends))) if len(ends) > 1 else 0.1
    rows = []
    size = -(-len(known) // groups)
    for first in range(0, len(known), size):
        here = known[first : first + size]
        # A call lasts from the end of the one before it, if that was of the same loop.
        same = first > 0 and (here[0].get("seconds") or 0.0) > (known[first - 1].get("seconds") or 0.0)
        begin = ends[first - 1] if same else max(ends[first] - usual, ends[first - 1] if first else 0.0)
        rows.append(
            {
                "from": short(begin),
                "to": short(ends[first + len(here) - 1]),
                "share": short(sum(p["useful"] for p in here) / sum(p["room"] for p in here)),
                "busy": max(p.get("busy") or 0 for p in here),
                "waited": short(sum(p.get("waited") or 0.0 for p in here)),
            }
        )
    total = sum(p["useful"] for p in known) / sum(p["room"] for p in known)
    x = axis("from", "minutes since the start", scale={"nice": False})
    y = axis("share", "lane-steps used", scale={"domain": [0, 1]}, axis={"format": "%"})
    return chart(
        "The share of the lanes' steps that trained a policy, over time",
        height=200,
        layer=[
            {
                "data": {"values": rows},
                "mark": {"type": "rect", "color": ACCENT, "opacity": 0.45},
                "encoding": {
                    "x": x,
                    "x2": {"field": "to"},
                    "y": y,
                    "y2": {"datum": 0},
                    "tooltip": [
                        {"field": "from", "title": "from minute", "format": ".1f"},
                        {"field": "share", "title": "used", "format": ".0%"},
                        {"field": "busy", "title": "lanes busy, at most"},
                        {"field": "waited", "title": "seconds waited", "format": ".1f"},
                    ],
                },
            },
            {
                "data": {"values": [{"share": short(total), "text": f"{total:.0%} in all"}]},
                "mark": {"type": "rule", "color": INK, "strokeWidth": 1.5},
                "encoding": {"y": y},
            },
            {
                "data": {"values": [{"share": short(total), "text": f"{total:.0%} in all"}]},
                "mark": {
                    "type": "text",
                    "align": "right",
                    "x": {"expr": "width - 4"},
                    "dy": -7,
                    "color": INK,
                    "fontWeight": 600,
                },
                "encoding": {"y": y, "text": {"field": "text"}},
            },
        ],
    )
