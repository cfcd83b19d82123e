"""The contract of a latency model: widths in, milliseconds with an error bar out.

A model file says how to `train` on measured networks, how to `predict_batch`, and what its state is. Fitting, the
calibrated error, coverage and storage are the same for all and live here.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hwprune.core import plugins
from hwprune.core.errors import TableError, UsageError
from hwprune.core.files import read_json, write_json
from hwprune.core.measurement import Fingerprint, Prediction
from hwprune.core.ops import OpTemplate
from hwprune.core.widths import SearchSpace
from hwprune.latency.features import Array, IntArray, Work, widths_array
from hwprune.latency.samples import Samples

PACKAGE = "hwprune.latency.models"
SCHEMA = "hwprune.latency_model/1"
LEAST_SAMPLES = 10
_FOLDS = 5
_ONE_SIGMA = 0.683

Model = TypeVar("Model", bound="AbstractLatencyModel")


@dataclass(frozen=True)
class Fitted:
    """What every fitted model knows of its training data.

    `error`: one sigma of the held-out relative error, as a multiple of the scale `sqrt(floor**2 + spread**2)`.
    `measured`: for each group the widths that occurred, ascending. `data`: the digest of the samples; empty in the
    first models that were stored.
    """

    space: SearchSpace
    op_templates: tuple[OpTemplate, ...]
    tile: int
    fingerprint: Fingerprint | None
    sample_count: int
    measured: tuple[tuple[int, ...], ...]
    error: float
    floor: float
    data: str = ""

    @cached_property
    def work(self) -> Work:
        """The operators compiled for the space."""
        return Work(self.op_templates, self.space, self.tile)

    @classmethod
    def of(cls, samples: Samples, error: float, floor: float, data: str) -> Fitted:
        """The facts of these merged samples."""
        measured = tuple(tuple(int(w) for w in np.unique(column)) for column in samples.values.T)
        facts = samples.space, samples.op_templates, samples.tile, samples.fingerprint
        return cls(*facts, len(samples), measured, error, floor, data)


@dataclass(frozen=True)
class HeldOut:
    """Relative errors `[N]` of networks that were not trained on, and the model's spread `[N]` there."""

    residuals: Array
    spreads: Array


class AbstractLatencyModel(abc.ABC):
    """A latency model. Its dataclass fields are its options; called through `fit`, then `predict`."""

    _fitted: Fitted | None = None

    @abc.abstractmethod
    def train(self, samples: Samples, seed: int) -> HeldOut | None:
        """Learn from merged samples (every sub-network once).

        Returns the errors on held-out parts when training came by them anyway; otherwise None, and `fit` finds them
        by calling this on parts of the data.
        """

    @abc.abstractmethod
    def predict_batch(self, values: IntArray) -> Array:
        """Predicted ms `[B]` for widths `[B, G]` in space order."""

    @abc.abstractmethod
    def spread_batch(self, values: IntArray) -> Array:
        """Relative disagreement `[B]` inside the model (1 sigma of an ensemble); zeros where it has none."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """What `train` learned, as a JSON document."""

    @abc.abstractmethod
    def restore(self, state: Mapping[str, Any], fitted: Fitted) -> None:
        """Take back what `state` gave; `fitted` has the space and the operators."""

    def fit(self: Model, samples: Samples, *, seed: int = 0) -> Model:
        """Train on all samples and calibrate the error bar on held-out fifths of them. Returns itself.

        Raises `TableError` for fewer than 10 different sub-networks, and for measurements so disturbed that the model
        they give predicts no positive latency.
        """
        merged = samples.merged()
        if len(merged) < LEAST_SAMPLES:
            raise TableError(
                f"{len(merged)} measured networks are too few to fit a latency model",
                hint=f"measure at least {LEAST_SAMPLES}; 100 is a good number: hwprune profile --samples 100",
            )
        held_out = self.train(merged, seed) or self._cross_validate(merged, seed)
        floor = max(float(np.sqrt(np.mean(held_out.residuals**2))), 1e-6)
        scaled = np.abs(held_out.residuals) / np.hypot(floor, held_out.spreads)
        self._fitted = Fitted.of(merged, float(np.quantile(scaled, _ONE_SIGMA)), floor, samples.digest())
        self._check_positive(merged)
        return self

    def _check_positive(self, samples: Samples) -> None:
        """Raise `TableError` when the dense, the smallest or a measured network is predicted to take no time."""
        ends = widths_array(samples.space, [samples.space.dense(), samples.space.smallest()])
        predicted = self.predict_batch(np.concatenate([ends, samples.values]))
        if not (np.all(np.isfinite(predicted)) and np.all(predicted > 0)):
            raise TableError(
                f"the measurements contradict each other: the latency model '{self.kind}' fitted to these"
                f" {len(samples)} networks predicts {np.min(predicted):.3g} ms for one of them",
                hint="measure again while the machine is quiet (hwprune doctor says when), with more --samples",
            )

    def _cross_validate(self, samples: Samples, seed: int) -> HeldOut:
        residuals, spreads = np.zeros(len(samples)), np.zeros(len(samples))
        for train, test in folds(len(samples), seed):
            part = type(self)(**self.options())
            part.train(samples.take(train), seed)
            held = samples.take(test)
            residuals[test] = part.predict_batch(held.values) / held.latency_ms - 1
            spreads[test] = part.spread_batch(held.values)
        return HeldOut(residuals, spreads)

    @property
    def fitted(self) -> Fitted:
        """What the model was fitted on. Raises `UsageError` before `fit`."""
        if self._fitted is None:
            raise UsageError(f"the latency model '{self.kind}' has not been fitted", hint="call fit(samples) first")
        return self._fitted

    @property
    def space(self) -> SearchSpace:
        """The search space whose widths it predicts for."""
        return self.fitted.space

    @property
    def step(self) -> int:
        """The channels to which it rounds (1 before `fit`): widths of a finer grid that lie between cost the same."""
        return self._fitted.tile if self._fitted is not None else 1

    @property
    def kind(self) -> str:
        """The model's name: that of its file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def options(self) -> dict[str, Any]:
        """The options this model was made with."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}  # type: ignore[arg-type]

    def predict(self, widths: Mapping[str, int]) -> Prediction:
        """Latency, one-sigma error and coverage for one sub-network. Raises `UsageError` for widths not of the space.

        The error is calibrated on held-out networks; coverage is the share of the network's work in layers whose
        widths lie within one allowed step of measured ones.
        """
        self.space.check(widths)
        values = widths_array(self.space, [widths])
        latency_ms, error_ms = float(self.predict_batch(values)[0]), float(self.error_batch(values)[0])
        mark = self.fitted.fingerprint
        simulated = mark is not None and mark.runtime == "simulated"
        return Prediction(latency_ms, error_ms, _coverage(self.fitted, values), simulated)

    def error_batch(self, values: IntArray) -> Array:
        """Calibrated errors (1 sigma) in ms `[B]` of the predictions for widths `[B, G]`."""
        scale = self.fitted.error * np.hypot(self.fitted.floor, self.spread_batch(values))
        return np.asarray(self.predict_batch(values) * scale)

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes a model that predicts the same."""
        fitted = self.fitted
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "options": self.options(),
            "fingerprint": fitted.fingerprint.to_json() if fitted.fingerprint else None,
            "sample_count": fitted.sample_count,
            "data": fitted.data,
            "error": fitted.error,
            "floor": fitted.floor,
            "tile": fitted.tile,
            "measured": [list(widths) for widths in fitted.measured],
            "space": fitted.space.to_json(),
            "ops": [op.to_json() for op in fitted.op_templates],
            "state": self.state(),
        }

    def save(self, path: str | Path) -> None:
        """Write `to_json()` atomically."""
        write_json(path, self.to_json())


