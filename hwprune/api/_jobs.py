"""What every long job takes: a way to be stopped, and the folder where runs lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Stop = Callable[[], bool]
RUNS = Path("runs")


def never() -> bool:
    """The `stop` of a job that nobody interrupts."""
    return False
