"""Shows the events of a long job on stderr: bars when it is a terminal, else a line every ten seconds a stage."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from hwprune.cli._console import Streams, styled
from hwprune.core.events import (
    CandidateMeasured,
    Caution,
    EpochDone,
    Event,
    Note,
    Progress,
    SearchStep,
    StageStarted,
)
from hwprune.core.units import format_duration, format_ms

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

LINE_EVERY_S = 10.0


class ProgressDisplay:
    """A listener for `on_event`. Use it as a context manager, so that the bars leave the terminal whole."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._console = streams.console(stderr=True)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}
        if self._console.is_terminal and streams.verbosity >= 0:
            self._bars = _bars(self._console)

    def __enter__(self) -> ProgressDisplay:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Caution):
            self._line(f"warning: {event.text}")
            if event.hint:
                self._line(f"hint: {event.hint}")
        elif self._streams.verbosity >= 0:
            self._talk(event)

    def _talk(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._line(f"{event.stage:<9} {event.detail}".rstrip())
        elif isinstance(event, Note):
            self._line(f"{'':<9} {event.text}")
        elif isinstance(event, CandidateMeasured):
            self._line(f"{'measured':<9} {candidate_line(event)}")
        elif isinstance(event, Progress):
            self._step(event.stage, event.done, event.total, event.detail, event.remaining_s)
        elif isinstance(event, EpochDone):
            detail = " ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            self._step(event.stage, event.epoch, event.epochs, f"{detail}", None, unit="epoch")
        elif isinstance(event, SearchStep):
            figures = " ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            detail = f"predicted {format_ms(event.predicted_ms)} {figures}".rstrip()
            self._step("search", event.step, event.steps, detail, None, unit="step")

    def _step(
        self, stage: str, done: int, total: int, detail: str, remaining_s: float | None, *, unit: str = ""
    ) -> None:
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(f"{stage:<9}", total=total, detail="")
            self._bars.update(self._tasks[stage], completed=done, total=total, detail=detail)
            if done >= total:
                self._bars.remove_task(self._tasks.pop(stage))
                self._line(progress_line(stage, done, total, detail, None, unit))
            return
        now = time.monotonic()
        due = now - self._last_line.setdefault(stage, now) >= LINE_EVERY_S
        if due or done >= total or self._streams.verbosity > 0:
            self._last_line[stage] = now
            self._line(progress_line(stage, done, total, detail, remaining_s, unit))

    def _line(self, text: str) -> None:
        (self._console if self._bars is None else self._bars.console).print(styled(text))


def progress_line(stage: str, done: int, total: int, detail: str, remaining_s: float | None, unit: str) -> str:
    """`profile   40/100   1:05 left   0.412 ms`."""
    counted = f"{unit} {done}/{total}" if unit else f"{done}/{total}"
    left = f"{format_duration(remaining_s)} left" if remaining_s is not None else ""
    return "   ".join(part for part in (f"{stage:<9} {counted}", left, detail) if part)


def candidate_line(event: CandidateMeasured) -> str:
    """Measured with its interval, predicted labelled as such, and whether it is within the budget."""
    low, high = event.measured_ci_ms
    where = "within the budget" if event.within_budget else "over budget"
    return f"{format_ms(event.measured_ms)} [{low:.4g}, {high:.4g}], {format_ms(event.predicted_ms)} predicted: {where}"


def _bars(console: Console) -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
        transient=True,
    )
