"""Which of a policy's variables train."""

from __future__ import annotations

from flax import nnx

__all__ = ["partition"]


def partition(policy: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a policy into `(graph, trainable, frozen)`; `nnx.merge` of the three gives it back.

    Trainable are its `nnx.LoRAParam`s if it has any, else every `nnx.Param`; frozen is the rest, so
    that a full policy has an empty one. Works on shapes (`nnx.eval_shape`) as on arrays.
    """
    has_adapters = any(isinstance(leaf, nnx.LoRAParam) for _, leaf in nnx.iter_graph(policy))
    return nnx.split(policy, nnx.LoRAParam if has_adapters else nnx.Param, ...)  # type: ignore[return-value]
