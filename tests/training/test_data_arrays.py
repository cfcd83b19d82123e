"""Batches, normalisation, augmentation and fingerprints of data in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hwprune.core.errors import DataError
from hwprune.training import ArraySet, Augment, Data, generator, mix
from hwprune.training.data import channel_statistics


def test_a_pass_shows_every_image_once(data: Data) -> None:
    shuffled = torch.cat([targets for _, targets in data.batches("train", 40, generator=generator(0))])
    ordered = torch.cat([targets for _, targets in data.batches("train", 40)])
    assert torch.equal(ordered, data.train.targets)
    assert not torch.equal(shuffled, ordered)
    assert torch.equal(shuffled.sort().values, ordered.sort().values)
    assert [len(targets) for _, targets in data.batches("train", 40)] == [40, 40, 16]


def test_normalisation_is_per_channel_in_stored_units(data: Data) -> None:
    uneven = replace(data, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
    images, _ = uneven.batch("val", torch.arange(5))
    for channel in range(3):
        expected = (data.val.images[:5, channel].double() - (channel + 1)) / 2 ** (channel + 1)
        assert torch.allclose(images[:, channel].double(), expected, atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_gives_shifts_and_mirrors_and_nothing_else() -> None:
    images = torch.randint(1, 255, (1, 2, 5, 4), dtype=torch.uint8).expand(200, -1, -1, -1)
    padded = torch.nn.functional.pad(images[:1], (1, 1, 1, 1))
    possible = {}
    for flipped in (False, True):
        for y in range(3):
            for x in range(3):
                window = padded[0, :, y : y + 5, x : x + 4]
                possible[window.flip(2) if flipped else window] = (flipped, y, x)
    seen = set()
    for image in Augment(flip=True, crop=1).apply(images, generator(1)):
        matches = [name for window, name in possible.items() if torch.equal(window, image)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 18


def test_augmentation_off_changes_nothing(data: Data) -> None:
    images = data.train.images[:7]
    assert torch.equal(Augment().apply(images, generator(0)), images)
    assert torch.equal(
        data.batch("train", torch.arange(7), generator(3))[0], data.batch("train", torch.arange(7), generator(3))[0]
    )


def test_the_fingerprint_sees_every_change(data: Data) -> None:
    images = data.train.images.clone()
    images[3, 1, 2, 2] += 1
    targets = data.val.targets.clone()
    targets[0] = (targets[0] + 1) % 4
    changed = [
        replace(data, train=ArraySet(images, data.train.targets)),
        replace(data, val=ArraySet(data.val.images, targets)),
        replace(data, mean=(126.0, 127.0, 127.0)),
        replace(data, augment=Augment()),
        replace(data, val=data.test, test=data.val),
    ]
    prints = {data.fingerprint, *(one.fingerprint for one in changed)}
    assert len(prints) == 6
    assert replace(data).fingerprint == data.fingerprint


def test_images_and_targets_must_fit() -> None:
    with pytest.raises(DataError, match=r"images of shape \(3, 1, 2, 2\) and targets of shape \(4,\)"):
        ArraySet(torch.zeros(3, 1, 2, 2), torch.zeros(4))


def test_mixed_seeds_differ_and_repeat() -> None:
    seeds = {mix(seed, name, step) for seed in range(3) for name in ("order", "augment") for step in range(50)}
    assert len(seeds) == 300
    assert mix(1, "order", 2) == mix(1, "order", 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("count", [1, 5, 256, 700])
def test_channel_statistics_are_those_of_all_images_at_once(count: int) -> None:
    images = torch.randint(0, 256, (count, 3, 5, 4), generator=torch.Generator().manual_seed(0)).byte()
    mean, std = channel_statistics(images)
    flat = images.double().transpose(0, 1).flatten(1)
    assert mean == pytest.approx(flat.mean(1).tolist(), rel=1e-12)
    assert std == pytest.approx(flat.std(1).tolist(), rel=1e-12)
    assert channel_statistics(torch.full((3, 1, 2, 2), 7.0)) == ((7.0,), (1e-6,))


def test_the_fingerprint_knows_the_noise(data: Data) -> None:
    assert replace(data, noise=25.0).fingerprint != data.fingerprint
