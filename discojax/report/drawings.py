"""What the page's script is given: the charts of a run, and what the cards of its objectives hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from discojax.places import taking_along
from discojax.population.margins import MARGIN_EDGES
from discojax.report import boards, charts, search_charts
from discojax.report.boards import Board
from discojax.report.entries import Entry, ancestors
from discojax.report.gather import Run, pooled
from discojax.report.portraits import Gallery
from discojax.search.rungs import BASELINE
from discojax.search.trials import SEARCH

__all__ = ["Drawn", "draw"]

_DRAWN = 9  # objectives in one picture, the baseline among them
_SPAN = 4.0  # curves show beta times the margin from -_SPAN to _SPAN, or all the margins met
_LARGE = 20.0  # a loss so many times larger than the baseline's is drawn divided


@dataclass(frozen=True)
class Drawn:
    """What there is to draw.

    Attributes:
      data: for the page's script, as JSON has it.
      charts: identifiers of the charts there are.
      betas: that the losses can be shown at, and
      beta: the one they are shown at first.
      best: the place of the best proposed objective among the entries, None if none is measured.
    """

    data: dict[str, Any]
    charts: frozenset[str]
    betas: tuple[float, ...]
    beta: float
    best: int | None


def draw(run: Run, headline: Board | None, everyone: Sequence[Entry], gallery: Gallery) -> Drawn:
    """All of it."""
    betas = headline.betas if headline else tuple(run.config.search.betas)
    beta = betas[len(betas) // 2]
    best = _best(headline, everyone)
    found: dict[str, charts.Chart | None] = {
        "frontier": _frontier(run, headline),
        **_curves(run, headline, everyone, betas, beta, gallery),
        "proposals": _proposals(run, everyone),
        "lineage": _lineage(everyone, None if best is None else everyone[best].name),
        "lanes": search_charts.lanes(run.progress, run.created),
    }
    drawn = {name: chart for name, chart in found.items() if chart is not None}
    data = {"charts": drawn, "baseline": BASELINE, **_cards(run, everyone, beta, gallery)}
    return Drawn(data, frozenset(drawn), betas, beta, best)


def _best(headline: Board | None, everyone: Sequence[Entry]) -> int | None:
    places = {entry.name: i for i, entry in enumerate(everyone) if entry.program is not None}
    ranked = [row.name for row in headline.rows if row.status == "ok"] if headline else []
    ranked = [name for name in ranked if name in places]
    proposed = [name for name in ranked if everyone[places[name]].proposed]
    return places[(proposed or ranked)[0]] if ranked else None


def _shown(headline: Board) -> list[str]:
    """Those in the pictures: the best, and the baseline."""
    names = [row.name for row in headline.rows if row.status == "ok"]
    others = [name for name in names if name != BASELINE][: _DRAWN - 1]
    return [name for name in names if name in others or name == BASELINE]


def _frontier(run: Run, headline: Board | None) -> charts.Chart | None:
    if headline is None or not (names := _shown(headline)):
        return None
    confidence = run.config.evaluation.confidence
    samples = headline.measured.samples
    return charts.frontier(
        [boards.series(name, samples[name], headline.betas, confidence) for name in names],
        sft=float(headline.measured.sft.mean()),
        budget=run.config.evaluation.kl_budget,
        baseline=BASELINE,
        reward_name=f"reward on {headline.task}",
        confidence=confidence,
    )


def _reach(run: Run, beta: float) -> float:
    """How far curves at this beta go: over all margins but the rarest."""
    if beta not in run.densities:
        return _SPAN / beta
    density = pooled(run.densities[beta].values())
    mass = np.cumsum(density.share * np.diff(density.edges))
    low, high = np.interp([0.005, 0.995], mass, density.edges[1:])
    return float(min(max(1.4 * max(-low, high), 1 / beta, 4.0), 2 * _SPAN / beta))


def _curves(
    run: Run,
    headline: Board | None,
    everyone: Sequence[Entry],
    betas: Sequence[float],
    beta: float,
    gallery: Gallery,
) -> dict[str, charts.Chart | None]:
    programs = {entry.name: entry.program for entry in everyone if entry.program is not None}
    names = [name for name in (_shown(headline) if headline else []) if name in programs]
    names = names or list(programs)[:_DRAWN]
    if not names:
        return {}
    lines: list[dict[str, Any]] = []
    densities: list[dict[str, Any]] = []
    shrink: dict[str, float] = {}
    spans: dict[str, tuple[float, float]] = {}
    for at in sorted(betas, key=lambda b: b != beta):  # the one shown first says by what a loss is divided
        reach = _reach(run, at)
        margins, values, slopes = gallery.curves([programs[name] for name in names], at, reach)
        if not shrink:
            shrink = _shrink(names, slopes)
            divisors = np.array([shrink[name] for name in names])[:, None]
            spans = {"loss": _span(names, values / divisors), "slope": _span(names, slopes / divisors)}
        for name, value, slope in zip(names, values, slopes, strict=True):
            by = shrink[name]
            line: dict[str, Any] = {
                "name": name,
                "shown": name if by == 1 else f"{name} ÷ {by:,.0f}",
                "beta": at,
            }
            for x, y, dy in zip(margins.tolist(), _rounded(value / by), _rounded(slope / by), strict=True):
                lines.append({**line, "margin": round(x, 3), "loss": y, "slope": dy})
            if density := run.densities.get(at, {}).get(name):
                densities += charts.density_rows(line, density, reach)
    labels = list(dict.fromkeys(line["shown"] for line in lines))
    order = {line["shown"]: names.index(line["name"]) for line in lines}
    baseline = next((s for s in labels if s.split(" ÷ ")[0] == BASELINE), BASELINE)
    return {
        what: charts.curve(
            what,
            lines,
            sorted(labels, key=order.__getitem__),
            densities,
            baseline=baseline,
            beta=beta,
            span=spans[what],
        )
        for what in ("loss", "slope")
    }


def _span(names: Sequence[str], lines: np.ndarray) -> tuple[float, float]:
    """A range that shows all of the baseline's line, and of the others what comes near it."""
    finite = np.where(np.isfinite(lines), lines, np.nan)
    own = finite[list(names).index(BASELINE) if BASELINE in names else 0]
    if not np.isfinite(own).any():
        return (-1.0, 1.0)
    low, high = float(np.nanmin(own)), float(np.nanmax(own))
    unit = (high - low) or abs(high) or 1.0
    inner = finite[:, finite.shape[1] // 5 : -(finite.shape[1] // 5)]  # where training spends its time
    with np.errstate(all="ignore"):
        low = min(low, max(float(np.nanmin(inner)), low - unit))
        high = max(high, min(float(np.nanmax(inner)), high + unit))
    room = 0.05 * (high - low)
    return (float(f"{low - room:.4g}"), float(f"{high + room:.4g}"))


def _shrink(names: Sequence[str], slopes: np.ndarray) -> dict[str, float]:
    """What each is divided by, a power of ten: scale trades off against the learning rate."""
    sizes = {
        n: float(np.nanmedian(np.where(np.isfinite(s), np.abs(s), np.nan)))
        for n, s in zip(names, slopes, strict=True)
    }
    unit = sizes.get(BASELINE) or 1.0
    return {
        name: float(10.0 ** np.ceil(np.log10(size / unit / 4))) if size / unit > _LARGE else 1.0
        for name, size in sizes.items()
    }


def _proposals(run: Run, everyone: Sequence[Entry]) -> charts.Chart | None:
    rows: list[dict[str, Any]] = []
    best: float | None = None
    for entry in everyone:
        if not entry.proposed or entry.arm != SEARCH:
            continue
        row = entry.row if entry.row is not None and entry.row.difference is not None else None
        found: dict[str, Any] = {"number": len(rows) + 1, "name": entry.name, "how": entry.how}
        if row is not None and row.difference is not None:
            best = row.difference if best is None else max(best, row.difference)
            found |= {
                "difference": row.difference,
                "low": row.difference_low,
                "high": row.difference_high,
                "best": best,
            }
        else:
            found |= {"difference": None, "why": entry.status}
        rows.append({key: charts.short(x) if isinstance(x, float) else x for key, x in found.items()})
    if best is None:
        return None
    return search_charts.proposals(rows, baseline=BASELINE, confidence=run.config.evaluation.confidence)


def _lineage(everyone: Sequence[Entry], best: str | None) -> charts.Chart | None:
    family = [
        e
        for e in everyone
        if e.arm == SEARCH
        and e.attempt is not None
        and e.status not in ("rejected", "unanswered", "duplicate")
    ]
    if not any(entry.parents for entry in family):
        return None
    line = ancestors(everyone, best) if best else set()
    worth = {entry.name: _difference(entry) for entry in family}
    nodes: dict[str, dict[str, Any]] = {}
    generations = sorted({entry.attempt.generation for entry in family if entry.attempt})
    for generation in generations:
        peers = [e for e in family if e.attempt and e.attempt.generation == generation]
        peers.sort(key=lambda e: (worth[e.name] is None, -(worth[e.name] or 0.0), e.name))
        for place, entry in enumerate(peers, 1):
            nodes[entry.name] = {
                "name": entry.name,
                "generation": generation,
                "place": place,
                "difference": charts.short(worth[entry.name]) if worth[entry.name] is not None else None,
                "how": entry.how,
                "parents": ", ".join(entry.parents) or "none",
                "line": entry.name in line,
            }
    edges = [
        {
            "x": nodes[parent]["generation"],
            "y": nodes[parent]["place"],
            "x2": node["generation"],
            "y2": node["place"],
            "line": node["line"] and nodes[parent]["line"],
        }
        for entry in family
        for parent in entry.parents
        if parent in nodes and (node := nodes[entry.name])
    ]
    return search_charts.lineage(list(nodes.values()), edges, baseline=BASELINE)


def _difference(entry: Entry) -> float | None:
    if entry.row is None or entry.row.status != "ok":
        return None
    return 0.0 if entry.row.verdict == "baseline" else entry.row.difference


def _rounded(numbers: np.ndarray) -> Any:
    """For JSON: lists of numbers with four significant digits, null where not finite."""
    exact = np.where(np.isfinite(numbers), numbers, 0.0).astype(np.float64)
    with np.errstate(divide="ignore"):
        places = 3.0 - np.nan_to_num(np.floor(np.log10(np.abs(exact))), neginf=0.0)
    # A whole number over, or times, a power of ten is the number nearest to the decimal.
    whole = np.rint(exact * 10.0**places)
    boxed = np.where(places > 0, whole / 10.0 ** places.clip(0), whole * 10.0 ** (-places).clip(0)).astype(
        object
    )
    boxed[~np.isfinite(numbers)] = None
    return boxed.tolist()


def _cards(run: Run, everyone: Sequence[Entry], beta: float, gallery: Gallery) -> dict[str, Any]:
    """What a card shows that the table does not. Sides of formulas are shared, as most are alike."""
    sides: dict[str, int] = {}
    drawn = [i for i, entry in enumerate(everyone) if entry.program is not None]
    margins, *both = gallery.curves([everyone[i].program for i in drawn], beta, _reach(run, beta))  # type: ignore[misc]
    curves = dict(zip(drawn, zip(*map(_rounded, both), strict=True), strict=True))
    places = {entry.name: i for i, entry in enumerate(everyone)}
    met = run.densities.get(beta, {})
    cards = []
    for i, entry in enumerate(everyone):
        attempt = entry.attempt
        program = entry.program
        math = (
            [[sides.setdefault(side, len(sides)) for side in line] for line in program.formula]
            if program
            else []
        )
        by = (
            " ".join(x for x in (attempt.proposer, attempt.model_version or attempt.model) if x)
            if attempt
            else ""
        )
        cards.append(
            {
                "name": entry.name,
                "how": entry.how,
                "arm": entry.arm,
                "by": by,
                "status": entry.status,
                "generation": attempt.generation if attempt else None,
                "thought": attempt.thought if attempt else "",
                "source": (attempt.source if attempt else None) or (program.source if program else ""),
                "hash": (attempt.hash if attempt else None) or (program.hash if program else ""),
                "parents": [[places[name], name] for name in entry.parents if name in places],
                "failures": list(entry.failures),
                "math": math,
                "export": taking_along(entry.name, run.folder) if attempt and program else "",
                "loss": curves[i][0] if i in curves else None,
                "slope": curves[i][1] if i in curves else None,
                "density": _rounded(met[entry.name].share) if entry.name in met else None,
            }
        )
    return {
        "cards": cards,
        "sides": list(sides),
        "margins": [round(float(x), 3) for x in margins],
        "edges": list(MARGIN_EDGES),
        "beta": beta,
        "baseline_place": places.get(BASELINE),
    }
