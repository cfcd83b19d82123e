"""A small network on a few digits, trained once, and settings that make a whole run a matter of seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hwprune import api
from hwprune.models import load_model
from hwprune.search.outcomes import Run
from hwprune.training import Data, TrainPlan, load_data, train_dense

Search = Callable[..., Run]


@pytest.fixture(scope="session")
def few_digits() -> Data:
    """Digits with 384 training images."""
    data = load_data("digits", seed=0)
    return replace(data, train=replace(data.train, images=data.train.images[:384], targets=data.train.targets[:384]))


@pytest.fixture(scope="session")
def dense(few_digits: Data) -> nn.Module:
    """The quick start's network, trained for a few epochs: far above chance."""
    torch.set_num_threads(1)
    model = load_model("digits_resnet", classes=10, input_shape=(1, 8, 8))
    train_dense(model, few_digits, plan=TrainPlan(epochs=5, batch_size=32, lr=0.05), seed=0)
    return model.eval()


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latency tables shared by the runs of the session."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture
def search(dense: nn.Module, few_digits: Data, tables: Path, tmp_path: Path) -> Search:
    """`hwprune.search` on the simulated device with short trainings; the network and every option can be overridden."""

    def run(model: nn.Module = dense, data: Data = few_digits, **options: Any) -> Run:
        given: dict[str, Any] = {
            "latency": "60%",
            "device": "simulated",
            "method": "uniform",
            "samples": 40,
            "tile": 16,
            "epochs": 0.5,
            "finetune_epochs": 0.5,
            "run_dir": tmp_path / "run",
            "tables": tables,
            **options,
        }
        return api.search(model, data, **given)

    return run
