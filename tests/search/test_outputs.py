"""A network whose outputs do not fit the data is told so before anything is measured or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hwprune.core.errors import UsageError
from hwprune.core.events import Caution, Event
from hwprune.search.outcomes import Run
from hwprune.search.workshop import check_outputs
from hwprune.training import Classification, Data

Search = Callable[..., Run]


def classifier(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, outputs)).eval()


def test_outputs_that_cannot_be_scored_are_refused_before_anything_is_measured(search: Search, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"shape \(N, 9\); 10 classes need \(N, 10\)"):
        search(classifier(9), tables=tmp_path / "tables")
    assert not list((tmp_path / "tables").rglob("rows*"))
    assert not (tmp_path / "run").exists()


def test_outputs_of_more_classes_than_there_are(few_digits: Data) -> None:
    heard: list[Event] = []
    check_outputs(classifier(10), few_digits, Classification(), heard.append)
    assert not heard
    check_outputs(classifier(11), few_digits, Classification(), heard.append)
    (caution,) = heard
    assert isinstance(caution, Caution)
    assert caution.text == "the network has 11 outputs for the 10 classes of digits"
