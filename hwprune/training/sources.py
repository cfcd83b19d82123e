"""`load_data`: from what a user types to a split data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hwprune.core.config import from_mapping
from hwprune.core.errors import DataError, UsageError, unknown_name
from hwprune.core.specs import call_function, is_function, load_function, split_options
from hwprune.training import _readers as readers
from hwprune.training._decode import Pool
from hwprune.training._denoising import DenoisingOptions, denoising_data
from hwprune.training._random import generator
from hwprune.training.data import ArraySet, Augment, Data, channel_statistics, check_splits, normalises

# ImageNet's constants, in 0..255: what published weights of RGB networks expect.
RGB_MEAN = (123.675, 116.28, 103.53)
RGB_STD = (58.395, 57.12, 57.375)
SOURCES = ("digits", "cifar10", "tinyimagenet", "npz", "imagefolder", "denoising")
HELD_OUT_MAX = 5000


@dataclass(frozen=True)
class DataOptions:
    """What may follow `?` in a data specification; None is the source's default."""

    classes: int | None = None
    train: int | None = None
    val: int | None = None
    test: int | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and self.crop < 0:
            raise UsageError(f"crop={self.crop} of the data must be at least 0", hint="4 is usual for small images")
        for name in ("classes", "train", "val", "test", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(
                    f"{name}={value} of the data must be at least 1", hint=f"leave {name} out for the data's own number"
                )


def load_data(spec: str, *, seed: int = 0, cache: Path | None = None) -> Data:
    """The data set that `spec` names. The same `spec` is always divided in the same way, unless `seed` says another.

    `digits`; `cifar10:FOLDER` and `tinyimagenet:FOLDER?classes=20` (`train_jpeg.npz` and `test_jpeg.npz` or
    `val_jpeg.npz` with `blob`, `offset`, `label`); `npz:FILE` (`x_train`, `y_train`, `x_test`, `y_test`, optionally
    `x_val`, `y_val`; or `blob`, `offset`, `label`); `imagefolder:FOLDER` (`train/CLASS/*`, `val/CLASS/*`, optionally
    `test/CLASS/*`); `denoising:FOLDER?sigma=25` (images without classes); `FILE.py:FUNCTION`, which returns a `Data` or
    a mapping with the arrays of `npz`. Options: `classes`, sizes of `train`, `val`, `test`, `size` in pixels, `mean`,
    `std`, `flip`, `crop`; those of `denoising` are in `DenoisingOptions`.

    Splits. Official test images are `test` (for an image folder without `test`, its `val`). Where no `val` is left, a
    tenth of the training images (at most 5000) is held out by `seed`. `digits` and a lone blob file are divided into
    test (25 %), val (10 %) and train by `seed`. A size takes a random subset by `seed`.
    Raises `DataError` naming the file for anything broken and `UsageError` for an unknown source or option.
    """
    name, raw = split_options(spec)
    source, colon, location = name.partition(":")
    if source not in SOURCES:
        if is_function(name):
            return _from_function(name, from_mapping(DataOptions, raw, where=spec), seed, given=tuple(raw))
        error = unknown_name("data", source if colon else name, SOURCES)
        raise UsageError(error.message, hint=f"{error.hint} (all but digits as NAME:PATH), or FILE.py:FUNCTION")
    if source == "denoising" and location:
        return denoising_data(Path(location).expanduser(), from_mapping(DenoisingOptions, raw, where=spec), seed, cache)
    options = from_mapping(DataOptions, raw, where=spec)
    if source == "digits":
        if location or options.size:
            raise UsageError(f"'{spec}': digits come with scikit-learn, as 8x8 images", hint="write it as digits")
        return _digits(options, seed)
    if not location:
        raise UsageError(f"'{spec}' names no folder or file", hint=f"write it as {source}:PATH")
    path = Path(location).expanduser()
    if source == "npz":
        return _npz(path, options, seed, cache)
    if source == "imagefolder":
        return _image_folder(path, options, seed, cache)
    train, test = readers.blob_folder(path, 10 if source == "cifar10" else None)
    return _from_pools(source, train, None, test, options, seed, cache)


def _digits(options: DataOptions, seed: int) -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    kept = _selected(torch.from_numpy(digits.target), options.classes).numpy()
    images, labels = digits.images[kept].astype("uint8"), digits.target[kept]
    whole = readers.array_set(images, labels, "digits", options.classes or 10)
    return _from_whole("digits", whole, options, seed, Augment(crop=1))


def _npz(path: Path, options: DataOptions, seed: int, cache: Path | None) -> Data:
    arrays = readers.read_npz(path)
    if set(arrays) >= readers.BLOB_KEYS:
        pool = readers.blob_pool(path, arrays, None)
        whole = pool.decode(_selected(pool.labels, options.classes), size=options.size, cache=cache)
        return _from_whole(path.stem, whole, options, seed, Augment(flip=True, crop=4), RGB_MEAN, RGB_STD)
    return _from_arrays(path.stem, str(path), arrays, options, seed)


def _image_folder(path: Path, options: DataOptions, seed: int, cache: Path | None) -> Data:
    known = readers.class_folders(path / "train")
    for split in ("val", "test"):
        more = sorted(set(readers.class_folders(path / split)) - set(known)) if (path / split).is_dir() else []
        if more:
            raise DataError(
                f"{path / split} has class folders that {path / 'train'} lacks: {', '.join(more[:5])}",
                hint="a class needs images to train on",
            )
    names = known[: options.classes]
    train, val = readers.folder_pool(path / "train", names), readers.folder_pool(path / "val", names)
    if (path / "test").is_dir():
        return _from_pools(path.name, train, val, readers.folder_pool(path / "test", names), options, seed, cache)
    return _from_pools(path.name, train, None, val, options, seed, cache)


def _from_function(name: str, options: DataOptions, seed: int, given: tuple[str, ...]) -> Data:
    result = call_function(name, load_function(name))
    if isinstance(result, Data):
        if given:
            raise UsageError(
                f"{name} gave a Data, in which {', '.join(given)} cannot be changed any more",
                hint="leave the options out, or return a mapping with x_train, y_train, x_test, y_test",
            )
        return result
    if not isinstance(result, Mapping):
        raise DataError(
            f"{name} gave {type(result).__name__}",
            hint="return a Data, or a mapping with x_train, y_train, x_test, y_test",
        )
    return _from_arrays(name, name, result, options, seed)


def _from_pools(
    name: str, train: Pool, val: Pool | None, test: Pool, options: DataOptions, seed: int, cache: Path | None
) -> Data:
    """Choose the indices of the splits first and decode only those."""
    chosen = _selected(train.labels, options.classes)
    chosen = chosen[torch.randperm(len(chosen), generator=generator(seed, "train"))]
    held_out = 0 if val is not None else _held_out(options, len(chosen))
    pools = {
        "train": (train, chosen[held_out:][: options.train]),
        "val": (val, _subset(val, options.classes, options.val, seed)) if val else (train, chosen[:held_out]),
        "test": (test, _subset(test, options.classes, options.test, seed)),
    }
    splits = {key: pool.decode(indices, size=options.size, cache=cache) for key, (pool, indices) in pools.items()}
    return _data(name, splits, options, Augment(flip=True, crop=4), RGB_MEAN, RGB_STD)


def _from_whole(
    name: str,
    whole: ArraySet,
    options: DataOptions,
    seed: int,
    augment: Augment,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Data:
    """Divide one labelled set into test, val and train."""
    count = len(whole)
    order = torch.randperm(count, generator=generator(seed, "whole"))
    test, val = order[: count // 4], order[count // 4 : count // 4 + count // 10]
    train = order[count // 4 + count // 10 :]
    sizes = {"train": (train, options.train), "val": (val, options.val), "test": (test, options.test)}
    splits = {key: ArraySet(whole.images[i[:n]], whole.targets[i[:n]]) for key, (i, n) in sizes.items()}
    return _data(name, splits, options, augment, mean, std)


def _from_arrays(name: str, where: str, arrays: Mapping[str, object], options: DataOptions, seed: int) -> Data:
    """`x_train`, `y_train`, `x_test`, `y_test` and perhaps `x_val`, `y_val`."""
    if options.size is not None:
        raise UsageError(
            f"size={options.size}: arrays are not scaled", hint=f"leave size out, or scale those of {where}"
        )
    for key in ("x_train", "y_train", "x_test", "y_test"):
        if key not in arrays:
            raise DataError(f"{where} has no array '{key}'", hint=f"it holds: {', '.join(arrays) or 'nothing'}")
    _check_names(where, arrays)
    splits = {}
    for key in ("train", "val", "test") if "x_val" in arrays else ("train", "test"):
        label = f"{where} ({key})"
        splits[key] = readers.array_set(arrays[f"x_{key}"], arrays[f"y_{key}"], label, options.classes)
    order = torch.randperm(len(splits["train"]), generator=generator(seed, "train"))
    if "val" not in splits:
        held_out = _held_out(options, len(order))
        splits["val"] = _take(splits["train"], order[:held_out])
        order = order[held_out:]
    splits["train"] = _take(splits["train"], order[: options.train])
    for key, size in (("val", options.val), ("test", options.test)):
        if size is not None:
            splits[key] = _take(splits[key], _some(torch.arange(len(splits[key])), size, seed))
    return _data(name, splits, options, Augment(), (), ())


def _check_names(where: str, arrays: Mapping[str, object]) -> None:
    """Raise `DataError` for half a validation split, and for one of a name that would not be read."""
    for key in arrays:
        if key.startswith(("x_", "y_")) and key[2:] not in ("train", "val", "test"):
            raise DataError(f"{where}: the array '{key}' is not read", hint="the splits are train, val and test")
    for key, other in (("x_val", "y_val"), ("y_val", "x_val")):
        if key in arrays and other not in arrays:
            raise DataError(f"{where} has an array '{key}' and no '{other}'", hint="give both, or none of them")


def _data(
    name: str,
    splits: Mapping[str, ArraySet],
    options: DataOptions,
    augment: Augment,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Data:
    check_splits(name, splits)
    classes = _classes(name, splits, options)
    channels = splits["train"].images.shape[1]
    if not mean:
        mean, std = channel_statistics(splits["train"].images)
    mean = _constants(options.mean or mean, channels, "mean")
    std = _constants(options.std or std, channels, "std")
    flip = augment.flip if options.flip is None else options.flip
    crop = augment.crop if options.crop is None else options.crop
    if not classes and (flip or crop):
        raise UsageError(
            f"flip and crop would move the images of {name} and leave their targets where they are",
            hint="leave them out, or store moved images and targets",
        )
    return Data(name, splits["train"], splits["val"], splits["test"], classes, mean, std, Augment(flip, crop))


def _classes(name: str, splits: Mapping[str, ArraySet], options: DataOptions) -> int:
    if splits["train"].targets.is_floating_point():
        return 0
    classes = options.classes or int(splits["train"].targets.max()) + 1
    empty = sorted(set(range(min(classes, 1 << 20))) - set(splits["train"].targets.tolist()))
    if empty and not options.classes and options.train is None:
        raise DataError(
            f"no training image of {name} has the label {empty[0]}, though labels go up to {classes - 1}",
            hint=f"number the classes from 0 without gaps, or set ?classes={classes}",
        )
    for key, split in splits.items():
        if int(split.targets.max()) >= classes:
            raise DataError(
                f"label {int(split.targets.max())} in the {key} split of {name} is out of range 0..{classes - 1}",
                hint="the training images must cover all classes; or set ?classes=",
            )
    return classes


def _constants(values: tuple[float, ...], channels: int, name: str) -> tuple[float, ...]:
    values = values * channels if len(values) == 1 else values
    if not normalises(values, channels, positive=name == "std"):
        raise UsageError(
            f"{name}={values} does not fit images with {channels} channels",
            hint=f"give one finite number or {channels}, separated by commas; a std is above 0",
        )
    return values


def _selected(labels: Tensor, classes: int | None) -> Tensor:
    return torch.arange(len(labels)) if classes is None else torch.nonzero(labels < classes).flatten()


def _subset(pool: Pool, classes: int | None, size: int | None, seed: int) -> Tensor:
    indices = _selected(pool.labels, classes)
    if size is None:
        return indices
    return _some(indices, size, seed)


def _some(indices: Tensor, size: int, seed: int) -> Tensor:
    """So many of them, at random; arrays and folders are often sorted by class."""
    return indices[torch.randperm(len(indices), generator=generator(seed, "subset"))[:size]]


def _held_out(options: DataOptions, count: int) -> int:
    return options.val or min(HELD_OUT_MAX, max(1, count // 10))


def _take(split: ArraySet, indices: Tensor) -> ArraySet:
    return ArraySet(split.images[indices], split.targets[indices])
