"""Export: a loss as PyTorch, as a TRL trainer, as JAX or as LaTeX, verified before it is handed over.

What is written is printed from the program's graph, never the candidate's own text, and only that is
ever run here. Code is run on random rows beside the program itself: values and gradients must agree.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from discojax.candidates.objective import Program
from discojax.candidates.printer import to_source
from discojax.candidates.torch_printer import to_torch
from discojax.errors import UserError, nearest
from discojax.objectives.types import ARGUMENTS

__all__ = ["ROWS", "TARGETS", "TOLERANCE", "Agreement", "export", "verify"]

TARGETS = ("jax", "torch", "trl", "latex")

ROWS = 1000
TOLERANCE = 1e-6
"""Largest difference of a value or a gradient in float32, over the larger of 1 and the value itself."""

_JAX = '''"""{title}

Written by discojax. Takes vectors [batch] of log-probabilities summed over completion tokens, and
returns the loss of each pair.

{formula}
"""

import jax
import jax.numpy as jnp


{function}'''

_TORCH = '''"""{title}

Written by discojax. Takes tensors [batch] of log-probabilities summed over completion tokens, and
returns the loss of each pair.

{formula}
"""

import torch
import torch.nn.functional as F


{function}'''

_TRAINER = '''

class {trainer}(DPOTrainer):
    """TRL's DPOTrainer with `{name}` in place of its `loss_type`; everything else is configured as ever."""

    def _compute_loss(self, model, inputs, return_outputs):
        ours = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
        outputs = model(**{{k: v for k, v in inputs.items() if k not in ours}}, use_cache=False)
        mask = inputs["completion_mask"][:, 1:]
        logps = torch.log_softmax(outputs.logits[:, :-1].float(), -1)
        logps = logps.gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1) * mask
        chosen, rejected = logps.sum(1).chunk(2)  # a batch is the chosen, then the rejected
        chosen_lengths, rejected_lengths = mask.sum(1).chunk(2)
        if self.precompute_ref_logps:
            reference_chosen, reference_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference = model if self.ref_model is None else self.ref_model
            reference_chosen, reference_rejected = self.compute_ref_log_probs(reference, inputs)
        losses = {name}(chosen, rejected, reference_chosen, reference_rejected, self.beta{further})
        with torch.no_grad():
            rewards = self.beta * (chosen - reference_chosen), self.beta * (rejected - reference_rejected)
            measured = {{
                "rewards/chosen": rewards[0],
                "rewards/rejected": rewards[1],
                "rewards/margins": rewards[0] - rewards[1],
                "rewards/accuracies": (rewards[0] > rewards[1]).float(),
                "logps/chosen": chosen,
                "logps/rejected": rejected,
            }}
            mode = "train" if self.model.training else "eval"
            for key, value in measured.items():
                self._metrics[mode][key].append(self.accelerator.gather_for_metrics(value).mean().item())
        loss = losses.mean()
        return (loss, outputs) if return_outputs else loss
