"""hwprune: the most accurate smaller network that measurably meets a latency budget on your device.

The public names are loaded when they are first used: `import hwprune` loads no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "bench": "hwprune.api",
    "compare": "hwprune.api",
    "cut": "hwprune.graph",
    "device": "hwprune.api",
    "devices": "hwprune.api",
    "doctor": "hwprune.api",
    "explain": "hwprune.api",
    "export": "hwprune.api",
    "finetune": "hwprune.api",
    "fit": "hwprune.api",
    "inspect": "hwprune.api",
    "load": "hwprune.api",
    "load_data": "hwprune.training",
    "load_model": "hwprune.models",
    "mask": "hwprune.graph",
    "predict": "hwprune.api",
    "profile": "hwprune.api",
    "report": "hwprune.api",
    "search": "hwprune.api",
    "trace": "hwprune.graph",
    "Budget": "hwprune.core.widths",
    "ChannelGraph": "hwprune.graph",
    "Comparison": "hwprune.core.comparison",
    "HwpruneError": "hwprune.core.errors",
    "Measurement": "hwprune.core.measurement",
    "Prediction": "hwprune.core.measurement",
    "SearchSpace": "hwprune.core.widths",
    "Target": "hwprune.core.measurement",
    "Widths": "hwprune.core.widths",
}

__all__ = [
    "Budget",
    "ChannelGraph",
    "Comparison",
    "HwpruneError",
    "Measurement",
    "Prediction",
    "SearchSpace",
    "Target",
    "Widths",
    "__version__",
    "bench",
    "compare",
    "cut",
    "device",
    "devices",
    "doctor",
    "explain",
    "export",
    "finetune",
    "fit",
    "inspect",
    "load",
    "load_data",
    "load_model",
    "mask",
    "predict",
    "profile",
    "report",
    "search",
    "trace",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hwprune' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


class _Package(ModuleType):
    """Keeps `hwprune.search` the verb: importing the folder `hwprune/search` would bind the module to that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from hwprune.api import (
        bench,
        compare,
        device,
        devices,
        doctor,
        explain,
        export,
        finetune,
        fit,
        inspect,
        load,
        predict,
        profile,
        report,
        search,
    )
    from hwprune.core.comparison import Comparison
    from hwprune.core.errors import HwpruneError
    from hwprune.core.measurement import Measurement, Prediction, Target
    from hwprune.core.widths import Budget, SearchSpace, Widths
    from hwprune.graph import ChannelGraph, cut, mask, trace
    from hwprune.models import load_model
    from hwprune.training import load_data
