"""Least squares with relative errors: every residual is divided by the latency it belongs to.

Both fits are robust (Huber weights, a few reweighting steps): on a busy machine some labels are far too high. One that
is far too low would count more than all others, for its row is divided by it: beyond the reach of the scatter a row is
divided by the prediction, where that is larger.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import nnls

from hwprune.core.statistics import MAD_TO_SIGMA
from hwprune.latency.features import Array

_HUBER = 1.5  # residuals beyond so many sigmas count linearly, not squared
_STEPS = 5


def relative_nnls(columns: Array, latency_ms: Array) -> Array:
    """Non-negative `c` `[F]` that minimises the robust sum of `columns @ c / latency - 1` for `columns` `[N, F]`.

    Non-negative because work costs time: a search would exploit a layer that seems to earn it.
    """
    relative, scale = _scaled(columns, latency_ms)

    def solve(weights: Array) -> Array:
        return np.asarray(nnls(relative * weights[:, None], weights)[0])

    return np.asarray(_reweighted(relative, solve) / scale)


def relative_ridge(columns: Array, latency_ms: Array, strength: float) -> Array:
    """Like `relative_nnls`, of any sign, shrunk towards 0.

    `strength` is the penalty on each coefficient in units of its column's mean square times `N`.
    """
    relative, scale = _scaled(columns, latency_ms)
    penalty = strength * len(latency_ms) * np.eye(columns.shape[1])

    def solve(weights: Array) -> Array:
        weighted = relative * (weights**2)[:, None]
        return np.asarray(np.linalg.solve(weighted.T @ relative + penalty, weighted.sum(axis=0)))

    return np.asarray(_reweighted(relative, solve) / scale)


def _scaled(columns: Array, latency_ms: Array) -> tuple[Array, Array]:
    """Columns over the latency, brought to a mean square of 1, and the scales."""
    relative = columns / latency_ms[:, None]
    scale = np.sqrt(np.mean(relative**2, axis=0))
    scale[scale == 0] = 1.0
    return relative / scale, scale


def _reweighted(relative: Array, solve: Callable[[Array], Array]) -> Array:
    """Solve, weigh residuals by Huber, solve again; `solve` takes square roots of weights `[N]`.

    Begins with the sum of the columns, for which the median network is taken to be right.
    """
    sums = np.abs(relative).sum(axis=1)
    coefficients = solve(_weights(sums / max(float(np.median(sums)), 1e-12)))
    for _ in range(_STEPS):
        coefficients = solve(_weights(relative @ coefficients))
    return coefficients


def _weights(predicted: Array) -> Array:
    """Square roots of weights `[N]` for predictions as shares of the labels."""
    residuals = np.abs(predicted - 1)
    reach = _HUBER * MAD_TO_SIGMA * max(float(np.median(residuals)), 1e-9)
    beyond = np.sqrt(reach / np.maximum(residuals, 1e-12)) / np.maximum(predicted, 1.0)
    return np.where(residuals <= reach, 1.0, beyond)
