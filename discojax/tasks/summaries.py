"""The packaged stand-in for TL;DR: say in one line what a docstring is about.

The text below a docstring's first line is the post, and that line the human's summary. What people
chose is not known here, so the reward models learn what can be known: to tell the human's summary from
one that the supervised policy sampled for the same post. They are trained on disjoint folds of posts,
one each to label pairs, to score the search and to report, and are proxies, which reports call them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from discojax.data import cache, tokenizer
from discojax.data.pairs import Pairs
from discojax.data.readers import Broken, Row, read_rows
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError
from discojax.tasks import building, docstrings, overlap
from discojax.tasks.bases import Base
from discojax.tasks.sampled_pairs import sample_completions
from discojax.tasks.types import Prompts, Report, Task, TaskConfig

__all__ = ["MARKER", "ROLES", "bodies_of", "build"]

MARKER = "\n\ntl;dr:"
"""What stands between a post and its summary, in training as in evaluation."""

ROLES = {
    "policy": 0.45,  # the policy's supervised text, and the prompts of the pairs it is trained on
    "reward_label": 0.12,  # posts whose summaries train the reward model that labels those pairs,
    "reward_search": 0.10,  # the one that scores candidates while the search runs,
    "reward_report": 0.15,  # and the one behind the reported numbers
    "prompts_search": 0.04,  # evaluation posts of the search,
    "prompts_select": 0.04,  # of the choice of learning rates, betas and finalists,
    "prompts_report": 0.10,  # and of the report
}
"""The share of posts that each role has."""

_SPLITS = {"search": "reward_search", "select": "reward_search", "report": "reward_report"}


class Posts(NamedTuple):
    """Posts in tokens, with the summary that a person wrote of each.

    Attributes:
      prompts: the posts, shortened to fit, each with `MARKER` behind it.
      references: the summaries, as the tokenizer writes them (in lower case).
      summaries: the same in tokens, their end of sequence included.
    """

    prompts: Prompts
    references: list[str]
    summaries: list[list[int]]

    def take(self, rows: slice) -> Posts:
        """Some of them."""
        return Posts(
            Prompts(*(array[rows] for array in self.prompts)), self.references[rows], self.summaries[rows]
        )


@dataclass(frozen=True)
class _Left:
    """How many posts could not be used, and how many were shortened."""

    long_summaries: int
    repeated: int
    shortened: int


def build(
    config: TaskConfig,
    *,
    base: Base | None = None,
    source: str | None = None,
    name: str = "tldr",
    root: Path | str | None = None,
    report: Report = lambda what, done, total: None,
) -> Task:
    """Builds the task, or reads it from the cache.

    Args:
      config: see `TaskConfig`; `prompt_tokens` are a post's, `MARKER` included.
      base: a policy that is there already, in place of one that is trained here.
      source: rows of `document` and `summary`, see `data.readers.read_rows`; by default the docstrings
        of installed libraries, as our TFDS builder writes them.
      name: what the task is called.
      root: the cache's directory.
      report: told how the building goes.

    Raises:
      UserError: the source cannot be read or has too few posts; prompts are too short for any.
    """
    documents = _documents(source, root, report)
    tokens = (
        base.tokenizer
        if base
        else building.tokenizer_of(
            [f"{body}{MARKER} {summary}" for body, summary in documents["policy"]], config, root
        )
    )
    marker = tokens.encode(MARKER)
    if config.prompt_tokens < len(marker) + 8:
        raise UserError(
            f"task.prompt_tokens is {config.prompt_tokens}, too few for a post to summarise: "
            "give it 64 or more, or use `--config tldr`."
        )
    posts, left = {}, {}
    seen: set[tuple[int, ...]] = set()  # posts may be one once they are shortened
    for role in reversed(ROLES):  # what measures goes first, so training gives up what they share
        posts[role], left[role] = _posts(documents[role], tokens, marker, config, seen)
    base = base or building.supervised(
        cache.content_hash([list(posts["policy"].prompts), posts["policy"].references]),
        lambda: _sequences(posts["policy"], config),
        tokens, config, root=root, report=report,
    )  # fmt: skip

    def sampled(role: str) -> list[str]:
        return sample_completions(
            base.graph, base.params, posts[role].prompts, config=base.sampling(config),
            seed=config.seed + 7919, decode=tokens.decode_batch,
            progress=lambda done, total: report(f"summaries for the {role.replace('_', ' ')}", done, total),
        )  # fmt: skip

    models = {
        role: _reward(role, posts[role], sampled, base, config, root)
        for role in ("reward_label", "reward_search", "reward_report")
    }

    def pairs(given: Prompts, count: int) -> tuple[Pairs, int]:
        label = models["reward_label"]
        return building.preference_pairs(
            name, base, given, label.logit, label.sha256, count, config, root=root, report=report,
        )  # fmt: skip

    splits = {split: posts[f"prompts_{split}"] for split in _SPLITS}
    held_out = None
    if config.held_out_pairs:
        spare = config.held_out_pairs + config.held_out_pairs // 20 + 8
        whole = splits["report"]
        if len(whole.references) < spare + 2:
            raise UserError(
                f"{name} has {len(whole.references)} posts to report on, too few to take "
                f"{config.held_out_pairs} held-out pairs from: lower evaluation.held_out_pairs."
            )
        splits["report"] = whole.take(slice(None, -spare))
        held_out, _ = pairs(whole.take(slice(-spare, None)).prompts, config.held_out_pairs)
    counts = {
        "posts shortened": sum(n.shortened for n in left.values()),
        "posts left out for a summary that is too long": sum(n.long_summaries for n in left.values()),
        "posts left out for beginning as another": sum(n.repeated for n in left.values()),
    }
    kept = sum(len(found.references) for found in posts.values())
    spare = config.pairs + config.pairs // 20 + 8
    training, dropped = pairs(posts["policy"].take(slice(spare)).prompts, config.pairs)
    return building.finish(
        name, base, config,
        pairs=training,
        held_out=held_out,
        prompts={split: found.prompts for split, found in splits.items()},
        reward={split: models[role].score for split, role in _SPLITS.items()},
        rewards={
            "label": models["reward_label"].sha256,
            **{split: models[role].sha256 for split, role in _SPLITS.items()},
        },
        references={split: found.references for split, found in splits.items()},
        facts={
            "data": ["; ".join([f"{kept} posts", *(f"{n} {what}" for what, n in counts.items())])],
            "pairs left out": dropped,
            "proxy accuracy": {role: model.metadata["accuracy"] for role, model in models.items()},
            **counts,
        },
    )  # fmt: skip


def _documents(source: str | None, root, report: Report) -> dict[str, list[tuple[str, str]]]:
    """Post and summary of every document, by role. The role is a hash of the post's."""
    report("documents", 0, 1)
    rows = _packaged(root) if source is None else (row for _, row in read_rows(source, "train"))
    found: dict[str, tuple[str, str]] = {}
    for row in rows:
        if isinstance(row, Broken):
            continue
        body, summary = (_text(row.get(key)) for key in ("document", "summary"))
        if body and summary:
            found.setdefault(body.lower(), (body, summary))
    roles: dict[str, list[tuple[str, str]]] = {role: [] for role in ROLES}
    points = {key: hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in found}
    for key in sorted(found, key=points.__getitem__):
        # Two numbers of one hash: the order within a role does not follow from the role.
        point = int.from_bytes(points[key][8:16], "big") / 2**64
        ends = zip(ROLES, accumulate(ROLES.values()), strict=True)
        roles[next((role for role, end in ends if point < end), "prompts_report")].append(found[key])
    if short := [role for role, rows in roles.items() if len(rows) < 2]:
        raise UserError(
            f"{source or 'What is installed'} has {len(found)} documents with a `document` and a `summary`, "
            f"too few to give each part of the evaluation its own ({short[0]} has none)."
        )
    report("documents", 1, 1)
    return roles


