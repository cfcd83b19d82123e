"""Is this machine fit to measure? Each check has a status, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwprune.devices.board import Board


@dataclass(frozen=True)
class Check:
    """One line of `hwprune doctor`. `status` is pass, warn or fail; `fix` is "" where nothing is to be done."""

    name: str
    status: str
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """A JSON document."""
        return asdict(self)


def run_checks(board: Board) -> tuple[Check, ...]:
    """All checks of a local board."""
    return (Check("runtime", "pass", f"{board.fingerprint.runtime} {board.fingerprint.runtime_version}"),)