def make_model(kind: str, **options: Any) -> AbstractLatencyModel:
    """An unfitted latency model by name. Raises `UsageError` for an unknown name or option."""
    cls = plugins.load(PACKAGE, kind, AbstractLatencyModel)  # type: ignore[type-abstract]
    known = {item.name for item in fields(cls) if item.init}  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise UsageError(f"latency model '{kind}' has no option '{name}'", hint=f"known: {sorted(known)}")
    return cls(**options)


def from_json(document: Mapping[str, Any]) -> AbstractLatencyModel:
    """The fitted model that `to_json` wrote. Raises `TableError` for a document that is none."""
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise TableError(f"this is not a latency model of the form {SCHEMA}", hint="make one with: hwprune fit")
    try:
        return _restored(document)
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(f"the latency model is corrupt: {error!r}", hint="make it again with: hwprune fit") from error


def load_model(path: str | Path) -> AbstractLatencyModel:
    """The fitted model in a file that `save` wrote."""
    return from_json(read_json(path))


def _restored(document: Mapping[str, Any]) -> AbstractLatencyModel:
    model = make_model(str(document["kind"]), **document["options"])
    fitted = Fitted(
        SearchSpace.from_json(document["space"]),
        tuple(OpTemplate.from_json(op) for op in document["ops"]),
        int(document["tile"]),
        Fingerprint.from_json(document["fingerprint"]) if document["fingerprint"] else None,
        int(document["sample_count"]),
        tuple(tuple(widths) for widths in document["measured"]),
        float(document["error"]),
        float(document["floor"]),
        str(document.get("data", "")),
    )
    model.restore(document["state"], fitted)
    model._fitted = fitted
    return model


def folds(count: int, seed: int) -> Iterator[tuple[IntArray, IntArray]]:
    """(train, test) row numbers of a shuffled cross-validation in `_FOLDS` parts."""
    order = np.random.default_rng(seed).permutation(count)
    for part in range(_FOLDS):
        test = order[part::_FOLDS]
        yield np.setdiff1d(order, test), np.sort(test)


def _coverage(fitted: Fitted, values: IntArray) -> float:
    """The share of MACs (tile-rounded) in layers all of whose groups are near a measured width."""
    covered = {
        name: _near(fitted.space.widths[group], fitted.measured[group], int(values[0, group]))
        for group, name in enumerate(fitted.space.names)
    }
    macs = fitted.work.layers(values).macs[0]
    inside = [all(covered[name] for name, _ in op.in_channels.terms + op.out_channels.terms) for op in fitted.work.ops]
    return float(macs @ np.array(inside, dtype=np.float64) / macs.sum()) if macs.sum() > 0 else float(all(inside))


def _near(allowed: tuple[int, ...], measured: tuple[int, ...], width: int) -> bool:
    """Whether a width lies inside the measured range and within one allowed step of a measured width."""
    place = allowed.index(width)
    near = allowed[max(place - 1, 0) : place + 2]
    return measured[0] <= width <= measured[-1] and any(width_ in measured for width_ in near)