def _packaged(root: Path | str | None) -> Iterator[Row]:
    """The packaged documents, read as any TFDS data set is, from what our builder wrote of them.

    Without TFDS, which is an extra, they are read from their libraries: the same rows.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        return ({"document": one.body, "summary": one.summary} for one in docstrings.extract())
    from discojax.tasks import builders

    return (row for _, row in read_rows(str(builders.prepare(builders.Docstrings, root)), "train"))


def _text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return " ".join(text.split()) if isinstance(text, str) else ""


def _posts(
    rows: Sequence[tuple[str, str]],
    tokens: TextTokenizer,
    marker: list[int],
    config: TaskConfig,
    seen: set[tuple[int, ...]],
) -> tuple[Posts, _Left]:
    """Posts whose human summary fits into a completion: one that is cut would be judged for its end."""
    room = config.prompt_tokens - len(marker)
    bodies = tokens.encode_batch([body for body, _ in rows])
    summaries = tokens.encode_batch([f" {summary}" for _, summary in rows])
    begin = [] if tokens.bos_id is None else [tokens.bos_id]
    prompts: list[list[int]] = []
    kept: list[list[int]] = []
    long_summaries = repeated = shortened = 0
    for body, summary in zip(bodies, summaries, strict=True):
        prompt = [*begin, *body[:room], *marker]
        if len(summary) >= config.completion_tokens:
            long_summaries += 1
        elif tuple(prompt) in seen:
            repeated += 1
        else:
            seen.add(tuple(prompt))
            prompts.append(prompt)
            kept.append([*summary, tokens.eos_id])
            shortened += len(body) > room
    padded = Prompts.of(prompts, 1 + config.prompt_tokens, tokens.pad_id)
    return Posts(padded, tokens.decode_batch(kept), kept), _Left(long_summaries, repeated, shortened)


def _sequences(posts: Posts, config: TaskConfig):
    both = zip(posts.prompts.rows(), posts.summaries, strict=True)
    rows = [[*prompt, *summary] for prompt, summary in both]
    time = config.policy.max_length
    padded = [row[:time] + [tokenizer.PAD] * (time - len(row)) for row in rows]
    return np.asarray(padded, np.int32), np.asarray([min(len(row), time) for row in rows], np.int32)


def _reward(role: str, posts: Posts, sampled, base: Base, config: TaskConfig, root):
    """The cached reward model of a fold: the human's summary against one sampled for the same post."""
    import sklearn

    inputs = {
        "posts": cache.content_hash([list(posts.prompts), posts.references]),
        "weights": base.identity,
        "policy": {"heads": base.config.heads},
        "temperature": config.temperature,
        **{k: x for k, x in base.sampling(config).content().items() if k in ("top_k", "top_p")},
        "tokens": config.completion_tokens,
        "seed": config.seed,
        "version": overlap.VERSION,
        "sklearn": sklearn.__version__,
    }

    def make(directory: Path) -> None:
        bodies = bodies_of(base.tokenizer.decode_batch(posts.prompts.rows()))
        overlap.save(directory, overlap.train(bodies, posts.references, sampled(role), config.seed))

    return overlap.load(cache.build(role.replace("_", "-"), inputs, make, root), bodies_of)


def bodies_of(prompts: Sequence[str], marker: str = MARKER) -> list[str]:
    """The posts of prompts, without `marker` behind them."""
    return [prompt.removesuffix(marker) for prompt in prompts]
