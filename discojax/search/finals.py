"""The end of a search: its best are measured again before they are believed, and then held out.

What came out best of many was also lucky. So the elites of all brackets train again, on seeds and
prompts that had no part in choosing them, and only the order after that decides who goes into the
held-out evaluation. Each control's elites go through the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from discojax.config import Config
from discojax.search.arms import Arm
from discojax.search.brackets import Raced
from discojax.search.display import Display
from discojax.search.laboratory import Laboratory, measure
from discojax.search.racing import keep_best
from discojax.search.rungs import BASELINE, elite_trial, judged, lane_steps
from discojax.search.statistics import Estimate, compare
from discojax.search.trials import SEARCH, Contender, Control, Measured

__all__ = ["controls", "elites", "finalists", "only"]


def elites(
    config: Config,
    laboratory: Laboratory,
    raced: Mapping[str, Raced],
    baseline: Contender,
    screen: Display,
) -> dict[str, list[Contender]]:
    """The elites of every arm and the library, measured again, best first; what then failed is left out."""
    trial = elite_trial(config)
    keep = config.search.elites[2]
    chosen = {}
    for arm, left in raced.items():
        # The library's own do not take the places of the search's: its controls share theirs with nobody.
        own = keep_best([c for c in left.contenders if c.origin != "library"], left.comparisons, keep)
        library = [c for c in left.contenders if c.origin == "library" and c.name != BASELINE]
        left.lane_steps += lane_steps(trial, len(own))
        chosen[arm] = own + keep_best(library, left.comparisons, keep)
    everyone = [contender for arm in chosen.values() for contender in arm]
    if not everyone:
        return chosen
    title = f"elites: {len(everyone)} objectives on fresh seeds"
    measured = measure(laboratory, [*everyone, baseline], trial, screen, title)
    comparisons = judged(config, measured)
    return {arm: keep_best(found, comparisons, len(found)) for arm, found in chosen.items()}


def finalists(ranked: Sequence[Contender], baselines: Sequence[Contender], count: int) -> list[Contender]:
    """The best proposed ones (the best of the library where too few got this far), and the baselines."""
    names = {baseline.name for baseline in baselines}
    proposed = [c for c in ranked if c.origin == "proposed"]
    others = [c for c in ranked if c.origin != "proposed" and c.name not in names]
    return [*(proposed + others)[:count], *baselines]


def controls(
    config: Config,
    arms: Sequence[Arm],
    raced: Mapping[str, Raced],
    ranked: Mapping[str, Sequence[Contender]],
    measured: Measured,
) -> tuple[Control, ...]:
    """The table of controls, if there are any.

    Args:
      config: of the run.
      arms: all of them.
      raced: what their brackets left.
      ranked: their elites, best first.
      measured: held out; the first of each arm is in it.
    """
    if len(arms) < 2:
        return ()
    firsts = {arm.name: next((c for c in ranked[arm.name] if c.origin != "library"), None) for arm in arms}
    best = {
        name: first.name
        for name, first in firsts.items()
        if first is not None and first.name in measured.samples
    }
    table = []
    for arm in arms:
        made = [a for a in arm.notebook.attempts if a.operator != "library"]
        accepted = sum(a.status == "accepted" for a in made)
        line = Control(arm.name, len(made), accepted, raced[arm.name].lane_steps)
        if arm.given:
            line = replace(line, proposed=len(arm.given), accepted=len(arm.given))
        if name := best.get(arm.name):
            against = judged(config, only(measured, [name, BASELINE]))
            line = replace(line, best=name, comparison=against[name])
            if arm.name != SEARCH and SEARCH in best:
                line = replace(line, lead=_lead(config, measured, best[SEARCH], name))
        table.append(line)
    return tuple(table)


def _lead(config: Config, measured: Measured, one: str, other: str) -> Estimate | None:
    samples = measured.samples
    try:
        compared = compare(
            {one: samples[one]},
            samples[other],
            measured.sft,
            config.evaluation.kl_budget,
            rng=np.random.default_rng(config.run.seed),
            replicates=config.evaluation.bootstrap,
            confidence=config.evaluation.confidence,
        )
    except ValueError:  # the other one diverged
        return None
    return None if compared[one].verdict == "failed" else compared[one].difference


def only(measured: Measured, names: Sequence[str]) -> Measured:
    """The measurements of some contenders."""
    return measured._replace(samples={name: measured.samples[name] for name in names})
