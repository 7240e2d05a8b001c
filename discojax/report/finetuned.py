"""What training one policy came to: its last step, its held-out pairs, and how to load it."""

from __future__ import annotations

from rich.console import Console

from discojax.search.finetune import Tuned

__all__ = ["show"]


def show(tuned: Tuned, *, confidence: float, console: Console | None = None) -> None:
    """Prints it."""
    console = console or Console()
    trained = f"{tuned.steps} steps of {tuned.objective} on {tuned.pairs} pairs ({tuned.data})"
    if tuned.last is not None:
        last = tuned.last
        trained += f"; at the last loss {last.loss:.4f}, margin {last.margin:+.4f}"
    console.print(f"\n{trained}.", highlight=False, soft_wrap=True)
    held_out = tuned.held_out
    if held_out is None:
        console.print("No pairs were held out: raise finetune.held_out to know what was learnt.")
    else:
        accuracy, margin = (
            f"{value:.3f} [{low:.3f}, {high:.3f}]"
            for value, (low, high) in (
                (held_out.accuracy, held_out.accuracy_interval),
                (held_out.margin, held_out.margin_interval),
            )
        )
        console.print(
            f"On {held_out.pairs} held-out pairs of {held_out.prompts} prompts: accuracy {accuracy}, "
            f"margin {margin}, with {100 * confidence:g} % intervals over prompts.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print(f"The policy is in {tuned.policy}:\n  {tuned.loading}", highlight=False, soft_wrap=True)
