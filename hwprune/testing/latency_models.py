"""The tests every latency model inherits.

A new model in `hwprune/latency/models/` gets its tests with
`class TestMine(LatencyModelConformance): kind = "mine"`.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest

from hwprune.core.errors import TableError, UsageError
from hwprune.core.measurement import Prediction
from hwprune.latency.models._base import AbstractLatencyModel, from_json, make_model
from hwprune.testing.staircase import staircase_samples, staircase_space


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
