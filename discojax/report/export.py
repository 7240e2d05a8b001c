"""Export: a loss as PyTorch, as a TRL trainer, as JAX or as LaTeX, verified before it is handed over.

What is written is printed from the program's graph, never the candidate's own text, and only that is
ever run here. Code is run on random rows beside the program itself: values and gradients must agree in
float64, and in float32 as well as float32 lets them.
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
"""Largest difference of a value or a gradient, over the larger of 1 and the value itself.

In float64 it holds for every loss. In float32 some lose more than this to cancellation, in JAX as in
PyTorch: then the difference may be `_ROUNDING` times what the program itself differs from float64.
"""
_ROUNDING = 4.0

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

_IMPORTS = """import torch.nn.functional as F
import trl
from trl import DPOTrainer

_NEUTRAL = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
}
"""
_TRAINER = '''

class {trainer}(DPOTrainer):
    """TRL's DPOTrainer with `{name}` in place of its own losses; everything else is configured as ever.

    Written for TRL 1.16. What belongs to TRL's own losses is refused, as it would do nothing here.{coupling}
    """

    def __init__(self, model, ref_model=None, args=None, *further, **options):
        if tuple(map(int, trl.__version__.split(".")[:2])) < (1, 16):
            raise ImportError(f"This trainer needs TRL 1.16 or newer, and {{trl.__version__}} is installed.")
        for setting, neutral in _NEUTRAL.items():
            if getattr(args, setting, neutral) != neutral:
                raise ValueError(f"`{{setting}}` is for TRL's own losses: leave it at {{neutral!r}} here.")
        super().__init__(model, ref_model, args, *further, **options)
        if self.aux_loss_enabled:
            raise ValueError("The loss of a router is not added here: set `router_aux_loss_coef=0.0`.")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ours = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
        given = {{key: value for key, value in inputs.items() if key not in ours}} | {{"use_cache": False}}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        mask = inputs["completion_mask"][:, 1:]
        outputs = model(**given, labels=labels, fused_lm_head=True)  # log-probabilities without logits
        logps = outputs.log_probs[:, -mask.shape[1] :].sum(1)
        chosen, rejected = logps.chunk(2)  # a batch is the chosen, then the rejected
        chosen_lengths, rejected_lengths = mask.sum(1).chunk(2)
        if self.precompute_ref_logps:
            reference_chosen, reference_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference = self.model if self.ref_model is None else self.ref_model  # its adapters are put off
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
            if return_outputs:  # with logits, as `compute_metrics` reads them
                outputs = model(**given)
        loss = losses.mean()
        return (loss, outputs) if return_outputs else loss
'''
_COUPLING = """

    The loss of a pair depends on the other pairs of its batch, which here are those that one device has
    at once (`per_device_train_batch_size`): neither gradient accumulation nor more devices add to them."""
_FURTHER = {
    "chosen_lengths": "chosen_lengths",
    "rejected_lengths": "rejected_lengths",
    "progress": "self.state.global_step / max(self.state.max_steps, 1)",
}
_RESERVED = frozenset(re.findall(r"\w+", " ".join((_JAX, _TORCH, _IMPORTS, _TRAINER, *_FURTHER.values()))))


class Agreement(NamedTuple):
    """Largest differences from the program over all rows, as `TOLERANCE` counts them.

    Attributes:
      value, gradient: in float64.
      single: of either, in float32.
      rounding: of the program in float32 from itself in float64.
    """

    value: float
    gradient: float
    single: float
    rounding: float

    @property
    def holds(self) -> bool:
        """Whether they are small enough for the code to be handed over."""
        exact = max(self.value, self.gradient) <= TOLERANCE
        return exact and self.single <= max(TOLERANCE, _ROUNDING * self.rounding)


def export(program: Program, to: str, *, check: bool = True) -> str:
    """The program in another form, as the text of a file.

    Args:
      program: what is exported.
      to: one of `TARGETS`.
      check: whether code is run and compared first; LaTeX cannot be.

    Raises:
      UserError: there is no such form; PyTorch is not installed, so that nothing could be verified for
        it or for TRL, which itself is not needed here; or the code disagrees with the program.
    """
    if to not in TARGETS:
        raise UserError(f"There is no form {to!r}.{nearest(to, TARGETS)} Choose among {', '.join(TARGETS)}.")
    if to == "latex":
        return f"% {_title(program)}\n{program.latex}\n"
    text = _text(program, to)
    if check:
        agreement = verify(program, text, "torch" if to == "trl" else to)
        if not agreement.holds:
            raise UserError(
                f"{program.name} as {to} differs from the program by {max(agreement[:3]):.1e} on {ROWS} "
                "random rows, so it is not written: please report this loss."
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
            coupling=_COUPLING if program.batch_coupled else "",
            further="".join(f", {argument}={_FURTHER[argument]}" for argument in read),
        )
    return text


def function_name(name: str) -> str:
    """A Python identifier for a loss, whatever it is called, that means nothing else in its file."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "loss"
    taken = word[0].isdigit() or keyword.iskeyword(word) or word in _RESERVED
    return f"loss_{word}" if taken else word


def _title(program: Program) -> str:
    safe = re.sub(r"[^\x20-\x7e]", "?", program.name).replace('"', "'").replace("\\", "/")
    return f"{safe}: a preference loss. Program {program.hash[:16]}."


def _commented(latex: str) -> str:
    return "\n".join(f"    {line}".replace("\\", "\\\\") for line in latex.splitlines())


def verify(program: Program, text: str, to: str, *, rows: int = ROWS, seed: int = 0) -> Agreement:
    """Runs exported code beside the program on random rows, in float64 and in float32.

    Args:
      program: what it should equal.
      text: as `export` wrote it.
      to: `jax` or `torch`.
      rows: of random log-probabilities, in one batch.
      seed: of their randomness.

    Raises:
      UserError: PyTorch is not installed.
    """
    import jax

    inputs = _inputs(rows, seed)
    theirs = _module(text, to)
    function = getattr(theirs, function_name(program.name))
    given = {name: inputs[name] for name in ARGUMENTS[:5]} | {
        name: inputs[name] for name in ARGUMENTS[5:] if name in program.arguments
    }
    run = _by_jax if to == "jax" else _by_torch

    def ours(**x: Any) -> Any:
        return program.function(**{name: x[name] for name in program.arguments})

    single, wanted = run(function, given), _by_jax(ours, given)
    with jax.enable_x64(True):
        doubled = {name: value.astype(np.float64) for name, value in given.items()}
        double, exact = run(function, doubled), _by_jax(ours, doubled)
    return Agreement(
        _difference(double[:1], exact[:1]),
        _difference(double[1:], exact[1:]),
        _difference(single, wanted),
        _difference(wanted, exact),
    )


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
    body = text.split("\n\nclass ")[0].replace("import trl\nfrom trl import DPOTrainer\n", "")
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
