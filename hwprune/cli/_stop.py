"""Ctrl-C: once finishes the step in hand and saves, twice stops now."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType


class Stop:
    """The `stop` argument of a long job: a callable that turns true at the first Ctrl-C.

    Use it as a context manager around the job; the handler that was there before comes back.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._asked = False
        self._before: object = None

    def __call__(self) -> bool:
        """Whether the user asked to stop."""
        return self._asked

    def __enter__(self) -> Stop:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]  # what signal.signal itself returned

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._tell("note: finishing this step and saving; Ctrl-C again stops now")
