"""Tensors in a GGUF file, the format of llama.cpp, under the names that Transformers gives them.

What is quantised is read as float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from discojax.errors import UserError
from discojax.policies.architecture import Rope
from discojax.policies.pretrained.architectures import ARCHITECTURES
from discojax.policies.pretrained.safetensor_files import Spec
from discojax.policies.rotary import frequencies

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

__all__ = ["GgufFile", "open_gguf"]

_SUPPORTED = ("llama", "qwen2", "qwen3")
_FREQUENCIES = "rope_freqs.weight"
# Stored per pair for llama.cpp's rotary positions; of the other architectures nothing is reordered.
_PERMUTED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")


class GgufFile:
    """The tensors of a GGUF file, and what its metadata say as a `config.json` would.

    Attributes:
      hf_config: with the names of a Transformers configuration.
      specs: shape, dtype and file of each tensor, by Transformers' name.
    """

    def __init__(self, path: Path, reader: GGUFReader):
        self._path = path
        self.hf_config = self._config(reader)
        names = self._names(reader)
        self._tensors = {
            names.get(tensor.name, tensor.name): tensor
            for tensor in reader.tensors
            if tensor.name != _FREQUENCIES  # which the configuration says
        }
        self.specs: Mapping[str, Spec] = {
            name: Spec(path, tuple(int(n) for n in tensor.shape)[::-1], _kind(tensor))
            for name, tensor in self._tensors.items()
        }
        # One tensor at a time: a sharded parameter asks for the same one once for each device.
        self._dequantised = functools.lru_cache(maxsize=1)(self._dequantise)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor."""
        return self._dequantised(name)[index]

    def _dequantise(self, name: str) -> np.ndarray:
        import gguf

        tensor = self._tensors[name]
        try:
            weight = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(self.specs[name].shape)
        except NotImplementedError:
            raise UserError(
                f"The tensor {tensor.name!r} in {self._path} is {tensor.tensor_type.name}, "
                "which cannot be dequantised: take another file of the model."
            ) from None
        if self.hf_config["model_type"] != "llama" or not name.endswith(_PERMUTED):
            return weight
        query = name.endswith(_PERMUTED[0])
        heads = self.hf_config["num_attention_heads" if query else "num_key_value_heads"]
        pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(weight.shape)

    def _names(self, reader: GGUFReader) -> dict[str, str]:
        """Transformers' name of each tensor of the file."""
        import gguf

        kind, layers = self.hf_config["model_type"], self.hf_config["num_hidden_layers"]
        known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], layers)
        rows = ARCHITECTURES[kind].rows
        names = {row.name.format(layer) for row in rows for layer in range(layers)}
        found = {known.get_name(name, try_suffixes=(".weight", ".bias")): name for name in names}
        return {theirs: name for theirs, name in found.items() if theirs is not None}

    def _config(self, reader: GGUFReader) -> dict[str, Any]:
        def field(name: str, default: Any = None) -> Any:
            found = reader.fields.get(name)
            return default if found is None else found.contents()

        kind = field("general.architecture")
        if kind not in _SUPPORTED:
            raise UserError(
                f"{self._path} is of the architecture {kind!r}; GGUF files of {', '.join(_SUPPORTED)} are "
                "supported. Take the model's safetensors instead."
            )

        def of(name: str, default: Any = None, make: Callable[[Any], Any] = int) -> Any:
            value = field(f"{kind}.{name}", default)
            if value is None:
                raise UserError(f"{self._path} does not say its {kind}.{name}.")
            return make(value)

        def exact(value: float) -> float:  # 1e-5, where the file has it as float32 9.99999975e-06
            return float(str(np.float32(value)))

        scaling = field(f"{kind}.rope.scaling.type", "none")
        if scaling != "none":
            raise UserError(
                f"{self._path} scales its rotary positions ({scaling!r}), which is not read from GGUF "
                "files: take the model's safetensors instead."
            )
        heads, width = of("attention.head_count"), of("embedding_length")
        head = of("attention.key_length", width // max(heads, 1))
        theta = of("rope.freq_base", 10_000.0, exact)
        rope = {"rope_type": "default", "rope_theta": theta}
        for tensor in reader.tensors:
            if tensor.name == _FREQUENCIES:
                rope = self._stretched(np.asarray(tensor.data), theta, head)
        shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
        if "token_embd.weight" not in shapes:
            raise UserError(f"{self._path} has no tensor 'token_embd.weight'.")
        tokens = {
            f"{ours}_token_id": field(f"tokenizer.ggml.{theirs}_token_id")
            for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        }
        return {
            "model_type": kind,
            "architectures": [ARCHITECTURES[kind].model_class],
            "vocab_size": int(shapes["token_embd.weight"][-1]),
            "hidden_size": width,
            "intermediate_size": of("feed_forward_length"),
            "num_hidden_layers": of("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": of("attention.head_count_kv", heads),
            "head_dim": head,
            "max_position_embeddings": of("context_length"),
            "rms_norm_eps": of("attention.layer_norm_rms_epsilon", make=exact),
            "rope_parameters": rope,
            "tie_word_embeddings": "output.weight" not in shapes,
            **{name: value for name, value in tokens.items() if value is not None},
        }

    def _stretched(self, factors: np.ndarray, theta: float, head: int) -> dict[str, Any]:
        """The scaling of Llama 3.1 and later, of which a file has only what each angle is divided by."""
        fields: dict[str, Any] = {
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        plain, _ = frequencies(Rope(theta), head)
        stretched, _ = frequencies(Rope(theta, "llama3", **fields), head)
        if factors.shape != plain.shape or not np.allclose(factors, plain / stretched, rtol=1e-3):
            raise UserError(
                f"{self._path} scales its rotary positions ({_FREQUENCIES!r}) otherwise than Llama 3.1, "
                "which is not read from GGUF files: take the model's safetensors instead."
            )
        return {"rope_type": "llama3", "rope_theta": theta, **fields}


def _kind(tensor: ReaderTensor) -> str:
    kind = tensor.tensor_type.name
    return kind if kind in ("F16", "BF16") else "F32"


def open_gguf(path: Path) -> GgufFile:
    """The tensors and the configuration of a GGUF file.

    Raises:
      UserError: it is none, or of an architecture that is not supported, or the package gguf is not
        installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"Reading {path} takes the extra `hub`: run `pip install 'discojax[hub]'`.") from None
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is not a GGUF file that can be read: {error}.") from error
    return GgufFile(path, reader)
