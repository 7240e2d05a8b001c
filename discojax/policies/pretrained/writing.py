"""A policy into a directory that Transformers loads."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file

from discojax.errors import UserError
from discojax.policies.pretrained.architectures import ARCHITECTURES
from discojax.policies.pretrained.correspondence import Leaf, assembled, correspondence, joined
from discojax.policies.pretrained.locating import COMPANIONS
from discojax.policies.pretrained.reading import Pretrained
from discojax.policies.pretrained.safetensor_files import INDEX, SINGLE

__all__ = ["save"]


def save(pretrained: Pretrained, directory: str | Path, *, shard_bytes: int = 5_000_000_000) -> Path:
    """Writes a policy as Transformers does: `config.json`, safetensors, and the source's tokenizer.

    `dataclasses.replace(pretrained, policy=trained)` is what one saves after training. Parameters
    keep their dtype, and the host that writes holds one file's at a time. With several hosts all of
    them call this, and the first writes.

    Args:
      pretrained: what `load` gave, with the policy to be saved.
      directory: where to; if it exists it must be empty.
      shard_bytes: the size in bytes that a file of weights does not exceed, unless one tensor does.

    Returns:
      The directory.

    Raises:
      UserError: there is something in the directory, or it cannot be written, or the policy has
        parameters that its architecture has not, such as adapters.
    """
    target = Path(directory).expanduser()
    found = ARCHITECTURES[pretrained.hf_config["model_type"]]
    params = nnx.split(pretrained.policy)[1]
    leaves = correspondence(found, params)
    values = {leaf.path: value for leaf, value in zip(leaves, jax.tree.leaves(params), strict=True)}
    tensors = joined(leaves)
    shards = _shards(tensors, values, shard_bytes)
    config = dict(pretrained.hf_config) | {"architectures": [found.model_class]}
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(values["embedding.embedding"].dtype)

    writes = jax.process_index() == 0
    # Under another name until it is whole, so that nobody takes a part of it for a model.
    partial = target.with_name(f".{target.name}.partial")
    try:
        if writes:
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise UserError(f"{target} exists and is not an empty directory: give another one.")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        for file, names in shards.items():
            shard = {}
            for name in names:
                tensor = _on_host(tensors[name], values)
                if writes:  # the others hold one tensor at a time
                    shard[name] = tensor
            if writes:
                save_file(shard, partial / file, metadata={"format": "pt"})
        if writes:
            if len(shards) > 1:
                _write_index(partial / INDEX, shards, tensors, values)
            _write_json(partial / "config.json", config)
            _copy_companions(pretrained.source, partial)
            os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{target} cannot be written: {reason}.") from error
    finally:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _bytes(parts: Sequence[tuple[Leaf, int]], values: Mapping[str, jax.Array]) -> int:
    return math.prod(parts[0][0].tensor_shape) * values[parts[0][0].path].dtype.itemsize


def _shards(
    tensors: Mapping[str, Sequence[tuple[Leaf, int]]], values: Mapping[str, jax.Array], limit: int
) -> dict[str, list[str]]:
    """The names of the tensors of each file."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, parts in tensors.items():
        size = _bytes(parts, values)
        if groups[-1] and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups, 1)}


def _on_host(parts: Sequence[tuple[Leaf, int]], values: Mapping[str, jax.Array]) -> np.ndarray:
    """A whole tensor."""
    pieces = []
    for leaf, layer in parts:
        value = values[leaf.path]
        piece = value[layer] if leaf.stacked else value
        if isinstance(piece, jax.Array) and not piece.is_fully_addressable:
            piece = multihost_utils.process_allgather(piece, tiled=True)
        pieces.append(np.asarray(piece))
    return assembled(parts[0][0].row, pieces)


def _write_index(
    file: Path,
    shards: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Sequence[tuple[Leaf, int]]],
    values: Mapping[str, jax.Array],
) -> None:
    total = sum(_bytes(parts, values) for parts in tensors.values())
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    _write_json(file, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_companions(source: Path, directory: Path) -> None:
    if source.is_dir():  # a GGUF file has its tokenizer inside
        for pattern in COMPANIONS:
            for file in sorted(source.glob(pattern)):
                shutil.copyfile(file, directory / file.name)
