"""Adapters out and in, as the library PEFT lays them out: a configuration and one safetensors file.

PEFT adapts the layers of a Transformers model. Where one of its tensors is several of our layers
(GPT-2 joins queries, keys and values) their adapters become one of a higher rank, which computes the
same: the narrow halves side by side, the wide ones on a diagonal of blocks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from discojax.errors import UserError
from discojax.policies.lora import LoraLinear, adapted, replaced, without_lora
from discojax.policies.pretrained.architectures import architecture
from discojax.policies.pretrained.correspondence import Leaf, correspondence
from discojax.policies.pretrained.reading import Pretrained

__all__ = ["CONFIG", "WEIGHTS", "load_adapters", "save_adapters"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


class _Adapter(NamedTuple):
    """As PEFT has it: `a` is [rank, inputs], `b` is [outputs, rank]; the change is `scale * b @ a`."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


def save_adapters(pretrained: Pretrained, directory: str | Path) -> Path:
    """Writes the adapters of a policy alone: megabytes beside its base, which is only named.

    Args:
      pretrained: what `pretrained.load` gave, with the adapted policy in its place.
      directory: where to; if it exists it must be empty.

    Returns:
      The directory, for `PeftModel.from_pretrained(base, directory)`.

    Raises:
      UserError: the policy has no adapters, or the directory is not empty or cannot be written.
    """
    target = Path(directory).expanduser()
    adapters = _exported(pretrained)
    if not adapters:
        raise UserError("This policy has no adapters to save.")
    partial = target.with_name(f".{target.name}.partial")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} exists and is not an empty directory: give another one.")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = {}
        for name, adapter in adapters.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(adapter.a)
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(adapter.b)
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(_peft_config(pretrained, adapters), indent=2, sort_keys=True)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from error
    return target


