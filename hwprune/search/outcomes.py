"""What the verbs of the Python API return, and the way back from a run folder to its network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from hwprune.core.comparison import Comparison
from hwprune.core.errors import HwpruneError, UsageError
from hwprune.core.files import read_json
from hwprune.core.measurement import Measurement
from hwprune.devices.together import Pair
from hwprune.graph import Recipe, apply_recipe
from hwprune.models import load_model, load_weights, names_model
from hwprune.report.run_data import Result
from hwprune.report.runtimes_text import judged
from hwprune.search.run_folder import find_run
from hwprune.search.settings import SearchSettings

OUTPUT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Run:
    """A finished search. `build` makes the network the run began with; it is called when `model` is asked for."""

    folder: Path
    result: Result
    build: Callable[[], nn.Module]

    @property
    def verdict(self) -> str:
        """`pass`, `miss` or `infeasible`: a measurement against the budget."""
        return self.result.verdict

    @property
    def measured(self) -> Measurement | None:
        """The pruned network's final measurement; None when the budget was infeasible."""
        return self.result.measurements.get("pruned")

    @property
    def model(self) -> nn.Module:
        """The pruned network, in eval mode. Raises `UsageError` when the budget was infeasible."""
        return load(self.folder, build=self.build)


@dataclass(frozen=True)
class BenchResult:
    """Networks timed in turns in one process; `comparisons` are each beside the first, timed every few laps in turn.

    `verdict` is `fail` when the upper end of an interval lies above `fail_above_ms`. The first of several networks
    is what the others are compared with, and is not judged. With several runtimes, `pairs` tells network and runtime
    of every measurement; `comparisons` are every runtime against the first, and every network against the first in
    the same runtime; `failures` is why the rest is missing, and a network that is missing is not below a limit.
    """

    measurements: Mapping[str, Measurement]
    comparisons: tuple[Comparison, ...]
    fail_above_ms: float | None = None
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    failures: Mapping[str, HwpruneError] = field(default_factory=dict)
    build_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`pass` or `fail`."""
        limit = self.fail_above_ms
        if limit is None:
            return "pass"
        over = any(self.measurements[name].ci_ms[1] > limit for name in judged(self.measurements, self.pairs))
        return "fail" if over or self.failures else "pass"


@dataclass(frozen=True)
class Exported:
    """An ONNX file and how far its outputs, run by ONNX Runtime, are from torch's (largest absolute difference)."""

    path: Path
    size_bytes: int
    max_difference: float
    tolerance: float = OUTPUT_TOLERANCE


def load(run: str | Path, *, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The pruned network of a run, in eval mode: its recipe applied to a fresh model from `build`, then its weights.

    Without `build` the model is made from the name in the run's settings.
    """
    folder = find_run(run)
    if not (folder / "recipe.json").exists():
        raise UsageError(f"{folder} has no pruned network", hint="its verdict is infeasible, or it did not finish")
    fresh = (build or builder(folder, SearchSettings.read(folder / "run.toml"), None))()
    small = apply_recipe(Recipe.from_json(read_json(folder / "recipe.json")), fresh)
    load_weights(small, folder / "best.safetensors")
    return small.eval()


def builder(folder: Path, settings: SearchSettings, network: nn.Module | None) -> Callable[[], nn.Module]:
    """A function that makes the network a run began with: a copy of the object it was given, or from the name."""

    def build() -> nn.Module:
        if network is not None:
            return copy.deepcopy(network)
        facts = read_json(folder / "environment.json")
        shape = tuple(int(size) for size in facts["input_shape"])
        if not names_model(settings.model):
            raise UsageError(
                f"{folder} is a run of a network object, {settings.model}, which only your code can make",
                hint="in Python: hp.load(run, build=...) and hp.finetune(run, build=...) take a function that makes it",
            )
        return load_model(settings.model, classes=facts["classes"] or None, input_shape=shape, seed=settings.seed)

    return build
