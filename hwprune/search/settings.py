"""Everything that decides what a run is. Two runs with equal settings are the same run; the folder keeps them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from hwprune.core import config
from hwprune.core.errors import RunError, UsageError
from hwprune.core.files import atomic_write_text
from hwprune.core.measurement import Target
from hwprune.core.units import format_ms, parse_count
from hwprune.core.widths import Budget, Limits, Statistic
from hwprune.devices import resolve

if TYPE_CHECKING:
    from typing_extensions import Self


TrainPrecision = Literal["fp32", "bf16", "auto"]


class SearchOptions(TypedDict, total=False):
    """The keyword options of `hwprune.search`; None means the default. `options` are those of the method.

    Epochs: `dense_epochs` of a network that has no weights yet (0: it is taken as it is), `epochs` of the search
    itself, `finetune_epochs` afterwards, or `total_epochs` of search and finetuning together: finetuning then gets what
    the search has left, counted in images that went forward and backward. `lr` and `batch_size` are those of the search
    and the finetuning; `train_precision` what all training computes in ("auto": whichever is faster here), never what
    is exported. `tile` is in channels, or "auto"; `min_keep` the least share of a group's units that stays. With
    `depth` whole residual branches may go. `protect`: layers whose channels all stay, as for `trace`. `max_params` and
    `max_macs` bound the network beside its latency: counts, or text as "2M".
    """

    weights: str | Path | None
    device: str
    runtime: str | None
    batch: int
    threads: int
    statistic: Statistic
    method: str | None
    options: Mapping[str, Any] | None
    samples: int
    tile: int | str
    min_keep: float | None
    depth: bool
    protect: Sequence[str]
    max_params: int | str | None
    max_macs: int | str | None
    dense_epochs: float | None
    epochs: float | None
    finetune_epochs: float | None
    total_epochs: float | None
    lr: float | None
    train_precision: TrainPrecision
    batch_size: int
    seed: int


COMPARED_METHODS, COMPARED_BUDGETS = ("gdp", "greedy", "uniform"), ("75%", "60%", "45%")
LEAST_SAMPLES = 16  # of which a quarter is held out to judge the latency model


@dataclass(frozen=True)
class SearchSettings:
    """The resolved options of `hwprune search`. Names equal the flags.

    0 of `total_epochs`, `max_params` and `max_macs`: not given.
    """

    model: str = "digits_resnet"
    data: str = "digits"
    weights: str = ""
    device: str = "cpu"
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    latency_ms: float | None = None
    latency_fraction: float | None = None
    statistic: Statistic = "median"
    method: str = "greedy"
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 100
    tile: int = 0
    min_keep: float = 0.2
    depth: bool = False
    protect: tuple[str, ...] = ()
    max_params: int = 0
    max_macs: int = 0
    dense_epochs: float = 12.0
    epochs: float = 2.0
    finetune_epochs: float = 4.0
    total_epochs: float = 0.0
    lr: float = 0.01
    train_precision: TrainPrecision = "fp32"
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        self.budget  # noqa: B018  (raises when the two forms of the budget are both given or both missing)
        for name, least in (
            ("batch", 1),
            ("threads", 1),
            ("samples", LEAST_SAMPLES),
            ("tile", 0),
            ("max_params", 0),
            ("max_macs", 0),
            ("batch_size", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("epochs", "lr", "dense_epochs", "finetune_epochs", "total_epochs"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a finite number")
        for name in ("epochs", "lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be more than 0")
        for name in ("dense_epochs", "finetune_epochs", "total_epochs"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if 0 < self.total_epochs < self.epochs:
            raise UsageError(
                f"total_epochs is {self.total_epochs:g}, less than the {self.epochs:g} epochs of the search alone",
                hint="raise --total-epochs or lower --epochs",
            )
        if not 0 < self.min_keep <= 1:
            raise UsageError(f"min_keep is {self.min_keep}; it must be above 0 and at most 1")

    @classmethod
    def make(cls, *, latency_ms: float | None = None, latency: str | None = None, **given: Any) -> Self:
        """Settings from what a user gave; what is None takes its default, device and runtime their own names.

        Raises `UsageError` for an unknown option, naming the nearest one, for two budgets, and for a network without
        data.
        """
        if latency_ms is not None and latency is not None:
            raise UsageError(
                f"latency_ms {latency_ms:g} and latency {latency} are two budgets", hint="give one of them"
            )
        typed = None if latency is None else parse_budget(latency)
        if typed is not None and typed.latency_ms is not None:
            latency_ms = typed.latency_ms
        values = {name: value for name, value in given.items() if value is not None}
        check_data(values.get("model"), values.get("data"))
        if "weights" in values:
            values["weights"] = str(values["weights"])
        values["tile"] = parse_tile(values.get("tile", "auto"))
        for name in ("max_params", "max_macs"):
            if name in values:
                values[name] = parse_count(str(values[name]))
        named = resolve(Target(values.get("device", "cpu"), values.get("runtime", Target.runtime)))
        values |= {"device": named.device, "runtime": named.runtime, "precision": named.precision}
        if latency_ms is not None:
            values["latency_ms"] = latency_ms
        if typed is not None and typed.fraction is not None:
            values["latency_fraction"] = typed.fraction
        return config.from_mapping(cls, values, where="search")

    @property
    def budget(self) -> Budget:
        """The bound on the measured latency, and what else bounds the network."""
        limits = Limits(self.max_params or None, self.max_macs or None)
        return Budget(self.latency_ms, self.latency_fraction, self.statistic, limits)

    @property
    def target(self) -> Target:
        """Device, runtime, precision, batch and threads."""
        return Target(self.device, self.runtime, self.precision, self.batch, self.threads)

    def to_json(self) -> dict[str, Any]:
        """A document of plain values; `options` stay nested."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SearchSettings:
        """What `to_json` gave."""
        return config.from_mapping(cls, document, where="settings")

    def default_folder(self, root: Path) -> Path:
        """The run folder of these settings: readable, and the same for the same command."""
        budget = f"{self.latency_fraction:.0%}" if self.latency_fraction else format_ms(self.latency_ms or 0)
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:6]
        parts = (Path(self.model.split("?")[0]).name, self.device, budget, self.method, digest)
        return root / "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part.replace("%", "pct")).strip("-") for part in parts)

    def write(self, path: Path) -> None:
        """Write `run.toml`."""
        atomic_write_text(path, config.to_toml(self.to_json()))

    @classmethod
    def read(cls, path: Path) -> SearchSettings:
        """The settings that `write` wrote."""
        return config.from_mapping(cls, config.read_toml(path), where=str(path))

    def check_same(self, kept: SearchSettings, folder: Path) -> None:
        """`RunError` naming every field in which a folder's settings differ from these."""
        mine, theirs = self.to_json(), kept.to_json()
        changed = [f"{name}: {theirs[name]!r} there, {mine[name]!r} now" for name in mine if mine[name] != theirs[name]]
        if changed:
            raise RunError(
                f"{folder} holds a run with other settings ({'; '.join(changed)})",
                hint="repeat the old command to continue it, or choose another --run-dir",
            )


def parse_budget(latency: str) -> Budget:
    """The budget that somebody typed: "60%" of dense, or "4ms". Raises `UsageError`; 0.6 was meant as a share."""
    typed = latency.strip()
    if re.fullmatch(r"0?\.\d*[1-9]\d*", typed):
        raise UsageError(f"a budget of '{typed}' has no unit", hint=f"{100 * float(typed):g}% of dense, or {typed}ms")
    return Budget.parse(typed)


def check_data(model: str | None, data: str | None) -> None:
    """Raise `UsageError` for a network without data: what we train on by default belongs to the default network."""
    if data is None and (model or DEFAULTS.model).partition("?")[0] != DEFAULTS.model:
        raise UsageError(
            f"which data is {model} for?",
            hint="add --data: digits, cifar10:PATH, imagefolder:PATH, npz:PATH or FILE.py:FUNCTION",
        )


def parse_tile(tile: int | str) -> int:
    """Channels, or 0 for `auto`: found by a probe."""
    if tile == "auto":
        return 0
    if not str(tile).isdecimal() or int(tile) < 1:
        raise UsageError(f"tile is {tile!r}; it must be auto or a whole number above 0")
    return int(tile)


DEFAULTS = SearchSettings(latency_fraction=1.0)
