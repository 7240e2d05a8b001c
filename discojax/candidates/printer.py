"""Prints a graph back as candidate source that all five stages accept, with the same hash."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from discojax.candidates.canonical import apply
from discojax.candidates.graph import (
    Apply,
    Argument,
    Constant,
    GraphError,
    Node,
    arguments,
    nodes,
    uses,
)
from discojax.candidates.lowering import fuse
from discojax.candidates.text import LARGEST_SOURCE
from discojax.objectives.types import ARGUMENTS

__all__ = ["CALLS", "Printer", "to_source"]

_NN = "sigmoid log_sigmoid softplus relu relu6 gelu silu elu celu selu mish soft_sign hard_tanh hard_sigmoid"
_NUMPY = (
    "exp exp2 expm1 log log2 log10 log1p sqrt cbrt square abs sign floor ceil round sin cos tan arctan "
    "arcsinh sinh cosh tanh maximum minimum logaddexp arctan2 hypot remainder logical_and logical_or "
    "logical_not where mean sum max min var std median quantile sort"
)
CALLS: dict[str, str] = {
    **{name: f"jax.nn.{name}" for name in f"{_NN} leaky_relu softmax log_softmax".split()},
    **{name: f"jnp.{name}" for name in _NUMPY.split()},
    "rsqrt": "jax.lax.rsqrt",
    "stop_gradient": "jax.lax.stop_gradient",
    "erf": "jax.scipy.special.erf",
    "logsumexp": "jax.scipy.special.logsumexp",
    "var_unbiased": "jnp.var",
    "std_unbiased": "jnp.std",
}
"""How operators that are not Python operators are called."""

_COMPARED = {"less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!="}
_MIRRORED = {"<": ">", "<=": ">=", "==": "==", "!=": "!="}

# How tightly the text of a node binds.
_COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = 5, 10, 20, 30, 40, 50
_LONGEST_EXPRESSION = 72
_SHORT = dict(zip(ARGUMENTS, ("pc", "pr", "rc", "rr", "beta", "nc", "nr", "progress"), strict=True))


def _known() -> dict[Node, str]:
    pc, pr, rc, rr = (Argument(name) for name in ARGUMENTS[:4])
    chosen, rejected = apply("subtract", pc, rc), apply("subtract", pr, rr)
    policy, reference = apply("subtract", pc, pr), apply("subtract", rc, rr)
    names = {chosen: "chosen_log_ratio", rejected: "rejected_log_ratio"}
    names |= {policy: "policy_margin", reference: "reference_margin"}
    for ratio in (apply("subtract", chosen, rejected), apply("subtract", policy, reference)):
        names |= {ratio: "log_ratio", apply("multiply", Argument("beta"), ratio): "logits"}
    return names


_KNOWN = _known()


def to_source(graph: Node, name: str = "loss", docstring: str = "") -> str:
    """Candidate source for the program: `compile` of it gives a program with the same hash.

    Args:
      graph: the program.
      name: the function's name.
      docstring: one line of printable ASCII, left out if empty.

    Raises:
      GraphError: if even the shortest text is over the 4 kB a candidate may have.
    """
    for compact in (False, True):
        text = Printer(graph, compact).text(name, docstring)
        if len(text) <= LARGEST_SOURCE:
            return text
    raise GraphError(f"the program prints as {len(text)} bytes; at most {LARGEST_SOURCE} are allowed")


class Printer:
    """Prints one program. `calls` is in the candidate language; another one overrides it.

    Args:
      graph: the program.
      compact: names as short as they can be, for a text that must be.
    """

    def __init__(self, graph: Node, compact: bool = False):
        self.graph = graph
        self.compact = compact
        self.counts: Mapping[Node, int] = uses(graph)
        self.fused, self.swallowed = fuse(graph, keep=() if compact else _KNOWN)
        self.lines: list[str] = []
        self.names: set[str] = set()
        self.texts: dict[Node, tuple[str, int]] = {}

    def text(self, name: str, docstring: str) -> str:
        """The program as one function."""
        read = arguments(self.graph)
        self.lines += self.prologue(read)
        parameters = [*ARGUMENTS[:5], *(a for a in ARGUMENTS[5:] if a in read)]
        for node in nodes(self.graph):
            if not isinstance(node, Apply):
                self.texts[node] = self.leaf(node)
            elif node not in self.swallowed:
                self.texts[node] = self.place(
                    node, *self.render(*self.fused.get(node, (node.operator, node.operands)))
                )
        quoted = docstring.replace("\\", "/").replace('"', "'")
        body = [f'"""{quoted}"""'] if quoted else []
        body += [*self.lines, f"return {self.texts[self.graph][0]}"]
        return f"def {name}({', '.join(parameters)}):\n" + "".join(f"    {line}\n" for line in body)

    def prologue(self, read: Collection[str]) -> list[str]:
        """Lines before any of the program's own, given the arguments it reads."""
        return []

    def calls(self, operator: str, operands: tuple[Node, ...]) -> str:
        """An operator that is written as a call."""
        ddof = ", ddof=1" if operator.endswith("_unbiased") else ""
        return f"{CALLS[operator]}({', '.join(self.texts[operand][0] for operand in operands)}{ddof})"

    def leaf(self, node: Node) -> tuple[str, int]:
        """The text of a constant or an argument, and how tightly it binds."""
        if isinstance(node, Constant):
            return repr(node.value), _SIGN if node.value < 0 else _ATOM
        assert isinstance(node, Argument)
        if self.compact and self.counts.get(node, 0) > 1:
            short = _SHORT[node.name]
            if short != node.name:
                self.lines.append(f"{short} = {node.name}")
            return short, _ATOM
        return node.name, _ATOM

    def place(self, node: Apply, text: str, binding: int) -> tuple[str, int]:
        """A name for what is used twice, is long or is well known; otherwise the text itself."""
        shared = self.counts.get(node, 0) > 1
        known = None if self.compact else _KNOWN.get(node)
        if node == self.graph or not (shared or known or len(text) > _LONGEST_EXPRESSION):
            return text, binding
        name = known or f"t{len(self.names) + 1}"
        while name in self.names:
            name += "_"
        self.names.add(name)
        self.lines.append(f"{name} = {text}")
        return name, _ATOM

    def operand(self, node: Node, least: int) -> str:
        """A node's text where what stands around it binds so tightly."""
        text, binding = self.texts[node]
        return text if binding >= least else f"({text})"

    def infix(self, left: Node, operator: str, right: Node, binding: int) -> tuple[str, int]:
        """Two operands and what stands between them."""
        return f"{self.operand(left, binding)} {operator} {self.operand(right, binding + 1)}", binding

    def render(self, operator: str, x: tuple[Node, ...]) -> tuple[str, int]:
        """An operator with its operands, and how tightly the text binds."""
        if operator == "negative":
            return f"-{self.operand(x[0], _POWER)}", _SIGN
        if operator == "reciprocal":
            return f"1.0 / {self.operand(x[0], _PRODUCT + 1)}", _PRODUCT
        if operator == "square" and self.texts[x[0]][0].isidentifier():
            return f"{self.texts[x[0]][0]} ** 2", _POWER
        if operator == "power":
            return f"{self.operand(x[0], _ATOM)} ** {self.operand(x[1], _SIGN)}", _POWER
        if operator == "add":
            if isinstance(x[1], Constant) and x[1].value < 0:
                return f"{self.operand(x[0], _SUM)} - {-x[1].value!r}", _SUM
            return self.infix(x[0], "+", x[1], _SUM)
        if operator == "subtract":
            return self.infix(x[0], "-", x[1], _SUM)
        if operator == "multiply":
            # Constants stand last in the graph and first on paper.
            left, right = (x[1], x[0]) if isinstance(x[1], Constant) else x
            return self.infix(left, "*", right, _PRODUCT)
        if operator == "divide":
            return self.infix(x[0], "/", x[1], _PRODUCT)
        if operator in _COMPARED:
            sign = _COMPARED[operator]
            left, right = x
            if isinstance(left, Constant):
                left, right, sign = right, left, _MIRRORED[sign]
            return f"{self.operand(left, _SUM)} {sign} {self.operand(right, _SUM)}", _COMPARE
        return self.calls(operator, x), _ATOM
