"""Losses, scores and distances against hand computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hwprune.training import ArraySet, Classification, Data, Denoising, evaluate, predict

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
TEACHER = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])


def _softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distance_is_kl_times_squared_temperature(temperature: float) -> None:
    found = Classification().distance(LOGITS, TEACHER, temperature)
    for row in range(2):
        own = _softmax([value / temperature for value in LOGITS[row].tolist()])
        teacher = _softmax([value / temperature for value in TEACHER[row].tolist()])
        kl = sum(t * math.log(t / s) for t, s in zip(teacher, own, strict=True))
        assert float(found[row]) == pytest.approx(temperature**2 * kl, rel=1e-5)


def test_classification_loss_and_score() -> None:
    targets = torch.tensor([0, 2])
    expected = -(math.log(_softmax(LOGITS[0].tolist())[0]) + math.log(_softmax(LOGITS[1].tolist())[2])) / 2
    assert float(Classification().loss(LOGITS, targets)) == pytest.approx(expected, rel=1e-6)
    assert Classification().scores(LOGITS, targets).tolist() == [1.0, 0.0]
    assert Classification().score(LOGITS, targets) == 0.5


def test_denoising_score_is_psnr() -> None:
    targets = torch.zeros(2, 1, 4, 4)
    outputs = torch.full((2, 1, 4, 4), 0.1)
    outputs[1] = 0
    assert Denoising().scores(outputs, targets).tolist() == pytest.approx([20.0, 100.0], abs=1e-4)
    assert float(Denoising().loss(outputs, targets)) == pytest.approx(0.005)


def test_evaluation_scores_each_image_in_order(data: Data, model: nn.Module) -> None:
    model.train()
    model[5].eval()
    result = evaluate(model, data, "test", batch_size=7)
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(data.batch("test", torch.tensor([i]))[0]) for i in range(len(data.test))])
    assert torch.equal(result.scores > 0.5, outputs.argmax(1) == data.test.targets)
    assert result.score == pytest.approx(float(result.scores.mean()))
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(outputs, data.test.targets)), rel=1e-5)
    assert result.kl is None


def test_evaluation_leaves_modes_and_statistics_alone(data: Data, model: nn.Module) -> None:
    model.train()
    model[5].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, data)
    assert model.training
    assert model[1].training
    assert not model[5].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_kl_to_itself_is_zero_and_to_another_is_positive(data: Data, model: nn.Module) -> None:
    reference = predict(model, data, "val")
    assert evaluate(model, data, reference=reference).kl == pytest.approx(0.0, abs=1e-7)
    kl = evaluate(model, data, reference=reference + torch.randn(reference.shape)).kl
    assert kl is not None
    assert kl > 0.01


@pytest.mark.parametrize(("pixels", "batch"), [(6, 256), (96, 256), (192, 64), (2000, 1)])
def test_large_images_are_evaluated_a_few_at_a_time(pixels: int, batch: int) -> None:
    """Activations take many times the memory of the images: 256 of 224 pixels are several GB in a VGG."""
    sizes: list[int] = []

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return self.scale * images[:, :2, 0, 0]

    count = 300 if pixels < 200 else 3
    split = ArraySet(torch.zeros(1, 3, pixels, pixels).byte().expand(count, -1, -1, -1), torch.arange(count) % 2)
    shape = Data("large", split, split, split, 2, (0.0,) * 3, (1.0,) * 3)
    assert predict(Counts(), shape).shape == (count, 2)
    assert max(sizes) == min(batch, count)
    assert sum(sizes) == count
