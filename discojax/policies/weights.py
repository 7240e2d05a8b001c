"""Policy weights on disk: one safetensors file, names by the module's own paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from discojax.errors import UserError

__all__ = ["VERSION", "load", "save"]

VERSION = 2  # of the layout of a file: part of the key of whatever caches one


def _name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
    if len(parts) > 1 and parts[-1] == "value":  # what an NNX variable calls its array
        parts.pop()
    return ".".join(parts)


def save(params: Any, file: Path) -> None:
    """Writes every leaf of `params` under its path, such as `blocks.0.mlp.up.kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    save_file({_name(path): np.asarray(leaf, order="C") for path, leaf in leaves}, file)


def load(like: Any, file: Path) -> Any:
    """Reads weights into the structure of `like` (arrays or `ShapeDtypeStruct`s).

    Raises:
      UserError: the file is not safetensors, or a tensor is missing or of another shape or dtype.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is not a readable safetensors file: {error}.") from error

    def leaf(path: tuple[Any, ...], expected: Any) -> np.ndarray:
        tensor = tensors.get(_name(path))
        if tensor is None:
            raise UserError(f"{file} has no tensor {_name(path)!r}.")
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise UserError(
                f"{_name(path)!r} in {file} is {tensor.dtype} {list(tensor.shape)}; "
                f"this policy has {expected.dtype} {list(expected.shape)}."
            )
        return tensor

    return jax.tree_util.tree_map_with_path(leaf, like)
