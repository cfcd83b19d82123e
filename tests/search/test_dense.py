"""When a network counts as trained, and that one dense training serves all runs that would repeat it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hwprune.core.events import Caution, EpochDone, Event, Note
from hwprune.models import load_model, save_weights
from hwprune.search import dense
from hwprune.search.dense import is_trained, tell_chance
from hwprune.search.outcomes import Run
from hwprune.search.settings import SearchSettings
from hwprune.training import ArraySet, Data, Evaluation, Task, task_for

Search = Callable[..., Run]
SETTINGS = SearchSettings.make(latency="60%")


def two_classes(share: float, count: int = 200) -> Data:
    """Bright images are class 1, of which there is this share; dark ones class 0."""
    targets = (torch.arange(count) < round(share * count)).long()[torch.randperm(count)]
    images = (targets.float() * 2 - 1)[:, None, None, None].repeat(1, 1, 4, 4) + 0.1 * torch.randn(count, 1, 4, 4)
    split = ArraySet(images, targets)
    return Data("two", split, split, split, 2, (0.0,), (1.0,))


def classifier(weight: float, bias: float = 0.0) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-weight] * 16, [weight] * 16]))
        model[1].bias.copy_(torch.tensor([0.0, bias]))
    return model.eval()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What is drawn here does not depend on the tests before."""
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("share", "model", "trained"),
    [
        (0.5, classifier(1.0), True),  # all right; twice chance cannot be surpassed here
        (0.5, classifier(0.0), False),
        (0.9, classifier(0.0, bias=1.0), False),  # always the larger class: 90 % right, and has learned nothing
        (0.9, classifier(1.0), True),
    ],
)
def test_two_classes(share: float, model: nn.Module, trained: bool) -> None:
    data, heard = two_classes(share), []
    assert is_trained(model, data, task_for(data), SETTINGS, heard.append) is trained
    assert ("taken as trained" in heard[0].text) is trained


def test_named_weights_are_taken_as_they_are() -> None:
    data = two_classes(0.5)
    settings = SearchSettings.make(latency="60%", weights="mine.safetensors")
    assert is_trained(classifier(0.0), data, task_for(data), settings, lambda event: None)


def dense_epochs(events: list[Event]) -> int:
    return sum(isinstance(event, EpochDone) and event.stage == "dense" for event in events)


def run_untrained(search: Search, folder: Path, heard: list[Event], **options: Any) -> Run:
    """A short run with an untrained network."""
    model = load_model("digits_resnet", classes=10, input_shape=(1, 8, 8), seed=0)
    given = {"dense_epochs": 2, "finetune_epochs": 0.25, "batch_size": 32, **options}
    return search(model, run_dir=folder, on_event=heard.append, **given)


