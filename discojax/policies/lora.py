"""Low-rank adapters (Hu et al., 2022, "LoRA"): a few numbers that train beside weights that do not.

An adapted dense layer computes `x W + b + (alpha / rank) (x A) B`. `B` begins at zero, so a policy
that was just adapted is the policy it was, to the last bit. `policies.partition` then finds that
only adapters train, so many lanes share one base and differ in their adapters alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from discojax.errors import UserError, nearest
from discojax.policies.dense import dense

__all__ = ["LoraConfig", "LoraLinear", "adapted", "add_lora", "merge_lora", "without_lora"]

Policy = TypeVar("Policy", bound=nnx.Module)


@dataclass(frozen=True)
class LoraConfig:
    r"""Which layers are adapted, and how much they can change.

    Attributes:
      rank: of each adapter.
      alpha: adapters are multiplied by `alpha / rank`, so that the rank can be changed and the learning
        rate be kept.
      targets: dense layers, by the end of their path: names (`query`), parts of paths (`mlp.up`) or
        regular expressions of them (`attention\..*`); `.*` is all. Queries and values are what the
        LoRA paper adapts.

    Dropout there is none: policy and reference would not agree at step 0.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"The rank of an adapter is at least 1, not {self.rank}.")
        if not self.alpha > 0:
            raise UserError(f"alpha scales an adapter and must be above 0, not {self.alpha}.")
        if not self.targets:
            raise UserError("targets names no layer to adapt: give names such as query, value.")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise UserError(f"The target {target!r} is not a regular expression: {error}.") from None


class LoraLinear(nnx.Module):
    """A dense layer with an adapter. Its own weights keep their names: `kernel`, `bias`.

    Stacked layers have a leading axis on every array, which the loop over layers takes off.
    """

    def __init__(
        self,
        base: nnx.Linear,
        lora_a: Float[Array, "*layers inputs rank"],
        lora_b: Float[Array, "*layers rank outputs"],
        scale: float,
    ):
        self.base_features = (base.in_features, base.out_features)
        self.kernel = base.kernel
        self.bias = base.bias
        self.lora_a = nnx.LoRAParam(lora_a)
        self.lora_b = nnx.LoRAParam(lora_b)
        self.scale = scale

    def __call__(self, x: Float[Array, "tokens inputs"]) -> Float[Array, "tokens outputs"]:
        """The layer with its adapter, in the dtype of its arguments."""
        y = x @ self.kernel[...]
        if self.bias is not None:
            y = y + self.bias[...]
        # Apart from the weights: where many lanes share those, their product is one over all lanes.
        change = (x @ self.lora_a[...]) @ self.lora_b[...]
        return y + change * jnp.asarray(self.scale, change.dtype)

    @property
    def rank(self) -> int:
        """The adapter's rank."""
        return int(self.lora_a.shape[-1])

    def plain(self, kernel: Array) -> nnx.Linear:
        """A dense layer without an adapter, of that kernel and this bias."""
        inputs, outputs = self.base_features

        def make() -> nnx.Linear:
            return dense(inputs, outputs, use_bias=self.bias is not None, rngs=nnx.Rngs(0))

        layer: nnx.Linear = nnx.eval_shape(make)
        layer.kernel = nnx.Param(kernel)
        layer.bias = None if self.bias is None else nnx.Param(self.bias[...])
        return layer


def add_lora(policy: Policy, config: LoraConfig, rngs: nnx.Rngs) -> Policy:
    """A policy with adapters, its weights shared with the one given.

    `A` is drawn from a uniform distribution within `inputs ** -0.5` (Kaiming, as PEFT does), in
    float32, and `B` is zero. Works on shapes as `nnx.eval_shape(lambda: add_lora(...))`.

    Raises:
      UserError: a target names no dense layer, or the policy has adapters already.
    """
    if next(adapted(policy), None) is not None:
        raise UserError("This policy has adapters already: merge them first.")
    layers = dict(_layers(policy, nnx.Linear))
    for target in config.targets:
        if not any(_matches(target, path) for path in layers):
            names = sorted({path.rpartition(".")[2] for path in layers})
            raise UserError(
                f"The target {target!r} is no dense layer of this policy, which has "
                f"{', '.join(names)}.{nearest(target, names)}"
            )

    def adapt(path: str, layer: Any) -> Any:
        if not any(_matches(target, path) for target in config.targets):
            return layer
        *stack, inputs, outputs = layer.kernel.shape
        bound = inputs**-0.5
        a = jax.random.uniform(rngs.params(), (*stack, inputs, config.rank), minval=-bound, maxval=bound)
        b = jnp.zeros((*stack, config.rank, outputs))
        return LoraLinear(layer, a, b, config.alpha / config.rank)

    return replaced(policy, nnx.Linear, adapt)


def merge_lora(policy: Policy) -> Policy:
    """The policy without adapters that computes the same: each is added to the weights it adapts."""

    def merge(path: str, layer: Any) -> nnx.Linear:
        a, b = (weights[...].astype(jnp.float32) for weights in (layer.lora_a, layer.lora_b))
        kernel = layer.kernel[...]
        change = jnp.einsum("...ir,...ro->...io", a, b, precision="highest")
        return layer.plain((kernel.astype(jnp.float32) + layer.scale * change).astype(kernel.dtype))

    return replaced(policy, LoraLinear, merge)


def without_lora(policy: Policy) -> Policy:
    """The policy as it was before it was adapted: the reference of what trains."""
    return replaced(policy, LoraLinear, lambda path, layer: layer.plain(layer.kernel[...]))


def adapted(policy: nnx.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers of a policy with their paths, such as `blocks.0.attention.query`."""
    return _layers(policy, LoraLinear)


def replaced(policy: Policy, kind: type, change: Callable[[str, Any], nnx.Module]) -> Policy:
    """A copy of the policy in which `change(path, layer)` stands for each layer of a kind."""
    copy: Policy = nnx.merge(*nnx.split(policy))
    modules = dict(nnx.iter_modules(copy))
    for path, layer in modules.items():
        if type(layer) is kind:
            setattr(modules[path[:-1]], str(path[-1]), change(_dotted(path), layer))
    return copy


def _layers(policy: nnx.Module, kind: type) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(policy):
        if type(module) is kind:
            yield _dotted(path), module


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _matches(target: str, path: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{target})", path) is not None
