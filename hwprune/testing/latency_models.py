"""The tests every latency model inherits, and a synthetic network with a staircase whose latency is known exactly.

A new model in `hwprune/latency/models/` gets its tests with
`class TestMine(LatencyModelConformance): kind = "mine"`.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest

from hwprune.core.errors import TableError, UsageError
from hwprune.core.measurement import LayerTime, Prediction
from hwprune.core.ops import ChannelCount, OpTemplate
from hwprune.core.widths import ChannelGroup, SearchSpace
from hwprune.latency.features import Array, IntArray, Work
from hwprune.latency.models._base import AbstractLatencyModel, from_json, make_model
from hwprune.latency.samples import LayerSample, Samples

TILE = 16
# Milliseconds for a unit of each quantity on the synthetic device: MACs, weights, activations; and for each layer.
MS_PER_MAC, MS_PER_WEIGHT, MS_PER_ACTIVATION, MS_PER_LAYER = 2e-8, 1e-6, 4e-8, 2e-3


def staircase_space(tile: int = TILE) -> SearchSpace:
    """Five groups of an inverted-residual network: stem, two blocks' hidden widths, the stage between, the head."""
    units = {"stem": 32, "a.hidden": 96, "stage": 64, "b.hidden": 192, "head": 256}
    groups = tuple(ChannelGroup(name, count) for name, count in units.items())
    return SearchSpace(groups, tuple(tuple(range(tile, group.units + 1, tile)) for group in groups))


