"""JPEG and PNG files to one uint8 array, decoded once and kept in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hwprune.core.errors import DataError
from hwprune.core.files import atomic_write_bytes
from hwprune.core.specs import cache_folder
from hwprune.training.data import ArraySet


@dataclass(frozen=True)
class Pool:
    """Labelled images that are still encoded. `key` changes whenever their bytes do.

    `labels` `(N,)` int64; `read(i)` gives the bytes of image i and its name for an error.
    """

    where: str
    key: str
    labels: Tensor
    read: Callable[[int], tuple[bytes, str]]

    def decode(self, indices: Tensor, *, size: int | None, cache: Path | None) -> ArraySet:
        """The images at `indices` as uint8 `(n, 3, H, W)` in channels-last layout, from the cache if they are there."""
        folder = cache_folder(cache) / "decoded"
        path = folder / f"{digest(self.key, str(size), indices.numpy().tobytes())}.safetensors"
        images = _cached(path, len(indices))
        if images is None:
            images = self._decode(indices.tolist(), size)
            atomic_write_bytes(path, save({"images": images}))
        return ArraySet(images.permute(0, 3, 1, 2), self.labels[indices])

    def _decode(self, indices: list[int], size: int | None) -> Tensor:
        stack: np.ndarray | None = None
        for position, index in enumerate(indices):
            content, where = self.read(index)
            pixels = decode_image(content, where, size)
            if stack is None:
                stack = np.empty((len(indices), *pixels.shape), dtype=np.uint8)
            if pixels.shape != stack.shape[1:]:
                raise DataError(
                    f"{where} has {pixels.shape[1]}x{pixels.shape[0]} pixels, other images have "
                    f"{stack.shape[2]}x{stack.shape[1]}",
                    hint="add ?size=224 to the data (or &size=224) to scale all images",
                )
            stack[position] = pixels
        if stack is None:
            raise DataError(
                f"{self.where} has no images for one of the splits",
                hint="choose smaller sizes for the other splits, or more classes",
            )
        return torch.from_numpy(stack)


def decode_image(content: bytes, where: str, size: int | None) -> np.ndarray:
    """RGB pixels `(H, W, 3)` of an encoded image; with `size`: shorter side scaled to it, centre cut out.

    Raises `DataError` naming `where` when the image is broken.
    """
    try:
        stored: Image.Image = Image.open(io.BytesIO(content))
        if stored.mode[0] in "IF":  # more than 8 bits a pixel; Pillow would clip them all to white
            raise DataError(
                f"{where} has pixels of more than 8 bits (Pillow's mode {stored.mode})",
                hint="convert its images to 8 bits a channel, or give arrays with npz:FILE",
            )
        image = stored.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).partition("<_io")[0].strip() or type(error).__name__
        raise DataError(f"{where} is not a readable image: {reason}", hint="remove or replace it") from error
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        image = image.resize((max(size, round(image.width * scale)), max(size, round(image.height * scale))))
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)


def digest(*parts: str | bytes) -> str:
    """A short hash of several parts; it tells `("ab", "c")` from `("a", "bc")`."""
    result = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        result.update(len(raw).to_bytes(8, "little") + raw)
    return result.hexdigest()[:32]


def _cached(path: Path, count: int) -> Tensor | None:
    with contextlib.suppress(OSError, SafetensorError, KeyError):  # absent or damaged: decode again
        images = load_file(str(path))["images"]
        if len(images) == count:
            return images
    return None
