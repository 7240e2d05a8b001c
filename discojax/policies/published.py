"""Architectures of published models, so that their shapes are known without a file or a network.

Their names are those of the hub; the values are those of each model's `config.json` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discojax.errors import UserError, nearest
from discojax.policies.architecture import DecoderConfig, Rope

__all__ = ["PUBLISHED", "architecture_of"]


def _rotary(vocab_size: int, **fields: Any) -> DecoderConfig:
    return DecoderConfig(vocab_size, positions="rotary", gated=True, mlp_bias=False, **fields)


_GPT2 = DecoderConfig(
    50257, layers=12, width=768, heads=12, max_length=1024, norm="layer", norm_eps=1e-5,
    qkv_bias=True, attention_output_bias=True,
)  # fmt: skip
_LLAMA3_8B = _rotary(
    128256, layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, mlp_width=14336, max_length=8192,
    rope=Rope(5e5), norm_eps=1e-5, activation="silu", tied=False,
)  # fmt: skip
_GEMMA_7B = _rotary(
    256000, layers=28, width=3072, heads=16, kv_heads=16, head_dim=256, mlp_width=24576, max_length=8192,
    unit_offset=True, embedding_scale=3072**0.5,
)  # fmt: skip
_SMOLLM2 = _rotary(
    49152, layers=30, width=576, heads=9, kv_heads=3, head_dim=64, mlp_width=1536, max_length=8192,
    rope=Rope(1e5), norm_eps=1e-5, activation="silu",
)  # fmt: skip

PUBLISHED: Mapping[str, DecoderConfig] = {
    "openai-community/gpt2": _GPT2,
    "gpt2": _GPT2,
    "meta-llama/Meta-Llama-3-8B": _LLAMA3_8B,
    "google/gemma-7b": _GEMMA_7B,
    "HuggingFaceH4/zephyr-7b-gemma-sft-v0.1": _GEMMA_7B,
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2,
    "smollm2": _SMOLLM2,
}
"""By id on the hub."""


def architecture_of(source: str, revision: str | None = None) -> DecoderConfig:
    """The architecture that weights are of, without reading any weights.

    Args:
      source: an id of `PUBLISHED`, a folder with a `config.json`, that file, a GGUF file, or another id on
        the hub, whose `config.json` is fetched.
      revision: a branch, tag or commit on the hub; its main branch if None.

    Raises:
      UserError: it cannot be had, or is none that is supported.
    """
    if source in PUBLISHED and revision is None:
        return PUBLISHED[source]
    from discojax.policies.pretrained.architectures import policy_config
    from discojax.policies.pretrained.gguf_file import open_gguf
    from discojax.policies.pretrained.locating import no_revision
    from discojax.policies.pretrained.safetensor_files import read_json

    path = Path(source).expanduser()
    if path.exists():
        no_revision(source, revision)
    if path.suffix == ".gguf" and path.is_file():
        said = open_gguf(path).hf_config
    else:
        path = (
            path / "config.json" if path.is_dir() else path if path.is_file() else _fetched(source, revision)
        )
        said = read_json(path)
    found = policy_config(said, str(path))
    if not isinstance(found, DecoderConfig):
        raise UserError(f"{source} is a reward model, not a language model that can be trained.")
    return found


def _fetched(source: str, revision: str | None) -> Path:
    known = f"Architectures known without it are {', '.join(PUBLISHED)}.{nearest(source, PUBLISHED)}"
    try:
        from huggingface_hub import hf_hub_download

        from discojax.policies.pretrained.locating import reason

        return Path(hf_hub_download(source, "config.json", revision=revision))
    except ImportError:
        raise UserError(
            f"Reading what {source} is takes the extra `hub`: run `pip install 'discojax[hub]'`. {known}"
        ) from None
    except Exception as error:  # no network, no such model or name, a connection that is cut
        raise UserError(
            f"{source} is no folder with a config.json here, nor could one be fetched ({reason(error)}). "
            f"{known}"
        ) from error
