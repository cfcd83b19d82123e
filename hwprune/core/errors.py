"""Every error a user can meet: what is wrong (with the offending value), what to do, and the exit code.

Exit codes: 1 the answer is no, 2 your command or file is wrong, 3 the device or environment is wrong,
4 a bug of ours, 130 interrupted with the state saved. 0 is success.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import ClassVar


class HwpruneError(Exception):
    """Base of all errors that are shown to a user as `error:` and `hint:`, without a traceback."""

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HwpruneError):
    """The command, an option, a configuration key or an input file is wrong."""

    exit_code = 2


class GraphError(UsageError):
    """The model cannot be traced, cut or exported; the message names the operator or module."""


class DataError(UsageError):
    """The data set is broken: an unreadable image, a NaN, a label out of range."""


class TableError(UsageError):
    """A latency table is corrupt, or was measured under another fingerprint."""


class RunError(UsageError):
    """A run folder is in use, or was started with another configuration."""


class DeviceError(HwpruneError):
    """The device, runtime or environment is wrong: missing package, full disk, unwritable folder.

    `ends_process`: nothing more can be done with the device in this process, though perhaps in another one.
    """

    exit_code = 3
    ends_process: ClassVar[bool] = False


class NetworkUnfit(DeviceError):
    """One network cannot be measured on the device, such as one for which no engine is found; others can."""


class BudgetInfeasible(HwpruneError):
    """No network of the space meets the budget.

    `smallest_ms` is the least that was found reachable; infinite where it is not the latency that cannot be met.
    """

    exit_code = 1

    def __init__(self, message: str, *, smallest_ms: float = math.inf, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.smallest_ms = smallest_ms


class TrainingDiverged(HwpruneError):
    """The loss or a weight became NaN or infinite and stayed so."""

    exit_code = 1


class MethodGaveUp(HwpruneError):
    """A method ended without an answer that it stands by: this run failed, others of its kind need not."""

    exit_code = 1


class Interrupted(HwpruneError):
    """The user asked to stop; everything up to the last finished step is saved."""

    exit_code = 130


def public_class(error: HwpruneError) -> str:
    """The name of the class in this file that an error is one of: what another process knows it by."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is in no list: says the value, the nearest name and all names."""
    names = sorted(known)
    return UsageError(f"unknown {kind} '{name}'.{did_you_mean(name, names)}", hint=f"known: {', '.join(names)}")
