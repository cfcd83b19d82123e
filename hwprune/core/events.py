"""What a long job tells whoever listens: a closed set of frozen events and one callable, `on_event`.

The progress display, the run's journal and the log file are themselves listeners. The library prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable, Union


@dataclass(frozen=True)
class StageStarted:
    """A stage begins: `profile`, `fit`, `baseline`, `dense`, `search`, `settle`, `finetune`, `export`, `verify`.

    After a step back `settle`, `finetune` and what follows come again, numbered: `settle-1`.
    """

    stage: str
    detail: str = ""


@dataclass(frozen=True)
class StageDone:
    """A stage ended and its artefact is on the disk; a resumed run skips it."""

    stage: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps of a stage; `remaining_s` is an estimate, None while there is none."""

    stage: str
    done: int
    total: int
    remaining_s: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class EpochDone:
    """One pass over the training data ended, with its figures (`loss`, `score`, `lr`, ...)."""

    stage: str
    epoch: int
    epochs: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchStep:
    """The state of a search under a budget at one moment: predicted latency and the figures of its method."""

    step: int
    steps: int
    predicted_ms: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CandidateMeasured:
    """A candidate of the search was timed on the device."""

    widths: Mapping[str, int]
    predicted_ms: float
    measured_ms: float
    measured_ci_ms: tuple[float, float]
    within_budget: bool


@dataclass(frozen=True)
class Note:
    """A sentence for the user: what was found, skipped or decided."""

    text: str


@dataclass(frozen=True)
class Caution:
    """Something the user should know about and may want to change."""

    text: str
    hint: str = ""


# In the form that Python 3.8 on a device can evaluate.
Event = Union[StageStarted, StageDone, Progress, EpochDone, SearchStep, CandidateMeasured, Note, Caution]
OnEvent = Callable[[Event], None]
Stop = Callable[[], bool]


def never() -> bool:
    """The `stop` of a job that nobody interrupts."""
    return False


def ignore(event: Event) -> None:
    """The listener of a job nobody watches."""
