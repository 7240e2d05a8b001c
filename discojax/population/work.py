"""What is planned, said in shapes: a policy's architecture, its step, and how many lanes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from discojax.data.pairs import Pairs
from discojax.policies.architecture import DecoderConfig
from discojax.policies.decoder import Decoder
from discojax.policies.flops import gradient_flops
from discojax.policies.lora import LoraConfig, add_lora
from discojax.policies.partition import partition
from discojax.population.engine import Programs, make_programs
from discojax.population.step import StepConfig

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """What is planned: lanes of one policy in training.

    Attributes:
      policy: its architecture.
      lora: adapters, if only they train.
      step: see `StepConfig`.
      lanes: how many.
      prompts: tokens of the longest prompt.
      tokens: of the longest completion.
      pairs: that there are in the data, which every chip holds.
    """

    policy: DecoderConfig
    lora: LoraConfig | None
    step: StepConfig
    lanes: int
    prompts: int
    tokens: int
    pairs: int

    @cached_property
    def parts(self) -> tuple[nnx.GraphDef, Any, Any]:
        """Graph, what trains and what is frozen of a policy: shapes, not weights."""

        def make() -> nnx.Module:
            policy = Decoder(self.policy, rngs=nnx.Rngs(0))
            return policy if self.lora is None else add_lora(policy, self.lora, nnx.Rngs(0))

        return partition(nnx.eval_shape(make))

    @property
    def trained(self) -> int:
        """Parameters of a lane that train."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.parts[1]))

    @property
    def frozen(self) -> int:
        """Parameters that all lanes share."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.parts[2]))

    @property
    def data(self) -> Pairs:
        """The pairs, as shapes."""

        def of(dtype: type, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((self.pairs, *shape), dtype)

        ids, count, number = of(np.int32, self.prompts + self.tokens), of(np.int32), of(np.float32)
        return Pairs(ids, ids, count, count, count, number, number)

    def programs(self, mesh: Mesh, *, sharing: bool = True) -> Programs:
        """The functions that a run on that mesh would compile."""
        graph, params, frozen = self.parts
        return make_programs(
            graph,
            params,
            self.step,
            lanes=self.lanes,
            tokens=self.tokens,
            prompts=self.prompts if sharing else None,
            mesh=mesh,
            frozen=frozen,
        )

    def flops(self, *, causal: bool = True, sharing: bool = True) -> int:
        """Operations that one step of one lane needs; see `policies.flops.gradient_flops`.

        With `sharing` the prompt of a pair is read once.
        """
        return gradient_flops(
            self.policy,
            sequences=2 * self.step.batch,
            time=self.prompts + self.tokens - 1,
            predicted=self.tokens,
            causal=causal,
            adapters=None if self.lora is None else self.trained,
            shared=self.prompts if sharing else 0,
        )
