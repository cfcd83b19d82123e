"""Least squares with relative errors: every residual is divided by the latency it belongs to."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from hwprune.latency.features import Array


def relative_nnls(columns: Array, latency_ms: Array) -> Array:
    """Non-negative `c` `[F]` that minimises the sum of `(columns @ c / latency - 1)**2` for `columns` `[N, F]`.

    Non-negative because work costs time: a search would exploit a layer that seems to earn it.
    """
    relative = columns / latency_ms[:, None]
    scale = np.sqrt(np.mean(relative**2, axis=0))
    scale[scale == 0] = 1.0
    solution, _ = nnls(relative / scale, np.ones(len(latency_ms)))
    return np.asarray(solution / scale)


def relative_ridge(columns: Array, latency_ms: Array, strength: float, prior: Array | None = None) -> Array:
    """Like `relative_nnls`, without the sign, shrunk towards `prior` (0 by default).

    `strength` is the penalty on each coefficient in units of its column's mean square times `N`.
    """
    start = np.zeros(columns.shape[1]) if prior is None else prior
    relative = columns / latency_ms[:, None]
    scale = np.sqrt(np.mean(relative**2, axis=0))
    scale[scale == 0] = 1.0
    scaled = relative / scale
    gram = scaled.T @ scaled + strength * len(latency_ms) * np.eye(columns.shape[1])
    return np.asarray(start + np.linalg.solve(gram, scaled.T @ (1.0 - relative @ start)) / scale)
