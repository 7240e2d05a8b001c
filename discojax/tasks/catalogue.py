"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from discojax.data import reviews as reviews_data
from discojax.errors import UserError, nearest
from discojax.tasks import overlap, own_rewards, preferences, reviews, rewards, summaries
from discojax.tasks.bases import pretrained_base
from discojax.tasks.judges import Judge
from discojax.tasks.types import Report, Reward, Task, TaskConfig

__all__ = ["ALONE", "NAMES", "build_all", "other_reward"]

NAMES = ("rotten_tomatoes", "imdb", "tldr", "preferences")
ALONE = ("tldr", "preferences")
"""Tasks that have a policy of their own, which others do not share."""


def build_all(
    names: Sequence[str],
    config: TaskConfig,
    *,
    mesh: Mesh | None = None,
    judge: Callable[[str], Judge | None] | None = None,
    root: Path | str | None = None,
    report: Report = lambda what, done, total: None,
) -> dict[str, Task]:
    """The tasks of these names, built or read from the cache; those of reviews share one policy.

    Args:
      names: of `NAMES`.
      config: see `TaskConfig`.
      mesh: where the weights of a policy that is there already are to lie.
      judge: see `tasks.preferences.scorers`.
      root: the cache's directory.
      report: told how the building goes.

    Raises:
      UserError: no task has one of the names; two of them cannot share a policy; or one cannot be built.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"No task is called {name!r}: choose one of {', '.join(NAMES)}.{nearest(name, NAMES)}"
            )
    if set(ALONE) & set(names) and len(names) > 1:
        raise UserError(
            f"The tasks {' and '.join(names)} have different policies, which one run cannot train together: "
            "set task.name and task.held_out to the same one, or `transfer` a run's finalists to the other."
        )
    own = names == ("preferences",)
    scorers = preferences.scorers(config.own, judge) if own else {}  # before weights are read
    base = pretrained_base(config, mesh=mesh, root=root, report=report)
    if names == ("tldr",):
        return {"tldr": summaries.build(config, base=base, root=root, report=report)}
    if own:
        return {"preferences": preferences.build(config, base=base, given=scorers, root=root, report=report)}
    foundation = reviews.lay_foundation(config, base=base, root=root, report=report)
    return {
        name: reviews.build(name, config, foundation=foundation, root=root, report=report) for name in names
    }


def other_reward(task: Task, split: str, *, root: Path | str | None = None) -> tuple[str, Reward] | None:
    """A reward of another kind than the one that reports on `split`, with the name of its kind.

    For reviews a model of characters in place of words; where people wrote references, ROUGE's overlap
    with them, unless it is that which reports. One's own data may have another in `task.reward`. None
    where there is no other. What holds under one model's quirks alone does not hold under the other's.
    """
    references = task.references.get(split)
    if references and task.rewards.get(split) != own_rewards.identify("rouge"):
        known = dict(zip(task.decode(task.prompts[split].rows()), references, strict=True))

        def overlap_of(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
            return overlap.rouge(completions, [known[prompt] for prompt in prompts])["rougeL"]

        return "ROUGE-L", overlap_of
    if task.name == "preferences":
        searched = task.rewards.get("search")  # absent where one reward is for everything
        if searched in (None, task.rewards[split]):
            return None
        return "the search's", task.reward["search"]
    model = rewards.build(reviews_data.load(), "reward_report", root=root, units="characters")
    return "characters instead of words", reviews.of_text(model.score)
