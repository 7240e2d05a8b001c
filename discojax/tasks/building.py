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

from discojax.data import cache, hub_tokenizers, tokenizer
from discojax.data.pairs import Pairs
from discojax.data.reference import with_reference
from discojax.data.text_tokenizer import TextTokenizer
from discojax.policies import sft, weights
from discojax.policies.decoder import Decoder
from discojax.tasks.bases import Base, adapt
from discojax.tasks.sampled_pairs import sample_pairs
from discojax.tasks.types import Prompts, Report, Reward, SamplingConfig, Task, TaskConfig

__all__ = ["VERSION", "finish", "preference_pairs", "referred", "supervised", "tokenizer_of"]

VERSION = 1  # of the results of this file: raise it when they change


def tokenizer_of(texts: Sequence[str], config: TaskConfig, root: Path | str | None) -> TextTokenizer:
    """A tokenizer for the small decoder, trained on these texts."""
    inputs = {
        "texts": cache.content_hash(list(texts)),
        "vocab_size": config.policy.vocab_size,
        "version": tokenizer.VERSION,
    }

    def make(directory: Path) -> None:
        trained = tokenizer.train(texts, config.policy.vocab_size)
        cache.write_bytes(directory / "tokenizer.json", trained.to_str(pretty=True).encode())

    return hub_tokenizers.ours(cache.build("tokenizer", inputs, make, root) / "tokenizer.json")


def supervised(
    texts: str,
    sequences: Callable[[], tuple[Int[np.ndarray, "texts time"], Int[np.ndarray, " texts"]]],
    tokens: TextTokenizer,
    config: TaskConfig,
    *,
    root: Path | str | None,
    report: Report,
) -> Base:
    """The small decoder after supervised training.

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
        "tokenizer": cache.content_hash(tokens.tokenizer.to_str()),
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
    identity = cache.content_hash([np.asarray(x) for x in jax.tree.leaves(params)])
    return Base(graph, params, tokens, identity, float((directory / "loss.txt").read_text()))


def preference_pairs(
    name: str,
    base: Base,
    prompts: Prompts,
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
      base: the supervised policy.
      prompts: one for each pair; a few are dropped, so have some to spare.
      logit: labels the pairs, and
      reward: is its content hash.
      count: pairs wanted.
      config: see `TaskConfig`.
      root: the cache's directory.
      report: told how it goes.
    """  # noqa: D205
    sampling = base.sampling(config)
    inputs = {
        "params": base.identity,
        "policy": asdict(base.config),  # heads change what the same weights do
        "prompts": cache.content_hash(list(prompts)),
        "reward": reward,
        "sampling": sampling.content(),
        "pairs": count,
        "completions": config.completions,
        "label_temperature": config.label_temperature,
        "seed": config.seed,
        "version": VERSION,
    }

    def make(directory: Path) -> None:
        pairs, dropped = sample_pairs(
            base.graph, base.params, prompts, config=sampling, seed=config.seed, logit=logit,
            completions=config.completions, label_temperature=config.label_temperature,
            decode=base.tokenizer.decode_batch,
            progress=lambda done, total: report(f"preference pairs ({name})", done, total),
        )  # fmt: skip
        arrays = {key: x[:count] for key, x in pairs._asdict().items() if x is not None}
        np.savez(directory / "pairs.npz", dropped=dropped.total, **arrays)

    directory = cache.build("pairs", inputs, make, root)
    with np.load(directory / "pairs.npz") as saved:
        arrays = dict(saved)
    dropped = int(arrays.pop("dropped"))
    return referred(Pairs(**arrays), base, config, root=root, report=report), dropped


def referred(
    pairs: Pairs, base: Base, config: TaskConfig, *, root: Path | str | None, report: Report
) -> Pairs:
    """Pairs with log-probabilities under the base, in the dtype that policies are trained in."""
    return with_reference(
        pairs, base.graph, base.params, tokens=config.completion_tokens, dtype=config.dtype, root=root,
        progress=lambda done, total: report("reference log-probabilities", done, total),
    )  # fmt: skip


def finish(
    name: str,
    base: Base,
    config: TaskConfig,
    *,
    pairs: Pairs,
    held_out: Pairs | None,
    prompts: Mapping[str, Prompts],
    reward: Mapping[str, Reward],
    rewards: Mapping[str, str],
    facts: Mapping[str, Any],
    references: Mapping[str, Sequence[str]] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    sampling: SamplingConfig | None = None,
    given: object = None,
) -> Task:
    """All of it as a `Task`, with the hashes of its content and the sizes among its facts.

    `given` is what else of it the user gave, for `Task.source`.
    """
    sampling = sampling or base.sampling(config)
    graph, params, frozen = adapt(base, config.lora, config.seed)
    small = config.pretrained is None
    content = {
        "name": name,
        "params": [np.asarray(x) for x in jax.tree.leaves(base.params)] if small else base.identity,
        "pairs": dict(pairs._asdict()),
        "prompts": {split: list(p) for split, p in prompts.items()},
        "rewards": dict(rewards),
        "sampling": sampling.content(),
        "held_out": None if held_out is None else dict(held_out._asdict()),
        "references": {split: list(texts) for split, texts in (references or {}).items()},
    }
    source = cache.content_hash(
        {
            **{what: content[what] for what in ("prompts", "references")},
            "texts": {split: list(shown) for split, shown in (texts or {}).items()},
            "given": given,
        }
    )
    if config.lora is not None:
        content["lora"] = asdict(config.lora)
    sizes = {
        "pairs": len(pairs.prompt_length),
        "prompts": {split: len(p.lengths) for split, p in prompts.items()},
        "parameters": int(sum(np.size(x) for x in jax.tree.leaves(params))),
    }
    if frozen is not None:
        sizes["frozen parameters"] = int(sum(np.size(x) for x in jax.tree.leaves(frozen)))
    if base.loss is not None:
        sizes["supervised loss"] = base.loss
    return Task(
        name, graph, params, base.tokenizer.tokenizer, pairs, sampling, prompts, reward,
        cache.content_hash(content), {**sizes, **facts}, rewards, held_out, references or {}, frozen,
        texts or {}, source,
    )  # fmt: skip
