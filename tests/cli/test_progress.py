"""What a long job says on stderr, and how Ctrl-C stops it."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Iterator

import pytest
from rich.console import Console

from hwprune.cli import _progress
from hwprune.cli._console import Outcome, Streams, styled
from hwprune.cli._flags import Color, Common
from hwprune.cli._progress import ProgressDisplay, candidate_line, figures
from hwprune.cli._stop import Stop
from hwprune.cli._verb import Call
from hwprune.core.events import CandidateMeasured, Caution, EpochDone, Event, Note, Progress, SearchStep, StageStarted

MEASURED = CandidateMeasured({"a": 16}, 0.301, 0.3051, (0.3031, 0.3071), True)


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(_progress, "time", made)
    return made


def show(capsys: pytest.CaptureFixture[str], *events: Event, verbosity: int = 0) -> list[str]:
    with ProgressDisplay(Streams(verbosity=verbosity)) as display:
        for event in events:
            display(event)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_lines_for_what_happens_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(
        capsys,
        StageStarted("profile", "100 networks"),
        Note("latency steps every 16 channels"),
        MEASURED,
        EpochDone("dense", 2, 8, {"loss": 0.5, "score": 0.93}),
        EpochDone("search", 1, 1, {"loss": 0.5}),
    ) == [
        "profile   100 networks",
        "          latency steps every 16 channels",
        "measured  0.305 ms [0.3031, 0.3071], 0.301 ms predicted: within the budget",
        "dense     epoch 2/8   loss 0.5  score 0.93",
        "search    epoch 1/1, means   loss 0.5",
    ]


def test_steps_are_a_line_every_ten_seconds_without_a_terminal(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with ProgressDisplay(Streams()) as display:
        for done in range(1, 101):
            clock.now += 0.3
            display(Progress("profile", done, 100, remaining_s=(100 - done) * 0.3, detail=f"{done / 1000:.3f} ms"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "profile   35/100   20 s left   0.035 ms"
    assert lines[-1] == "profile   100/100   0.100 ms"
    assert len(lines) == 3


def test_a_short_stage_leaves_no_line(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    steps = tuple(Progress("measure", done, max(10, done)) for done in range(1, 40))
    assert show(capsys, *steps) == []


def test_the_last_line_of_a_stage_stays_when_the_next_begins(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with ProgressDisplay(Streams()) as display:
        display(SearchStep(1, 9, 0.5, {"multiplier": 0.25}))
        clock.now += 5
        display(SearchStep(9, 9, 0.31, {"multiplier": 0.5}))
        display(StageStarted("cut"))
    assert capsys.readouterr().err.splitlines() == ["search    9/9   0.310 ms predicted   multiplier 0.5", "cut"]


def test_verbose_shows_every_step_and_quiet_only_cautions(capsys: pytest.CaptureFixture[str]) -> None:
    events = (StageStarted("fit"), Progress("fit", 1, 2), Progress("fit", 2, 2), Caution("busy", hint="wait"))
    assert len(show(capsys, *events, verbosity=1)) == 5
    assert show(capsys, *events, verbosity=-1) == ["warning: busy", "hint: wait"]


def test_long_trainings_do_not_flood(capsys: pytest.CaptureFixture[str]) -> None:
    epochs = tuple(EpochDone("dense", epoch, 300, {}) for epoch in range(1, 301))
    assert show(capsys, *epochs) == ["dense     epoch 300/300"]


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(Streams, "console", lambda self, *, stderr: console)
    with ProgressDisplay(Streams()) as display:
        for done in range(1, 6):
            clock.now += 1
            display(Progress("profile", done, 5, remaining_s=5.0 - done, detail="0.4 ms"))
        display(Note("done"))
    text = written.getvalue()
    assert "3/5" in text
    assert "2.0 s left   0.4 ms" in text
    assert "profile   5/5   0.4 ms" in text


def test_an_over_budget_candidate_says_so() -> None:
    over = CandidateMeasured({}, 0.3, 0.32, (0.31, 0.33), False)
    assert candidate_line(over).endswith("over budget")


def test_only_words_that_carry_the_verdict_are_coloured() -> None:
    text = styled("error: bad\nverdict pass: SIMULATED\npasses missing warning: x")
    coloured = sorted(text.plain[span.start : span.end] for span in text.spans)
    assert coloured == ["SIMULATED", "error", "pass"]


def test_json_has_no_nan_and_the_schema_first(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    outcome = Outcome("text", {"latency_ms": float("nan"), "schema": "x", "path": "ü"}, next=("hwprune report last",))
    Streams(as_json=True).result("hwprune.bench/1", outcome)
    out, err = capsys.readouterr()
    assert list(json.loads(out).items()) == [("schema", "hwprune.bench/1"), ("latency_ms", None), ("path", "ü")]
    assert err == ""


def test_no_colour_for_dumb_terminals_and_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert Streams().console(stderr=True).color_system is None
    assert Streams(color="always").console(stderr=True).is_terminal


@pytest.fixture
def handler() -> Iterator[object]:
    before = signal.getsignal(signal.SIGINT)
    yield before
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_interrupt_asks_the_second_stops(handler: object) -> None:
    told: list[str] = []
    with Stop(told.append) as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        assert told == ["note: finishing this step and saving; Ctrl-C again stops now"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_note_reaches_the_user_while_a_library_is_silenced(
    handler: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ONNX export redirects stderr; Ctrl-C during it must not look ignored."""
    call = Call(Common(None, 0, False, 0, False, Color.auto, None, False), Streams())
    with call.job() as (_, stop):
        with contextlib.redirect_stderr(io.StringIO()):
            signal.raise_signal(signal.SIGINT)
        assert stop()
    assert "Ctrl-C again stops now" in capsys.readouterr().err


def test_without_an_interrupt_nothing_is_asked(handler: object) -> None:
    with Stop(lambda text: None) as stop:
        assert not stop()


def test_figures_of_a_search_are_told_in_words() -> None:
    told = {"penalty": 0.00123456, "open_share": 0.8007, "narrowest": 0.4857, "cost": 0.8116, "budget": 0.5852}
    words = "penalty 0.001235  open channels 80.1 %  narrowest group 48.6 %  latency 81.2 % of dense"
    assert figures(told) == f"{words}  budget 58.5 % of dense"
    assert figures({"loss": 0.5, "my_own": 2.0}) == "loss 0.5  my own 2"