def staircase_ops() -> tuple[OpTemplate, ...]:
    """The operators of that network at 48x48 pixels."""
    image, classes = ChannelCount(3), ChannelCount(10)
    stem, a, stage, b, head = (
        ChannelCount(0, ((name, 1),)) for name in ("stem", "a.hidden", "stage", "b.hidden", "head")
    )

    def conv(name: str, before: ChannelCount, after: ChannelCount, kernel: int, sizes: tuple[int, int]) -> OpTemplate:
        size = {"in_size": (sizes[0],) * 2, "out_size": (sizes[1],) * 2, "stride": (sizes[0] // sizes[1],) * 2}
        groups = before if name.endswith("depthwise") else ChannelCount(1)
        return OpTemplate(name, "conv", before, after, (kernel, kernel), groups=groups, fused="relu", **size)  # type: ignore[arg-type]

    return (
        conv("stem", image, stem, 3, (48, 24)),
        conv("a.expand", stem, a, 1, (24, 24)),
        conv("a.depthwise", a, a, 3, (24, 12)),
        conv("a.project", a, stage, 1, (12, 12)),
        conv("b.expand", stage, b, 1, (12, 12)),
        conv("b.depthwise", b, b, 3, (12, 12)),
        conv("b.project", b, stage, 1, (12, 12)),
        OpTemplate("b.add_0", "add", stage, stage, in_size=(12, 12), out_size=(12, 12)),
        conv("head", stage, head, 1, (12, 12)),
        OpTemplate("classifier", "linear", head, classes),
    )


def staircase_layers_ms(values: IntArray) -> Array:
    """The exact time of each operator `[B, O]` for widths `[B, 5]`: linear in work at tile-rounded channels."""
    work = Work(staircase_ops(), staircase_space(1), TILE).layers(values)
    moved = MS_PER_ACTIVATION * (work.reads + work.writes)
    return np.asarray(MS_PER_LAYER + MS_PER_MAC * work.macs + MS_PER_WEIGHT * work.weights + moved)


def staircase_samples(count: int = 60, *, seed: int = 0, noise: float = 0.01, tile: int = TILE) -> Samples:
    """Networks drawn at random with their latency, times log-normal noise, and the layer times of five of them."""
    space, rng = staircase_space(tile), np.random.default_rng(seed)
    drawn = np.stack([rng.choice(np.array(allowed), count) for allowed in space.widths], axis=1)
    drawn[0], drawn[1] = space.dense().values_tuple(), space.smallest().values_tuple()
    times = staircase_layers_ms(drawn)
    latency_ms = times.sum(axis=1) * np.exp(noise * rng.standard_normal(count))
    names = [op.name for op in staircase_ops()]
    layers = tuple(
        LayerSample(
            tuple(int(width) for width in drawn[row]),
            tuple(LayerTime(f"{name}/node", "op", float(ms)) for name, ms in zip(names, times[row], strict=True)),
        )
        for row in range(5)
    )
    return Samples(space, staircase_ops(), TILE, drawn.astype(np.int64), latency_ms, layers)


class LatencyModelConformance:
    """Subclass it, set `kind`, and loosen `mape_bound` for a model that is simple on purpose."""

    kind: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    mape_bound: ClassVar[float] = 0.02

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls) -> AbstractLatencyModel:
        return cls.make().fit(staircase_samples())

    @classmethod
    def make(cls) -> AbstractLatencyModel:
        return make_model(cls.kind, **cls.options)

    def test_predicts_networks_it_has_not_seen(self, fitted: AbstractLatencyModel) -> None:
        held_out = staircase_samples(40, seed=1, noise=0.0)
        errors = fitted.predict_batch(held_out.values) / held_out.latency_ms - 1
        assert np.mean(np.abs(errors)) < self.mape_bound

    def test_predictions_are_positive_and_finite(self, fitted: AbstractLatencyModel) -> None:
        predicted = fitted.predict_batch(staircase_samples(200, seed=2).values)
        assert np.all(np.isfinite(predicted))
        assert np.all(predicted > 0)

    def test_a_batch_is_its_rows(self, fitted: AbstractLatencyModel) -> None:
        values = staircase_samples(7, seed=3).values
        alone = [fitted.predict_batch(values[row : row + 1])[0] for row in range(len(values))]
        np.testing.assert_allclose(fitted.predict_batch(values), alone, rtol=1e-9)

    def test_survives_json(self, fitted: AbstractLatencyModel) -> None:
        values = staircase_samples(20, seed=4).values
        again = from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
        np.testing.assert_allclose(again.predict_batch(values), fitted.predict_batch(values), rtol=1e-9)
        np.testing.assert_allclose(again.error_batch(values), fitted.error_batch(values), rtol=1e-9)
        assert again.space.signature() == fitted.space.signature()
        assert again.kind == self.kind

    def test_same_seed_same_model(self, fitted: AbstractLatencyModel) -> None:
        values = staircase_samples(20, seed=4).values
        again = self.make().fit(staircase_samples())
        np.testing.assert_array_equal(again.predict_batch(values), fitted.predict_batch(values))

    def test_a_prediction_has_error_and_coverage(self, fitted: AbstractLatencyModel) -> None:
        prediction = fitted.predict(fitted.space.dense())
        assert isinstance(prediction, Prediction)
        assert 0 < prediction.error_ms < prediction.latency_ms
        assert prediction.coverage == 1.0

    def test_coverage_falls_outside_what_was_measured(self) -> None:
        samples = staircase_samples()
        wide = samples.take(np.flatnonzero(samples.values[:, 3] >= 112))
        model = self.make().fit(wide)
        assert model.predict(model.space.dense()).coverage == 1.0
        assert model.predict(model.space.smallest()).coverage < 1.0

    def test_training_data_stays_as_it_is(self) -> None:
        samples = staircase_samples()
        values, latency_ms = samples.values.copy(), samples.latency_ms.copy()
        self.make().fit(samples)
        np.testing.assert_array_equal(samples.values, values)
        np.testing.assert_array_equal(samples.latency_ms, latency_ms)

    def test_widths_of_another_space_are_refused(self, fitted: AbstractLatencyModel) -> None:
        with pytest.raises(UsageError, match="cannot have width 17"):
            fitted.predict(fitted.space.dense().replace("stem", 17))

    def test_too_few_networks_are_refused(self) -> None:
        with pytest.raises(TableError, match="4 measured networks are too few"):
            self.make().fit(staircase_samples().take(range(4)))

    def test_an_unfitted_model_says_so(self) -> None:
        with pytest.raises(UsageError, match=f"'{self.kind}' has not been fitted"):
            self.make().predict(staircase_space().dense())
