"""Where everything lies: one table that divides parameters, optimisers and batches over the mesh.

| what | `lane` | `data` | `model` |
|---|---|---|---|
| weights and moments of lanes | leading axis | copies | matrices, by `RULES` |
| frozen weights | copies | copies | matrices, by `RULES` |
| settings, steps, metrics | leading axis | copies | copies |
| pairs, all for every lane | copies | copies; each device reads the rows of its share of a batch | copies |
| activations | its own lanes | its own rows | rows (`policies.sharding.batch_over_model`) |

Moments have their parameter's name and shape, so one rule places both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

__all__ = ["RULES", "alike", "constrain", "fetch", "lane_shardings", "parameter_spec", "put", "shardings"]

RULES: tuple[tuple[str, Literal["whole", "last", "longest"]], ...] = (
    (r"lora", "whole"),  # adapters are small, and read by every row of the batch
    (r"embedding", "last"),  # rows are looked up: each device has its columns of all of them
    (r"", "longest"),
)
"""What `model` divides of a parameter: the first pattern found in its path decides."""


def parameter_spec(path: str, shape: tuple[int, ...], model: int) -> jax.P:
    """How one policy's parameter is divided over `model` devices (FSDP).

    A matrix is divided along the longer, or by its rule the last, of its last two dimensions, among
    those that `model` divides. Leading dimensions (stacked layers) are looped over and stay whole.
    Vectors, adapters and what nothing divides are copied.

    Args:
      path: names from the policy down, joined by `/`.
      shape: without a lane axis.
      model: size of the mesh axis.
    """
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    if model == 1 or len(shape) < 2 or rule == "whole":
        return jax.P()
    dimensions = [d for d in range(len(shape) - 2, len(shape)) if shape[d] % model == 0]
    if not dimensions:
        return jax.P()
    chosen = dimensions[-1] if rule == "last" else max(dimensions, key=lambda d: shape[d])
    return jax.P(*("model" if d == chosen else None for d in range(len(shape))))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """A `NamedSharding` for every leaf of a policy's weights (no lane axis), shared by all lanes."""
    return _place(mesh, tree, lambda path, shape: parameter_spec(path, shape, mesh.shape["model"]))


def lane_shardings(mesh: Mesh, tree: Any) -> Any:
    """The same for a tree with a leading lane axis: weights, moments, counters."""

    def spec(path: str, shape: tuple[int, ...]) -> jax.P:
        return jax.P("lane", *parameter_spec(path, shape[1:], mesh.shape["model"]))

    return _place(mesh, tree, spec)


def _place(mesh: Mesh, tree: Any, spec: Any) -> Any:
    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def put(tree: Any, places: Any) -> Any:
    """Arrays that every process has whole, where `places` (a tree of shardings, or one) puts them.

    Each process puts on its own devices what is to lie there, and nothing else. An array that lies over
    the devices of all processes already is divided anew, if it has to be.
    """

    def one(x: Any, place: NamedSharding) -> jax.Array:
        if place.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return jax.device_put(x, place)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, place, lambda part: host[part])

    if isinstance(places, NamedSharding):
        return jax.tree.map(lambda x: one(x, places), tree)
    return jax.tree.map(one, tree, places)


def fetch(tree: Any) -> Any:
    """The tree with its device arrays as host arrays, whole in every process: all of them must call it."""
    leaves, form = jax.tree.flatten(tree)
    far = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.is_fully_addressable]
    if far:
        copies = NamedSharding(leaves[far[0]].sharding.mesh, jax.P())
        for i, whole in zip(far, _gather(copies)([leaves[i] for i in far]), strict=True):
            leaves[i] = whole
    return jax.tree.unflatten(form, [np.asarray(x) if isinstance(x, jax.Array) else x for x in leaves])


@functools.cache
def _gather(copies: NamedSharding) -> Callable[[list[jax.Array]], list[jax.Array]]:
    return jax.jit(lambda arrays: arrays, out_shardings=copies)


def constrain(tree: Any, mesh: Mesh) -> Any:
    """Holds one lane's weights or gradient, inside the step, to where the table puts them."""
    if mesh.shape["model"] == 1:
        return tree
    return jax.tree.map(
        lambda x, sharding: jax.lax.with_sharding_constraint(x, sharding.spec), tree, shardings(mesh, tree)
    )


def alike(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Has every device of `model` do the same, inside the step, instead of a part of it.

    For what is small: divided, the loops and sorts of an objective would talk at every turn.
    """
    if mesh.shape["model"] == 1:
        return function
    copies = jax.P()
    return jax.shard_map(function, in_specs=copies, out_specs=copies, axis_names={"model"}, check_vma=False)
