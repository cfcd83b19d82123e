"""Networks at which a process lost its device for good: they are measured alone next time, and then not at all.

A sticky error of a local GPU ends the process, and the same command would meet the same network again. Which of a batch
it was is not known at first. Behind a connection the agent's supervisor does this by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from hwprune.core.files import Journal
from hwprune.core.widths import Widths

FILE = "deaths.jsonl"
DEADLY = 2


class Deaths:
    """What is kept of them beside a latency table."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / FILE)
        records, _ = self._journal.read()
        self._counts = Counter(tuple(values) for record in records for values in record["in_hand"])

    def note(self, in_hand: Iterable[Widths]) -> None:
        """Keep that a process lost the device while it had these networks in hand; on the disk when this returns."""
        values = [widths.values_tuple() for widths in in_hand]
        self._journal.append({"in_hand": [list(item) for item in values]})
        self._counts.update(values)

    def suspects(self, widths: Widths) -> bool:
        """Whether it was in hand once: it is measured alone, so that it can harm no other."""
        return self._counts[widths.values_tuple()] > 0

    def deadly(self, widths: Widths) -> bool:
        """Whether two processes lost the device with it."""
        return self._counts[widths.values_tuple()] >= DEADLY
