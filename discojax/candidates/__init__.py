"""The gate: untrusted text in, a checked program out. Nothing a candidate says is ever executed.

`compile` is the door; `parse` stops after stage 3. Programs are expression graphs (`graph`), built
with `apply` and changed with `replace`, `rewrite` and `with_constants`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discojax.candidates.canonical import (
        apply,
        as_number,
        as_truth,
        replace,
        rewrite,
        with_constants,
    )
    from discojax.candidates.descriptor import MARGINS, Behaviour, behaviour, distance
    from discojax.candidates.errors import STAGES, CandidateError, Stage
    from discojax.candidates.gate import CheckResult, check, check_many, compile, warm
    from discojax.candidates.graph import Apply, Argument, Constant, GraphError, Node
    from discojax.candidates.latex import to_latex
    from discojax.candidates.lowering import interpret, lower
    from discojax.candidates.objective import Program, from_function, from_graph, parse
    from discojax.candidates.printer import to_source

_NAMES = {
    "canonical": ("apply", "as_number", "as_truth", "replace", "rewrite", "with_constants"),
    "descriptor": ("MARGINS", "Behaviour", "behaviour", "distance"),
    "errors": ("STAGES", "CandidateError", "Stage"),
    "gate": ("CheckResult", "check", "check_many", "compile", "warm"),
    "graph": ("Apply", "Argument", "Constant", "GraphError", "Node"),
    "latex": ("to_latex",),
    "lowering": ("interpret", "lower"),
    "objective": ("Program", "from_function", "from_graph", "parse"),
    "printer": ("to_source",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "MARGINS",
    "STAGES",
    "Apply",
    "Argument",
    "Behaviour",
    "CandidateError",
    "CheckResult",
    "Constant",
    "GraphError",
    "Node",
    "Program",
    "Stage",
    "apply",
    "as_number",
    "as_truth",
    "behaviour",
    "check",
    "check_many",
    "compile",
    "distance",
    "from_function",
    "from_graph",
    "interpret",
    "lower",
    "parse",
    "replace",
    "rewrite",
    "to_latex",
    "to_source",
    "warm",
    "with_constants",
]


def __getattr__(name: str) -> Any:
    # Lazy: what needs JAX is imported when it is used, and the errors never need it.
    if name in _MODULE_OF:
        return getattr(import_module(f"discojax.candidates.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'discojax.candidates' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
