"""The policy that a task's lanes start from: one that is there already, or one that was trained here.

A base is whole: pairs are sampled from it and referred to it. Adapters come last (`adapt`), and begin as
nothing, so an adapted policy is its base to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from discojax.data import cache, hub_tokenizers
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.lora import LoraConfig, add_lora
from discojax.policies.partition import partition
from discojax.policies.pretrained.locating import locate
from discojax.population.placement import shardings
from discojax.tasks.types import Report, SamplingConfig, TaskConfig

__all__ = ["Base", "adapt", "pretrained_base"]


@dataclass(frozen=True)
class Base:
    """A supervised policy with its tokenizer.

    Attributes:
      graph, params: the policy, none of it frozen.
      tokenizer: its tokenizer.
      identity: the content hash of its weights.
      loss: of its supervised training, nats a token; None where that was not done here.
    """

    graph: nnx.GraphDef
    params: Any
    tokenizer: TextTokenizer
    identity: str
    loss: float | None = None

    @property
    def config(self) -> DecoderConfig:
        """What decides its function beside its weights."""
        found: DecoderConfig = nnx.merge(self.graph, self.params).config
        return found

    def sampling(self, config: TaskConfig, eos_id: int | None = None) -> SamplingConfig:
        """How its completions are drawn, up to `eos_id`, by default its tokenizer's."""
        end = self.tokenizer.eos_id if eos_id is None else eos_id
        return SamplingConfig(
            config.completion_tokens,
            end,
            self.tokenizer.pad_id,
            config.temperature,
            config.top_k,
            config.top_p,
        )

    def begun(self, ids: list[int] | tuple[int, ...]) -> tuple[int, ...]:
        """A plain text's ids behind the token that begins a sequence, if the policy expects one."""
        begins = self.tokenizer.bos_id
        return (*(() if begins is None else (begins,)), *ids)

    def check_length(self, config: TaskConfig) -> None:
        """Refuses prompts and completions that have no room among the policy's positions."""
        tokens = 1 + config.prompt_tokens + config.completion_tokens
        if tokens > self.config.max_length:
            raise UserError(
                f"task.prompt_tokens + task.completion_tokens + 1 ({tokens}) do not fit into the "
                f"{self.config.max_length} positions of {self.tokenizer.name}: lower one of the two."
            )


def pretrained_base(
    config: TaskConfig, *, mesh: Mesh | None = None, root: Path | str | None = None, report: Report
) -> Base | None:
    """The policy that `config.pretrained` names, on the devices; None if it names none.

    Its weights are divided over `mesh` as the population's are. Where adapters train, they are in the
    dtype that policies compute in, else float32.

    Raises:
      UserError: there is no such policy, it is no language model, or its tokenizer is not its own.
    """
    if config.pretrained is None:
        return None
    from discojax.policies import pretrained

    settings = config.pretrained
    source = locate(settings.source, revision=settings.revision or None)
    tokenizer = hub_tokenizers.load(settings.tokenizer or source, root=root)
    name = f"policy ({settings.source})"
    report(name, 0, 1)
    place: Callable[[Any], Any] | None = None if mesh is None else partial(shardings, mesh)
    dtype = config.dtype if config.lora else "float32"
    loaded = pretrained.load(
        source, dtype=dtype, sharding=place, scan=True, remat=settings.remat, attention=settings.attention
    )
    if not isinstance(loaded.policy, Decoder):
        raise UserError(f"{settings.source} is a reward model, not a language model that can be trained.")
    tokenizer = tokenizer.for_embedding(loaded.policy.config.vocab_size)
    graph, params = nnx.split(loaded.policy)
    # One after another: the host need not hold the weights twice.
    identity = cache.content_hash([cache.content_hash(np.asarray(x)) for x in jax.tree.leaves(params)])
    base = Base(graph, params, tokenizer, identity)
    base.check_length(config)
    report(name, 1, 1)
    return base


def adapt(base: Base, lora: LoraConfig | None, seed: int) -> tuple[nnx.GraphDef, Any, Any]:
    """Graph, what trains and what is frozen (None for nothing) of a base, with adapters where asked for."""
    if lora is None:
        return base.graph, base.params, None
    return partition(add_lora(nnx.merge(base.graph, base.params), lora, nnx.Rngs(seed)))
