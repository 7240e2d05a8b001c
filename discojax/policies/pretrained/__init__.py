"""Pretrained weights in and out: from a directory, the hub or a GGUF file, and back to a directory.

```python
loaded = pretrained.load("HuggingFaceTB/SmolLM2-135M", dtype="bfloat16")
trained = ...  # of loaded.policy
pretrained.save(dataclasses.replace(loaded, policy=trained), "runs/mine/policy")
```

Supported are the architectures in `architectures.ARCHITECTURES`. The parts of this package that
read configurations, the hub and GGUF files need the extra `hub`; none needs PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from discojax.policies.pretrained.architectures import ARCHITECTURES
    from discojax.policies.pretrained.reading import Pretrained, load
    from discojax.policies.pretrained.writing import save

__all__ = ["ARCHITECTURES", "Pretrained", "load", "save"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "architectures": ["ARCHITECTURES"],
        "reading": ["Pretrained", "load"],
        "writing": ["save"],
    },
)
