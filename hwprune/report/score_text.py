"""The score of a task as text: a share as a percentage, anything else in the unit that its name ends with.

`top-1` is a share, `PSNR (dB)` is in dB.
"""

from __future__ import annotations


def is_share(score_name: str) -> bool:
    """Whether such a score lies in 0..1."""
    return not score_name.endswith(")")


def score_text(score_name: str, score: float | None, decimals: int | None = None) -> str:
    """`98.9 %`, `31.20 dB`, or `-` for what is not known."""
    if score is None:
        return "-"
    if decimals is None:
        decimals = 1 if is_share(score_name) else 2
    return f"{100 * score if is_share(score_name) else score:.{decimals}f} {_unit(score_name, '%')}"


def change_text(score_name: str, change: float) -> str:
    """`-0.2 points`, `+0.31 dB`."""
    if is_share(score_name):
        return f"{100 * change:+.1f} points"
    return f"{change:+.2f} {_unit(score_name, '')}"


def interval_text(score_name: str, change: float, low: float, high: float) -> str:
    """`+1.4 [-0.4, +3.2]`, without a unit: the column's title has it."""
    scale, decimals = (100, 1) if is_share(score_name) else (1, 2)
    centre, *ends = (f"{scale * value:+.{decimals}f}" for value in (change, low, high))
    return f"{centre} [{', '.join(ends)}]"


def above_text(score_name: str, baseline: str) -> str:
    """The title of a column of differences: `points of top-1 above greedy`, `dB of PSNR above greedy`."""
    name = score_name.partition(" (")[0]
    return f"{_unit(score_name, 'points')} of {name} above {baseline}"


def _unit(score_name: str, otherwise: str) -> str:
    return otherwise if is_share(score_name) else score_name.rpartition("(")[2].removesuffix(")")
