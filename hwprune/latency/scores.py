"""How good a latency model is: errors, ranks, and whether its differences point the right way.

The label noise stands beside every score, since no model can be better than the labels it is judged by.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hwprune.latency.features import Array, IntArray

Pair = tuple[int, int]


@dataclass(frozen=True)
class Scores:
    """Figures of one model on networks it was not fitted on. Shares are 0..1, correlations -1..1.

    `wrong_sign`: share of one-group width changes whose predicted latency change has another sign than the measured
    one, among the `pairs` changes that the measurement resolves; `cosine` is between the two vectors of changes. Both
    are NaN without such pairs. `within_sigma`: share of networks whose error is within the stated one sigma (0.68
    when calibrated).
    """

    count: int
    mape: float
    within_5: float
    within_10: float
    bias: float
    spearman: float
    kendall: float
    wrong_sign: float
    cosine: float
    pairs: int
    within_sigma: float = math.nan

    def to_json(self) -> dict[str, float | None]:
        """A JSON document; what is not known is null."""
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in asdict(self).items()}


def score(
    predicted_ms: Array,
    measured_ms: Array,
    values: IntArray,
    *,
    noise: float | None = None,
    error_ms: Array | None = None,
) -> Scores:
    """All scores for predictions and measurements `[N]` of networks with widths `[N, G]`.

    `noise` is the relative label noise: a change below twice that is not counted as resolved. `error_ms` `[N]`: the
    stated errors, for `within_sigma`.
    """
    from scipy.stats import kendalltau, spearmanr

    errors = predicted_ms / measured_ms - 1
    sigma = float(np.mean(np.abs(predicted_ms - measured_ms) <= error_ms)) if error_ms is not None else math.nan
    ranked = len(np.unique(measured_ms)) > 1 and len(np.unique(predicted_ms)) > 1
    wrong, cosine, pairs = _changes(predicted_ms, measured_ms, one_group_pairs(values), noise or 0.0)
    return Scores(
        count=len(errors),
        mape=float(np.mean(np.abs(errors))),
        within_5=float(np.mean(np.abs(errors) <= 0.05)),
        within_10=float(np.mean(np.abs(errors) <= 0.10)),
        bias=float(np.mean(errors)),
        spearman=float(spearmanr(predicted_ms, measured_ms).statistic) if ranked else math.nan,
        kendall=float(kendalltau(predicted_ms, measured_ms).statistic) if ranked else math.nan,
        wrong_sign=wrong,
        cosine=cosine,
        pairs=pairs,
        within_sigma=sigma,
    )


def one_group_pairs(values: IntArray) -> tuple[Pair, ...]:
    """(wider, narrower) row numbers of all pairs that differ in exactly one group."""
    found = []
    for a, b in itertools.combinations(range(len(values)), 2):
        different = np.flatnonzero(values[a] != values[b])
        if len(different) == 1:
            group = different[0]
            found.append((a, b) if values[a, group] > values[b, group] else (b, a))
    return tuple(found)


def _changes(predicted_ms: Array, measured_ms: Array, pairs: Sequence[Pair], noise: float) -> tuple[float, float, int]:
    """Wrong-sign share, cosine and number of the resolved changes."""
    if not pairs:
        return math.nan, math.nan, 0
    wide, narrow = np.array(pairs).T
    measured = measured_ms[wide] - measured_ms[narrow]
    resolved = np.abs(measured) > 2 * noise * measured_ms[wide]
    if not resolved.any():
        return math.nan, math.nan, 0
    measured, predicted = measured[resolved], (predicted_ms[wide] - predicted_ms[narrow])[resolved]
    length = float(np.linalg.norm(measured) * np.linalg.norm(predicted))
    cosine = float(measured @ predicted) / length if length > 0 else 0.0
    return float(np.mean(np.sign(predicted) != np.sign(measured))), cosine, int(resolved.sum())


def label_noise(rows: Iterable[tuple[tuple[int, ...], float, str]]) -> float | None:
    """The MAPE that a perfect model would show on these (widths, latency_ms, session) labels; None when unknown.

    From networks measured in more than one session: the mean relative difference of two labels, over the square root
    of 2, because each of the two labels is wrong by its share.
    """
    repeats: dict[tuple[int, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for widths, latency_ms, session in rows:
        repeats[widths][session].append(latency_ms)
    differences = []
    for sessions in repeats.values():
        labels = [float(np.mean(values)) for values in sessions.values()]
        differences += [2 * abs(a - b) / (a + b) for a, b in itertools.combinations(labels, 2)]
    return float(np.mean(differences)) / math.sqrt(2) if differences else None
