"""Networks at which a process died or lost its device for good: measured alone next time, and then not at all.

A sticky error of a local GPU ends the process, and so does a native library that crashes; the same command would meet
the same network again. Which of a batch it was is not known at first. What is in hand is therefore on the disk while
it is measured, and a crash leaves its trace in a file beside it: a process that was killed leaves none and counts
nothing. Behind a connection the agent's supervisor does this by itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from hwprune.core.files import Journal, read_json, write_json
from hwprune.core.widths import Widths

FILE, IN_HAND, TRACE = "deaths.jsonl", "in_hand.json", "crash.txt"
DEADLY = 2


class Deaths:
    """What is kept of them beside a latency table; one process at a time, which holds the table's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = Journal(folder / FILE)
        records, _ = self._journal.read()
        self._counts = Counter(tuple(values) for record in records for values in record["in_hand"])
        self._now: dict[int, list[tuple[int, ...]]] = {}  # by thread
        self.crash = self._crash_before()

    def note(self, in_hand: Iterable[Widths]) -> None:
        """Keep that a process lost the device while it had these networks in hand; on the disk when this returns."""
        self._count([widths.values_tuple() for widths in in_hand])

    def suspects(self, widths: Widths) -> bool:
        """Whether it was in hand once: it is measured alone, so that it can harm no other."""
        return self._counts[widths.values_tuple()] > 0

    def deadly(self, widths: Widths) -> bool:
        """Whether two processes ended with it."""
        return self._counts[widths.values_tuple()] >= DEADLY

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts, a crash of a native library leaves a trace beside the table."""
        before = faulthandler.is_enabled()
        with open(self._folder / TRACE, "w", encoding="utf-8") as trace:
            faulthandler.enable(trace, all_threads=False)
            try:
                yield
            finally:
                faulthandler.disable()
                if before and sys.__stderr__ is not None:
                    faulthandler.enable(sys.__stderr__)
        self._forget()

    @contextlib.contextmanager
    def holding(self, in_hand: Iterable[Widths]) -> Iterator[None]:
        """These networks are in hand of this thread; called with the lock of the threads, left without it."""
        self._now[threading.get_ident()] = [widths.values_tuple() for widths in in_hand]
        write_json(self._folder / IN_HAND, [list(values) for held in list(self._now.values()) for values in held])
        try:
            yield
        finally:
            self._now.pop(threading.get_ident(), None)

    def _crash_before(self) -> str:
        """The first line of the trace that a process before this one left; what it had in hand is counted."""
        trace, held = self._folder / TRACE, self._folder / IN_HAND
        told = trace.read_text(encoding="utf-8", errors="replace").strip() if trace.exists() else ""
        if told and held.exists():
            self._count([tuple(values) for values in read_json(held)])
        self._forget()
        return told.partition("\n")[0]

    def _count(self, values: list[tuple[int, ...]]) -> None:
        self._journal.append({"in_hand": [list(item) for item in values]})
        self._counts.update(values)

    def _forget(self) -> None:
        for name in (TRACE, IN_HAND):
            (self._folder / name).unlink(missing_ok=True)
