"""The tasks by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from discojax.data.reviews import SOURCES
from discojax.errors import UserError, nearest
from discojax.tasks import reviews, summaries
from discojax.tasks.types import Report, Task, TaskConfig

__all__ = ["NAMES", "build_all"]

NAMES = ("rotten_tomatoes", "imdb", "tldr")


def build_all(
    names: Sequence[str],
    config: TaskConfig,
    *,
    root: Path | str | None = None,
    report: Report = lambda what, done, total: None,
) -> dict[str, Task]:
    """The tasks of these names, built or read from the cache; those of reviews share one policy.

    Raises:
      UserError: no task has one of the names; two of them cannot share a policy; or one cannot be built.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"No task is called {name!r}: choose one of {', '.join(NAMES)}.{nearest(name, NAMES)}"
            )
    if "tldr" in names and len(names) > 1:
        raise UserError(
            f"The tasks {' and '.join(names)} have different policies, which one run cannot train together: "
            "set task.name and task.held_out to the same one, or `transfer` a run's finalists to the other."
        )
    if names == ("tldr",):
        return {"tldr": summaries.build(config, root=root, report=report)}
    foundation = reviews.lay_foundation(config, root=root, report=report)
    assert set(names) <= set(SOURCES)
    return {
        name: reviews.build(name, config, foundation=foundation, root=root, report=report) for name in names
    }
