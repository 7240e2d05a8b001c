"""Tensors in a directory of safetensors files, read one slice at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from discojax.errors import UserError

__all__ = ["DTYPES", "INDEX", "SINGLE", "SafetensorFiles", "Spec", "open_directory", "read_json"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
"""The dtypes of weights, as safetensors spells them."""


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor before it is read; `dtype` as safetensors spells it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class SafetensorFiles:
    """The tensors of a checkpoint, by name."""

    specs: Mapping[str, Spec]

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor.

        The file is opened anew each time: of one that stays open, what was read stays in memory.
        """
        with safe_open(self.specs[name].file, "np") as file:
            return file.get_slice(name)[index]


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if it cannot be read or is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file.parent} has no {file.name}, so it is not a model's directory.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not JSON that can be read: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object.")
    return value


def open_directory(directory: Path) -> SafetensorFiles:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Raises:
      UserError: there is neither, or a shard is missing, cannot be read, or lacks a tensor that the
        index says it has.
    """
    if (directory / INDEX).is_file():
        shards = _index(directory)
    elif (directory / SINGLE).is_file():
        shards = {SINGLE: []}
    else:
        raise UserError(_without_weights(directory))
    specs: dict[str, Spec] = {}
    for shard, promised in shards.items():
        found = _specs(directory / shard)
        for name in promised:
            if name not in found:
                raise UserError(
                    f"{directory / shard} has no tensor {name!r}, which {INDEX} says it has: "
                    "get both anew, from the same version of the model."
                )
        specs.update(found)
    return SafetensorFiles(specs)


def _index(directory: Path) -> dict[str, list[str]]:
    """The tensors of each shard."""
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UserError(f"{directory / INDEX} has no weight_map from tensors to files.")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if Path(shard).name != shard:
            raise UserError(f"{directory / INDEX} has {name!r} in {shard!r}, which is no file beside it.")
        shards.setdefault(shard, []).append(name)
    for shard, names in shards.items():
        if not (directory / shard).is_file():
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            raise UserError(
                f"{directory} lacks the shard {shard}, which has {names[0]!r}{more}: put it there."
            )
    return shards


def _specs(file: Path) -> dict[str, Spec]:
    specs = {}
    try:
        with safe_open(file, "np") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                tensor = opened.get_slice(name)
                specs[name] = Spec(file, tuple(tensor.get_shape()), tensor.get_dtype())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is not a safetensors file that can be read: {error}.") from error
    return specs


def _without_weights(directory: Path) -> str:
    convert = "convert it once, where PyTorch is installed, with Transformers' save_pretrained"
    legacy = sorted(directory.glob("pytorch_model*.bin"))
    if not legacy:
        return (
            f"{directory} has neither {SINGLE} nor {INDEX}: put the weights there. "
            f"If the model comes as pytorch_model.bin alone, {convert}."
        )
    classes = read_json(directory / "config.json").get("architectures") or ["AutoModelForCausalLM"]
    return (
        f"{directory} has its weights as {legacy[0].name}, a pickle, which could run code and is not opened: "
        f'{convert}: python -c "import transformers; '
        f"transformers.{classes[0]}.from_pretrained('{directory}').save_pretrained('{directory}')\""
    )
