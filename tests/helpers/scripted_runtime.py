"""A runtime of the standard library alone whose models say what it does: times, crashes, hangs, prints.

A model is a JSON object: `ms` of one run, `do` when it is built (`segv`, `kill`, `hang`, `shout`, `refuse`, `break`),
`once` a file that makes it do so the first time only. Every build is noted in the file that `HWPRUNE_TEST_BUILDS`
names; the fingerprint has the content of the file that `HWPRUNE_TEST_STATE` names.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hwprune.core.errors import UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Target
from hwprune.core.tensors import RawTensor
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._machine import Disturbances, Machine, VirtualClock

if TYPE_CHECKING:
    import numpy as np

MACHINE = Machine(Disturbances())
GARBAGE = "x" * 1023 + "\n"


def _act(script: Mapping[str, object]) -> None:
    once = script.get("once")
    if once is not None:
        if Path(str(once)).exists():
            return
        Path(str(once)).write_text("done")
    action = script.get("do")
    if action == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "hang":
        time.sleep(3600)
    elif action == "shout":
        for _ in range(1024):
            os.write(1, GARBAGE.encode())
    elif action == "refuse":
        raise UsageError("this model is refused", hint="send another one")
    elif action == "break":
        raise ZeroDivisionError("broken inside")


class ScriptedSession(AbstractSession):
    def __init__(self, ms: float) -> None:
        self._ms = ms

    def run(self) -> None:
        MACHINE.run(self._ms, sensitivity=1.0, flips=False)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        raise NotImplementedError

    def infer_raw(self, inputs: Mapping[str, RawTensor]) -> list[RawTensor]:
        return [inputs[name] for name in sorted(inputs)]

    def close(self) -> None:
        return


@dataclass(frozen=True)
class ScriptedRuntime(AbstractRuntime):
    simulated: ClassVar[bool] = True

    levels: tuple[int, ...] = field(default=(1, 2))

    def check(self, target: Target) -> None:
        if self.levels != (1, 2):
            raise UsageError(f"levels {self.levels}")

    def fingerprint(self, target: Target) -> Fingerprint:
        state = os.environ.get("HWPRUNE_TEST_STATE", "")
        flags = (("clocks", Path(state).read_text() if state else "locked"),)
        return Fingerprint(target.device, "SIMULATED script", 1, "scripted", "1", "fp32", 1, 1, "none", flags)

    def clock(self, target: Target) -> AbstractClock:
        return VirtualClock(MACHINE)

    def open(self, model: bytes, target: Target) -> ScriptedSession:
        script = json.loads(model)
        log = os.environ.get("HWPRUNE_TEST_BUILDS")
        if log and "name" in script:
            with open(log, "a") as file:
                file.write(f"{script['name']}\n")
        _act(script)
        return ScriptedSession(script["ms"])

    def layer_times(self, model: bytes, target: Target, *, runs: int) -> tuple[LayerTime, ...]:
        return (LayerTime("whole", "Script", json.loads(model)["ms"], ((1, 2),), ((3,),), f"{runs} runs"),)
