"""Policies: decoders and encoders in Flax NNX, their weights, and what is computed with them.

Functions take a policy, or its definition (`nnx.GraphDef`) and parameters, and work under `jit` and
`vmap`: log-probabilities of completions without logits in memory, sampling with a key-value cache,
exact token divergences, supervised training (`policies.sft`), weights on disk
(`policies.weights`) and pretrained ones in and out (`policies.pretrained`). Ids are padded on the
right, and lengths say what counts.

Importing this package imports no JAX; the first use of a name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from discojax.policies.architecture import Rope
    from discojax.policies.blocks import stack, unstack
    from discojax.policies.decoder import Decoder, DecoderConfig, KeyValueCache
    from discojax.policies.divergence import Divergence, completion_divergence
    from discojax.policies.encoder import Encoder, EncoderConfig
    from discojax.policies.logprobs import (
        completion_hidden,
        completion_logps,
        completion_mask,
        pair_logps,
        token_logps,
    )
    from discojax.policies.sampling import Bucket, Samples, choose, length_buckets, likeliest, sample
    from discojax.policies.sft import SftConfig
    from discojax.policies.soft_cap import soft_cap

__all__ = [
    "Bucket",
    "Decoder",
    "DecoderConfig",
    "Divergence",
    "Encoder",
    "EncoderConfig",
    "KeyValueCache",
    "Rope",
    "Samples",
    "SftConfig",
    "choose",
    "completion_divergence",
    "completion_hidden",
    "completion_logps",
    "completion_mask",
    "length_buckets",
    "likeliest",
    "pair_logps",
    "sample",
    "soft_cap",
    "stack",
    "token_logps",
    "unstack",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "architecture": ["Rope"],
        "blocks": ["stack", "unstack"],
        "decoder": ["Decoder", "DecoderConfig", "KeyValueCache"],
        "divergence": ["Divergence", "completion_divergence"],
        "encoder": ["Encoder", "EncoderConfig"],
        "sampling": ["Bucket", "Samples", "choose", "length_buckets", "likeliest", "sample"],
        "sft": ["SftConfig"],
        "logprobs": ["completion_hidden", "completion_logps", "completion_mask", "pair_logps", "token_logps"],
        "soft_cap": ["soft_cap"],
    },
)
