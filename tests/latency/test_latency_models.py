"""Every latency model passes the conformance suite; LPNet also keeps its own promises."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from hwprune.core.errors import TableError
from hwprune.latency.features import widths_array
from hwprune.latency.models._base import make_model
from hwprune.latency.models.lpnet import LPNet
from hwprune.latency.models.macs import Macs
from hwprune.testing.latency_models import LatencyModelConformance
from hwprune.testing.staircase import staircase_samples


class TestLPNet(LatencyModelConformance):
    kind = "lpnet"


class TestLPNetOnWidths(LatencyModelConformance):
    kind = "lpnet"
    options: ClassVar = {"features": "widths"}
    mape_bound = 0.10


class TestLinear(LatencyModelConformance):
    kind = "linear"


class TestForest(LatencyModelConformance):
    kind = "forest"
    options: ClassVar = {"trees": 30}
    mape_bound = 0.10


class TestTableSum(LatencyModelConformance):
    kind = "table_sum"


class TestMacs(LatencyModelConformance):
    kind = "macs"
    mape_bound = 0.10


def test_measurements_that_give_no_positive_latency_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Macs, "predict_batch", lambda self, values: np.zeros(len(values)))
    with pytest.raises(
        TableError, match=r"contradict each other: the latency model 'macs' .* predicts 0 ms"
    ) as refused:
        Macs().fit(staircase_samples(40))
    assert "quiet" in refused.value.hint


@pytest.mark.parametrize("kind", ["lpnet", "linear", "table_sum", "macs"])
@pytest.mark.parametrize("factors", [(0.1,), (1 / 30,), (0.5,) * 6, (20.0,), (5.0,) * 6])
def test_wrong_labels_hardly_matter(kind: str, factors: tuple[float, ...]) -> None:
    """Up to a tenth of the labels far too low or too high: the others say what the network takes."""
    samples, test = staircase_samples(60, seed=3, noise=0.02), staircase_samples(100, seed=9, noise=0.0)
    wrong = np.ones(len(samples))
    wrong[5 : 5 + 4 * len(factors) : 4] = factors
    clean, disturbed = (
        float(np.mean(np.abs(make_model(kind).fit(data).predict_batch(test.values) / test.latency_ms - 1)))
        for data in (samples, replace(samples, latency_ms=samples.latency_ms * wrong))
    )
    assert disturbed < clean + 0.003


@pytest.mark.parametrize("seed", range(5))
def test_lpnet_corrects_no_further_than_it_has_seen(seed: int) -> None:
    """40 labels off by factors of up to 20 or so: nonsense in, but no exponential nonsense out."""
    samples = staircase_samples(40, seed=seed)
    factors = np.exp(np.random.default_rng(seed).normal(0.0, 1.5, len(samples)))
    disturbed = replace(samples, latency_ms=samples.latency_ms * factors)
    model = LPNet().fit(disturbed)
    ends = widths_array(samples.space, [samples.space.dense(), samples.space.smallest()])
    predicted = model.predict_batch(np.concatenate([ends, staircase_samples(200, seed=seed + 10).values]))
    assert np.all(predicted > 0)
    assert predicted.max() < 2 * disturbed.latency_ms.max()
