"""The margins that training counts pairs by; by itself, so that who only reads the counts imports no JAX."""

import math

__all__ = ["MARGIN_EDGES"]

MARGIN_EDGES = tuple(round(math.sinh(0.2 * i + 0.1), 3) for i in range(-26, 26))
"""Log-ratio margins in nats that `StepMetrics.reached` counts by: close together near 0, out to ±90."""