def test_a_second_budget_takes_the_dense_network_of_the_first(search: Search, tmp_path: Path) -> None:
    runs = {"first": "60%", "second": "70%"}
    heard: dict[str, list[Event]] = {name: [] for name in runs}
    for name, latency in runs.items():
        run_untrained(search, tmp_path / name, heard[name], latency=latency)
    assert dense_epochs(heard["first"]) == 2
    assert dense_epochs(heard["second"]) == 0
    assert any(isinstance(event, Note) and "trained in first already" in event.text for event in heard["second"])
    files = [(tmp_path / name / "dense.safetensors").read_bytes() for name in runs]
    assert files[0] == files[1]

    for name, text in (("a-torn", '{"training": "'), ("b-list", "[]"), ("c-old", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dense_training.json").write_text(text)  # read before those of the runs
    other: list[Event] = []
    run_untrained(search, tmp_path / "other", other, dense_epochs=1)
    assert dense_epochs(other) == 1  # another training

    for name in runs:  # weights that do not score what their run says
        model = load_model("digits_resnet", classes=10, input_shape=(1, 8, 8), seed=5)
        save_weights(model, tmp_path / name / "dense.safetensors")
    anew: list[Event] = []
    run = run_untrained(search, tmp_path / "third", anew, latency="65%")
    assert dense_epochs(anew) == 2
    assert (run.folder / "dense.safetensors").read_bytes() == files[0]


class _Residual(nn.Module):
    """The input minus an estimate of the noise, which starts at 0 or at random."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.noise = nn.Conv2d(1, 1, 3, padding=1)
        with torch.no_grad():
            self.noise.weight.mul_(start)
            self.noise.bias.mul_(start)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        estimate: torch.Tensor = self.noise(images)
        return images - estimate


def smooth_data() -> Data:
    """Images of one grey each with much noise: an average of neighbours removes most of it."""
    clean = torch.rand(24, 1, 1, 1).expand(24, 1, 8, 8).contiguous()
    split = ArraySet(clean * 255 + 25 * torch.randn(24, 1, 8, 8), clean)
    return Data("smooth", split, split, split, 0, (0.0,), (255.0,), noise=25.0)


@pytest.mark.parametrize("start", [0.0, 1e-3, 1.0])
def test_a_denoiser_that_does_nothing_is_untrained(start: float) -> None:
    """Copies with fresh weights score far less than one whose last layer starts at 0."""
    assert not is_trained(_Residual(start), smooth_data(), task_for(smooth_data()), SETTINGS, lambda event: None)


def test_a_shallow_denoiser_that_denoises_is_trained() -> None:
    model = _Residual(0.0)
    with torch.no_grad():  # the image minus (itself minus the mean of 9 neighbours)
        model.noise.weight.fill_(-1 / 9)[0, 0, 1, 1] = 8 / 9
    assert is_trained(model, smooth_data(), task_for(smooth_data()), SETTINGS, lambda event: None)


class _OwnTask(Task):
    """How far the right logit is above the mean of all, and 100."""

    score_name = "margin"

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -self.scores(outputs, targets).mean()

    def scores(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 100 + outputs.gather(1, targets[:, None])[:, 0] - outputs.mean(1)

    def distance(self, outputs: torch.Tensor, reference: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        return (outputs - reference).square().mean(1)


def test_a_score_of_the_users_own_is_held_against_untrained_copies() -> None:
    """100 and more is far above the largest class's share, and means nothing here."""
    data = two_classes(0.5)
    assert not is_trained(classifier(0.0), data, _OwnTask(), SETTINGS, lambda event: None)
    assert is_trained(classifier(5.0), data, _OwnTask(), SETTINGS, lambda event: None)


def test_untrained_copies_keep_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention draws its projections by another name than most; what a module cannot draw is shuffled."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.arange(16.0))
            self.attention = nn.MultiheadAttention(16, 2)
            self.out = nn.Linear(16, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = images.flatten(1) * self.scale
            return self.out(self.attention(x, x, x)[0])

    model, drawn = Scaled().eval(), []

    def heard(fresh: nn.Module, *_: object, **__: object) -> Evaluation:
        drawn.append(copy.deepcopy(fresh.state_dict()))
        return Evaluation(score=0.0, loss=0.0, scores=torch.zeros(1))

    monkeypatch.setattr(dense, "evaluate", heard)
    dense._above_fresh(model, two_classes(0.5), _OwnTask(), seed=0)
    assert len(drawn) == dense.FRESH_DRAWS
    for state in drawn:
        for name in ("scale", "attention.in_proj_weight", "out.weight"):
            assert not torch.equal(state[name], model.state_dict()[name]), name
        assert sorted(state["scale"].tolist()) == list(range(16)), "of the same size"


def test_a_dense_training_that_teaches_nothing_is_told() -> None:
    heard: list[Event] = []
    data = two_classes(0.5)
    for score in (0.5, 0.52, 0.97):
        tell_chance(score, data, task_for(data), heard.append)
    assert [event.text for event in heard if isinstance(event, Caution)] == [
        f"after its training the dense network scores {score:.4f} on validation data, which is about chance"
        for score in (0.5, 0.52)
    ]
    tell_chance(-5.0, data, _OwnTask(), heard.append)
    assert len(heard) == 2, "nothing is known of chance under another score"


def test_borrowed_weights_keep_the_warning_that_they_are_at_chance(search: Search, tmp_path: Path) -> None:
    runs = [
        run_untrained(search, tmp_path / name, [], dense_epochs=0.02, finetune_epochs=0.0, latency=latency)
        for name, latency in (("first", "60%"), ("second", "70%"))
    ]
    for run in runs:
        assert any("which is about chance" in text for text in run.result.warnings)
