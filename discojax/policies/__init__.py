"""Policies: a small decoder in Flax NNX, its weights, and what is computed with one.

Functions take a policy, or its definition (`nnx.GraphDef`) and parameters, and work under `jit` and
`vmap`: log-probabilities of completions without logits in memory, sampling with a key-value cache,
exact token divergences, supervised training (`policies.sft`) and weights on disk
(`policies.weights`). Ids are padded on the right, and lengths say what counts.

Importing this package imports no JAX; the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discojax.policies.decoder import Decoder, DecoderConfig, KeyValueCache
    from discojax.policies.divergence import Divergence, completion_divergence
    from discojax.policies.logprobs import completion_hidden, completion_logps, completion_mask, token_logps
    from discojax.policies.sampling import Samples, choose, sample
    from discojax.policies.sft import SftConfig

__all__ = [
    "Decoder",
    "DecoderConfig",
    "Divergence",
    "KeyValueCache",
    "Samples",
    "SftConfig",
    "choose",
    "completion_divergence",
    "completion_hidden",
    "completion_logps",
    "completion_mask",
    "sample",
    "token_logps",
]

_LAZY = {
    "Decoder": "decoder",
    "DecoderConfig": "decoder",
    "Divergence": "divergence",
    "KeyValueCache": "decoder",
    "Samples": "sampling",
    "SftConfig": "sft",
    "choose": "sampling",
    "completion_divergence": "divergence",
    "completion_hidden": "logprobs",
    "completion_logps": "logprobs",
    "completion_mask": "logprobs",
    "sample": "sampling",
    "token_logps": "logprobs",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
