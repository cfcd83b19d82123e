"""A network whose outputs do not fit the data is told so before anything is measured or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hwprune.core.errors import UsageError
from hwprune.core.events import Caution, Event
from hwprune.search.outcomes import Run
from hwprune.search.workshop import check_outputs, check_training
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


class _Auxiliary(nn.Module):
    """A second output in training mode only, as of GoogLeNet and Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.body = classifier(10)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits: Tensor = self.body(images)
        return (logits, logits) if self.training else logits


def frozen() -> nn.Module:
    return classifier(10).requires_grad_(False)


def pooled_norm() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, 10))


@pytest.mark.parametrize(
    ("build", "batch_size", "message"),
    [
        (_Auxiliary, 32, "in training mode the network returns a tuple, not one tensor"),
        (frozen, 32, "no parameter of the network can be trained: all are frozen"),
        (pooled_norm, 1, "a batch of 1 is too small for the network's batch norms"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(
    few_digits: Data, build: Callable[[], nn.Module], batch_size: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_training(build(), few_digits, batch_size)


def test_the_check_of_a_training_changes_nothing(few_digits: Data) -> None:
    model = pooled_norm().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chance = torch.get_rng_state()
    check_training(model, few_digits, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    assert not any(module.training for module in model.modules())


def test_a_network_that_cannot_be_trained_ends_before_anything_is_measured(search: Search, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="all are frozen"):
        search(frozen(), tables=tmp_path / "tables")
    assert not list((tmp_path / "tables").rglob("rows*"))
