"""What building a task of any texts takes: a supervised policy, sampled pairs, one `Task` of it all.

Each is kept in the cache by the content of what it was built from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int
from tokenizers import Tokenizer

from discojax.data import cache
from discojax.data.pairs import Pairs
from discojax.data.reference import with_reference
from discojax.policies import sft, weights
from discojax.policies.decoder import Decoder
from discojax.tasks.sampled_pairs import sample_pairs
from discojax.tasks.types import Prompts, Report, Reward, Task, TaskConfig

__all__ = ["VERSION", "finish", "preference_pairs", "supervised"]

VERSION = 1  # of the results of this file: raise it when they change


def supervised(
    texts: str,
    sequences: Callable[[], tuple[Int[np.ndarray, "texts time"], Int[np.ndarray, " texts"]]],
    tokens: Tokenizer,
    config: TaskConfig,
    *,
    root: Path | str | None,
    report: Report,
) -> tuple[nnx.GraphDef, Any, float]:
    """The decoder after supervised training: its graph, its weights, its last loss in nats a token.

    Args:
      texts: the content hash of what it is trained on.
      sequences: makes that: ids padded on the right, and their lengths. Called only to train.
      tokens: the tokenizer.
      config: see `TaskConfig`.
      root: the cache's directory.
      report: told how it goes.
    """
    graph, state = nnx.split(Decoder(config.policy, rngs=nnx.Rngs(config.seed)))
    inputs = {
        "texts": texts,
        "tokenizer": cache.content_hash(tokens.to_str()),
        "policy": asdict(config.policy),
        "sft": asdict(config.sft),
        "seed": config.seed,
        "version": VERSION,
        "weights": weights.VERSION,
    }

    def make(directory: Path) -> None:
        ids, lengths = sequences()

        def progress(done: int, loss: float) -> None:
            report(f"policy (loss {loss:.2f} nats a token)", done, config.sft.steps)

        trained, losses = sft.train(
            graph, state, ids, lengths, config=config.sft, seed=config.seed, progress=progress
        )
        weights.save(trained, directory / "policy.safetensors")
        (directory / "loss.txt").write_text(repr(float(np.mean(losses[-5:]))))

    directory = cache.build("policy", inputs, make, root)
    like = jax.eval_shape(lambda: state)
    params = weights.load(like, directory / "policy.safetensors")
    return graph, params, float((directory / "loss.txt").read_text())


def preference_pairs(
    name: str,
    graph: nnx.GraphDef,
    params: Any,
    prompts: Prompts,
    tokens: Tokenizer,
    logit: Reward,
    reward: str,
    count: int,
    config: TaskConfig,
    *,
    root: Path | str | None,
    report: Report,
) -> tuple[Pairs, int]:
    """At most `count` pairs sampled from the policy with their reference log-probabilities, and how
    many were dropped.

    Args:
      name: of the task, for the report.
      graph, params: the supervised policy.
      prompts: one for each pair; a few are dropped, so have some to spare.
      tokens: the tokenizer.
      logit: labels the pairs, and
      reward: is its content hash.
      count: pairs wanted.
      config: see `TaskConfig`.
      root: the cache's directory.
      report: told how it goes.
    """  # noqa: D205
    sampling = config.sampling
    inputs = {
        "params": cache.content_hash([np.asarray(x) for x in jax.tree.leaves(params)]),
        "policy": asdict(config.policy),  # heads change what the same weights do
        "prompts": cache.content_hash(list(prompts)),
        "reward": reward,
        "sampling": asdict(sampling),
        "pairs": count,
        "completions": config.completions,
        "label_temperature": config.label_temperature,
        "seed": config.seed,
        "version": VERSION,
    }

    def make(directory: Path) -> None:
        pairs, dropped = sample_pairs(
            graph, params, prompts, config=sampling, seed=config.seed, logit=logit,
            completions=config.completions, label_temperature=config.label_temperature,
            decode=lambda rows: tokens.decode_batch([[int(i) for i in row] for row in rows]),
            progress=lambda done, total: report(f"preference pairs ({name})", done, total),
        )  # fmt: skip
        arrays = {key: x[:count] for key, x in pairs._asdict().items() if x is not None}
        np.savez(directory / "pairs.npz", dropped=dropped.total, **arrays)

    directory = cache.build("pairs", inputs, make, root)
    with np.load(directory / "pairs.npz") as saved:
        arrays = dict(saved)
    dropped = int(arrays.pop("dropped"))
    pairs = with_reference(
        Pairs(**arrays), graph, params, tokens=config.completion_tokens, root=root,
        progress=lambda done, total: report("reference log-probabilities", done, total),
    )  # fmt: skip
    return pairs, dropped


def finish(
    name: str,
    graph: nnx.GraphDef,
    params: Any,
    tokens: Tokenizer,
    config: TaskConfig,
    *,
    pairs: Pairs,
    held_out: Pairs | None,
    prompts: Mapping[str, Prompts],
    reward: Mapping[str, Reward],
    rewards: Mapping[str, str],
    facts: Mapping[str, Any],
    references: Mapping[str, Sequence[str]] | None = None,
) -> Task:
    """All of it as a `Task`, with the hash of its content and the sizes among its facts."""
    sampling = config.sampling
    identity = cache.content_hash(
        {
            "name": name,
            "params": [np.asarray(x) for x in jax.tree.leaves(params)],
            "pairs": dict(pairs._asdict()),
            "prompts": {split: list(p) for split, p in prompts.items()},
            "rewards": dict(rewards),
            "sampling": asdict(sampling),
            "held_out": None if held_out is None else dict(held_out._asdict()),
            "references": {split: list(texts) for split, texts in (references or {}).items()},
        }
    )
    sizes = {
        "pairs": len(pairs.prompt_length),
        "prompts": {split: len(p.lengths) for split, p in prompts.items()},
        "parameters": int(sum(np.size(x) for x in jax.tree.leaves(params))),
    }
    return Task(
        name, graph, params, tokens, pairs, sampling, prompts, reward, identity, {**sizes, **facts},
        rewards, held_out, references or {},
    )  # fmt: skip
