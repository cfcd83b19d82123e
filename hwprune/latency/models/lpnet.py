"""LPNet: a non-negative physics backbone times a small smooth network (our design).

The backbone weighs sums of tile-rounded work (non-negative least squares on relative errors); the network learns
what is left, on log latency, as an ensemble. Cross-validation decides how much of the network's correction is used,
so with few samples it is switched off and LPNet is its backbone. `features="widths"` is the plain MLP on widths that
W-Gates describes, kept as the control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hwprune.core.errors import UsageError
from hwprune.latency.features import Array, IntArray, Work
from hwprune.latency.models._base import AbstractLatencyModel, Fitted, HeldOut, folds
from hwprune.latency.models._network import Members, train_members
from hwprune.latency.models._regression import relative_nnls
from hwprune.latency.samples import Samples

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(eq=False)
class LPNet(AbstractLatencyModel):
    """Physics backbone times the exponential of an ensemble's mean output."""

    features: Literal["work", "widths"] = field(
        default="work", metadata={"help": "work: tile-rounded work with a physics backbone; widths: plain MLP"}
    )
    members: int = field(default=5, metadata={"help": "networks in the ensemble"})
    hidden: int = field(default=16, metadata={"help": "units in each of the two hidden layers"})
    decay: float = field(default=0.1, metadata={"help": "weight decay"})
    steps: int = field(default=150, metadata={"help": "training steps"})

    def __post_init__(self) -> None:
        if self.features not in ("work", "widths"):
            raise UsageError(f"LPNet has no features '{self.features}'", hint="known: work, widths")
        if min(self.members, self.hidden, self.steps) < 1:
            raise UsageError("LPNet needs at least one member, one hidden unit and one step")

    def train(self, samples: Samples, seed: int) -> HeldOut:
        """Backbone, then the ensemble and its cross-validation in one batch, then the share of the correction."""
        self._work = Work(samples.op_templates, samples.space, samples.tile)
        self._dense = samples.space.dense().values_tuple()
        raw, columns, latency_ms = self._raw(samples.values), self._columns(samples.values), samples.latency_ms
        self._mean, self._scale = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-9)
        parts = [*folds(len(samples), seed), (np.arange(len(samples)), np.arange(0))]
        coefficients = [relative_nnls(columns[train], latency_ms[train]) for train, _ in parts]
        residuals = np.stack([np.log(latency_ms / (columns @ c)) for c in coefficients])
        self._unit = max(float(residuals[-1].std()), 1e-6)
        self._reach = float(residuals[-1].min()), float(residuals[-1].max())
        seen = np.stack([np.isin(np.arange(len(samples)), train).astype(np.float64) for train, _ in parts])
        networks = train_members(
            self._inputs(samples.values),
            np.repeat(residuals / self._unit, self.members, axis=0),
            np.repeat(seen, self.members, axis=0),
            hidden=self.hidden,
            decay=self.decay,
            steps=self.steps,
            seed=seed,
        )
        outputs = networks(self._inputs(samples.values)).reshape(len(parts), self.members, -1) * self._unit
        held = [(residuals[part, test], outputs[part][:, test]) for part, (_, test) in enumerate(parts[:-1])]
        left = np.concatenate([residual for residual, _ in held])
        corrections = np.concatenate([output for _, output in held], axis=1)
        self._share = _best_share(left, corrections.mean(axis=0))
        self._coefficients = coefficients[-1]
        self._members = networks.take(range(len(networks.weights[0]) - self.members, len(networks.weights[0])))
        errors = np.exp(self._share * corrections.mean(axis=0) - left) - 1
        return HeldOut(errors, self._share * corrections.std(axis=0))

    def predict_batch(self, values: IntArray) -> Array:
        """Predicted ms `[B]` for widths `[B, G]`."""
        backbone = self._columns(values) @ self._coefficients
        if self._share == 0.0:
            return np.asarray(backbone)
        # Far from what was measured the network is a guess: it corrects by no more than was ever seen missing.
        correction = np.clip(self._unit * self._members(self._inputs(values)).mean(axis=0), *self._reach)
        return np.asarray(backbone * np.exp(self._share * correction))

    def spread_batch(self, values: IntArray) -> Array:
        """Standard deviation of the members' log corrections `[B]`."""
        return np.asarray(self._share * self._unit * self._members(self._inputs(values)).std(axis=0))

    def state(self) -> dict[str, Any]:
        """Backbone, scaling of the inputs, share of the correction, and the ensemble."""
        return {
            "terms": list(self._names()),
            "coefficients": self._coefficients.tolist(),
            "mean": self._mean.tolist(),
            "scale": self._scale.tolist(),
            "unit": self._unit,
            "reach": list(self._reach),
            "share": self._share,
            "members": self._members.to_json(),
        }

    def restore(self, state: Mapping[str, Any], fitted: Fitted) -> None:
        """The same network again; nothing of it is trainable any more."""
        self._work = Work(fitted.op_templates, fitted.space, fitted.tile)
        self._dense = fitted.space.dense().values_tuple()
        if tuple(state["terms"]) != self._names():
            raise ValueError(f"terms {state['terms']} do not fit this network")
        self._coefficients = np.array(state["coefficients"], dtype=np.float64)
        self._mean, self._scale = np.array(state["mean"]), np.array(state["scale"])
        self._unit, self._share = float(state["unit"]), float(state["share"])
        self._reach = float(state["reach"][0]), float(state["reach"][1])
        self._members = Members.from_json(state["members"])

    def _names(self) -> tuple[str, ...]:
        return ("constant", *(self._work.term_names if self.features == "work" else ()))

    def _columns(self, values: IntArray) -> Array:
        """What the backbone weighs, `[B, 1 + T]`: a constant and, with features of work, its sums by kind."""
        constant = np.ones((len(values), 1))
        return np.concatenate([constant, self._work.terms(values)], axis=1) if self.features == "work" else constant

    def _raw(self, values: IntArray) -> Array:
        """What the network reads, not yet standardised: keep ratios and, with features of work, log sums by kind."""
        ratios: Array = np.asarray(values, dtype=np.float64) / np.array(self._dense)
        if self.features == "widths":
            return ratios
        return np.concatenate([ratios, np.log(self._work.terms(values) + 1.0)], axis=1)

    def _inputs(self, values: IntArray) -> Array:
        return np.asarray((self._raw(values) - self._mean) / self._scale)


def _best_share(residuals: Array, corrections: Array) -> float:
    """The share of the correction with the least held-out error; 0 unless that gain is beyond one standard error."""
    errors = [np.abs(residuals - share * corrections) for share in _SHARES]
    best = int(np.argmin([error.mean() for error in errors]))
    gain = errors[0] - errors[best]
    return _SHARES[best] if gain.mean() > gain.std() / np.sqrt(len(gain)) else 0.0
