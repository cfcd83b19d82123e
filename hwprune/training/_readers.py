"""Readers of the data formats: each gives labelled pools of encoded images, or plain arrays."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwprune.core.errors import DataError
from hwprune.core.files import sha256_file
from hwprune.training._decode import Pool, digest
from hwprune.training.data import ArraySet

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
# What zipfile, zlib and NumPy's header parser can raise on damaged files.
DAMAGE = (
    OSError, ValueError, EOFError, AttributeError, TypeError, LookupError, SyntaxError, RuntimeError, MemoryError,
    OverflowError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError,
)  # fmt: skip
BLOB_KEYS = frozenset({"blob", "offset", "label"})


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file; `DataError` naming the file when it is missing, damaged or holds objects."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"cannot read {path}: {reason}", hint="an .npz file of plain arrays is needed") from error


def blob_pool(path: Path, arrays: Mapping[str, np.ndarray], classes: int | None) -> Pool:
    """The images `blob[offset[i]:offset[i + 1]]` with `label[i]`."""
    blob, offset, label = arrays["blob"], arrays["offset"], arrays["label"]
    fits = offset.ndim == 1 and len(offset) == len(label) + 1 and len(label) > 0
    if not fits or offset[0] != 0 or offset[-1] != len(blob) or bool(np.any(np.diff(offset) <= 0)):
        raise DataError(
            f"{path}: offsets do not fit the blob", hint="offset has one entry more than label and ends at len(blob)"
        )

    def read(index: int) -> tuple[bytes, str]:
        return blob[offset[index] : offset[index + 1]].tobytes(), f"image {index} of {path}"

    return Pool(str(path), sha256_file(path), check_labels(label, classes, str(path)), read)


def blob_folder(folder: Path, classes: int | None) -> tuple[Pool, Pool]:
    """The train and the test pool of a folder with `train_jpeg.npz` and `test_jpeg.npz` or `val_jpeg.npz`."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", hint="name one with train_jpeg.npz and test_jpeg.npz or val_jpeg.npz")
    if any(folder.glob("*_batch*")):
        raise DataError(
            f"{folder} holds Python pickles (data_batch_1, ...), which are not read because they can run code",
            hint="convert them to .npz with x_train, y_train, x_test, y_test and use npz:FILE",
        )
    pools = []
    for names in (("train_jpeg.npz",), ("test_jpeg.npz", "val_jpeg.npz")):
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise DataError(
                f"{folder} has no {' or '.join(names)}",
                hint="for a folder of image files use imagefolder:PATH, for plain arrays npz:FILE",
            )
        arrays = read_npz(path)
        if not set(arrays) >= BLOB_KEYS:
            raise DataError(
                f"{path} holds {', '.join(arrays) or 'nothing'}, not blob, offset and label",
                hint="images must be stored encoded, one after the other in blob; for plain arrays use npz:FILE",
            )
        pools.append(blob_pool(path, arrays, classes))
    return pools[0], pools[1]


def folder_pool(folder: Path, names: tuple[str, ...]) -> Pool:
    """The images `folder/CLASS/*`; the label is the position of CLASS in `names`."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"class folder {folder / name} has no images", hint=f"known: {', '.join(IMAGE_SUFFIXES)}")
        files += found
        labels += [label] * len(found)
    return _pool_of(folder, files, labels)


def _pool_of(folder: Path, files: list[Path], labels: list[int]) -> Pool:
    stamps = [f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]

    def read(index: int) -> tuple[bytes, str]:
        return files[index].read_bytes(), str(files[index])

    return Pool(str(folder), digest(*stamps), torch.tensor(labels), read)


def flat_pool(folder: Path) -> Pool:
    """All images of a folder and its subfolders, in the order of their paths; they have no labels (0 each)."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", hint="name one with image files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{folder} has no images", hint=f"known: {', '.join(IMAGE_SUFFIXES)}")
    return _pool_of(folder, files, [0] * len(files))


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the class folders, sorted; `DataError` when there are none."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", hint="imagefolder:PATH needs PATH/train/CLASS/* and PATH/val/CLASS/*")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))
    if not names:
        raise DataError(f"{folder} has no class folders", hint="put the images of each class into a folder of its own")
    return names


def check_labels(labels: np.ndarray, classes: int | None, where: str) -> Tensor:
    """The labels as int64 `(N,)`; `DataError` naming `where` and the first label outside 0..classes-1."""
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"labels in {where} have shape {array.shape} and type {array.dtype}, not (N,) integers",
            hint="store the number of each image's class, from 0",
        )
    wrong = np.flatnonzero((array < 0) | (array >= (classes if classes is not None else np.inf)))
    if len(wrong):
        limit = f"0..{classes - 1}" if classes is not None else "0 and more"
        raise DataError(
            f"label {array[wrong[0]]} of example {wrong[0]} in {where} is out of range {limit}",
            hint="check the labels, or set ?classes=",
        )
    return torch.from_numpy(array.astype(np.int64))


def array_set(images: object, targets: object, where: str, classes: int | None) -> ArraySet:
    """Plain arrays as a split: images `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`, uint8 or floating.

    Integer targets are labels; floating ones of the images' own shape have the images' layout too.
    """
    pixels, labels = _array(images, f"images in {where}"), _array(targets, f"targets in {where}")
    if pixels.dtype.kind != "f" and pixels.dtype != np.uint8:
        raise DataError(
            f"images in {where} have type {pixels.dtype}, not uint8 or floating",
            hint="convert them: .astype('uint8') for values 0 to 255, else .astype('float32')",
        )
    if not len(pixels):
        raise DataError(f"{where} has no images", hint="give every split some")
    broken = np.flatnonzero(~np.isfinite(pixels).reshape(len(pixels), -1).all(1))
    if len(broken):
        raise DataError(f"example {broken[0]} in {where} has NaN or infinite pixels", hint="mend or remove it")
    kind = np.uint8 if pixels.dtype == np.uint8 else np.float32
    stored = torch.from_numpy(_channels_first(pixels, pixels.shape).astype(kind))
    if labels.dtype.kind != "f":
        return ArraySet(stored, check_labels(labels, classes, where))
    if not np.isfinite(labels).all():
        raise DataError(f"targets in {where} hold NaN or infinite values", hint="mend or remove those examples")
    if labels.shape[:3] == pixels.shape[:3] and labels.ndim == pixels.ndim:
        labels = _channels_first(labels, pixels.shape)
    return ArraySet(stored, torch.from_numpy(labels.astype(np.float32)))


def _array(values: object, what: str) -> np.ndarray:
    """An array, a tensor or nested lists as an array; `DataError` naming `what` it is where it is none."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # NumPy knows no bfloat16
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are no array: {error}", hint="every example must have the same shape") from error


def _channels_first(array: np.ndarray, images: tuple[int, ...]) -> np.ndarray:
    """`(N, C, H, W)` from an array in the layout of images of shape `images`."""
    if len(images) == 3:
        return array[:, None]
    if len(images) == 4 and images[-1] in (1, 3, 4) and images[1] not in (1, 3, 4):
        return array.transpose(0, 3, 1, 2)
    return array
