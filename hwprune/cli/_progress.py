"""Shows the events of a long job on stderr: bars when it is a terminal, else a line every ten seconds a stage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from hwprune.report.figures import figure_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

LINE_EVERY_S = 10.0
REDRAW_EVERY_S = 0.2
WORTH_A_LINE_S = 2.0
SHOWN_EPOCHS = 30


@dataclass
class _Stage:
    """A stage that is being shown: when it began, its latest line and when a line of it was last printed."""

    name: str
    began: float
    printed: float
    line: str = ""
    bar: TaskID | None = None


class ProgressDisplay:
    """A listener for `on_event`. Use it as a context manager, so that the bars leave the terminal whole.

    One stage is shown at a time; a stage that took some seconds leaves its last line behind.
    """

    def __init__(self, streams: Streams) -> None:
        self._verbosity = streams.verbosity
        self._console = streams.console(stderr=True)
        self._stage: _Stage | None = None
        self._bars = _bars(self._console) if self._console.is_terminal and streams.verbosity >= 0 else None

    def __enter__(self) -> ProgressDisplay:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_stage()
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Caution):
            self.say(f"warning: {event.text}")
            if event.hint:
                self.say(f"hint: {event.hint}")
        elif self._verbosity >= 0:
            self._talk(event)

    def _talk(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._finish_stage()
            self.say(f"{event.stage:<9} {event.detail}".rstrip())
        elif isinstance(event, Note):
            self.say(f"{'':<9} {event.text}")
        elif isinstance(event, CandidateMeasured):
            self.say(f"{'measured':<9} {candidate_line(event)}")
        elif isinstance(event, EpochDone):
            self._epoch(event)
        elif isinstance(event, Progress):
            detail = "   ".join(filter(None, (time_left(event.remaining_s), event.detail)))
            self._step(event.stage, event.done, event.total, detail)
        elif isinstance(event, SearchStep):
            detail = f"{format_ms(event.predicted_ms)} predicted   {figures(event.metrics)}".rstrip()
            self._step("search", event.step, event.steps, detail)

    def _epoch(self, event: EpochDone) -> None:
        if self._verbosity > 0 or event.epochs <= SHOWN_EPOCHS or event.epoch == event.epochs:
            # What a search closes within an epoch would look half open in the mean.
            means = ", means" if event.stage == "search" else ""
            counted = f"epoch {event.epoch}/{event.epochs}{means}"
            self.say(f"{event.stage:<9} {counted}   {figures(event.metrics)}".rstrip())

    def _step(self, name: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if self._stage is None or self._stage.name != name:
            self._finish_stage()
            self._stage = _Stage(name, now, now)
            if self._bars is not None:
                self._stage.bar = self._bars.add_task(f"{name:<9}", total=total, detail="")
        self._stage.line = line = f"{name:<9} {done}/{total}   {detail}".rstrip()
        if self._bars is not None and self._stage.bar is not None:
            self._bars.update(self._stage.bar, completed=done, total=total, detail=detail)
            if now - self._stage.printed >= REDRAW_EVERY_S:
                self._stage.printed = now
                self._bars.refresh()
        elif now - self._stage.printed >= LINE_EVERY_S or self._verbosity > 0:
            self._stage.printed = now
            self.say(line)

    def _finish_stage(self) -> None:
        stage, self._stage = self._stage, None
        if stage is None:
            return
        if self._bars is not None and stage.bar is not None:
            self._bars.remove_task(stage.bar)
        now = time.monotonic()
        if now - stage.began >= WORTH_A_LINE_S and self._verbosity == 0:
            self.say(stage.line)

    def say(self, text: str) -> None:
        """A line on the stderr of the moment the display was made, above the bars, whoever has redirected it since."""
        (self._console if self._bars is None else self._bars.console).print(styled(text))


def figures(metrics: Mapping[str, float]) -> str:
    """`loss 0.412  open channels 80.1 %`."""
    return "  ".join(figure_text(name, value) for name, value in metrics.items())


def time_left(remaining_s: float | None) -> str:
    """`1:05 left`; "" when nothing is known or nothing is left."""
    return f"{format_duration(remaining_s)} left" if remaining_s else ""


def candidate_line(event: CandidateMeasured) -> str:
    """Measured with its interval, predicted labelled as such, and whether it is within the budget."""
    low, high = event.measured_ci_ms
    where = "within the budget" if event.within_budget else "over budget"
    return f"{format_ms(event.measured_ms)} [{low:.4g}, {high:.4g}], {format_ms(event.predicted_ms)} predicted: {where}"


def _bars(console: Console) -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
        transient=True,
        auto_refresh=False,  # no thread may wake up beside a measurement
    )
