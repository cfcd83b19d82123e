"""Denoising: a folder of images becomes pairs of noisy and clean ones, and a network learns from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hwprune.core.errors import DataError, UsageError
from hwprune.models import load_model
from hwprune.training import (
    Classification,
    Data,
    Denoising,
    TrainPlan,
    evaluate,
    generator,
    load_data,
    task_for,
    train_dense,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ramp = np.add.outer(np.arange(16), np.arange(16))
    for number in range(20):
        pixels = np.stack([ramp * (number % 5 + 1), ramp + 5 * number, 200 - ramp], axis=-1).astype(np.uint8)
        path = tmp_path / "images" / ("deeper" if number % 2 else "") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def _load(folder: Path, options: str = "?sigma=20", seed: int = 0) -> Data:
    return load_data(f"denoising:{folder}{options}", seed=seed, cache=folder.parent / "cache")


def test_noise_is_seeded_of_its_deviation_and_on_the_scale_of_the_targets(folder: Path) -> None:
    data = _load(folder)
    assert (len(data.train), len(data.val), len(data.test)) == (13, 2, 5)
    assert data.classes == 0
    images, targets = data.batch("train", torch.arange(13))
    assert images.shape == targets.shape == (13, 3, 16, 16)
    assert 0 <= float(targets.min()) <= float(targets.max()) <= 1
    assert float((images - targets).std()) == pytest.approx(20 / 255, rel=0.03)
    assert float((images - targets).mean()) == pytest.approx(0, abs=0.002)
    assert torch.equal(images, _load(folder).batch("train", torch.arange(13))[0])
    assert data.fingerprint == _load(folder).fingerprint
    assert len({data.fingerprint, _load(folder, seed=1).fingerprint, _load(folder, "?sigma=10").fingerprint}) == 3


def test_training_draws_new_noise_and_flips_both_images(folder: Path) -> None:
    data = _load(folder)
    rows = torch.arange(13)
    first, second, again = (data.batch("train", rows, generator(0, "augment", step)) for step in (0, 1, 0))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], second[0])
    for images, targets in (first, second):
        assert float((images - targets).std()) == pytest.approx(20 / 255, rel=0.03)
    assert not torch.equal(first[1], data.train.targets)
    plain = _load(folder, "?sigma=20&flip=false").batch("train", rows, generator(0, "augment", 0))[1]
    assert torch.equal(plain, data.train.targets)


def test_options_of_denoising(folder: Path) -> None:
    data = _load(folder, "?grey=true&size=8&train=4")
    assert data.input_shape == (1, 8, 8)
    assert len(data.train) == 4
    with pytest.raises(UsageError, match=r"sigma=0.0 of the data must be above 0"):
        _load(folder, "?sigma=0")
    with pytest.raises(UsageError, match="unknown key 'classes'"):
        _load(folder, "?classes=3")
    with pytest.raises(UsageError, match="names no folder"):
        load_data("denoising")
    with pytest.raises(DataError, match="no folder"):
        _load(folder / "absent")
    (folder.parent / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        _load(folder.parent / "empty")
    Image.new("RGB", (8, 8)).save(folder.parent / "empty" / "one.png")
    with pytest.raises(DataError, match="has 1 images: none is left for"):
        _load(folder.parent / "empty")


def test_a_network_learns_to_denoise_without_being_told_the_task(folder: Path) -> None:
    data = _load(folder, "?sigma=40")
    assert task_for(data) == Denoising()
    assert task_for(load_data("digits?train=20&val=10&test=10")) == Classification()
    model = load_model("dncnn?depth=4&width=0.25", classes=data.classes, input_shape=data.input_shape)
    noisy = Denoising().score(*data.batch("test", torch.arange(5)))
    assert noisy == pytest.approx(10 * np.log10((255 / 40) ** 2), abs=0.3)
    plan = TrainPlan(epochs=60, batch_size=4, lr=0.5, weight_decay=0.0, clip_norm=0.1)
    log = train_dense(model, data, plan=plan)
    assert log.history[-1]["val_score"] == pytest.approx(evaluate(model, data, "val").score)
    assert evaluate(model, data, "test").score > noisy + 0.5
