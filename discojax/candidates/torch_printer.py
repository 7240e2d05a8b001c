"""Prints a graph as a PyTorch function: the candidate's own operations, in their order."""

from __future__ import annotations

from collections.abc import Collection

from discojax.candidates.graph import Constant, Node
from discojax.candidates.printer import Printer

__all__ = ["TORCH_CALLS", "to_torch"]

_FIRST = "policy_chosen_logps"
_SAME = (
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square abs sign floor ceil round sin cos tan sinh cosh "
    "tanh erf sigmoid relu maximum minimum logaddexp hypot remainder logical_and logical_or logical_not "
    "where mean sum max min"
)
_FUNCTIONAL = "softplus relu6 silu elu celu selu mish"
TORCH_CALLS: dict[str, str] = {
    **{name: f"torch.{name}({{0}})" for name in _SAME.split()},
    **{name: f"F.{name}({{0}})" for name in _FUNCTIONAL.split()},
    "log_sigmoid": "F.logsigmoid({0})",
    "gelu": 'F.gelu({0}, approximate="tanh")',
    "soft_sign": "F.softsign({0})",
    "hard_tanh": "F.hardtanh({0})",
    "hard_sigmoid": "F.hardsigmoid({0})",
    "arctan": "torch.atan({0})",
    "arctan2": "torch.atan2({0})",
    "arcsinh": "torch.asinh({0})",
    "cbrt": "torch.sign({1}) * torch.abs({1}) ** (1.0 / 3.0)",
    "leaky_relu": "torch.where({1} >= 0, {1}, {2} * {1})",
    "stop_gradient": "{1}.detach()",
    "var": "torch.var({0}, correction=0)",
    "var_unbiased": "torch.var({0}, correction=1)",
    "std": "torch.std({0}, correction=0)",
    "std_unbiased": "torch.std({0}, correction=1)",
    "median": "torch.quantile({0}, 0.5)",
    "quantile": "torch.quantile({0})",
    "logsumexp": "torch.logsumexp({0}, -1)",
    "sort": "torch.sort({0}).values",
    "softmax": "torch.softmax({0}, -1)",
    "log_softmax": "torch.log_softmax({0}, -1)",
}
"""How operators that are not Python operators are called: {0} is all operands, {1}, {2} each of them."""

_TENSORS_ONLY = {"maximum", "minimum", "logaddexp", "hypot", "arctan2", "remainder"}
_NUMBERS = ("beta", "progress")
_COUNTS = ("chosen_lengths", "rejected_lengths")


def to_torch(graph: Node, name: str = "loss", docstring: str = "") -> str:
    """A PyTorch function of the program's arguments, which needs `torch` and `torch.nn.functional as F`.

    Takes tensors `[batch]` (`beta` and `progress` may be numbers) and returns `[batch]`. Value and
    gradient are those of the program; `discojax.report.export` verifies each.

    Args:
      graph: the program.
      name: the function's name.
      docstring: one line, left out if empty.
    """
    return _TorchPrinter(graph).text(name, docstring)


class _TorchPrinter(Printer):
    def prologue(self, read: Collection[str]) -> list[str]:
        """Numbers become tensors, and counts of tokens become numbers, of the log-probabilities' dtype."""
        numbers = [f"{n} = torch.as_tensor({n}).to({_FIRST})" for n in _NUMBERS if n in read]
        return numbers + [f"{n} = {n}.to({_FIRST})" for n in _COUNTS if n in read]

    def calls(self, operator: str, operands: tuple[Node, ...]) -> str:
        """A call of PyTorch's; where it wants tensors, constants become such."""
        texts = [
            f"torch.full_like({_FIRST}, {self.texts[operand][0]})"
            if operator in _TENSORS_ONLY and isinstance(operand, Constant)
            else self.texts[operand][0]
            for operand in operands
        ]
        atoms = [text if text.isidentifier() else f"({text})" for text in texts]
        return TORCH_CALLS[operator].format(", ".join(texts), *atoms)
