"""Small data for whole evaluations: real reviews and docstrings, few of them, built in seconds."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from discojax.data import reviews
from discojax.tasks import docstrings

SETTINGS = (
    "policy.vocab_size=320", "policy.width=16", "policy.layers=1", "policy.heads=2", "sft.steps=10",
    "sft.batch=8", "task.pairs=24", "task.completions=2", "population.lanes=4", "population.batch=8",
    "population.chunk=3", "search.betas=[0.1, 2.0]", "evaluation.prompts=12", "evaluation.search_prompts=8",
    "evaluation.seeds=2", "evaluation.steps=3", "evaluation.held_out_pairs=4", "evaluation.bootstrap=40",
    "evaluation.judged=10", "evaluation.learning_rates=[]",
)  # fmt: skip


def few_reviews(folder: Path, patch, each: int = 400) -> None:
    """The package's own file, cut to the first reviews of each source and label."""
    counts: Counter[tuple[str, str]] = Counter()
    path = folder / "reviews.csv"
    with reviews._installed().open(encoding="utf-8", newline="") as given, path.open("w", newline="") as kept:
        rows = csv.DictReader(given)
        writer = csv.DictWriter(kept, ["text", "label", "source"])
        writer.writeheader()
        for row in rows:
            counts[row["source"], row["label"]] += 1
            if counts[row["source"], row["label"]] <= each:
                writer.writerow({**row, "text": row["text"][:600]})
    patch.setattr(reviews, "_installed", lambda: path)


def few_documents(patch) -> None:
    """The docstrings of three libraries."""
    roots = {name: root for name, root in docstrings._roots().items() if name in ("flax", "optax", "sklearn")}
    assert len(roots) == 3
    patch.setattr(docstrings, "_roots", lambda: roots)
