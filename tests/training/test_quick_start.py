"""The quick start's dense network reaches 98 % of the digits in the plan's 12 epochs."""

from __future__ import annotations

import pytest

from hwprune.models import load_model
from hwprune.training import TrainPlan, evaluate, load_data, train_dense


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_digits_network_reaches_98_percent(seed: int) -> None:
    data, model = load_data("digits"), load_model("digits_resnet", seed=seed)
    log = train_dense(model, data, plan=TrainPlan(epochs=12), seed=seed)
    assert evaluate(model, data, "test").score >= 0.98
    assert log.image_passes == 12 * 1152
