"""Prints a program as mathematics, in the letters of the DPO literature."""

from __future__ import annotations

from discojax.candidates.canonical import apply
from discojax.candidates.graph import Argument, Constant, Node, nodes, uses
from discojax.candidates.lowering import fuse
from discojax.objectives.types import ARGUMENTS

__all__ = ["to_latex"]

_LETTERS = dict(
    zip(
        ARGUMENTS,
        (
            r"\log\pi_w", r"\log\pi_l", r"\log\pi^{\mathrm{ref}}_w", r"\log\pi^{\mathrm{ref}}_l", r"\beta",
            r"n_w", r"n_l", r"t",
        ),
        strict=True,
    )
)  # fmt: skip
_FUNCTIONS = {
    "exp": r"\exp", "log": r"\log", "log2": r"\log_{2}", "log10": r"\log_{10}", "sin": r"\sin",
    "cos": r"\cos",
    "tan": r"\tan", "tanh": r"\tanh", "sinh": r"\sinh", "cosh": r"\cosh", "arctan": r"\arctan",
    "max": r"\max",
    "min": r"\min", "maximum": r"\max", "minimum": r"\min", "sigmoid": r"\sigma",
    "log_sigmoid": r"\log\sigma",
    "var_unbiased": r"\mathrm{var}_{n-1}", "std_unbiased": r"\mathrm{std}_{n-1}",
}  # fmt: skip
_COMPARED = {"less": "<", "less_equal": r"\leq", "equal": "=", "not_equal": r"\neq"}
_COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = 5, 10, 20, 30, 40, 50
_LONGEST = 160


def _known() -> dict[Node, str]:
    pc, pr, rc, rr = (Argument(name) for name in ARGUMENTS[:4])
    chosen, rejected = apply("subtract", pc, rc), apply("subtract", pr, rr)
    names: dict[Node, str] = {}
    for ratio in (
        apply("subtract", chosen, rejected),
        apply("subtract", apply("subtract", pc, pr), apply("subtract", rc, rr)),
    ):
        names |= {ratio: r"\rho", apply("multiply", Argument("beta"), ratio): "x"}
    return names | {chosen: "a", rejected: "b"}


_KNOWN = _known()


def to_latex(graph: Node) -> str:
    """The program as an `aligned` environment: what is used twice on a line of its own, the loss last.

    a and b are the log-ratios of the chosen and the rejected completion, rho their difference, x is
    beta times rho; u_1, u_2, ... are further intermediate values. Statistics are over the batch.
    """
    counts = uses(graph)
    fused, swallowed = fuse(graph, keep=_KNOWN)
    texts: dict[Node, tuple[str, int]] = {}
    lines: list[str] = []
    used: set[str] = set()
    for node in nodes(graph):
        if node in swallowed:
            continue
        if isinstance(node, Argument):
            texts[node] = _LETTERS[node.name], _ATOM
        elif isinstance(node, Constant):
            texts[node] = _number(node.value), _SIGN if node.value < 0 else _ATOM
        else:
            text, binding = _render(*fused.get(node, (node.operator, node.operands)), texts)
            if node != graph and (counts[node] > 1 or node in _KNOWN or len(text) > _LONGEST):
                name = _KNOWN.get(node, "")
                if not name or name in used:
                    name = f"u_{{{len(lines) + 1}}}"
                used.add(name)
                lines.append(f"{name} &= {text}")
                text, binding = name, _ATOM
            texts[node] = text, binding
    lines.append(rf"\ell &= {texts[graph][0]}")
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def _number(value: float) -> str:
    text = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if "e" not in text:
        return text
    digits, exponent = text.split("e")
    return rf"{digits} \cdot 10^{{{int(exponent)}}}"


def _times(indicator: str, value: str, number: bool) -> str:
    if number:
        return indicator if value == "1" else rf"{value} \, {indicator}"
    return rf"{indicator} \, {value}"


def _render(operator: str, x: tuple[Node, ...], texts: dict[Node, tuple[str, int]]) -> tuple[str, int]:
    def operand(node: Node, least: int) -> str:
        text, binding = texts[node]
        return text if binding >= least else rf"\left({text}\right)"

    def plain(node: Node) -> str:
        return texts[node][0]

    if operator == "negative":
        return f"-{operand(x[0], _PRODUCT)}", _SUM
    if operator == "reciprocal":
        return rf"\frac{{1}}{{{plain(x[0])}}}", _POWER
    if operator == "divide":
        return rf"\frac{{{plain(x[0])}}}{{{plain(x[1])}}}", _POWER
    if operator == "square":
        return f"{{{operand(x[0], _ATOM)}}}^{{2}}", _POWER
    if operator == "power":
        return f"{{{operand(x[0], _ATOM)}}}^{{{plain(x[1])}}}", _POWER
    if operator in ("sqrt", "rsqrt", "cbrt"):
        root = rf"\sqrt[3]{{{plain(x[0])}}}" if operator == "cbrt" else rf"\sqrt{{{plain(x[0])}}}"
        return (rf"\frac{{1}}{{{root}}}", _POWER) if operator == "rsqrt" else (root, _POWER)
    if operator == "add":
        if isinstance(x[1], Constant) and x[1].value < 0:
            return f"{operand(x[0], _SUM)} - {_number(-x[1].value)}", _SUM
        return f"{operand(x[0], _SUM)} + {operand(x[1], _SUM + 1)}", _SUM
    if operator == "subtract":
        return f"{operand(x[0], _SUM)} - {operand(x[1], _SUM + 1)}", _SUM
    if operator == "multiply":
        left, right = (x[1], x[0]) if isinstance(x[1], Constant) else x
        return rf"{operand(left, _PRODUCT)} \, {operand(right, _PRODUCT + 1)}", _PRODUCT
    if operator == "abs":
        return rf"\left|{plain(x[0])}\right|", _ATOM
    if operator in _COMPARED:
        return f"{operand(x[0], _SUM)} {_COMPARED[operator]} {operand(x[1], _SUM)}", _COMPARE
    if operator == "where":
        indicator = rf"\mathbf{{1}}\left[{plain(x[0])}\right]"
        other = rf"\mathbf{{1}}\left[\neg\left({plain(x[0])}\right)\right]"
        parts = [
            _times(text, operand(value, _PRODUCT + 1), isinstance(value, Constant))
            for text, value in ((indicator, x[1]), (other, x[2]))
            if plain(value) != "0"
        ]
        return (" + ".join(parts), _SUM if len(parts) > 1 else _PRODUCT) if parts else ("0", _ATOM)
    name = _FUNCTIONS.get(operator) or r"\mathrm{" + operator.replace("_", r"\ ") + "}"
    arguments = ",\\, ".join(plain(node) for node in x)
    return rf"{name}\left({arguments}\right)", _ATOM
