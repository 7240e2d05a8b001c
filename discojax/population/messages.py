"""Messages between the processes of a job: pickled, and read back only where they hold what is listed here.

A pickle says by name what is called to build it. Here a name is looked up as a whole, in one table, so
none leads on to what a module happens to import. A new kind of message, or part of a policy, is added to
it, and a test sends every one.
"""

from __future__ import annotations

import io
import pickle
import zlib
from types import NoneType
from typing import Any

__all__ = ["pack", "unpack"]

_KNOWN = {
    "discojax.config": "Finetune",
    "discojax.data.pairs": "Pairs",
    "discojax.objectives.machine": "Code",
    "discojax.policies.architecture": "DecoderConfig Rope",
    "discojax.policies.attention": "Attention",
    "discojax.policies.blocks": "Block Mlp",
    "discojax.policies.decoder": "Decoder",
    "discojax.policies.dense": "_dot_general",
    "discojax.policies.lora": "LoraLinear",
    "discojax.policies.norms": "Norm",
    "discojax.population.checkpoint": "Held",
    "discojax.population.hosts": "_End _Gift",
    "discojax.population.lanes": "LaneSettings",
    "discojax.population.operations": "Advance Begin Observe Reset Restore Save",
    "discojax.population.optimizer": "OptimizerConfig",
    "discojax.population.step": "StepConfig",
    "discojax.search.instruments": "Design Look Open _Goods",
    "discojax.search.workbench": "_Load _Measure _Prepare _Weigh _Write",
    "discojax.task_settings": "Lora",
    "discojax.tasks.types": "Prompts SamplingConfig",
    "flax.nnx.graphlib": "GenericPytree GraphDef IndexesPytreeDef NodeAttr NodeDef Static VariableDef",
    "flax.nnx.helpers": "List",
    "flax.nnx.nn.dtypes": "promote_dtype",
    "flax.nnx.nn.linear": "Embed Linear",
    "flax.nnx.nn.lora": "LoRAParam",
    "flax.nnx.pytreelib": "PytreeState",
    "flax.nnx.statelib": "State",
    "flax.nnx.tracers": "TraceState",
    "flax.nnx.variablelib": "Param",
    "flax.typing": "HashableMapping",
    "jax": "ShapeDtypeStruct",
    "jax._src.core": "MemorySpace",
    "jax._src.tree_util": "default_registry",
    "jax.numpy": "bfloat16 float32",
    "jaxlib._jax.pytree": "PyTreeDef",
    "ml_dtypes": "bfloat16",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
}
_NAMES = {(module, name) for module, names in _KNOWN.items() for name in names.split()}


def pack(message: Any) -> bytes:
    """A message as bytes."""
    return zlib.compress(pickle.dumps(message, protocol=4), 1)


def unpack(packed: bytes) -> Any:
    """The message that was packed.

    Raises:
      pickle.UnpicklingError: it holds what no message may.
    """
    return _Reader(io.BytesIO(zlib.decompress(packed))).load()


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "type"):
            return _type  # of which None has one
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"a message may not hold {module}.{name}")
        return super().find_class(module, name)


def _type(of: None) -> type[None]:
    if of is not None:
        raise pickle.UnpicklingError("a message may hold no type")
    return NoneType
