"""Which tensors of a checkpoint make up each parameter of a policy, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from discojax.errors import UserError
from discojax.policies.pretrained.architectures import Architecture, Row

__all__ = ["Leaf", "assembled", "correspondence", "joined"]


@dataclass(frozen=True)
class Leaf:
    """A parameter of ours and the tensors it is read from.

    Attributes:
      path: of the parameter, such as `blocks.0.up.kernel`.
      shape: of the parameter.
      row: of the architecture's table.
      names: of its tensor; of one for each layer where layers are stacked on the leading axis.
      stacked: whether they are.
    """

    path: str
    shape: tuple[int, ...]
    row: Row
    names: tuple[str, ...]
    stacked: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of each of its tensors."""
        shape = self.shape[1:] if self.stacked else self.shape
        if self.row.part is not None:
            shape = (*shape[:-1], shape[-1] * self.row.part[1])
        return shape[::-1] if self.row.transposed else shape

    def sources(self, index: Sequence[slice]) -> Iterator[tuple[str, tuple[slice, ...], tuple[Any, ...]]]:
        """What of which tensor makes up a slice of the parameter.

        Yields `(name, slice of the tensor, where it goes in the slice of the parameter)`; what is
        read is still to be transposed where the row says so.
        """
        ranges = [range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)]
        layers = ranges.pop(0) if self.stacked else range(1)
        if self.row.part is not None:
            start = self.row.part[0] * self.shape[-1]
            ranges[-1] = range(ranges[-1].start + start, ranges[-1].stop + start)
        inner = tuple(slice(part.start, part.stop) for part in ranges)
        inner = inner[::-1] if self.row.transposed else inner
        for i, layer in enumerate(layers):
            yield self.names[layer], inner, ((i,) if self.stacked else ())


def correspondence(found: Architecture, params: nnx.State) -> list[Leaf]:
    """The leaves of `params` (arrays or shapes), in the order of `jax.tree.leaves`.

    Raises:
      UserError: one of them is no parameter of the architecture.
    """
    rows = {row.path: row for row in found.rows}
    leaves = []
    for keys, value in jax.tree_util.tree_flatten_with_path(params)[0]:
        parts = [str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey)]
        path, shape = ".".join(parts), tuple(value.shape)
        in_block = parts[0] == "blocks"
        stacked = in_block and not parts[1].isdigit()
        pattern = ".".join(["blocks", "{}", *parts[1 if stacked else 2 :]]) if in_block else path
        row = rows.get(pattern)
        if row is None:
            raise UserError(
                f"The policy's parameter {path!r} is in no {found.model_class}: "
                "merge adapters (policies.lora.merge_lora) before saving."
            )
        layers = range(shape[0]) if stacked else [parts[1]] if in_block else [None]
        names = tuple(row.name.format(layer) for layer in layers)
        leaves.append(Leaf(path, shape, row, names, stacked))
    return leaves


def joined(leaves: Sequence[Leaf]) -> dict[str, list[tuple[Leaf, int]]]:
    """For each tensor the leaves it consists of, in their order, each with the tensor's layer in it."""
    tensors: dict[str, list[tuple[Leaf, int]]] = {}
    for leaf in leaves:
        for layer, name in enumerate(leaf.names):
            tensors.setdefault(name, []).append((leaf, layer))
    for parts in tensors.values():
        parts.sort(key=lambda entry: entry[0].row.part or (0, 1))
    return tensors


def assembled(row: Row, parts: Sequence[np.ndarray]) -> np.ndarray:
    """A tensor from the values of its leaves (of its layer), in the order of `joined`."""
    whole = parts[0] if row.part is None else np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(whole.T if row.transposed else whole)
