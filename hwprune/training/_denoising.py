"""Images to denoise: clean ones of a folder as targets, the same ones with Gaussian noise as inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hwprune.core.errors import DataError, UsageError
from hwprune.training._random import generator
from hwprune.training._readers import IMAGE_SUFFIXES, flat_pool
from hwprune.training.data import ArraySet, Augment, Data

# The weights of red, green and blue in a grey value (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class DenoisingOptions:
    """What may follow `?` in `denoising:FOLDER`; None is all there are. `sigma` is on the scale 0..255."""

    sigma: float = 25.0
    grey: bool = False
    train: int | None = None
    val: int | None = None
    test: int | None = None
    size: int | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 255:
            raise UsageError(
                f"sigma={self.sigma} of the data must be above 0 and at most 255",
                hint="25 is usual; pixels lie in 0..255",
            )
        for name in ("train", "val", "test", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} of the data must be at least 1", hint=f"leave {name} out for all")


def denoising_data(folder: Path, options: DenoisingOptions, seed: int, cache: Path | None) -> Data:
    """All images of a folder and its subfolders, divided by `seed` into test (25 %), val (10 %) and train.

    Inputs and targets are on the scale 0..1. Training draws new noise for every batch; that of val and test, and of
    train where nothing is drawn, follows from `seed` alone.
    """
    pool = flat_pool(folder)
    count = len(pool.labels)
    order = torch.randperm(count, generator=generator(seed, "whole"))
    test, val = order[: max(1, count // 4)], order[max(1, count // 4) :][: max(1, count // 10)]
    train = order[len(test) + len(val) :]
    sizes = {"train": (train, options.train), "val": (val, options.val), "test": (test, options.test)}
    splits: dict[str, ArraySet] = {}
    for name, (indices, size) in sizes.items():
        if not len(indices):
            raise DataError(
                f"{folder} has {count} images: none is left for {name}",
                hint=f"put more images there ({', '.join(IMAGE_SUFFIXES)}); at least 3 are needed",
            )
        pixels = pool.decode(indices[:size], size=options.size, cache=cache).images.float()
        splits[name] = _noisy(_grey(pixels) if options.grey else pixels, options.sigma, generator(seed, "noise", name))
    channels = splits["train"].images.shape[1]
    return Data(
        folder.name,
        splits["train"],
        splits["val"],
        splits["test"],
        classes=0,
        mean=(0.0,) * channels,
        std=(255.0,) * channels,
        augment=Augment(flip=options.flip),
        noise=options.sigma,
    )


def _noisy(pixels: Tensor, sigma: float, random: torch.Generator) -> ArraySet:
    noise = torch.randn(pixels.shape, generator=random) * sigma
    return ArraySet(pixels + noise, pixels / 255)


def _grey(pixels: Tensor) -> Tensor:
    return (pixels * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
