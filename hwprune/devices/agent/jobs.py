"""A job as the supervisor sees it: what it needs, what it is doing, and how long that may take."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


class Job:
    """One request of the host. `content` names what is asked for, `name` this asking of it.

    `patience_s` is how long its worker may be silent in the present stage; silence is counted in slices of a second.
    """

    def __init__(self, message: Mapping[str, Any]) -> None:
        self.name: str = message["job"]
        self.content: str = message["content"]
        self.kind: str = message["kind"]
        self.arguments: dict[str, Any] = message["arguments"]
        self.blobs: list[str] = message["blobs"]
        self.acknowledged: int = message["acknowledged"]
        self.stage = "start"
        self.opening = False
        self._limits: dict[str, float] = message["limits"]
        self._silent_slices = 0

    @property
    def patience_s(self) -> float:
        """How long the present stage may take without a word."""
        return self._limits["round_s"] if self.stage == "measure" else self._limits["build_s"]

    def heard(self, said: Mapping[str, Any]) -> None:
        """The worker said something."""
        self._silent_slices = 0
        if said["type"] == "stage":
            self.stage = said["stage"]
        elif said["type"] in ("built", "round"):
            self.stage = "measure"

    def overdue(self) -> bool:
        """Count a slice of silence; whether there have been too many."""
        self._silent_slices += 1
        return self._silent_slices > self.patience_s

    def with_reference(self, job: Job) -> dict[str, Any]:
        """The arguments of this opening for a later worker, whose reference time is the one `job` is to use."""
        return {**self.arguments, "reference_ms": job.arguments["reference_ms"]}

    def again(self) -> Job:
        """The same job from the beginning."""
        fresh = copy.copy(self)
        fresh.stage, fresh.opening, fresh._silent_slices = "start", False, 0
        return fresh
