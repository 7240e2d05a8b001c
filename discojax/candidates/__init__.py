"""The gate: untrusted text in, a checked program out. Nothing a candidate says is ever executed.

`compile` is the door; `parse` stops after stage 3. Programs are expression graphs (`graph`), built
with `apply` and changed with `replace`, `rewrite` and `with_constants`.
"""

from typing import TYPE_CHECKING

import lazy_loader

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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "canonical": ["apply", "as_number", "as_truth", "replace", "rewrite", "with_constants"],
        "descriptor": ["Behaviour", "MARGINS", "behaviour", "distance"],
        "errors": ["CandidateError", "STAGES", "Stage"],
        "gate": ["CheckResult", "check", "check_many", "compile", "warm"],
        "graph": ["Apply", "Argument", "Constant", "GraphError", "Node"],
        "latex": ["to_latex"],
        "lowering": ["interpret", "lower"],
        "objective": ["Program", "from_function", "from_graph", "parse"],
        "printer": ["to_source"],
    },
)
