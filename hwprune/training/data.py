"""Data as whole arrays in memory: three splits, normalisation and augmentation as tensor operations.

`train` is what gradients see, `val` is for decisions of a search, `test` is only ever reported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hwprune.core.errors import DataError

Split = Literal["train", "val", "test"]
CHUNK = 256  # images whose statistics are computed at once
IMAGE_TYPES, TARGET_TYPES = (torch.uint8, torch.float32), (torch.int64, torch.float32)


@dataclass(frozen=True, eq=False)
class ArraySet:
    """`images` `(N, C, H, W)`, uint8 or float32; `targets` `(N,)` int64 labels, or what another task makes of them.

    Targets are int64 or float32, of any shape `(N, ...)`.
    """

    images: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for what, found, types in (("images", self.images, IMAGE_TYPES), ("targets", self.targets, TARGET_TYPES)):
            if not isinstance(found, Tensor) or found.dtype not in types:
                type_name = found.dtype if hasattr(found, "dtype") else type(found).__name__
                known = " or ".join(str(one) for one in types)
                raise DataError(f"{what} are {type_name}, not {known}", hint="convert them, arrays by torch.from_numpy")
        if self.images.ndim != 4 or len(self.images) != len(self.targets):
            raise DataError(
                f"images of shape {tuple(self.images.shape)} and targets of shape {tuple(self.targets.shape)} do not "
                "fit",
                hint="images are (N, C, H, W), and there are as many targets",
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Augment:
    """`flip`: mirror half of the images left to right; `crop`: shift by up to that many pixels, padded with zeros."""

    flip: bool = False
    crop: int = 0

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """`(N, C, H, W)` to a new tensor of the same shape, type and (channels-last) layout."""
        if not self.flip and not self.crop:
            return images
        count, _, height, width = images.shape
        rows = torch.arange(height).expand(count, height)
        columns = torch.arange(width).expand(count, width)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.crop:
            offsets = torch.randint(0, 2 * self.crop + 1, (2, count, 1), generator=generator)
            rows, columns = rows + offsets[0], columns + offsets[1]
            images = functional.pad(images, (self.crop,) * 4)
        picked = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set ready to train on. `mean` and `std` (one a channel) are in the units of the stored images.

    `classes` is 0 where targets are not all numbers of classes: regression, or pixels marked as unknown by -1. With
    `noise` the targets are clean images on a scale 0..1 and the stored ones the same, on a scale 0..255, with Gaussian
    noise of that deviation, which augmentation draws anew; without it augmentation leaves targets as they are.
    """

    name: str
    train: ArraySet
    val: ArraySet
    test: ArraySet
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = Augment()
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_splits(self.name, {"train": self.train, "val": self.val, "test": self.test})
        channels = self.input_shape[0]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not normalises(values, channels, positive=name == "std"):
                raise DataError(
                    f"{name} {tuple(values)} of {self.name} does not fit images with {channels} channels",
                    hint="give one number for each channel, in the units of the stored images; a std is above 0",
                )
        if self.classes == 1:
            raise DataError(
                f"{self.name} has a single class: every network is right", hint="give images of two or more"
            )
        if self.classes and (self.train.targets.is_floating_point() or self._least_target() < 0):
            raise DataError(
                f"{self.name} has {self.classes} classes, but targets that are floating or below 0",
                hint="say classes=0 where targets are not all numbers of classes",
            )

    def _least_target(self) -> int:
        return min(int(split.targets.min()) for split in (self.train, self.val, self.test))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything training can see: pixels, targets, splits, normalisation, augmentation."""
        digest = hashlib.sha256(repr((self.classes, self.mean, self.std, self.augment, self.noise)).encode())
        for split in (self.train, self.val, self.test):
            for tensor in (split.images, split.targets):
                digest.update(repr((tensor.shape, tensor.dtype)).encode())
                rows = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor  # images are stored so: no copy
                digest.update(rows.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def split(self, name: Split) -> ArraySet:
        """The split of that name."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def normalise(self, images: Tensor) -> Tensor:
        """Stored images `(N, C, H, W)` to float32 with mean 0 and deviation 1 a channel, in channels-last layout."""
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return images.float().sub(mean).div(std).contiguous(memory_format=torch.channels_last)

    def batch(self, split: Split, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The normalised images and the targets at `indices`; augmented when a generator is given."""
        source = self.split(split)
        if generator is not None and self.noise:
            clean = self.augment.apply(source.targets[indices], generator)
            noise = torch.randn(clean.shape, generator=generator) * self.noise
            return self.normalise(clean * 255 + noise), clean.contiguous(memory_format=torch.channels_last)
        images = source.images[indices]
        if generator is not None:
            images = self.augment.apply(images, generator)
        return self.normalise(images), source.targets[indices]

    def batches(
        self, split: Split, batch_size: int, *, generator: torch.Generator | None = None, augment: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over a split: in stored order, or shuffled (and augmented if asked) when a generator is given.

        The last batch may be smaller.
        """
        count = len(self.split(split))
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for indices in torch.split(order, batch_size):
            yield self.batch(split, indices, generator if augment else None)


def check_splits(name: str, splits: Mapping[str, ArraySet]) -> None:
    """Raise `DataError` for an empty split, and for splits whose images or targets differ in type or shape."""
    first = splits["train"]
    for key, split in splits.items():
        if len(split) == 0:
            raise DataError(f"the {key} split of {name} is empty", hint="choose smaller sizes for the other splits")
        if key == "train" and len(split) == 1:
            raise DataError(f"{name} has one image to train on", hint="batch statistics need two; give it many")
        pairs = {"images": (split.images, first.images), "targets": (split.targets, first.targets)}
        for what, (own, other) in pairs.items():
            if own.shape[1:] != other.shape[1:]:
                raise DataError(
                    f"{name}: {what} of {key} and train have different shapes, {tuple(own.shape[1:])} and"
                    f" {tuple(other.shape[1:])}",
                    hint="all splits need images of one size and as many channels, and targets of one shape",
                )
            if own.dtype != other.dtype:
                raise DataError(
                    f"{name}: {what} of {key} are {own.dtype}, those of train {other.dtype}",
                    hint="store all splits in one type, on one scale",
                )


def normalises(values: Sequence[float], channels: int, *, positive: bool) -> bool:
    """Whether these are finite constants, one a channel, and where asked all above 0."""
    return len(values) == channels and all(math.isfinite(one) and (one > 0 or not positive) for one in values)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel of `(N, C, H, W)`, for data without published constants.

    In two passes over few images at a time: all of them in double precision take eight times their memory or more.
    """
    count = images[:, 0].numel()
    chunks = torch.split(images, CHUNK)
    mean = sum((chunk.double().sum((0, 2, 3)) for chunk in chunks), torch.zeros(1)) / count
    squares = [(chunk.double() - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3)) for chunk in chunks]
    std = (sum(squares, torch.zeros(1)) / max(1, count - 1)).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp(min=1e-6).tolist())