def load_adapters(pretrained: Pretrained, directory: str | Path) -> Pretrained:
    """The pretrained policy with the adapters that PEFT, or `save_adapters`, saved for it.

    Raises:
      UserError: there are none, they are of another kind than LoRA, or do not fit the policy.
    """
    where = Path(directory).expanduser()
    config = _read_config(where)
    try:
        tensors = load_file(where / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{where / WEIGHTS} is not a readable safetensors file: {error}.") from error
    policy: Any = without_lora(pretrained.policy)
    kernels = _kernels(pretrained.hf_config, policy)
    fits = {f"{_PREFIX}{name}.lora_{half}.weight" for leaf in kernels.values()
            for name in map(_module, leaf.names) for half in "AB"}  # fmt: skip
    for name in tensors:
        if name not in fits:
            raise UserError(f"{where / WEIGHTS} has a tensor {name!r} that this policy has no layer for.")

    def adapt(path: str, layer: Any) -> Any:
        leaf = kernels.get(path)
        read = [_read(tensors, config, leaf, name, where) for name in leaf.names] if leaf else [None]
        found = [adapter for adapter in read if adapter is not None]
        if leaf is None or not found:
            return layer
        if len(found) < len(read) or len({adapter.rank for adapter in found}) > 1:
            raise UserError(f"{where} adapts the layers of {path} unalike, which stacked layers cannot be.")
        a = np.stack([adapter.a.T for adapter in found])
        b = np.stack([adapter.b.T for adapter in found])
        if not leaf.stacked:
            a, b = a[0], b[0]
        return LoraLinear(layer, jnp.asarray(a), jnp.asarray(b), found[0].scale)

    return replace(pretrained, policy=replaced(policy, nnx.Linear, adapt))


def _kernels(hf_config: Mapping[str, Any], policy: nnx.Module) -> dict[str, Leaf]:
    """The tensors of each dense layer, by its path."""
    found = architecture(hf_config["model_type"], "This policy")
    leaves = correspondence(found, nnx.split(policy)[1])
    return {leaf.path.removesuffix(".kernel"): leaf for leaf in leaves if leaf.path.endswith(".kernel")}


def _module(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def _exported(pretrained: Pretrained) -> dict[str, _Adapter]:
    """The adapter of each module of the Transformers model."""
    kernels = _kernels(pretrained.hf_config, without_lora(pretrained.policy))
    parts: dict[str, dict[int, tuple[Leaf, _Adapter]]] = {}
    for path, layer in adapted(pretrained.policy):
        leaf = kernels[path]
        a, b = (np.asarray(x[...], np.float32) for x in (layer.lora_a, layer.lora_b))
        if not leaf.stacked:
            a, b = a[None], b[None]
        for name, one_a, one_b in zip(leaf.names, a, b, strict=True):
            place = leaf.row.part[0] if leaf.row.part else 0
            adapter = _Adapter(one_a.T, one_b.T, layer.scale)
            parts.setdefault(_module(name), {})[place] = (leaf, adapter)
    return {name: _joined(of_module) for name, of_module in parts.items()}


def _joined(parts: Mapping[int, tuple[Leaf, _Adapter]]) -> _Adapter:
    leaf, first = next(iter(parts.values()))
    if leaf.row.part is None:
        return first
    outputs, rank = len(first.b), first.rank
    b = np.zeros((leaf.row.part[1] * outputs, len(parts) * rank), first.b.dtype)
    for column, (place, (_, adapter)) in enumerate(sorted(parts.items())):
        b[place * outputs : (place + 1) * outputs, column * rank : (column + 1) * rank] = adapter.b
    return _Adapter(np.concatenate([adapter.a for _, (_, adapter) in sorted(parts.items())]), b, first.scale)


def _peft_config(pretrained: Pretrained, adapters: Mapping[str, _Adapter]) -> dict[str, Any]:
    rank = min(adapter.rank for adapter in adapters.values())
    alpha = {name: adapter.scale * adapter.rank for name, adapter in adapters.items()}
    ends: dict[str, list[str]] = {}
    for name in adapters:
        ends.setdefault(".".join(name.split(".")[-2:]), []).append(name)
    layers = pretrained.policy.config.layers
    # The ends of names where every layer has them, as people write them; whole names where not.
    targets = [end if len(names) == layers else name for end, names in ends.items() for name in names]
    wider = {name: adapter for name, adapter in adapters.items() if adapter.rank != rank}
    source = pretrained.hf_config.get("_name_or_path") or str(pretrained.source)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "r": rank,
        "lora_alpha": next(alpha[name] for name in adapters if name not in wider),
        "lora_dropout": 0.0,
        "rank_pattern": {name: adapter.rank for name, adapter in wider.items()},
        "alpha_pattern": {name: alpha[name] for name in wider},
        "target_modules": sorted(set(targets)),
        "fan_in_fan_out": pretrained.hf_config["model_type"] == "gpt2",  # its layers are Conv1D
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
    }


def _read_config(where: Path) -> dict[str, Any]:
    try:
        config = json.loads((where / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where} has no {CONFIG} that can be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{where / CONFIG} is not JSON: {error}.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{where / CONFIG} is not of LoRA adapters, the only kind that is supported.")
    for name, plain in (("bias", "none"), ("use_dora", False), ("modules_to_save", None),
                        ("use_rslora", False), ("layer_replication", None)):  # fmt: skip
        if config.get(name, plain) not in (plain, None, []):
            raise UserError(f"{where / CONFIG} has {name}={config[name]!r}, which is not supported.")
    return config


def _read(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], leaf: Leaf, tensor: str, where: Path
) -> _Adapter | None:
    """A layer's adapter in a file: its own, or its share of the one that several have."""
    name = _module(tensor)
    a, b = (tensors.get(f"{_PREFIX}{name}.lora_{half}.weight") for half in "AB")
    if a is None and b is None:
        return None
    inputs, outputs = leaf.shape[-2:]
    wide = outputs * (leaf.row.part[1] if leaf.row.part else 1)
    if a is None or b is None or a.shape != (len(a), inputs) or b.shape != (wide, len(a)):
        shapes = " and ".join("nothing" if x is None else str(list(x.shape)) for x in (a, b))
        raise UserError(
            f"The adapter of {name!r} in {where / WEIGHTS} is {shapes}; "
            f"this policy takes [rank, {inputs}] and [{wide}, rank]."
        )
    if leaf.row.part:
        place = leaf.row.part[0]
        b = b[place * outputs : (place + 1) * outputs]
    rank = _pattern(config.get("rank_pattern"), name, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    return _Adapter(a.astype(np.float32), b.astype(np.float32), float(alpha) / rank)


def _pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's patterns are ends of names, or regular expressions; only ends are read."""
    ends = [value for end, value in (patterns or {}).items() if name == end or name.endswith(f".{end}")]
    return ends[0] if ends else default