'''
_FURTHER = {
    "chosen_lengths": "chosen_lengths",
    "rejected_lengths": "rejected_lengths",
    "progress": "self.state.global_step / max(self.state.max_steps, 1)",
}


class Agreement(NamedTuple):
    """Largest differences from the program over all rows, of losses and of gradients: see `TOLERANCE`."""

    value: float
    gradient: float


def export(program: Program, to: str, *, check: bool = True) -> str:
    """The program in another form, as the text of a file.

    Args:
      program: what is exported.
      to: one of `TARGETS`.
      check: whether code is run and compared first; LaTeX cannot be.

    Raises:
      UserError: there is no such form; PyTorch or TRL is not installed, so that nothing could be
        verified; or the code disagrees with the program.
    """
    if to not in TARGETS:
        raise UserError(f"There is no form {to!r}.{nearest(to, TARGETS)} Choose among {', '.join(TARGETS)}.")
    if to == "latex":
        return f"% {_title(program)}\n{program.latex}\n"
    text = _text(program, to)
    if check:
        agreement = verify(program, text, "torch" if to == "trl" else to)
        if not max(agreement) <= TOLERANCE:
            raise UserError(
                f"{program.name} as {to} differs from the program by {max(agreement):.1e} on {ROWS} random "
                "rows, so it is not written: please report this loss."
            )
    return text


def _text(program: Program, to: str) -> str:
    name = function_name(program.name)
    filled = {"title": _title(program), "formula": _commented(program.latex)}
    if to == "jax":
        return _JAX.format(function=to_source(program.graph, name), **filled)
    text = _TORCH.format(function=to_torch(program.graph, name), **filled)
    if to == "trl":
        text = text.replace("import torch.nn.functional as F\n", _IMPORTS, 1)
        read = [argument for argument in ARGUMENTS[5:] if argument in program.arguments]
        text += _TRAINER.format(
            trainer="".join(word.capitalize() for word in name.split("_")) + "Trainer",
            name=name,
            further="".join(f", {argument}={_FURTHER[argument]}" for argument in read),
        )
    return text


_IMPORTS = "import torch.nn.functional as F\nfrom trl import DPOTrainer\n"


def function_name(name: str) -> str:
    """A Python identifier for a loss, whatever it is called."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "loss"
    return f"loss_{word}" if word[0].isdigit() or keyword.iskeyword(word) else word


def _title(program: Program) -> str:
    safe = re.sub(r"[^\x20-\x7e]", "?", program.name).replace('"', "'").replace("\\", "/")
    return f"{safe}: a preference loss. Program {program.hash[:16]}."


def _commented(latex: str) -> str:
    return "\n".join(f"    {line}".replace("\\", "\\\\") for line in latex.splitlines())


def verify(program: Program, text: str, to: str, *, rows: int = ROWS, seed: int = 0) -> Agreement:
    """Runs exported code beside the program on random rows, in float32.

    Args:
      program: what it should equal.
      text: as `export` wrote it.
      to: `jax` or `torch`.
      rows: of random log-probabilities, in one batch.
      seed: of their randomness.

    Raises:
      UserError: PyTorch is not installed.
    """
    inputs = _inputs(rows, seed)
    theirs = _module(text, to)
    function = getattr(theirs, function_name(program.name))
    given = {name: inputs[name] for name in ARGUMENTS[:5]} | {
        name: inputs[name] for name in ARGUMENTS[5:] if name in program.arguments
    }
    run = _by_jax if to == "jax" else _by_torch
    wanted = _by_jax(lambda **x: program.function(**{n: x[n] for n in program.arguments}), given)
    got = run(function, given)
    return Agreement(_difference(got[:1], wanted[:1]), _difference(got[1:], wanted[1:]))


def _inputs(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Random rows on a grid that float32 holds exactly, so fine that hardly any differences are equal.

    Where rows tie, a sort may take them in either order, and each then has the other's gradient.
    """
    rng = np.random.default_rng(seed)
    grid = 2**15
    reference = -rng.integers(2 * grid, 200 * grid, (2, rows))

    def differences(most: int) -> np.ndarray:
        return np.stack([rng.choice(2 * most, rows, replace=False) - most for _ in range(2)])

    early = rng.random((2, rows)) < 0.5  # rows as they are early in training, and late
    policy = reference + np.where(early, differences(grid // 4), differences(20 * grid))
    lengths = rng.integers(1, 100, (2, rows))
    values = [*(policy / grid), *(reference / grid), 0.1, *lengths, 0.3]
    return {name: np.asarray(x, np.float32) for name, x in zip(ARGUMENTS, values, strict=True)}


def _module(text: str, to: str) -> Any:
    """The exported text as a module, without its trainer: the functions are what is compared."""
    if to == "torch" and importlib.util.find_spec("torch") is None:
        raise UserError(
            "PyTorch is not installed, and nothing is exported to it unverified: "
            "pip install torch, or export --to jax."
        )
    body = text.split("\n\nclass ")[0].replace("from trl import DPOTrainer\n", "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "exported.py"
        file.write_text(body, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("exported", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def _by_jax(function: Callable[..., Any], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import jax

    def total(*policy):
        losses = function(**{**given, **dict(zip(ARGUMENTS[:2], policy, strict=True))})
        return losses.sum(), losses

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    gradients, losses = gradient(*(jax.numpy.asarray(given[name]) for name in ARGUMENTS[:2]))
    return [np.asarray(losses), *(np.asarray(x) for x in gradients)]


def _by_torch(function: Callable[..., Any], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import torch

    tensors = {name: torch.tensor(value) for name, value in given.items()}
    policy = [tensors[name].requires_grad_() for name in ARGUMENTS[:2]]
    losses = function(**tensors)
    losses.sum().backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in policy]
    return [losses.detach().numpy(), *(x.numpy() for x in gradients)]


def _difference(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape or not np.isfinite(a).all():
            return float("inf")
        worst = max(worst, float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(b)))))
    return worst
