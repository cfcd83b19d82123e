"""The proximal step that makes exact zeros."""

from __future__ import annotations

from torch import Tensor


def soft_threshold(values: Tensor, amount: Tensor | float) -> Tensor:
    """`argmin_u (u - v)^2 / 2 + t |u|`: towards 0 by `amount`, exactly 0.0 within it; no sign flips."""
    return values.sign() * (values.abs() - amount).clamp_min(0.0)
